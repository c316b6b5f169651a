//! Scrub: the same log makes the same state, so a replica whose state differs is wrong, and finds out.
//!
//! Every replica compares its digest, of the table and of what is held in it, with the others' at one revision, and now
//! and then recomputes its own from the routes. Sessions, hubs and the rest change without a revision, so their digest
//! is compared after one log entry, with those who are just there: under constant writes not in every round. Two
//! replicas that agree outvote a third; a single disagreement only tells that somebody is wrong.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::{Digest, Revision, Table};
use holdfast_wire::proto;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::MissedTickBehavior;

use crate::consensus::Consensus;
use crate::consensus::network::raft_client;
use crate::services::Context;
use crate::storage::state_machine::{Position, Published};

#[cfg(test)]
use crate::simulation::planted;

const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// Every so many comparisons the digest is recomputed, which costs the whole table.
const RECOMPUTE_EVERY: u32 = if cfg!(test) { 1 } else { 60 };
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What replicas compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The table, and what is held in it.
    Table,
    /// Everything else that the log decides.
    Rest,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Table => "the table",
            Part::Rest => "what is kept beside the table",
        })
    }
}

/// This replica's state is not what the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// More replicas than this one agree on another state.
    Outvoted {
        /// On what they agree.
        part: Part,
        /// At which revision.
        revision: Revision,
        /// This replica's digest.
        ours: Digest,
        /// The others'.
        theirs: Digest,
    },
    /// The routes do not add up to the digest that was kept with every change: a fault of memory, or a bug.
    Recomputed {
        /// At which revision.
        revision: Revision,
    },
}

/// Returns once this replica is found to be wrong.
pub async fn scrub(context: Arc<Context>, consensus: Consensus) -> Finding {
    let mut rounds = tokio::time::interval(COMPARE_EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1u32.. {
        rounds.tick().await;
        if let Some(finding) = compare(&context, &consensus).await {
            return finding;
        }
        if round.is_multiple_of(RECOMPUTE_EVERY)
            && let Some(finding) = recompute(consensus.published().load().state.table.clone()).await
        {
            return finding;
        }
    }
    std::future::pending().await
}

async fn recompute(table: Table) -> Option<Finding> {
    let (revision, kept) = (table.revision(), table.digest());
    #[cfg(test)]
    let kept = planted::miskept(kept);
    let recomputed = hashed(move || table.recompute_digest()).await?;
    (recomputed != kept).then_some(Finding::Recomputed { revision })
}

/// The newest state, and the index of the last log entry in it; 0 while that one is still being applied.
pub fn newest(published: &Published) -> (Arc<Position>, u64) {
    // An entry is published once it is applied, and the next one notes its index before it changes anything: so a state
    // that still has the index read here is exactly that entry's.
    let applied = *published.applied().borrow();
    let position = published.load();
    let last = position.applied.as_ref().map(|log_id| log_id.index);
    let index = if last == Some(applied) { applied } else { 0 };
    (position, index)
}

/// The digest of what is kept beside the table; `None` if the replica stops.
pub async fn rest_digest(position: Arc<Position>) -> Option<Digest> {
    hashed(move || position.state.rest_digest()).await
}

/// Hashes on another thread, where it delays no heartbeat.
async fn hashed(hash: impl FnOnce() -> Digest + Send + 'static) -> Option<Digest> {
    // A runtime of one thread is a simulation's, which would not be the same twice with a second thread.
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Some(hash()),
        _ => tokio::task::spawn_blocking(hash).await.ok(),
    }
}

async fn compare(context: &Context, consensus: &Consensus) -> Option<Finding> {
    let (position, applied_index) = newest(consensus.published());
    let table = &position.state.table;
    let (epoch, revision) = (table.epoch(), table.revision());
    let me = consensus.identity().node_id;
    let members = consensus.members();
    let voters = members.iter().filter(|(.., voter)| *voter).count();
    let others = members.into_iter().filter(|(id, _, voter)| *voter && *id != me);
    let answers = others.map(async |(id, node, _)| {
        let request = proto::CompareRequest {
            peer: Some(consensus.peer(id, &node)),
            epoch: epoch.0,
            revision: revision.0,
            applied_index,
        };
        let mut client = raft_client(consensus.channel(&node.peer_address)?);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.compare(request)).await;
        Some((node.name, answer.ok()?.ok()?.into_inner()))
    });
    let answers: Vec<(String, proto::CompareResponse)> = futures_util::future::join_all(answers)
        .await
        .into_iter()
        .flatten()
        .collect();
    let told = |of: fn(&proto::CompareResponse) -> &Bytes| -> Vec<(&str, Digest)> {
        let digests = answers.iter();
        digests
            .filter_map(|(name, answer)| Some((name.as_str(), Digest::from_bytes(of(answer))?)))
            .collect()
    };
    let judge = |part: Part, ours: Digest, others: &[(&str, Digest)]| {
        for (name, theirs) in others.iter().filter(|(_, theirs)| *theirs != ours) {
            context.metrics.digest_differed();
            tracing::error!(replica = name, %part, %revision, %ours, %theirs, "another replica has another digest");
        }
        let theirs = outvoted(ours, others.iter().map(|(_, digest)| *digest), voters)?;
        Some(Finding::Outvoted {
            part,
            revision,
            ours,
            theirs,
        })
    };
    let finding = judge(Part::Table, position.state.digest(), &told(|answer| &answer.digest));
    let rest = told(|answer| &answer.rest_digest);
    if finding.is_some() || rest.is_empty() {
        return finding;
    }
    judge(Part::Rest, rest_digest(position.clone()).await?, &rest)
}

/// The digest that a majority of all voters agrees on, if it is not ours.
fn outvoted(ours: Digest, others: impl Iterator<Item = Digest> + Clone, voters: usize) -> Option<Digest> {
    let mut different = others.clone().filter(|digest| *digest != ours);
    different.find(|digest| others.clone().filter(|other| other == digest).count() > voters / 2)
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Entry, Epoch, Route};
    use tempfile::tempdir;

    use super::*;
    use crate::consensus::membership::tests::{founder, leads, replica};
    use crate::simulation::planted::{Bug, plant};

    fn digest(n: u8) -> Digest {
        Digest::from_bytes(&[n; 32]).unwrap()
    }

    #[test]
    fn only_a_majority_of_all_voters_outvotes() {
        let judge = |others: &[u8], voters| outvoted(digest(1), others.iter().map(|n| digest(*n)), voters);
        assert_eq!(judge(&[2, 2], 3), Some(digest(2)));
        assert_eq!(judge(&[1, 2], 3), None, "the other one is wrong");
        assert_eq!(judge(&[2], 3), None, "one against one");
        assert_eq!(judge(&[2, 3], 3), None, "everybody differs");
        assert_eq!(judge(&[1, 1], 3), None);
        assert_eq!(judge(&[], 1), None);
        assert_eq!(judge(&[2, 2, 1, 1], 5), None);
        assert_eq!(judge(&[2, 2, 2, 1], 5), Some(digest(2)));
    }

    #[tokio::test]
    async fn routes_that_do_not_add_up_to_the_digest_that_is_kept_are_found() {
        let route = Route::parse("/user/alice/", "http://10.1.2.3:8888", "", "").unwrap();
        let entry = Entry {
            route,
            modified: Revision(7),
        };
        let table = Table::from_entries(Epoch(0), Revision(7), [entry]);
        let sound = recompute(table.clone()).await;
        plant(Some(Bug::DigestMiskept));
        let found = recompute(table).await;
        plant(None);
        assert_eq!(
            (sound, found),
            (None, Some(Finding::Recomputed { revision: Revision(7) }))
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_state_is_named_by_its_entry_while_no_other_is_being_applied() {
        let dir = tempdir().unwrap();
        let consensus = replica(&dir, vec![founder()]).await;
        leads(&consensus).await;
        let (position, index) = newest(consensus.published());
        assert_eq!(Some(index), position.applied.as_ref().map(|log_id| log_id.index));
        assert!(index > 0);
        assert_eq!(rest_digest(position.clone()).await, Some(position.state.rest_digest()));
        consensus.shutdown().await;
    }
}
