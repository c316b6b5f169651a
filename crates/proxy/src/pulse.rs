//! Patience with one request of HTTP/2, whose connection lives on whatever becomes of it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

tokio::task_local! {
    static PRESENT: Pulse;
}

/// Counts what passes between a client and one request.
#[derive(Clone, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// That of the request which is driven at present; `None` if nobody may lose patience with it.
    pub(crate) fn present() -> Option<Self> {
        PRESENT.try_with(Pulse::clone).ok()
    }

    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Drives a request to its end, or until nothing of it has passed, neither way, for `limit`, at most twice as long. Then
/// it is dropped, and its stream reset.
pub(crate) async fn drive(request: impl Future, limit: Duration) {
    let pulse = Pulse::default();
    let mut request = pin!(PRESENT.scope(pulse.clone(), request));
    let mut seen = 0;
    while timeout(limit, request.as_mut()).await.is_err() {
        let beats = pulse.beats();
        if beats == seen {
            tracing::debug!(?limit, "a client let nothing of a request pass for too long");
            return;
        }
        seen = beats;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{Instant, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_request_lasts_as_long_as_something_passes() {
        let began = Instant::now();
        drive(pending::<()>(), LIMIT).await;
        assert_eq!(began.elapsed(), LIMIT);

        let began = Instant::now();
        let slow = async {
            for _ in 0..10 {
                sleep(LIMIT / 2).await;
                Pulse::present().unwrap().beat();
            }
            pending::<()>().await
        };
        drive(slow, LIMIT).await;
        assert!((LIMIT * 6..=LIMIT * 7).contains(&began.elapsed()));
        assert!(Pulse::present().is_none());
    }
}
