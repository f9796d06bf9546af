//! Hearth cli.
fn main() {}
