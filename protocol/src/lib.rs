//! Hearth protocol.
