//! The few calls that no safe wrapper offers.
//!
//! **What.** [`few_arenas`] bounds the arenas between which glibc spreads threads; [`give_back`] returns free memory.
//! **Why few arenas.** By default every thread may open an arena of its own. An agent's session is allocated by several
//! threads one after the other, and what each of them frees stays in its arena: measured with 1,000 idle agents, 72 KiB
//! each with the default and 57 KiB with two arenas, at the same speed. A setting here holds for every way of starting the
//! program; the environment variable `MALLOC_ARENA_MAX` would hold only where somebody sets it.
//! **Why give back.** A thousand handshakes at once leave holes that glibc keeps: measured with 2,000 idle agents, 63 KiB
//! each before and 57 KiB after.
//! **Invariants.** The only module of this crate that may use `unsafe`; each block says why it is sound.

#![expect(unsafe_code, reason = "calls without a safe wrapper live in this module alone")]

/// Two: a thread that finds one taken uses the other.
const ARENAS_MAX: i32 = 2;

/// To be called before any other thread runs. Where the allocator does not know the setting, nothing changes.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call with two integers, made while the program has one thread.
    let _known = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS_MAX) };
}

/// Returns free pages to the system. Takes milliseconds per 100 MiB; not for a thread that others wait for.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator takes its own locks; memory in use is not touched.
    let _some = unsafe { nix::libc::malloc_trim(0) };
}
