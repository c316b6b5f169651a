//! Holdfast, by its own messages over the same bare client that etcd gets.

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{Stream, StreamExt as _, stream};
use holdfast_client::{Endpoints, Subscriber, SubscriberConfig};
use holdfast_tests::fixture::Cluster;
use holdfast_wire::proto;
use prost::Message as _;
use proto::change::Change as Kind;
use proto::cluster_client::ClusterClient;
use proto::routes_client::RoutesClient;
use proto::subscribe_request::Frame as Asked;
use proto::subscribe_response::Frame;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{MESSAGE_BYTES_MAX, PATIENCE, Write};
use crate::payload::{Payload, write_of};

/// Starts replicas with everything at its default but names, addresses and directories.
///
/// # Errors
/// They do not become ready in time.
pub async fn start(replicas: usize) -> Result<Cluster> {
    let mut cluster = Cluster::start(replicas).await?;
    // Who wants the logs asks for them.
    cluster.keep_quiet();
    cluster.leader().await?;
    Ok(cluster)
}

/// Waits until all replicas run, are ready and have the same table.
///
/// # Errors
/// They have not, in time.
pub async fn healthy(cluster: &mut Cluster) -> Result<()> {
    cluster.ready().await?;
    cluster.agree().await?;
    cluster.leader().await?;
    Ok(())
}

/// `holdfast leader move`.
///
/// # Errors
/// It did not work.
pub async fn move_leader(cluster: &Cluster, from: usize, to: usize) -> Result<()> {
    let to_name = cluster.replicas[to].process.name().to_owned();
    let mut client = ClusterClient::connect(format!("http://{}", cluster.replicas[from].endpoint())).await?;
    client.leader_move(proto::LeaderMoveRequest { to_name }).await?;
    Ok(())
}

/// One batch, in a session as every writer of Holdfast has one.
///
/// # Errors
/// What the replica answered.
pub async fn write(channel: Channel, write: &Write) -> Result<(), Status> {
    let request = proto::WriteRequest {
        changes: write.payloads.iter().map(put).collect(),
        session: write.session.id.to_vec().into(),
        sequence: write.session.sequence,
        ..proto::WriteRequest::default()
    };
    let answer = RoutesClient::new(channel).write(request).await?;
    if !answer.get_ref().changed {
        return Err(Status::internal("a write changed nothing"));
    }
    Ok(())
}

fn put(payload: &Payload) -> proto::Change {
    proto::Change {
        change: Some(Kind::Put(proto::Route {
            routespec: payload.routespec(),
            target: payload.target(),
            data: payload.data(),
            ..proto::Route::default()
        })),
    }
}

/// A stream that has its snapshot behind it.
pub struct Subscription {
    frames: Streaming<proto::SubscribeResponse>,
    acks: watch::Sender<proto::Ack>,
    acknowledges: bool,
}

/// Opens one; returns when the snapshot is there.
///
/// # Errors
/// What the replica answered.
pub async fn subscribe(channel: Channel, name: &str, acknowledges: bool) -> Result<Subscription> {
    let (mut frames, acks) = open(channel, name, acknowledges).await?;
    read_snapshot(&mut frames).await?;
    Ok(Subscription {
        frames,
        acks,
        acknowledges,
    })
}

impl Subscription {
    /// See [`Follower::next`](super::Follower::next).
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self, writes: &mut Vec<u64>) -> Result<()> {
        let frame = self.frames.message().await?.context("the stream ended")?.frame;
        match frame {
            Some(Frame::Delta(delta)) => {
                let delta = proto::Delta::decode(delta)?;
                for route in &delta.puts {
                    writes.push(write_of(route.data.as_bytes())?);
                }
                if self.acknowledges {
                    self.acks.send_replace(proto::Ack {
                        revision: delta.to_revision,
                        ..proto::Ack::default()
                    });
                }
                Ok(())
            }
            Some(Frame::GoAway(go_away)) => bail!("sent away: {go_away:?}"),
            _ => Ok(()),
        }
    }
}

/// Takes a snapshot and goes; returns how many routes it had.
///
/// # Errors
/// What the replica answered.
pub async fn snapshot(channel: Channel) -> Result<usize> {
    let (mut frames, _acks) = open(channel, "bench-fresh", false).await?;
    read_snapshot(&mut frames).await
}

async fn open(
    channel: Channel,
    name: &str,
    proxy: bool,
) -> Result<(Streaming<proto::SubscribeResponse>, watch::Sender<proto::Ack>)> {
    let start = proto::Start {
        name: name.to_owned(),
        proxy,
        ..proto::Start::default()
    };
    let (acks, acked) = watch::channel(proto::Ack::default());
    let requests = requests(start, acked);
    let mut client = RoutesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Ok((client.subscribe(requests).await?.into_inner(), acks))
}

fn requests(start: proto::Start, acked: watch::Receiver<proto::Ack>) -> impl Stream<Item = proto::SubscribeRequest> {
    let request = |frame| proto::SubscribeRequest { frame: Some(frame) };
    stream::once(async move { request(Asked::Start(start)) })
        .chain(WatchStream::from_changes(acked).map(move |ack| request(Asked::Ack(ack))))
}

/// Decompresses and decodes as it arrives.
async fn read_snapshot(frames: &mut Streaming<proto::SubscribeResponse>) -> Result<usize> {
    let mut routes = 0;
    loop {
        let frame = frames.message().await?.context("the stream ended")?.frame;
        let Some(Frame::SnapshotChunk(chunk)) = frame else {
            continue;
        };
        if !chunk.routes.is_empty() {
            let plain = zstd::stream::decode_all(&chunk.routes[..])?;
            routes += proto::RouteList::decode(&plain[..])?.routes.len();
        }
        if chunk.last {
            ensure!(routes as u64 == chunk.total, "{routes} routes of {}", chunk.total);
            return Ok(routes);
        }
    }
}

/// Holdfast's own subscriber, from nothing to a table of so many routes, its digest checked.
///
/// # Errors
/// It does not get there in time.
pub async fn follow_until(address: &str, routes: usize) -> Result<()> {
    let subscriber = Subscriber::new(SubscriberConfig {
        endpoints: Endpoints::parse(&[address])?,
        name: "bench-fresh".to_owned(),
        proxy: false,
        cached: None,
    });
    let table = subscriber.table();
    let stop = CancellationToken::new();
    let followed = async {
        let mut position = table.watch();
        let arrived = position.wait_for(|_| table.current().as_ref().is_some_and(|table| table.len() == routes));
        let arrived = tokio::time::timeout(PATIENCE, arrived)
            .await
            .map(|position| position.map(drop));
        stop.cancel();
        arrived
    };
    let ((), arrived) = tokio::join!(subscriber.run(stop.clone()), followed);
    arrived.with_context(|| format!("never {routes} routes"))??;
    Ok(())
}
