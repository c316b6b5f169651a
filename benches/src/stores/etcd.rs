//! etcd, as its public API has it.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use holdfast_tests::fixture::{Process, free_port, until};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::{Connection, MESSAGE_BYTES_MAX, PATIENCE, System, Write};
use crate::payload::{Payload, write_of};
use crate::programs;
use proto::kv_client::KvClient;
use proto::maintenance_client::MaintenanceClient;
use proto::watch_client::WatchClient;
use proto::{
    KeyValue, MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, StatusResponse, TxnRequest,
    WatchCreateRequest, WatchRequest, WatchResponse, request_op, watch_request,
};

/// The messages and services of `proto/etcd.proto`, as generated.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    rustdoc::all,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// Every key, in a range.
const FIRST_KEY: &[u8] = b"/";
const AFTER_LAST_KEY: &[u8] = b"0";

/// Members of etcd with everything at its default but names and addresses.
pub struct EtcdCluster {
    /// `e0` first.
    pub members: Vec<Member>,
    _folder: TempDir,
}

/// One of them.
pub struct Member {
    /// Its process.
    pub process: Process,
    client_port: u16,
}

impl EtcdCluster {
    /// Starts `members` members with empty directories and waits until all follow a leader.
    ///
    /// # Errors
    /// There is no etcd, or they do not, in time.
    pub async fn start(members: usize) -> Result<Self> {
        let program = programs::find("etcd").context("no etcd on PATH: scripts/install_etcd.sh installs it")?;
        let folder = tempfile::Builder::new().prefix("holdfast-bench-etcd-").tempdir()?;
        let peer_ports: Vec<_> = (0..members).map(|_| free_port()).collect();
        let peers: Vec<_> = peer_ports
            .iter()
            .enumerate()
            .map(|(at, port)| format!("e{at}=http://127.0.0.1:{port}"))
            .collect();
        let member = |(at, peer_port): (usize, &u16)| {
            let name = format!("e{at}");
            let client_port = free_port();
            let (client, peer) = (url(client_port), url(*peer_port));
            let process = Process::new(&name, &program, folder.path())
                .args(["--name", &name, "--data-dir", &format!("{name}-data")])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"]);
            Member { process, client_port }
        };
        let mut cluster = EtcdCluster {
            members: peer_ports.iter().enumerate().map(member).collect(),
            _folder: folder,
        };
        for member in &mut cluster.members {
            member.process.start()?;
        }
        cluster.healthy().await?;
        Ok(cluster)
    }

    /// The addresses of the members' APIs.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// The member that leads.
    ///
    /// # Errors
    /// None does, in time.
    pub async fn leader(&mut self) -> Result<usize> {
        until("a member of etcd leads", PATIENCE, async || {
            let mut leader = Err(anyhow!("no member says that it leads"));
            let mut term = 0;
            for (at, member) in self.members.iter_mut().enumerate() {
                if !member.process.is_running() {
                    continue;
                }
                let Ok(status) = member.status().await else { continue };
                if status.leader == id(&status) && status.raft_term > term {
                    (leader, term) = (Ok(at), status.raft_term);
                }
            }
            leader
        })
        .await
    }

    /// Waits until all members follow the same leader and have applied the same.
    ///
    /// # Errors
    /// They have not, in time.
    pub async fn healthy(&mut self) -> Result<()> {
        until("all members of etcd follow", PATIENCE, async || {
            let mut seen = Vec::new();
            for member in &mut self.members {
                if let Some(status) = member.process.exited() {
                    bail!(
                        "{} has ended with {status}: {}",
                        member.process.name(),
                        member.process.log_tail(20)
                    );
                }
                let status = member.status().await?;
                ensure!(status.leader != 0, "no leader");
                seen.push((status.leader, status.raft_applied_index));
            }
            ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
            Ok(())
        })
        .await
    }

    /// `etcdctl move-leader`.
    ///
    /// # Errors
    /// It did not work.
    pub async fn move_leader(&self, from: usize, to: usize) -> Result<()> {
        let target_id = id(&self.members[to].status().await?);
        let mut client = MaintenanceClient::new(self.members[from].connect().await?);
        client.move_leader(MoveLeaderRequest { target_id }).await?;
        Ok(())
    }
}

impl Member {
    fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    async fn connect(&self) -> Result<Channel> {
        Ok(Connection::open(System::Etcd, &self.endpoint()).await?.channel)
    }

    async fn status(&self) -> Result<StatusResponse> {
        let mut client = MaintenanceClient::new(self.connect().await?);
        Ok(client.status(StatusRequest {}).await?.into_inner())
    }
}

fn id(status: &StatusResponse) -> u64 {
    status.header.as_ref().map_or(0, |header| header.member_id)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// A put, or a transaction of several.
///
/// # Errors
/// What etcd answered.
pub async fn write(channel: Channel, write: &Write) -> Result<(), Status> {
    let mut client = KvClient::new(channel);
    match write.payloads.as_slice() {
        [payload] => drop(client.put(put(payload)).await?),
        payloads => {
            let success = payloads.iter().map(|payload| RequestOp {
                request: Some(request_op::Request::RequestPut(put(payload))),
            });
            let answer = client
                .txn(TxnRequest {
                    success: success.collect(),
                })
                .await?;
            if !answer.get_ref().succeeded {
                return Err(Status::internal("a transaction without a condition did not succeed"));
            }
        }
    }
    Ok(())
}

fn put(payload: &Payload) -> PutRequest {
    PutRequest {
        key: payload.routespec().into(),
        value: payload.value(),
    }
}

/// Everything, in one linearizable read.
///
/// # Errors
/// What etcd answered.
pub async fn range(channel: Channel) -> Result<Vec<KeyValue>> {
    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = client
        .range(RangeRequest {
            key: Bytes::from_static(FIRST_KEY),
            range_end: Bytes::from_static(AFTER_LAST_KEY),
        })
        .await?
        .into_inner();
    ensure!(!answer.more, "etcd did not send everything");
    Ok(answer.kvs)
}

/// A watch of every key.
pub struct Watcher {
    messages: Streaming<WatchResponse>,
}

/// Opens one; returns when etcd has said that it watches.
///
/// # Errors
/// What etcd answered.
pub async fn watch(channel: Channel) -> Result<Watcher> {
    let create = WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from_static(FIRST_KEY),
            range_end: Bytes::from_static(AFTER_LAST_KEY),
        })),
    };
    // The caller's half stays open, as a client's does that may ask for more.
    let requests = stream::once(async { create }).chain(stream::pending());
    let mut messages = WatchClient::new(channel).watch(requests).await?.into_inner();
    let first = messages.message().await?.context("the watch ended at once")?;
    ensure!(first.created, "not a watch but {first:?}");
    Ok(Watcher { messages })
}

impl Watcher {
    /// See [`Follower::next`](super::Follower::next).
    ///
    /// # Errors
    /// The watch has ended.
    pub async fn next(&mut self, writes: &mut Vec<u64>) -> Result<()> {
        let message = self.messages.message().await?.context("the watch ended")?;
        ensure!(!message.canceled, "the watch was cancelled: {}", message.cancel_reason);
        for pair in message.events.iter().filter_map(|event| event.kv.as_ref()) {
            writes.push(write_of(&pair.value)?);
        }
        Ok(())
    }
}
