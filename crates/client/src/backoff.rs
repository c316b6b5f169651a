//! How long to wait before the next try.

use std::time::Duration;

/// The limit of the first wait.
pub const BASE: Duration = Duration::from_millis(100);
/// The limit that no wait for a stream exceeds.
pub const STREAM_CAP: Duration = Duration::from_secs(5);
/// The limit that no wait within a call exceeds: somebody waits for its answer, and an election takes far less.
pub const CALL_CAP: Duration = Duration::from_secs(1);

/// Waits with full jitter: each anywhere from nothing to a limit that doubles from [`BASE`] to a cap.
///
/// The jitter spreads those that failed at one moment, so that they do not come back at one moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    limit: Duration,
    cap: Duration,
}

impl Backoff {
    /// Begins with the shortest waits.
    pub fn new(cap: Duration) -> Self {
        Backoff { limit: BASE, cap }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let limit = self.limit;
        self.limit = self.cap.min(limit * 2);
        rand::random_range(Duration::ZERO..=limit)
    }

    /// Begins again with the shortest waits: the last try was a good one.
    pub fn reset(&mut self) {
        self.limit = BASE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_begin_again_after_a_reset() {
        let mut backoff = Backoff::new(STREAM_CAP);
        let mut limit = BASE;
        for _ in 0..20 {
            assert!(backoff.next_wait() <= limit);
            limit = STREAM_CAP.min(limit * 2);
        }
        assert_eq!((backoff.limit, limit), (STREAM_CAP, STREAM_CAP));
        backoff.reset();
        assert!(backoff.next_wait() <= BASE);
    }
}
