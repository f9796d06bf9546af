//! The one setting of the memory allocator.
//!
//! **What.** [`few_arenas`] bounds the arenas between which glibc spreads threads.
//! **Why.** By default every thread may open an arena of its own. An agent's session is allocated by several threads one
//! after the other, and what each of them frees stays in its arena: measured with 1,000 idle agents, 72 KiB each with the
//! default and 57 KiB with two arenas, at the same speed. A setting here holds for every way of starting the program; the
//! environment variable `MALLOC_ARENA_MAX` would hold only where somebody sets it.
//! **Invariants.** The only module of this crate that may use `unsafe`.

#![expect(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Two: a thread that finds one taken uses the other.
const ARENAS_MAX: i32 = 2;

/// To be called before any other thread runs. Where the allocator does not know the setting, nothing changes.
pub(crate) fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call with two integers, made while the program has one thread.
    let _known = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS_MAX) };
}
