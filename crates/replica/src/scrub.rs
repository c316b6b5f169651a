//! Scrub: the same log makes the same table, so a replica whose table differs is wrong, and finds out.
//!
//! Every replica compares its digest, of the table and of what is held in it, with the others' at one revision, and now and then recomputes its own from the
//! routes. Two replicas that agree outvote a third; a single disagreement only tells that somebody is wrong.

use std::sync::Arc;
use std::time::Duration;

use holdfast_table::{Digest, Revision};
use holdfast_wire::proto;
use tokio::time::MissedTickBehavior;

use crate::consensus::Consensus;
use crate::consensus::network::raft_client;
use crate::services::Context;

const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// Every so many comparisons the digest is recomputed, which costs the whole table.
const RECOMPUTE_EVERY: u32 = 60;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// This replica's table is not what the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// More replicas than this one agree on another table.
    Outvoted {
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
        if round % RECOMPUTE_EVERY == 0
            && let Some(finding) = recompute(&consensus).await
        {
            return finding;
        }
    }
    std::future::pending().await
}

async fn recompute(consensus: &Consensus) -> Option<Finding> {
    let table = consensus.published().load().state.table.clone();
    let (revision, kept) = (table.revision(), table.digest());
    let recomputed = tokio::task::spawn_blocking(move || table.recompute_digest())
        .await
        .ok()?;
    (recomputed != kept).then_some(Finding::Recomputed { revision })
}

async fn compare(context: &Context, consensus: &Consensus) -> Option<Finding> {
    let state = consensus.published().load().state.clone();
    let (epoch, revision, ours) = (state.table.epoch(), state.table.revision(), state.digest());
    let me = consensus.identity().node_id;
    let members = consensus.members();
    let voters = members.iter().filter(|(.., voter)| *voter).count();
    let others = members.into_iter().filter(|(id, _, voter)| *voter && *id != me);
    let answers = others.map(async |(id, node, _)| {
        let request = proto::CompareRequest {
            peer: Some(consensus.peer(id, &node)),
            epoch: epoch.0,
            revision: revision.0,
        };
        let mut client = raft_client(consensus.channel(&node.peer_address)?);
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.compare(request)).await;
        let digest = Digest::from_bytes(&answer.ok()?.ok()?.into_inner().digest)?;
        Some((node.name, digest))
    });
    let answers: Vec<(String, Digest)> = futures_util::future::join_all(answers)
        .await
        .into_iter()
        .flatten()
        .collect();
    for (name, theirs) in answers.iter().filter(|(_, theirs)| *theirs != ours) {
        context.metrics.digest_differed();
        tracing::error!(replica = name, %revision, %ours, %theirs, "another replica has another table at the same revision");
    }
    let theirs = outvoted(ours, answers.iter().map(|(_, digest)| *digest), voters)?;
    Some(Finding::Outvoted { revision, ours, theirs })
}

/// The digest that a majority of all voters agrees on, if it is not ours.
fn outvoted(ours: Digest, others: impl Iterator<Item = Digest> + Clone, voters: usize) -> Option<Digest> {
    let mut different = others.clone().filter(|digest| *digest != ours);
    different.find(|digest| others.clone().filter(|other| other == digest).count() > voters / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
