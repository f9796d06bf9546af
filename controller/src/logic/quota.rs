//! How much a project may have.
//!
//! **What.** [`admit`] compares what a project has and wants with what it may have.
//!
//! **Why 0 is no limit.** Who wants a project to have nothing disables it; "no limit" must have a spelling in TOML, where
//! nothing can be absent on purpose.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `what_is_full_takes_nothing_more`
//! 2. `a_lowered_limit_takes_nothing_away`: who has too much is refused more of that, and of nothing else.
//! 3. `a_projects_own_limit_wins_over_the_default`

/// Three figures of a project. As a limit, 0 is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Images that are not public.
    pub images: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Uploads and imports that run.
    pub imports: u64,
}

impl Figures {
    /// Nothing.
    pub const NONE: Self = Self { images: 0, bytes: 0, imports: 0 };

    /// So many bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self { bytes, ..Self::NONE }
    }

    /// One more upload or import.
    #[must_use]
    pub const fn one_import() -> Self {
        Self { imports: 1, ..Self::NONE }
    }

    /// One more image of so many bytes.
    #[must_use]
    pub const fn one_image(bytes: u64) -> Self {
        Self { images: 1, bytes, ..Self::NONE }
    }
}

/// A project's own limits; `None` follows the default.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OwnLimits {
    /// Images that are not public.
    pub images: Option<u64>,
    /// Bytes of their files.
    pub bytes: Option<u64>,
    /// Uploads and imports at once.
    pub imports: Option<u64>,
}

impl OwnLimits {
    /// No limit at all, whatever the default is.
    pub const UNLIMITED: Self = Self { images: Some(0), bytes: Some(0), imports: Some(0) };

    /// What holds: the own limit, else the default.
    #[must_use]
    pub fn over(self, default: Figures) -> Figures {
        Figures {
            images: self.images.unwrap_or(default.images),
            bytes: self.bytes.unwrap_or(default.bytes),
            imports: self.imports.unwrap_or(default.imports),
        }
    }
}

/// What would be too much.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exceeded {
    /// Of what, in the plural.
    pub what: &'static str,
    /// What there is.
    pub used: u64,
    /// What was wanted beside it.
    pub wanted: u64,
    /// What is allowed.
    pub limit: u64,
}

/// Whether a project that has `used` may have `more`.
///
/// # Errors
/// The first figure that would pass its limit.
pub fn admit(limits: Figures, used: Figures, more: Figures) -> Result<(), Exceeded> {
    let lines = [
        ("images", limits.images, used.images, more.images),
        ("bytes", limits.bytes, used.bytes, more.bytes),
        ("imports at once", limits.imports, used.imports, more.imports),
    ];
    let too_much = |(_, limit, used, more): &(&str, u64, u64, u64)| {
        *limit > 0 && *more > 0 && used.saturating_add(*more) > *limit
    };
    match lines.into_iter().find(too_much) {
        Some((what, limit, used, wanted)) => Err(Exceeded { what, used, wanted, limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Figures = Figures { images: 10, bytes: 100, imports: 0 };

    /// QU-1: refused with the figure and the limit.
    #[test]
    fn what_is_full_takes_nothing_more() {
        let used = Figures { images: 9, bytes: 60, imports: 1000 };
        assert_eq!(admit(LIMITS, used, Figures { images: 1, bytes: 40, imports: 1 }), Ok(()));
        let bytes = Exceeded { what: "bytes", used: 60, wanted: 41, limit: 100 };
        assert_eq!(admit(LIMITS, used, Figures::one_image(41)), Err(bytes));
        let images = Exceeded { what: "images", used: 9, wanted: 2, limit: 10 };
        assert_eq!(admit(LIMITS, used, Figures { images: 2, ..Figures::NONE }), Err(images));
        let endless = Exceeded { what: "bytes", used: 60, wanted: u64::MAX, limit: 100 };
        assert_eq!(admit(LIMITS, used, Figures::bytes(u64::MAX)), Err(endless));
    }

    #[test]
    fn a_lowered_limit_takes_nothing_away() {
        let used = Figures { images: 50, bytes: 60, imports: 0 };
        assert_eq!(admit(LIMITS, used, Figures::bytes(1)), Ok(()));
        assert_eq!(admit(LIMITS, used, Figures::NONE), Ok(()));
        assert!(admit(LIMITS, used, Figures::one_image(0)).is_err());
    }

    #[test]
    fn a_projects_own_limit_wins_over_the_default() {
        let own = OwnLimits { images: Some(0), bytes: Some(5), imports: None };
        let default = Figures { imports: 3, ..LIMITS };
        assert_eq!(own.over(default), Figures { images: 0, bytes: 5, imports: 3 });
        assert_eq!(OwnLimits::default().over(default), default);
        assert_eq!(OwnLimits::UNLIMITED.over(default), Figures::NONE);
    }
}
