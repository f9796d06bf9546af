//! Places at which a test makes the store stop, as a crash would.
//!
//! **What.** [`hit`] is called between the steps of the write protocol. In tests it can panic at a named place or return
//! an I/O error; otherwise it does nothing and is compiled away.
//! **Why not a crate.** One thread-local name is all that is needed, and nothing of it reaches a release.
//! **Invariants.** Outside `cfg(test)` the function returns `Ok` and has no state.

use std::io;

/// What a test wants to happen.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Trouble {
    /// The process "dies" here: a panic that the test catches; nothing cleans up files.
    Crash,
    /// The system call fails with this error number.
    Errno(i32),
}

#[cfg(test)]
thread_local! {
    static ARMED: std::cell::Cell<Option<(&'static str, Trouble)>> = const { std::cell::Cell::new(None) };
}

/// Arms one place for the current thread; it fires once.
#[cfg(test)]
pub(crate) fn arm(name: &'static str, trouble: Trouble) {
    ARMED.set(Some((name, trouble)));
}

/// Whether an armed place was never reached; disarms it.
#[cfg(test)]
pub(crate) fn disarm() -> bool {
    ARMED.take().is_some()
}

/// Marks a place.
///
/// # Errors
/// What a test asked for.
#[cfg(test)]
pub(crate) fn hit(name: &'static str) -> io::Result<()> {
    let Some((armed, trouble)) = ARMED.get() else { return Ok(()) };
    if armed != name {
        return Ok(());
    }
    ARMED.set(None);
    match trouble {
        Trouble::Crash => std::panic::panic_any("crash"),
        Trouble::Errno(number) => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Marks a place; does nothing outside tests.
///
/// # Errors
/// Never.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it can fail")]
#[inline]
pub(crate) const fn hit(_name: &'static str) -> io::Result<()> {
    Ok(())
}
