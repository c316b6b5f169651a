//! The log is kept short: what is in the table on disk and too long ago for others to need is purged.
//!
//! Openraft counts entries alone, and one of them may be sixteen megabytes. So it is told when to purge, and does not by
//! itself.

use std::convert::Infallible;
use std::time::Duration;

use openraft::ServerState;
use openraft::error::Fatal;
use tokio::time::timeout;

use super::Consensus;
use super::types::TypeConfig;
use crate::storage::log::Amount;

/// Between two looks at the log. It may outgrow its bound by what is written meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What openraft may take to note how far the table on disk is.
const PATIENCE: Duration = Duration::from_secs(5);

const MIB: u64 = 1024 * 1024;

/// How long a log may get, and how much of it is kept then: a replica that was away for no longer catches up from it, any
/// other gets a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct LogBound {
    /// More of one or the other is too much.
    pub max: Amount,
    /// The newest, no more of either.
    pub keep: Amount,
    /// A leader that waits for a replica to take what is to be purged waits no longer when the log has so many bytes.
    pub wait_bytes: u64,
}

impl LogBound {
    /// Of every replica. The simulation purges all the time.
    pub const DEFAULT: LogBound = LogBound {
        max: Amount {
            entries: if cfg!(test) { 50 } else { 40_000 },
            bytes: 256 * MIB,
        },
        keep: Amount {
            entries: if cfg!(test) { 5 } else { 20_000 },
            bytes: 192 * MIB,
        },
        wait_bytes: 512 * MIB,
    };
}

impl Consensus {
    /// Keeps the log within its bound, for as long as the replica runs, whether it leads or not.
    pub async fn trim_log(&self, bound: LogBound) -> Infallible {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(upto) = self.log_size.beyond(bound.max).and(self.log_size.beyond(bound.keep)) else {
                continue;
            };
            if let Err(error) = self.purge(upto, bound.wait_bytes).await {
                tracing::debug!(%error, "the log was not purged: the consensus has stopped");
            }
        }
    }

    /// Purges entries up to this one, as far as they are applied, and returns when they are gone. A leader keeps them while
    /// it sends one of them to somebody, unless the log has more than `wait_bytes` meanwhile.
    async fn purge(&self, upto: u64, wait_bytes: u64) -> Result<(), Fatal<TypeConfig>> {
        let applied = self.published.load().applied.map_or(0, |log_id| log_id.index);
        let upto = upto.min(applied);
        self.raft.trigger().snapshot().await?;
        let noted = self.metrics_when(|metrics| metrics.snapshot.is_some_and(|log_id| log_id.index >= upto));
        if timeout(PATIENCE, noted).await.is_err() {
            tracing::warn!(
                upto,
                "the log is too long, and is not purged: openraft takes no snapshot; the next look tries again"
            );
            return Ok(());
        }
        self.raft.trigger().purge_log(upto).await?;
        // Never asked to purge more meanwhile: whoever is being sent these entries might never be through.
        let gone = || {
            self.metrics_when(|metrics| {
                metrics.purged.is_some_and(|log_id| log_id.index >= upto) || metrics.state != ServerState::Leader
            })
        };
        let too_long = async {
            while self.log_size.now().bytes <= wait_bytes {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            _ = gone() => return Ok(()),
            () = too_long => {}
        }
        tracing::warn!(
            upto,
            "the log gets too long while a slow replica takes it; that one gets a snapshot instead"
        );
        self.network.withhold(upto);
        gone().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use holdfast_table::{Batch, Change, Command, Namespace, Route};
    use holdfast_wire::proto::command::Command as Content;
    use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
    use tokio::time::Instant;

    use super::*;
    use crate::admission::Admitted;
    use crate::consensus::membership::tests::{founder, leads, replica};
    use crate::storage::Store;
    use crate::storage::log::LogStore;
    use crate::storage::state_machine::StateMachine;

    const SOON: Duration = Duration::from_secs(20);
    const DATA_BYTES: usize = 30_000;
    const ROUTES_EACH: usize = 4;
    const WRITES: usize = 60;
    /// A seventh of what is written.
    const BOUND: LogBound = LogBound {
        max: Amount {
            entries: 1_000,
            bytes: MIB,
        },
        keep: Amount {
            entries: 1_000,
            bytes: MIB / 2,
        },
        wait_bytes: 2 * MIB,
    };

    async fn write(consensus: &Consensus, number: usize) {
        let data = format!(r#"{{"padding": "{}"}}"#, "x".repeat(DATA_BYTES));
        let route = |n| Route::parse(&format!("/user/{number}-{n}/"), "http://10.0.0.1:8888", &data, "").unwrap();
        let changes = (0..ROUTES_EACH).map(route).map(Change::Put).collect();
        let batch = Batch::new(Namespace::default(), changes, vec![]).unwrap();
        let command = Command { batch, session: None };
        let entry = consensus.stamped(Content::Write((&command).into()));
        let (own, deadline) = (Admitted::own(), Instant::now() + SOON);
        let written = consensus.propose(&command, &entry, &own, deadline);
        written.await.unwrap();
    }

    async fn reopened(dir: &Path) -> (LogStore, StateMachine) {
        let open = async {
            loop {
                // Openraft's tasks let go of the directory a moment after they were told to.
                if let Ok(store) = Store::open(dir) {
                    let (machine, _) = StateMachine::open(store.clone()).unwrap();
                    return (LogStore::open(store).unwrap(), machine);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, open).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_of_few_large_entries_is_purged_and_nothing_acknowledged_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let consensus = replica(&dir, vec![founder()]).await;
        leads(&consensus).await;
        let writes = async {
            for number in 0..WRITES {
                write(&consensus, number).await;
            }
            let short = async {
                while consensus.log_size.beyond(BOUND.max).is_some() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(SOON, short).await.expect("it is purged");
        };
        tokio::select! {
            never = consensus.trim_log(BOUND) => match never {},
            () = writes => {}
        }
        let digest = consensus.published().load().state.digest();
        let size = consensus.log_size.now();
        assert!(size.entries > 1, "some are kept for others: {size:?}");
        consensus.shutdown().await;
        drop(consensus);

        let (mut log, machine) = reopened(dir.path()).await;
        assert_eq!(machine.state().table.len(), WRITES * ROUTES_EACH);
        assert_eq!(machine.state().digest(), digest);
        let counted = log.size().now();
        assert_eq!(
            (counted.entries, counted.bytes),
            (size.entries, size.bytes),
            "counted again"
        );
        let state = log.get_log_state().await.unwrap();
        let (purged, last) = (
            state.last_purged_log_id.unwrap().index,
            state.last_log_id.unwrap().index,
        );
        let kept = log.try_get_log_entries(0..u64::MAX).await.unwrap();
        assert_eq!(kept.len(), size.entries);
        assert_eq!(kept.first().map(|entry| entry.log_id.index), Some(purged + 1));
        assert_eq!(last - purged, size.entries as u64);
        drop((log, machine));

        // It goes on from there, with the same members and the same table.
        let consensus = replica(&dir, vec![founder()]).await;
        leads(&consensus).await;
        write(&consensus, WRITES).await;
        assert_eq!(
            consensus.published().load().state.table.len(),
            (WRITES + 1) * ROUTES_EACH
        );
        consensus.shutdown().await;
    }
}
