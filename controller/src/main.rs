//! Hearth controller.
fn main() {}
