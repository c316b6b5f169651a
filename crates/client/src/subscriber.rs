//! Subscriber: snapshot and deltas become one current Table.

mod lookout;

use std::fmt;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_table::{Digest, Revision, Table};
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{Ack, SubscribeRequest, SubscribeResponse, go_away, subscribe_request};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::activity::{Reporter, Reports};
use crate::attempts::{in_words, was_never_sent};
use crate::backoff::{Backoff, STREAM_CAP};
use crate::endpoints::{Endpoints, MESSAGE_BYTES_MAX, Replica};
use crate::following::{Breach, Following, Held, Step};
use crate::live_table::LiveTable;
use crate::refusals::Refusals;
use lookout::Lookout;

/// From the first packet to a replica until its Hello.
const HELLO: Duration = Duration::from_secs(3);
/// For the last report of activity, when everything else has ended.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// A stream that is silent for so long is dead, whatever TCP says.
const SILENCE: Duration = Duration::from_secs(3);
/// Trouble that goes on is logged again after this.
const SAME_NEWS: Duration = Duration::from_secs(30);
/// Deltas from this many bytes on are worked in on a thread of their own, beside the tasks that serve requests.
const LARGE_DELTA: usize = 64 * 1024;

/// Who follows, and from where.
#[derive(Clone, Debug)]
pub struct SubscriberConfig {
    /// The replicas; each can be followed.
    pub endpoints: Endpoints,
    /// Shown to operators; unique among subscribers by their care.
    pub name: String,
    /// True for a proxy, whose acknowledgement a write waits for.
    pub proxy: bool,
    /// What an earlier run had last: served at once, and gone on from.
    pub cached: Option<Cached>,
}

/// A table from an earlier run. Its digest has been checked by whoever kept it.
#[derive(Clone, Debug)]
pub struct Cached {
    /// Whose table it is: no other cluster's is taken after it.
    pub cluster_id: String,
    /// The table.
    pub table: Table,
    /// The last moment for which a replica had vouched for it, by the clock on the wall. `None`: none ever had.
    pub vouched: Option<SystemTime>,
}

/// Where the table in use comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is no table.
    None,
    /// From an earlier run; no replica has confirmed it yet.
    Cache,
    /// From a replica, or confirmed by one. Stays so when the stream is lost.
    Stream,
}

/// How good the table in use is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Where the table comes from.
    pub source: Source,
    /// True while a replica's stream is followed.
    pub connected: bool,
    /// Whose table it is.
    pub cluster_id: Option<String>,
    /// The name of the replica that is followed, or whose snapshot is arriving.
    pub replica: Option<String>,
    /// The last moment for which a replica has vouched that the table was the leader's. `None`: none has yet, to this
    /// process.
    pub last_contact: Option<Instant>,
    /// When the table was taken over from an earlier run, and how old it was. `None`: it was not, or nobody knows.
    pub inherited: Option<(Instant, Duration)>,
    /// True once no replica could be connected to, each tried in turn; until one is followed.
    pub unreachable: bool,
}

impl Freshness {
    /// How long ago a replica vouched for the table, to this process or to an earlier one. `None`: none ever has.
    ///
    /// Over a restart that is by the clock on the wall: one that was set back meanwhile makes the table younger than it
    /// is, but never younger than this process.
    pub fn age(&self) -> Option<Duration> {
        let inherited = || self.inherited.map(|(since, age)| age.saturating_add(since.elapsed()));
        self.last_contact.map(|at| at.elapsed()).or_else(inherited)
    }
}

/// Follows the table of a cluster for as long as it runs, and never lets go of the last one it had.
///
/// Takes no other cluster's table once it has one, and nothing older than it has. On a lost or silent stream, a gap,
/// damage, or a digest that disagrees, it goes to another replica and serves what it has meanwhile. So it does when the
/// replica has lost its leader; where all have, it stays with one of them.
#[derive(Debug)]
pub struct Subscriber {
    endpoints: Endpoints,
    name: String,
    proxy: bool,
    following: Following,
    table: LiveTable,
    freshness: watch::Sender<Freshness>,
    refusals: Refusals,
    reporter: Option<Arc<Reporter>>,
    backoff: Backoff,
    lookout: Lookout,
    // Replicas in a row that could not be connected to.
    unreached: usize,
    // When each kind of trouble was last logged.
    alarmed: Option<Instant>,
    lost: Option<Instant>,
}

/// Why a stream is over.
#[derive(Debug)]
enum End {
    Lost(Status),
    Closed,
    NoHello,
    Silent,
    GoAway(go_away::Reason, Duration),
    Leaderless,
    Breach(Breach),
}

impl Subscriber {
    /// Serves the cached table, if there is one, and connects to nobody yet.
    pub fn new(config: SubscriberConfig) -> Self {
        let vouched = config.cached.as_ref().and_then(|cached| cached.vouched);
        // A moment that is yet to come is one before the clock was set back.
        let inherited = vouched.map(|at| (Instant::now(), at.elapsed().unwrap_or_default()));
        let held = config
            .cached
            .map(|Cached { cluster_id, table, .. }| Held { cluster_id, table });
        let freshness = Freshness {
            source: if held.is_some() { Source::Cache } else { Source::None },
            connected: false,
            cluster_id: held.as_ref().map(|held| held.cluster_id.clone()),
            replica: None,
            last_contact: None,
            inherited,
            unreachable: false,
        };
        let table = held
            .as_ref()
            .map_or_else(LiveTable::empty, |held| held.table.clone().into());
        Subscriber {
            lookout: Lookout::new(config.endpoints.replicas().len()),
            endpoints: config.endpoints,
            name: config.name,
            proxy: config.proxy,
            following: Following::new(held),
            table,
            freshness: watch::Sender::new(freshness),
            refusals: Refusals::new(),
            reporter: None,
            backoff: Backoff::new(STREAM_CAP),
            unreached: 0,
            alarmed: None,
            lost: None,
        }
    }

    /// The table, now and from now on.
    pub fn table(&self) -> LiveTable {
        self.table.clone()
    }

    /// How good the table is, now and from now on.
    pub fn freshness(&self) -> watch::Receiver<Freshness> {
        self.freshness.subscribe()
    }

    /// Where to say that a target has refused a connection.
    pub fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// Has the replica that is followed told when routes were active.
    #[must_use]
    pub fn reporting(mut self, reports: Reports) -> Self {
        self.reporter = Some(Arc::new(Reporter::new(reports)));
        self
    }

    /// Follows until `shutdown` is cancelled, and reports what activity is not reported yet. The table stays with those who
    /// have a handle.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let replicas = self.endpoints.replicas().to_vec();
        // Subscribers that start together spread over the replicas.
        let first = rand::random_range(0..replicas.len());
        for replica in replicas.iter().cycle().skip(first) {
            let visit = async {
                let end = self.follow(replica).await;
                let wait = self.ended(replica, &end);
                tokio::time::sleep(wait).await;
            };
            if shutdown.run_until_cancelled(visit).await.is_none() {
                if self.disconnected()
                    && let Some(reporter) = &self.reporter
                {
                    // What it cannot say in time is seconds of activity, of a proxy that others stand in for.
                    let _ = timeout(LAST_REPORT, reporter.report(replica)).await;
                }
                break;
            }
        }
    }

    async fn follow(&mut self, replica: &Replica) -> End {
        let hello_by = Instant::now() + HELLO;
        let start = subscribe_request::Frame::Start(self.following.start(&self.name, self.proxy));
        // The latest is enough: an acknowledgement stands for all before it.
        let (acks, acked) = watch::channel(Acked::default());
        let acked = WatchStream::from_changes(acked).map(|ack| Some(subscribe_request::Frame::Ack(ack.into())));
        let refused = self.refusals.stream().map(subscribe_request::Frame::TargetRefused);
        // The end of the acknowledgements is the end of all: a call whose requests go on would stay open at the replica.
        let told = acked.chain(tokio_stream::once(None)).merge(refused.map(Some));
        let requests = tokio_stream::once(start)
            .chain(told.map_while(|frame| frame))
            .map(request);
        let mut client = RoutesClient::new(replica.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        match timeout_at(hello_by, client.subscribe(requests)).await {
            Err(_) => End::NoHello,
            Ok(Err(status)) => End::Lost(status),
            Ok(Ok(response)) => {
                let (reporter, mut freshness) = (self.reporter.clone(), self.freshness.subscribe());
                let reporting = async {
                    // A replica that is still behind would pass over what it cannot know yet.
                    let connected = freshness.wait_for(|freshness| freshness.connected).await.is_ok();
                    match &reporter {
                        Some(reporter) if connected => reporter.run(replica).await,
                        _ => std::future::pending().await,
                    }
                };
                tokio::select! {
                    end = self.drive(response.into_inner(), hello_by, &acks) => end,
                    never = reporting => never,
                }
            }
        }
    }

    /// Follows one stream to its end.
    async fn drive(
        &mut self,
        mut frames: impl Stream<Item = Result<SubscribeResponse, Status>> + Unpin,
        hello_by: Instant,
        acks: &watch::Sender<Acked>,
    ) -> End {
        let mut next = timeout_at(hello_by, frames.next()).await.map_err(|_| End::NoHello);
        loop {
            let frame = match next {
                Err(end) => return end,
                Ok(None) => return End::Closed,
                Ok(Some(Err(status))) => return End::Lost(status),
                // A frame of a kind that is newer than we are says that the replica is there, and nothing else.
                Ok(Some(Ok(SubscribeResponse { frame: None }))) => None,
                Ok(Some(Ok(SubscribeResponse { frame }))) => frame,
            };
            if let Some(frame) = frame {
                match self.take(frame).await {
                    Ok(Step::GoAway { reason, retry_after }) => return End::GoAway(reason, retry_after),
                    Ok(step) => {
                        if let Some(end) = self.step(step, acks) {
                            return end;
                        }
                    }
                    Err(breach) => return End::Breach(breach),
                }
            }
            next = timeout(SILENCE, frames.next()).await.map_err(|_| End::Silent);
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<Step, Breach> {
        let now = Instant::now();
        let large = match &frame {
            Frame::SnapshotChunk(_) => true,
            Frame::Delta(delta) => delta.len() >= LARGE_DELTA,
            _ => false,
        };
        // Where there is one thread only, there are no tasks beside this one to be spared.
        if !large || Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return self.following.take(frame, now);
        }
        // Should this future be dropped meanwhile, what was followed is lost with it; the live table is not.
        let mut following = std::mem::take(&mut self.following);
        let work = tokio::task::spawn_blocking(move || {
            let step = following.take(frame, now);
            (following, step)
        });
        match work.await {
            Ok((following, step)) => {
                self.following = following;
                step
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Only a runtime that ends cancels such work, and then this task ends too.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Does what a frame led to; returns why to end the stream, if it should be.
    fn step(&mut self, step: Step, acks: &watch::Sender<Acked>) -> Option<End> {
        let Some(held) = self.following.held() else {
            if let Step::Hello { replica } = step {
                self.freshness
                    .send_modify(|freshness| freshness.replica = Some(replica));
            }
            return None;
        };
        let acked = Acked {
            revision: held.table.revision(),
            digest: held.table.digest(),
        };
        match step {
            Step::Hello { replica } => self
                .freshness
                .send_modify(|freshness| freshness.replica = Some(replica)),
            Step::Partial | Step::GoAway { .. } => {}
            Step::Resumed { replica } => {
                tracing::info!(replica, revision = %acked.revision, "following from where the table is");
                self.freshness.send_modify(|freshness| {
                    freshness.source = Source::Stream;
                    freshness.connected = true;
                    freshness.unreachable = false;
                    freshness.replica = Some(replica);
                });
                acks.send_replace(acked);
            }
            Step::Moved => {
                // Before the table, so that whoever sees a new cluster's table knows whose it is.
                self.freshness.send_if_modified(|freshness| {
                    let is_new = freshness.cluster_id.as_ref() != Some(&held.cluster_id);
                    if is_new {
                        freshness.cluster_id = Some(held.cluster_id.clone());
                    }
                    is_new
                });
                // Served before it is acknowledged.
                self.table.replace(held.table.clone());
                acks.send_replace(acked);
                self.freshness.send_if_modified(|freshness| {
                    if freshness.connected {
                        return false;
                    }
                    tracing::info!(
                        replica = freshness.replica,
                        revision = %acked.revision,
                        routes = held.table.len(),
                        "following from a snapshot"
                    );
                    freshness.source = Source::Stream;
                    freshness.connected = true;
                    freshness.unreachable = false;
                    true
                });
            }
            Step::Agreed {
                leader_contact_age,
                leader_known,
            } => {
                let contact = leader_known.then(|| Instant::now().checked_sub(leader_contact_age));
                let contact = contact.flatten();
                self.freshness.send_if_modified(|freshness| {
                    let newer = contact > freshness.last_contact;
                    if newer {
                        freshness.last_contact = contact;
                    }
                    newer
                });
                if self.lookout.leaves(leader_contact_age) {
                    return Some(End::Leaderless);
                }
                self.backoff.reset();
            }
        }
        None
    }

    /// Takes note of a stream's end; returns how long to wait before the next one.
    fn ended(&mut self, replica: &Replica, end: &End) -> Duration {
        self.lookout.ended();
        if self.disconnected() {
            self.lost = None;
        }
        self.unreached = match end {
            End::Lost(status) if was_never_sent(status) => self.unreached + 1,
            _ => 0,
        };
        if self.unreached >= self.endpoints.replicas().len() {
            self.freshness
                .send_if_modified(|freshness| !std::mem::replace(&mut freshness.unreachable, true));
        }
        let (logged, alarming) = match end {
            End::Breach(breach) if breach.is_alarming() => (&mut self.alarmed, true),
            _ => (&mut self.lost, false),
        };
        let news = logged.is_none_or(|at| at.elapsed() >= SAME_NEWS);
        if news {
            *logged = Some(Instant::now());
        }
        match (news, alarming) {
            (true, true) => tracing::error!(%replica, "not taken, the table in use stays: {end}"),
            (true, false) => tracing::warn!(%replica, "not following, the table in use stays: {end}"),
            (false, _) => tracing::debug!(%replica, "not following: {end}"),
        }
        let wait = self.backoff.next_wait();
        match end {
            End::GoAway(_, retry_after) => wait.max((*retry_after).min(STREAM_CAP)),
            _ => wait,
        }
    }

    /// Returns whether a stream was followed until now.
    fn disconnected(&self) -> bool {
        let mut was_connected = false;
        self.freshness.send_if_modified(|freshness| {
            was_connected = std::mem::take(&mut freshness.connected);
            freshness.replica.take().is_some() || was_connected
        });
        was_connected
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Lost(status) => f.write_str(&in_words(status)),
            End::Closed => f.write_str("the replica ended the stream"),
            End::NoHello => write!(f, "no Hello within {} s", HELLO.as_secs()),
            End::Silent => write!(f, "silent for {} s", SILENCE.as_secs()),
            End::GoAway(reason, _) => write!(f, "sent away: {}", reason.as_str_name()),
            End::Leaderless => f.write_str("the replica has lost its leader, another one may have it"),
            End::Breach(breach) => breach.fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Acked {
    revision: Revision,
    digest: Digest,
}

impl From<Acked> for Ack {
    fn from(acked: Acked) -> Self {
        Ack {
            revision: acked.revision.0,
            digest: acked.digest.to_bytes().to_vec().into(),
        }
    }
}

fn request(frame: subscribe_request::Frame) -> SubscribeRequest {
    SubscribeRequest { frame: Some(frame) }
}

#[cfg(test)]
mod tests;
