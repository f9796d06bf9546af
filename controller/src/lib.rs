//! Hearth controller.
