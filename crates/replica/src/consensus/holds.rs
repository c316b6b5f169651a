//! Holds end in time: the leader says when.

use std::convert::Infallible;
use std::time::Duration;

use holdfast_wire::proto;
use holdfast_wire::proto::command::Command as Content;
use tokio::time::Instant;

use super::{Consensus, now_ms};
use crate::admission::Admitted;

/// Between two looks at what is held.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What it may take to decide; the next look tries again.
const PATIENCE: Duration = Duration::from_secs(5);

impl Consensus {
    /// Tells operators what is held, and lets go of what has been held for its time, for as long as the replica runs and
    /// whenever it leads.
    pub async fn look_after_holds(&self) -> Infallible {
        let mut told = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.is_leader() {
                told = 0;
                continue;
            }
            // Let go of at once: where a state changes that is held here, it is copied.
            let (held, first_end_ms) = {
                let position = self.published.load();
                let holds = &position.state.holds;
                (holds.len(), holds.first_end_ms())
            };
            if held > told {
                tracing::warn!(
                    held,
                    "so many routes were deleted at once that it may be an accident; they are held, and served on. \
                     `holdfast held` lists them, and confirms or rejects"
                );
            }
            told = held;
            if first_end_ms.is_some_and(|end_ms| end_ms <= now_ms()) {
                self.expire_holds().await;
            }
        }
    }

    /// Ends the holds that are over, in as many steps as it takes.
    async fn expire_holds(&self) {
        let mut sum = 0;
        loop {
            let entry = self.stamped(Content::ExpireHeld(proto::ExpireHeld {}));
            match self
                .end_holds(&entry, &Admitted::own(), Instant::now() + PATIENCE)
                .await
            {
                Ok((0, _)) => break,
                Ok((ended, _)) => sum += ended,
                Err(error) => {
                    tracing::debug!(%error, "holds that are over were not ended; the next try follows");
                    break;
                }
            }
        }
        if sum > 0 {
            tracing::warn!(routes = sum, "nobody has decided in time; what was held is deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Batch, Change, Command, HoldPolicy, Namespace, Route};

    use super::*;
    use crate::consensus::membership::tests::{founder, leads, replica};

    const SOON: Duration = Duration::from_secs(10);

    fn route(n: usize) -> Route {
        let (spec, target) = (format!("/user/{n}/"), format!("http://10.0.0.1:{}", 1_000 + n));
        Route::parse(&spec, &target, "", "").unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_leader_lets_go_of_what_is_over_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let consensus = replica(&dir, vec![founder()]).await;
        leads(&consensus).await;
        let write = async |changes: Vec<Change>, age_ms: u64| {
            let batch = Batch::new(Namespace::default(), changes, vec![]).unwrap();
            let command = Command { batch, session: None };
            let mut entry = consensus.stamped(Content::Write((&command).into()));
            entry.time_ms -= age_ms;
            let (own, deadline) = (Admitted::own(), Instant::now() + SOON);
            let written = consensus.propose(&command, &entry, &own, deadline);
            written.await.unwrap().held
        };
        let deletes = |numbers: std::ops::Range<usize>| numbers.map(|n| Change::Delete(route(n).spec)).collect();
        write((0..40).map(|n| Change::Put(route(n))).collect(), 0).await;
        assert_eq!(write(deletes(0..20), HoldPolicy::DEFAULT.hold_ms).await, 20);
        assert_eq!(write(deletes(20..40), 0).await, 20);

        let mut applied = consensus.published().applied();
        let ended = applied.wait_for(|_| consensus.published().load().state.holds.len() <= 20);
        tokio::select! {
            never = consensus.look_after_holds() => match never {},
            ended = tokio::time::timeout(SOON, ended) => drop(ended.unwrap().unwrap()),
        }
        let state = consensus.published().load().state.clone();
        assert_eq!((state.table.len(), state.holds.len()), (20, 20));
        assert!((20..40).all(|n| state.holds.contains(route(n).spec.key())));
        consensus.shutdown().await;
    }
}
