//! The doors: one module per service, and what they share.

pub mod admin;
pub mod backup;
pub mod chp_api;
pub mod cluster;
pub mod forwarded;
pub mod guard;
pub mod members;
pub mod proxies;
pub mod raft;
pub mod routes;
pub mod subscribe;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_table::Allowed;
use holdfast_wire::errors::{self, Reason};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::activity::Activity;
use crate::admission::Admission;
use crate::consensus::Consensus;
use crate::consensus::bootstrap::Introduction;
use crate::feed::Feed;
use crate::feed::whereabouts::Whereabouts;
use crate::metrics::Metrics;
use crate::storage::Store;

/// How long a call without a deadline of its own may take.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
const DEADLINE_MAX: Duration = Duration::from_secs(60);

/// What every service of one replica sees.
pub struct Context {
    /// Who this replica is.
    pub introduction: Introduction,
    /// Its disk.
    pub store: Store,
    /// How long that took to sync when the replica started.
    pub disk_sync: Duration,
    /// Which targets routes may have.
    pub allowed: Allowed,
    /// Set once the replica is a member of a cluster.
    pub consensus: watch::Sender<Option<Consensus>>,
    /// Its subscribers.
    pub feed: Arc<Feed>,
    /// Which replica each proxy follows.
    pub whereabouts: Whereabouts,
    /// When its routes were last active.
    pub activity: Activity,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Bounds the writes under way.
    pub admission: Admission,
    /// Set once it has caught up since its start, and never unset.
    pub caught_up: AtomicBool,
    /// Cancelled when the replica begins to stop.
    pub stopping: CancellationToken,
    /// Cancelled when the replica turns out to be no member any more.
    pub retired: CancellationToken,
    /// How many backups may be under way.
    pub backups: Arc<Semaphore>,
    /// Owns the tasks of streams; the replica waits for them.
    pub streams: TaskTracker,
}

impl Context {
    /// Of a replica that has just been started.
    pub fn new(introduction: Introduction, store: Store, disk_sync: Duration, allowed: Allowed) -> Self {
        Context {
            introduction,
            store,
            disk_sync,
            allowed,
            consensus: watch::Sender::new(None),
            feed: Arc::default(),
            whereabouts: Whereabouts::default(),
            activity: Activity::default(),
            metrics: Arc::default(),
            admission: Admission::default(),
            caught_up: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            retired: CancellationToken::new(),
            backups: backup::permits(),
            streams: TaskTracker::new(),
        }
    }

    /// Returns when a call that is still under way has to end: a moment after the replica has begun to stop.
    pub async fn stopped(&self) {
        const LAST_MOMENT: Duration = Duration::from_millis(500);
        self.stopping.cancelled().await;
        tokio::time::sleep(LAST_MOMENT).await;
    }

    /// Why this replica serves nothing and never will, and what to do; empty if it does.
    pub fn problem(&self) -> String {
        if !self.retired.is_cancelled() {
            return String::new();
        }
        let identity = self.introduction.identity.borrow();
        format!(
            "retired: its id {} was taken from it, because it was removed from cluster {} or replaced. What it has may be \
             old, so it serves nothing. Stop it; to have it join anew, start it again on an empty data directory",
            identity.node_id, identity.cluster_id
        )
    }

    /// The consensus of a member.
    ///
    /// # Errors
    /// `not-ready`: this replica belongs to no cluster yet, or no longer.
    pub fn member(&self) -> Result<Consensus, Status> {
        if self.retired.is_cancelled() {
            return Err(Reason::NotReady.status(format!("this replica is {}", self.problem())));
        }
        self.consensus
            .borrow()
            .clone()
            .ok_or_else(|| match self.introduction.waiting_for.borrow().as_str() {
                "" => Reason::NotReady.status("this replica is starting; ask another one, or again"),
                reason => Reason::NotReady.status(format!("this replica is in no cluster yet; it waits for {reason}")),
            })
    }

    /// The consensus of a member that has caught up.
    ///
    /// # Errors
    /// `not-ready`: what it holds may be older than what others have seen; ask another replica.
    pub fn ready(&self) -> Result<Consensus, Status> {
        let consensus = self.member()?;
        match self.caught_up.load(Ordering::Relaxed) {
            true => Ok(consensus),
            false => Err(Reason::NotReady.status("this replica has not caught up since its start; ask another one")),
        }
    }
}

/// How long the caller is willing to wait, by the header `grpc-timeout`.
fn patience(metadata: &MetadataMap) -> Duration {
    let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    header
        .and_then(parse_timeout)
        .unwrap_or(DEADLINE_DEFAULT)
        .min(DEADLINE_MAX)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Names the leader in an answer or error, so that the caller may go there directly.
fn hint(metadata: &mut MetadataMap, consensus: &Consensus) {
    if let Some((_, node)) = consensus.leader() {
        errors::hint_leader(metadata, &node.client_address);
    }
}

fn hinted(mut status: Status, consensus: &Consensus) -> Status {
    hint(status.metadata_mut(), consensus);
    status
}

/// An error of a caller that speaks the protocol wrongly.
fn protocol_error(message: impl Into<String>) -> Status {
    Status::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_deadline_is_read_and_bounded() {
        let patience_of = |value: Option<&'static str>| {
            let mut metadata = MetadataMap::new();
            if let Some(value) = value {
                metadata.insert("grpc-timeout", value.parse().unwrap());
            }
            patience(&metadata)
        };
        assert_eq!(patience_of(Some("1500m")), Duration::from_millis(1500));
        assert_eq!(patience_of(Some("2S")), Duration::from_secs(2));
        assert_eq!(patience_of(Some("9H")), DEADLINE_MAX);
        for odd in [None, Some("x"), Some(""), Some("10"), Some("99999999999999999999S")] {
            assert_eq!(patience_of(odd), DEADLINE_DEFAULT);
        }
    }
}
