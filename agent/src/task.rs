//! Background tasks with a name.
//!
//! **What.** [`spawn`] is the only way this crate starts a tokio task.
//!
//! **Why.** A bare `tokio::spawn` loses both who is running and why it died: the panic of a task that nobody joins
//! goes unseen. Here every line a task logs carries its name, and its panic is logged where it happens.
//!
//! **Invariants.** `a_panic_is_logged_and_still_reaches_the_join_handle`: logging does not swallow a panic.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Starts `future` as a task named `name`, inside the span of the caller.
///
/// The task runs on when the handle is dropped; abort it through the handle. A panic is logged as an error and then
/// reported by the handle as usual.
///
/// # Panics
/// Outside a tokio runtime.
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that the rest of the crate uses")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let named = async move {
        match AssertUnwindSafe(future).catch_unwind().await {
            Ok(output) => output,
            Err(panic) => {
                tracing::error!(task = name, message = panic_message(panic.as_ref()), "task panicked");
                resume_unwind(panic)
            }
        }
    };
    tokio::spawn(named.instrument(tracing::info_span!("task", name)))
}

/// The text of a panic, as far as it has one.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(not a text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_returns_its_output() {
        assert_eq!(spawn("seven", async { 7 }).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_logged_and_still_reaches_the_join_handle() {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish(),
        );
        let failed = spawn("doomed", async { panic!("no luck {}", 7) }).await.unwrap_err();
        assert!(failed.is_panic());
        let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(lines.contains("doomed") && lines.contains("no luck 7"), "{lines}");
    }

    /// Collects what a subscriber writes.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }
}
