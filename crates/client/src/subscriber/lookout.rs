//! Lookout: when to leave a replica that has lost its leader, and when to stay because all are alike.

use std::time::Duration;

use tokio::time::Instant;

/// A replica that has known no quorum behind a leader for longer may be cut off from the others. No election takes so
/// long.
const LEADERLESS: Duration = Duration::from_secs(3);
/// The subscribers of one replica leave it at different moments, within this time.
const SPREAD: Duration = Duration::from_secs(2);
/// Between two looks around while no replica has a leader: at least this, and at most twice as long.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Decides from what bookmarks say. A look around comes to every other replica once and ends at the last one, whatever
/// it is like: so there is no more than one in [`LOOK_EVERY`], and a stream meanwhile.
#[derive(Debug)]
pub(super) struct Lookout {
    // How many replicas there are besides the one that is followed.
    others: usize,
    // How many of them are still to be come to.
    left: usize,
    not_before: Instant,
}

impl Lookout {
    pub(super) fn new(replicas: usize) -> Self {
        let others = replicas.saturating_sub(1);
        Lookout {
            others,
            left: others,
            not_before: Instant::now(),
        }
    }

    /// Takes note that a stream is over, or that there was none to be had.
    pub(super) fn ended(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether to leave the replica that is followed, which says how long ago it last knew a quorum behind a leader.
    pub(super) fn leaves(&mut self, leader_contact_age: Duration) -> bool {
        let now = Instant::now();
        if leader_contact_age <= LEADERLESS {
            self.left = self.others;
            self.not_before = now + rand::random_range(Duration::ZERO..=SPREAD);
            return false;
        }
        if now < self.not_before {
            return false;
        }
        if self.left == 0 {
            self.left = self.others;
            self.not_before = now + rand::random_range(LOOK_EVERY..=2 * LOOK_EVERY);
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LED: Duration = Duration::from_millis(40);
    const LOST: Duration = Duration::from_secs(4);

    /// One bookmark a second for so long, each from a replica without a leader; returns how often one was left.
    async fn left_in(lookout: &mut Lookout, seconds: u64) -> usize {
        let mut left = 0;
        for _ in 0..seconds {
            advance(Duration::from_secs(1)).await;
            if lookout.leaves(LOST) {
                lookout.ended();
                left += 1;
            }
        }
        left
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_has_lost_its_leader_is_left_soon_and_one_that_has_it_never() {
        let mut lookout = Lookout::new(3);
        for _ in 0..100 {
            advance(Duration::from_secs(1)).await;
            assert!(!lookout.leaves(LEADERLESS));
        }
        advance(SPREAD + Duration::from_secs(1)).await;
        assert!(lookout.leaves(LOST));
        lookout.ended();
        // The next one has a leader, and loses it.
        assert!(!lookout.leaves(LED));
        assert!(left_in(&mut lookout, SPREAD.as_secs() + 1).await > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_alike_each_is_come_to_once_and_one_is_stayed_with_for_a_while() {
        let mut lookout = Lookout::new(3);
        assert_eq!(left_in(&mut lookout, 8).await, 2);
        let looks_at_most = 600 / LOOK_EVERY.as_secs();
        let left = left_in(&mut lookout, 600).await;
        let others = 2;
        assert!(left >= others * looks_at_most as usize / 3, "{left}");
        assert!(left <= others * (looks_at_most as usize + 1), "{left}");
        // One that has its leader back is stayed with.
        assert!(!lookout.leaves(LED));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_that_cannot_be_followed_have_been_come_to() {
        let mut lookout = Lookout::new(3);
        assert!(lookout.leaves(LOST));
        // That stream, and two replicas that are down.
        (0..3).for_each(|_| lookout.ended());
        assert!(!lookout.leaves(LOST));
        assert_eq!(left_in(&mut lookout, LOOK_EVERY.as_secs() - 1).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_replica_is_never_left() {
        let mut lookout = Lookout::new(1);
        assert_eq!(left_in(&mut lookout, 100).await, 0);
    }
}
