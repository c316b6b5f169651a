//! Signal: something that happens once, and that thousands of tasks wait for beside their work.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Raised once, never lowered.
///
/// A token alone takes a lock, shared by all who wait, each time one of them is polled. So waiting tasks poll the token
/// once, to be woken by it, and after that look at a flag.
#[derive(Default)]
pub(crate) struct Signal {
    raised: AtomicBool,
    since: OnceLock<Instant>,
    token: CancellationToken,
}

impl Signal {
    /// Returns when it was raised first.
    pub(crate) fn raise(&self) -> Instant {
        let since = *self.since.get_or_init(Instant::now);
        self.raised.store(true, Ordering::Release);
        self.token.cancel();
        since
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Returns when it is raised.
    pub(crate) async fn raised(&self) {
        self.token.cancelled().await;
    }

    /// Drives `future` to its end, or until the signal is raised: then `None`. Must stay in the task that first polls it.
    pub(crate) async fn unless_raised<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut cancelled = pin!(self.token.cancelled());
        let mut waiting = false;
        poll_fn(|cx| {
            if !waiting || self.is_raised() {
                waiting = true;
                if cancelled.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_raised_signal_ends_what_waits_and_what_comes_later() {
        let signal = Arc::new(Signal::default());
        let raise = async {
            tokio::task::yield_now().await;
            signal.raise()
        };
        let (waiting, first) = tokio::join!(signal.unless_raised(pending::<()>()), raise);
        assert_eq!(waiting, None);
        assert!(signal.is_raised());
        assert_eq!(signal.raise(), first);
        assert_eq!(signal.unless_raised(async { 1 }).await, None);
        assert_eq!(Signal::default().unless_raised(async { 1 }).await, Some(1));
    }
}
