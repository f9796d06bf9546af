//! Takes uploaded files in: inspection, conversion, cutting.

pub mod chunk;
pub mod convert;
pub mod inspect;
pub mod sandbox;
