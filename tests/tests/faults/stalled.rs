//! Subscribers that do not read hold up nobody, and miss nothing once they read again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use holdfast_table::{Delta, Entry, Epoch, Revision, Route, Table};
use holdfast_tests::fixture::cluster::{SOON, hex};
use holdfast_tests::fixture::{Cluster, until};
use holdfast_wire::proto;
use holdfast_wire::proto::hello::Mode;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::subscribe_response::Frame;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::Streaming;
use tonic::transport::Endpoint;

const STALLED: usize = 50;
const ROUTES: usize = 20;
/// Each replaces one route, and is larger than what a stalled stream takes; all together are more than a replica keeps on
/// its tape.
const WRITES: usize = 300;
const DATA_BYTES: usize = 32 * 1024;
/// What a stalled stream takes before it stalls.
const WINDOW_BYTES: u32 = 16 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024;
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// As long as nobody is in the way it takes milliseconds; the rest is for a busy machine.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// What was on its way when the stream stalled, and what leads on from there.
const FRAMES_MAX: usize = 10;

/// One stream, and the table that follows from it. A gap or a wrong digest is an error.
struct Follower {
    stream: Streaming<proto::SubscribeResponse>,
    table: Table,
    is_whole: bool,
    // That changed the table: snapshots and deltas.
    frames: usize,
}

impl Follower {
    async fn start(endpoint: &str, name: &str, window_bytes: Option<u32>) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?
            .initial_stream_window_size(window_bytes)
            .initial_connection_window_size(window_bytes.map(|_| CONNECTION_WINDOW_BYTES));
        let mut client = RoutesClient::new(endpoint.connect().await?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let start = proto::Start {
            name: name.to_owned(),
            ..proto::Start::default()
        };
        let start = proto::SubscribeRequest {
            frame: Some(proto::subscribe_request::Frame::Start(start)),
        };
        let requests = tokio_stream::once(start).chain(tokio_stream::pending());
        Ok(Follower {
            stream: client.subscribe(requests).await?.into_inner(),
            table: Table::default(),
            is_whole: false,
            frames: 0,
        })
    }

    /// Reads until it has the whole table at `revision`.
    async fn reaches(mut self, revision: u64) -> Result<Self> {
        while !self.is_whole || self.table.revision().0 < revision {
            let frame = self.stream.message().await?.context("the stream has ended")?;
            self.take(frame.frame.context("an empty frame")?)?;
        }
        Ok(self)
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::Hello(hello) => {
                ensure!(hello.mode() == Mode::Snapshot, "{hello:?}");
                ensure!(hello.revision >= self.table.revision().0, "back in time: {hello:?}");
                self.table = Table::from_entries(Epoch(hello.epoch), Revision(hello.revision), []);
                self.is_whole = false;
            }
            Frame::SnapshotChunk(chunk) => {
                let bytes = zstd::stream::decode_all(&chunk.routes[..])?;
                let list = proto::RouteList::decode(&bytes[..])?;
                let entries = list.routes.iter().map(Entry::try_from);
                self.table.extend(entries.collect::<Result<Vec<_>, _>>()?);
                if chunk.last {
                    ensure!(
                        self.table.digest().to_bytes()[..] == chunk.digest[..],
                        "a wrong snapshot"
                    );
                    self.is_whole = true;
                    self.frames += 1;
                }
            }
            Frame::Delta(delta) => {
                ensure!(self.is_whole, "a delta before the table");
                let delta = Delta::try_from(&proto::Delta::decode(delta)?)?;
                self.table.apply_delta(&delta)?;
                self.frames += 1;
            }
            Frame::Bookmark(bookmark) => {
                let same = bookmark.revision == self.table.revision().0;
                ensure!(
                    !self.is_whole || same && self.table.digest().to_bytes()[..] == bookmark.digest[..],
                    "{bookmark:?} at revision {}",
                    self.table.revision()
                );
            }
            Frame::GoAway(go_away) => bail!("{go_away:?}"),
        }
        Ok(())
    }
}

/// A version of a route that is like no other.
fn route(number: usize) -> Result<Route> {
    let spec = format!("/user/{}/", number % ROUTES);
    let target = format!("http://10.0.0.1:{}", 1_000 + number);
    let data = format!(r#"{{"x":"{}"}}"#, "y".repeat(DATA_BYTES));
    Ok(Route::parse(&spec, &target, &data, "")?)
}

#[tokio::test]
async fn subscribers_that_do_not_read_hold_up_nobody_and_miss_nothing() -> Result<()> {
    let mut cluster = Cluster::start(3).await?;
    let endpoints = cluster.endpoints();
    let starting = (0..STALLED).map(|number| {
        let endpoint = &endpoints[number % endpoints.len()];
        async move { Follower::start(endpoint, &format!("stalled-{number}"), Some(WINDOW_BYTES)).await }
    });
    let stalled = try_join_all(starting).await?;
    let last = cluster.agree().await?.0 + WRITES as u64;
    let mut normal = JoinSet::new();
    for endpoint in &endpoints[..2] {
        let follower = Follower::start(endpoint, "normal", None).await?;
        normal.spawn(follower.reaches(last));
    }
    until("all are connected", SOON, async || {
        let mut connected = 0;
        for replica in &cluster.replicas {
            connected += replica.status().await?.subscribers.len();
        }
        ensure!(connected == STALLED + normal.len(), "{connected} are");
        Ok(())
    })
    .await?;

    let writer = cluster.writer("default", Duration::ZERO)?;
    let mut slowest = Duration::ZERO;
    for number in 0..WRITES {
        let began = Instant::now();
        let answer = timeout(ACKNOWLEDGED_WITHIN, writer.put(route(number)?)).await;
        let answer = answer.with_context(|| format!("write {number} is not acknowledged"))??;
        ensure!(answer.changed, "{answer:?}");
        slowest = slowest.max(began.elapsed());
    }
    let (revision, digest) = cluster.agree().await?;
    ensure!(revision == last, "{WRITES} writes lead to {last}, not to {revision}");
    let ended = Instant::now();
    while let Some(follower) = timeout(SOON, normal.join_next()).await? {
        let follower = follower??;
        ensure!(hex(&follower.table.digest().to_bytes()) == digest);
    }
    eprintln!(
        "the slowest of {WRITES} writes: {slowest:?}; who reads was there {:?} later",
        ended.elapsed()
    );

    // They read again: what they had under way, and then one step to the present.
    let read = try_join_all(stalled.into_iter().map(|follower| follower.reaches(last)));
    let read = timeout(SOON, read).await.context("who read again has not arrived")??;
    let most = read.iter().map(|follower| follower.frames).max().unwrap_or(0);
    eprintln!(
        "who had not read was there after {most} frames at most, {:?} later",
        ended.elapsed()
    );
    for follower in read {
        ensure!(hex(&follower.table.digest().to_bytes()) == digest);
        ensure!(follower.frames <= FRAMES_MAX, "{} frames", follower.frames);
    }
    cluster.finish().await
}
