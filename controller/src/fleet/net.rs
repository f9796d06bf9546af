//! The threads that wait for packets.
//!
//! **What.** A tokio runtime of its own for the endpoint, the sessions and the data streams.
//! **Why apart.** An idle fleet is thousands of tiny wake-ups. In a pool of workers each wakes a second thread that finds
//! nothing to do: measured with 1,300 idle agents, a third of the controller's time was spent switching threads. And one
//! thread for packets was also the fastest for transfers on a small machine (0.98 against 0.86 GiB/s).
//! **Why more than one on large machines.** A thread moves about 1 GiB/s; a source with a fast network wants more.
//!
//! **Invariants.** Nothing that waits for a disk or computes for long runs here: reads go to the blocking pool, passes of
//! the reconciler and reports to the main runtime.

use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Processors per thread for packets, and the most such threads.
const CPUS_PER_THREAD: usize = 4;
const THREADS_MAX: usize = 8;

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Net {
    /// Starts the threads.
    ///
    /// # Errors
    /// The operating system gives no thread or no poll descriptor.
    pub(super) fn start() -> std::io::Result<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let threads = (cpus / CPUS_PER_THREAD).clamp(1, THREADS_MAX);
        let runtime = if threads == 1 {
            Builder::new_current_thread().enable_io().enable_time().build()?
        } else {
            Builder::new_multi_thread()
                .worker_threads(threads)
                .thread_name("hearth-net")
                .enable_io()
                .enable_time()
                .build()?
        };
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("hearth-net".to_owned()).spawn(move || {
            // Ends with an error when the sender is dropped: that is the signal.
            drop(runtime.block_on(stopped));
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop })
    }
}
