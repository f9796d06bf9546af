//! Hearth tests.
