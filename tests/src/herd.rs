//! Very many subscribers that all come at once.
//!
//! They take a stream as it comes and keep no table: a thousand tables in one process would measure that process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, bail};
use holdfast_wire::proto;
use holdfast_wire::proto::routes_client::RoutesClient;
use prost::Message as _;
use proto::hello::Mode;
use proto::subscribe_response::Frame;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};

use crate::fixture::until;

/// A stream that cannot be had is asked for again after it.
const AGAIN: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_secs(10);

/// Subscribers, each with a connection of its own. Dropping it ends them.
pub struct Herd {
    members: Vec<Arc<Member>>,
    orders: watch::Sender<Order>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Member {
    // Of the order it has followed.
    order: AtomicU64,
    revision: AtomicU64,
    // Nobody restores this cluster, so the epoch stays 0.
    cluster_id: OnceLock<String>,
    snapshots: AtomicU64,
    bytes: AtomicU64,
    microseconds: AtomicU64,
}

/// Leave, and come back.
#[derive(Clone, Copy, Debug)]
struct Order {
    number: u64,
    keeps_table: bool,
    target: u64,
    began: Instant,
}

/// What it took until everybody was current.
#[derive(Clone, Debug)]
pub struct Came {
    /// From the order until each had the revision, in ascending order.
    pub took: Vec<Duration>,
    /// What all were sent until then.
    pub bytes: u64,
    /// How many of them were sent a snapshot.
    pub snapshots: u64,
}

impl Herd {
    /// `size` subscribers, spread evenly over `endpoints`, who come as those who have nothing.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn start(size: usize, endpoints: &[String]) -> Result<Self> {
        let orders = watch::Sender::new(Order {
            number: 1,
            keeps_table: false,
            target: 0,
            began: Instant::now(),
        });
        let mut tasks = JoinSet::new();
        let mut members = Vec::new();
        for number in 0..size {
            let endpoints = endpoints
                .iter()
                .cycle()
                .skip(number)
                .take(endpoints.len())
                .map(|endpoint| Endpoint::from_shared(format!("http://{endpoint}")))
                .collect::<Result<Vec<_>, _>>()?;
            let member = Arc::new(Member::default());
            members.push(member.clone());
            tasks.spawn(obey(member, number, endpoints, orders.subscribe()));
        }
        Ok(Herd {
            members,
            orders,
            _tasks: tasks,
        })
    }

    /// All leave their replicas at once and come to the next ones at once, each with what it has, or with nothing.
    /// Returns when all have `target`.
    ///
    /// # Errors
    /// Not all have it in time.
    pub async fn come_back(&self, keeps_table: bool, target: u64, within: Duration) -> Result<Came> {
        let number = self.orders.borrow().number + 1;
        self.orders.send_replace(Order {
            number,
            keeps_table,
            target,
            began: Instant::now(),
        });
        self.came(within).await
    }

    /// Returns when all are current.
    ///
    /// # Errors
    /// Not all are in time.
    pub async fn came(&self, within: Duration) -> Result<Came> {
        let number = self.orders.borrow().number;
        until("all subscribers are current", within, async || {
            let current = self
                .members
                .iter()
                .filter(|member| member.order.load(Ordering::Acquire) == number);
            match current.count() {
                all if all == self.members.len() => Ok(()),
                some => Err(format!("{some} of {}", self.members.len())),
            }
        })
        .await?;
        let sum = |of: fn(&Member) -> &AtomicU64| -> u64 {
            self.members
                .iter()
                .map(|member| of(member).load(Ordering::Relaxed))
                .sum()
        };
        let mut took: Vec<_> = self
            .members
            .iter()
            .map(|member| Duration::from_micros(member.microseconds.load(Ordering::Relaxed)))
            .collect();
        took.sort_unstable();
        Ok(Came {
            took,
            bytes: sum(|member| &member.bytes),
            snapshots: sum(|member| &member.snapshots),
        })
    }
}

async fn obey(member: Arc<Member>, number: usize, endpoints: Vec<Endpoint>, mut orders: watch::Receiver<Order>) {
    loop {
        let order = *orders.borrow_and_update();
        let mut visit = Visit {
            member: &member,
            order,
            bytes: 0,
            snapshots: 0,
        };
        tokio::select! {
            () = visit.follow(number, &endpoints) => {}
            changed = orders.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// One member obeying one order.
struct Visit<'a> {
    member: &'a Member,
    order: Order,
    bytes: u64,
    snapshots: u64,
}

impl Visit<'_> {
    /// Follows one replica after the other, for ever.
    async fn follow(&mut self, number: usize, endpoints: &[Endpoint]) {
        // Another replica with every order, and after every failure.
        let first = usize::try_from(self.order.number).unwrap_or_default() % endpoints.len();
        for endpoint in endpoints.iter().cycle().skip(first) {
            let endpoint = endpoint
                .clone()
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                // As proxies have it.
                .initial_stream_window_size(2 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024);
            // However it ends, the next one is asked.
            let _ = self.stream(number, endpoint.connect_lazy()).await;
            sleep(AGAIN).await;
        }
    }

    async fn stream(&mut self, number: usize, channel: Channel) -> Result<()> {
        let revision = self.member.revision.load(Ordering::Relaxed);
        let is_done = self.member.order.load(Ordering::Relaxed) == self.order.number;
        let keeps_table = revision > 0 && (self.order.keeps_table || is_done);
        let start = proto::Start {
            has_table: keeps_table,
            cluster_id: self
                .member
                .cluster_id
                .get()
                .filter(|_| keeps_table)
                .cloned()
                .unwrap_or_default(),
            revision: if keeps_table { revision } else { 0 },
            name: format!("herd-{number}"),
            ..Default::default()
        };
        let start = proto::SubscribeRequest {
            frame: Some(proto::subscribe_request::Frame::Start(start)),
        };
        let mut client = RoutesClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
        let requests = tokio_stream::once(start).chain(tokio_stream::pending());
        let mut stream = timeout(SILENCE, client.subscribe(requests)).await??.into_inner();
        let mut arriving = 0;
        while let Some(frame) = timeout(SILENCE, stream.message()).await?? {
            self.bytes += frame.encoded_len() as u64;
            match frame.frame {
                Some(Frame::Hello(hello)) => {
                    let mode = hello.mode();
                    self.member.cluster_id.get_or_init(|| hello.cluster_id);
                    match mode {
                        Mode::Snapshot => arriving = hello.revision,
                        _ => self.holds(hello.revision),
                    }
                }
                Some(Frame::SnapshotChunk(chunk)) => {
                    if crc32fast::hash(&chunk.routes) != chunk.checksum {
                        bail!("a damaged chunk");
                    }
                    if chunk.last {
                        self.snapshots += 1;
                        self.holds(arriving);
                    }
                }
                Some(Frame::Delta(delta)) => self.holds(proto::Delta::decode(delta)?.to_revision),
                Some(Frame::Bookmark(_)) | None => {}
                Some(Frame::GoAway(_)) => return Ok(()),
            }
        }
        Ok(())
    }

    fn holds(&self, revision: u64) {
        let (member, order) = (self.member, &self.order);
        member.revision.store(revision, Ordering::Relaxed);
        if revision < order.target || member.order.load(Ordering::Relaxed) == order.number {
            return;
        }
        let took = u64::try_from(order.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        member.microseconds.store(took, Ordering::Relaxed);
        member.bytes.store(self.bytes, Ordering::Relaxed);
        member.snapshots.store(self.snapshots, Ordering::Relaxed);
        // Last: whoever sees it sees the rest.
        member.order.store(order.number, Ordering::Release);
    }
}
