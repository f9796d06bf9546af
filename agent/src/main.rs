//! Hearth agent.
fn main() {}
