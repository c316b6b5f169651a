//! How far the live proxies of all replicas are: what a write may wait for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use holdfast_table::Revision;
use holdfast_wire::proto;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::Context;
use crate::consensus::Consensus;
use crate::consensus::network::raft_client;
use crate::consensus::types::Node;
use crate::feed::whereabouts::Touch;
use crate::feed::{PROXIES_NAMED_MAX, ProxyProgress};

/// What an answer may take beyond the wait that was asked for: only a replica that hangs needs longer.
const ANSWER: Duration = Duration::from_millis(200);
/// How long one question waits at most: the proxies of a replica that hangs may turn up at another one meanwhile.
const ROUND: Duration = Duration::from_millis(500);
const ROUND_PAUSE: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits, no longer than `wait` and a moment for the answers, until every live proxy of every replica has acknowledged
/// `revision`.
///
/// A replica that does not answer has proxies that nobody can ask for: they count as live and lag until they are heard of
/// elsewhere, or their replica has been silent for so long that they cannot be there any more.
pub async fn synced(context: &Context, consensus: &Consensus, revision: Revision, wait: Duration) -> ProxyProgress {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut progress = round(context, consensus, revision, left.min(ROUND)).await;
        let left = deadline.saturating_duration_since(Instant::now());
        if progress.lagging.is_empty() || left.is_zero() {
            progress.lagging.truncate(PROXIES_NAMED_MAX);
            return progress;
        }
        tokio::time::sleep(left.min(ROUND_PAUSE)).await;
    }
}

/// Keeps in mind who follows which replica, for as long as this one is a member: the leader that needs it may be one that
/// has only just been elected.
pub async fn keep_in_mind(context: Arc<Context>, consensus: Consensus) -> Infallible {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        round(&context, &consensus, Revision(0), Duration::ZERO).await;
    }
}

/// The proxies of this replica, after a wait for them; `None` once it stops, and they are on their way to another one.
pub async fn here(context: &Context, revision: Revision, wait: Duration) -> Option<proto::AwaitProxiesResponse> {
    let progress = tokio::select! {
        biased;
        () = context.stopping.cancelled() => return None,
        progress = context.feed.synced(revision, wait) => progress,
    };
    Some(proto::AwaitProxiesResponse {
        live: progress.live,
        synced: progress.synced,
        lagging: progress.lagging,
        run: context.activity.run,
        names: context.feed.proxies(),
    })
}

enum Answer {
    Told(proto::AwaitProxiesResponse),
    /// It is down, stops, or hangs; who its proxies were is known, as far as there were any.
    None,
    /// It hangs, and has never told.
    Unheard,
}

/// Asks every member once.
async fn round(context: &Context, consensus: &Consensus, revision: Revision, wait: Duration) -> ProxyProgress {
    let answers = consensus.members().into_iter().map(|(id, node, _)| async move {
        let answer = match id == consensus.identity().node_id {
            true => here(context, revision, wait).await.map_or(Answer::None, Answer::Told),
            false => there(context, consensus, (id, &node), revision, wait).await,
        };
        (id, node.name, answer)
    });
    let mut progress = ProxyProgress::default();
    let mut answered = Vec::new();
    for (id, name, answer) in futures_util::future::join_all(answers).await {
        match answer {
            Answer::Told(told) => {
                context.whereabouts.hear(id, told.run, told.names);
                answered.push((id, told.run));
                progress.live += told.live;
                progress.synced += told.synced;
                progress.lagging.extend(told.lagging);
            }
            Answer::Unheard => {
                // Perhaps none, perhaps many.
                progress.live += 1;
                let unnamed = format!("the proxies of replica {name}, which does not answer");
                progress.lagging.push(unnamed);
            }
            Answer::None => {}
        }
    }
    let missing = context.whereabouts.missing(&answered);
    progress.live += u32::try_from(missing.len()).unwrap_or(u32::MAX);
    progress.lagging.extend(missing);
    progress
}

async fn there(
    context: &Context,
    consensus: &Consensus,
    (id, node): (u64, &Node),
    revision: Revision,
    wait: Duration,
) -> Answer {
    let touch = context.whereabouts.ask(id);
    let wait = match touch {
        Touch::Recent | Touch::Never => wait,
        // Whether it is there again shows at once; whoever waits asks again.
        Touch::Lost => Duration::ZERO,
    };
    let Some(channel) = consensus.channel(&node.peer_address) else {
        return Answer::None;
    };
    let request = proto::AwaitProxiesRequest {
        peer: Some(consensus.peer(id, node)),
        revision: revision.0,
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    };
    let mut client = raft_client(channel);
    match timeout(wait + ANSWER, client.await_proxies(request)).await {
        Ok(Ok(answer)) => Answer::Told(answer.into_inner()),
        Err(_) if touch == Touch::Never => Answer::Unheard,
        Ok(Err(_)) | Err(_) => Answer::None,
    }
}
