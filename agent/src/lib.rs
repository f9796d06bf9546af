//! Hearth agent.
