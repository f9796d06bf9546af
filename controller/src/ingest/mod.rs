//! Takes uploaded files in: inspection, conversion, cutting.

pub mod inspect;
