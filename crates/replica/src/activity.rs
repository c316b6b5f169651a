//! Last activity: merged by max, beside the log.
//!
//! Kept on this process's own clock, which nobody sets, and told as an age. A told age has [`CALL`] added, the longest that telling may
//! take: so a moment comes back older than it went, if it comes back at all, and replicas that tell each other what they
//! know settle.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use holdfast_table::{Entry, Revision, RouteKey, Table};
use holdfast_wire::convert::RouteActivity;
use holdfast_wire::errors::Reason;
use holdfast_wire::{proto, timestamp};
use prost::Message as _;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tonic::{Request, Status};

use crate::consensus::Consensus;
use crate::consensus::network::raft_client;
use crate::services::Context;

/// The most routes of one report.
const REPORT_ROUTES_MAX: usize = 10_000;
const REPORT_BYTES_MAX: usize = 1024 * 1024;
const SHARE_EVERY: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(2);
/// A report of more routes is taken in on a thread of its own, beside the tasks that serve others.
const LARGE: usize = 500;
const SHARDS: usize = 64;
/// What is known of routes that are gone is forgotten when it is more than what is known of the others, and this; by shard.
const GONE_MAX: usize = 50;

/// When the routes of this replica's table were last active.
pub struct Activity {
    start: Instant,
    /// Names this run of the process to the other replicas.
    pub run: u64,
    hasher: RandomState,
    /// Each locked for a moment only, however much there is to tell: the thread of the consensus takes them, too.
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    routes: HashMap<RouteKey, Seen>,
    /// Later than what the other replicas were told.
    untold: HashSet<RouteKey>,
}

struct Seen {
    modified: Revision,
    /// On this process's clock; what was before its start is negative.
    at_ms: i64,
}

impl Default for Activity {
    fn default() -> Self {
        Activity {
            start: Instant::now(),
            run: rand::random(),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Activity {
    fn shard(&self, key: &RouteKey) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        lock(&self.shards[at])
    }

    /// This process's clock.
    pub fn now_ms(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Takes in what somebody tells at `now_ms`. A version that `table` does not have is passed over.
    pub fn merge(&self, table: &Table, now_ms: i64, told: impl IntoIterator<Item = RouteActivity>) {
        for RouteActivity { spec, modified, age } in told {
            let Some(entry) = table.get(spec.key()).filter(|entry| entry.modified == modified) else {
                continue;
            };
            // The table's own text: of what was told there would be a copy for each route.
            let key = entry.route.spec.key();
            let at_ms = now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
            let mut shard = self.shard(key);
            let Shard { routes, untold } = &mut *shard;
            match routes.get_mut(key) {
                Some(seen) if seen.modified == modified && seen.at_ms >= at_ms => continue,
                Some(seen) => (seen.modified, seen.at_ms) = (modified, at_ms),
                None => {
                    if routes.len() > 2 * table.len() / SHARDS + GONE_MAX {
                        routes.retain(|key, seen| has(table, key, seen.modified));
                        untold.retain(|key| routes.contains_key(key));
                    }
                    routes.insert(key.clone(), Seen { modified, at_ms });
                }
            }
            untold.insert(key.clone());
        }
    }

    /// How long ago this version of a route was active, in milliseconds; `None`: nobody has told.
    pub fn age_ms(&self, entry: &Entry) -> Option<u64> {
        let shard = self.shard(entry.route.spec.key());
        let seen = shard.routes.get(entry.route.spec.key())?;
        (seen.modified == entry.modified).then(|| age_ms(self.now_ms(), seen.at_ms))
    }

    /// The same as a moment of this machine's clock; 0: nobody has told.
    pub fn unix_ms(&self, entry: &Entry) -> u64 {
        self.age_ms(entry)
            .map_or(0, |age| timestamp::now_ms().saturating_sub(age))
    }

    /// What the other replicas were not told yet, and takes it for told; or all that is known. Of routes of this table.
    fn to_tell(&self, table: &Table, all: bool) -> Vec<RouteActivity> {
        let now_ms = self.now_ms();
        let tell = |(key, seen): (&RouteKey, &Seen)| {
            let entry = table.get(key).filter(|entry| entry.modified == seen.modified)?;
            Some(RouteActivity {
                spec: entry.route.spec.clone(),
                modified: seen.modified,
                age: Duration::from_millis(age_ms(now_ms, seen.at_ms)) + CALL,
            })
        };
        let mut telling = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            if all {
                telling.extend(shard.routes.iter().filter_map(tell));
            } else {
                let untold = std::mem::take(&mut shard.untold);
                let routes = untold.iter().filter_map(|key| shard.routes.get_key_value(key));
                telling.extend(routes.filter_map(tell));
            }
        }
        telling
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().expect("nobody panics with it")
}

fn has(table: &Table, key: &RouteKey, modified: Revision) -> bool {
    table.get(key).is_some_and(|entry| entry.modified == modified)
}

fn age_ms(now_ms: i64, at_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0)
}

/// Tells the other replicas what they do not know, for as long as this one is a member.
pub async fn share(context: Arc<Context>, consensus: Consensus) -> Infallible {
    let mut rounds = tokio::time::interval(SHARE_EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // By id: the run that was told everything.
    let mut told: HashMap<u64, u64> = HashMap::new();
    loop {
        rounds.tick().await;
        let me = consensus.identity().node_id;
        let others: Vec<_> = consensus.members().into_iter().filter(|(id, ..)| *id != me).collect();
        let table = consensus.published().load().state.table.clone();
        let (asked, news) = (Instant::now(), context.activity.to_tell(&table, false));
        let telling = others.iter().map(async |(id, node, _)| {
            let peer = Peer {
                context: &context,
                consensus: &consensus,
                peer: consensus.peer(*id, node),
                address: &node.peer_address,
            };
            // Even of no news: a replica that has started anew shows only when it is called.
            let run = peer.tell(asked, news.clone()).await?;
            if told.get(id) != Some(&run) {
                peer.tell(Instant::now(), context.activity.to_tell(&table, true))
                    .await?;
            }
            Some((*id, run))
        });
        let answers = futures_util::future::join_all(telling).await;
        // Who is not among them has missed something, and is told everything once it is there again.
        let missed = answers.iter().filter(|answer| answer.is_none()).count();
        context.metrics.activity_not_shared(missed as u64);
        told = answers.into_iter().flatten().collect();
    }
}

struct Peer<'a> {
    context: &'a Context,
    consensus: &'a Consensus,
    peer: proto::Peer,
    address: &'a str,
}

impl Peer<'_> {
    /// Tells ages as of `asked`. Returns the run of the replica that was told; `None`: it may have been told nothing.
    async fn tell(&self, asked: Instant, routes: Vec<RouteActivity>) -> Option<u64> {
        let mut routes = routes.into_iter().peekable();
        let mut run = None;
        while run.is_none() || routes.peek().is_some() {
            let mut request = proto::ShareActivityRequest {
                peer: Some(self.peer.clone()),
                revision: self.consensus.published().load().state.table.revision().0,
                routes: Vec::new(),
            };
            let mut bytes = 0;
            while request.routes.len() < REPORT_ROUTES_MAX
                && bytes < REPORT_BYTES_MAX
                && let Some(mut activity) = routes.next()
            {
                // Of many pages the last one goes long after it was asked.
                activity.age += asked.elapsed();
                let activity = proto::RouteActivity::from(&activity);
                bytes += activity.encoded_len();
                request.routes.push(activity);
            }
            let mut request = Request::new(request);
            request.set_timeout(CALL);
            let mut client = raft_client(self.consensus.channel(self.address)?);
            let answer = timeout(CALL, client.share_activity(request))
                .await
                .ok()?
                .ok()?
                .into_inner();
            // It has started anew in the middle.
            if run.is_some_and(|run| run != answer.run) || self.context.stopping.is_cancelled() {
                return None;
            }
            run = Some(answer.run);
        }
        run
    }
}

/// Takes in what a proxy or another replica has told at `now_ms`.
///
/// # Errors
/// `invalid`: too many routes, or one that is none. Nothing was taken in.
pub async fn take_in(
    context: &Arc<Context>,
    consensus: &Consensus,
    now_ms: i64,
    routes: Vec<proto::RouteActivity>,
) -> Result<(), Status> {
    if routes.len() > REPORT_ROUTES_MAX {
        let message = format!("routes: {} are more than {REPORT_ROUTES_MAX}", routes.len());
        return Err(Reason::Invalid.status(message));
    }
    let table = consensus.published().load().state.table.clone();
    let (large, context) = (routes.len() > LARGE, context.clone());
    let take = move || {
        let told = routes.iter().map(RouteActivity::try_from);
        let told = told.collect::<Result<Vec<_>, _>>();
        let told = told.map_err(|error| Reason::Invalid.status(error.to_string()))?;
        context.activity.merge(&table, now_ms, told);
        Ok(())
    };
    match large {
        true => {
            let taken = tokio::task::spawn_blocking(take).await;
            taken.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
        }
        false => take(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Epoch, Route, RouteSpec};

    use super::*;

    fn table(revision: u64, routes: &[(&str, u64)]) -> Table {
        let entries = routes.iter().map(|(spec, modified)| Entry {
            route: Route::parse(spec, "http://10.0.0.1:8888", "", "").unwrap(),
            modified: Revision(*modified),
        });
        Table::from_entries(Epoch(1), Revision(revision), entries)
    }

    fn active(spec: &str, modified: u64, age_ms: u64) -> RouteActivity {
        RouteActivity {
            spec: RouteSpec::parse(spec).unwrap(),
            modified: Revision(modified),
            age: Duration::from_millis(age_ms),
        }
    }

    fn age(activity: &Activity, table: &Table, spec: &str) -> Option<u64> {
        activity.age_ms(table.get(RouteSpec::parse(spec).unwrap().key()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_latest_of_several_tellings_counts_in_any_order() {
        let table = table(2, &[("/a/", 1), ("/b/", 2)]);
        for order in [[1_000, 5_000], [5_000, 1_000]] {
            let activity = Activity::default();
            for age_ms in order {
                activity.merge(&table, activity.now_ms(), [active("/a/", 1, age_ms)]);
            }
            assert_eq!(age(&activity, &table, "/a/"), Some(1_000));
            assert_eq!(age(&activity, &table, "/b/"), None, "nobody has told");
            tokio::time::advance(Duration::from_secs(3)).await;
            assert_eq!(age(&activity, &table, "/a/"), Some(4_000));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn absurd_ages_are_as_old_as_can_be_and_none_is_in_the_future() {
        let table = table(1, &[("/a/", 1)]);
        let activity = Activity::default();
        activity.merge(&table, activity.now_ms(), [active("/a/", 1, u64::MAX)]);
        assert!(age(&activity, &table, "/a/").unwrap() > 1 << 60);
        assert_eq!(activity.unix_ms(table.iter().next().unwrap()), 0);
        // Told late by somebody who was ahead.
        activity.merge(&table, activity.now_ms() + 60_000, [active("/a/", 1, 0)]);
        assert_eq!(age(&activity, &table, "/a/"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_route_that_was_deleted_and_added_again_inherits_nothing() {
        let activity = Activity::default();
        let before = table(1, &[("/a/", 1)]);
        activity.merge(&before, activity.now_ms(), [active("/a/", 1, 0)]);
        let after = table(3, &[("/a/", 3)]);
        assert_eq!(age(&activity, &after, "/a/"), None);
        // A proxy that has not heard of it yet.
        activity.merge(&after, activity.now_ms(), [active("/a/", 1, 0)]);
        assert_eq!(age(&activity, &after, "/a/"), None);
        activity.merge(&after, activity.now_ms(), [active("/a/", 3, 700)]);
        assert_eq!(
            age(&activity, &after, "/a/"),
            Some(700),
            "though what was before it is later"
        );
        // Nor does anything come of a version that is not there yet.
        activity.merge(&after, activity.now_ms(), [active("/a/", 4, 0), active("/b/", 4, 0)]);
        assert_eq!(age(&activity, &after, "/a/"), Some(700));
        assert_eq!(activity.to_tell(&after, true).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_goes_round_grows_older_and_comes_to_rest() {
        let table = table(1, &[("/a/", 1)]);
        let replicas: Vec<Activity> = (0..3).map(|_| Activity::default()).collect();
        replicas[0].merge(&table, replicas[0].now_ms(), [active("/a/", 1, 0)]);
        let mut tellings = 0;
        for round in 0..20_u64 {
            for from in 0..3 {
                let news = replicas[from].to_tell(&table, round % 5 == 4);
                tellings += usize::from(round % 5 != 4) * news.len();
                // However slow the call was, short of its end.
                tokio::time::advance(CALL - Duration::from_millis(1)).await;
                for to in (0..3).filter(|to| *to != from) {
                    let now_ms = replicas[to].now_ms();
                    replicas[to].merge(&table, now_ms, news.clone());
                }
            }
        }
        assert!(tellings <= 3, "each told its news once, not {tellings} times");
        let truth = i64::try_from(age(&replicas[0], &table, "/a/").unwrap()).unwrap();
        for replica in &replicas {
            let age = i64::try_from(age(replica, &table, "/a/").unwrap()).unwrap();
            assert!((truth..=truth + 10).contains(&age), "{age} ms instead of {truth}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_routes_that_are_gone_does_not_add_up() {
        let activity = Activity::default();
        for round in 1..=20_u64 {
            let specs: Vec<String> = (0..1_000).map(|n| format!("/{round}/{n}/")).collect();
            let routes: Vec<_> = specs.iter().map(|spec| (spec.as_str(), round)).collect();
            let table = table(round, &routes);
            let told = specs.iter().map(|spec| active(spec, round, 0));
            activity.merge(&table, activity.now_ms(), told);
        }
        let known: usize = activity.shards.iter().map(|shard| lock(shard).routes.len()).sum();
        let untold: usize = activity.shards.iter().map(|shard| lock(shard).untold.len()).sum();
        assert!(known <= 2 * 1_000 + SHARDS * (GONE_MAX + 1), "{known}");
        assert!((1_000..=known).contains(&untold), "{untold} of {known}");
    }
}
