//! The network to peers, as openraft calls it: one connection per peer for control, one for snapshots.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use holdfast_table::State;
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use holdfast_wire::proto::raft_client::RaftClient;
use openraft::OptionalSend;
use openraft::base::BoxFuture;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::types::{
    LogId, Node, Snapshot, TypeConfig, Vote, ballot_in, ballot_out, entry_out, log_id_in, log_id_out,
    stored_membership_out,
};
use crate::storage::snapshot;

type RpcError = RPCError<TypeConfig>;

/// What one message between replicas may weigh: an append request carries at least one entry, a batch of at most 16 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A peer that owes an answer for so long is given up; longer than a slow sync, shorter than patience.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the news that entries are committed waits for further entries to go with.
const NEWS_WAIT: Duration = Duration::from_millis(1);
/// Entries that come so soon after others are part of a row of writes; longer than one writer needs from write to write, and
/// shorter than one needs that waits for the proxies each time.
const IN_A_ROW: Duration = Duration::from_millis(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(1);
/// A snapshot that makes no progress for so long is given up.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A channel to `address` that connects when it is first used, and again whenever it must.
pub fn lazy_channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    #[cfg(test)]
    if crate::simulation::network::is_simulated() {
        return Ok(crate::simulation::network::channel(endpoint));
    }
    Ok(endpoint.connect_lazy())
}

/// A client of a peer's Raft service.
pub fn raft_client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Makes connections in the name of one replica of one cluster.
#[derive(Clone)]
pub struct Network {
    cluster_id: Arc<str>,
    node_id: u64,
    /// What peers say of this replica.
    pub told: Told,
    /// Where the members are.
    pub addresses: Addresses,
}

/// Where members are by now: openraft keeps the connections that it has asked for, also if a member moves.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<HashMap<u64, String>>>);

impl Addresses {
    /// As the membership says.
    pub fn renew(&self, addresses: impl IntoIterator<Item = (u64, String)>) {
        *self.0.lock().expect("nobody panics with it") = addresses.into_iter().collect();
    }

    fn of(&self, id: u64) -> Option<String> {
        self.0.lock().expect("nobody panics with it").get(&id).cloned()
    }
}

/// Whether a peer has said that this replica is retired. One is enough: an id that was taken is never given back.
#[derive(Clone, Default)]
pub struct Told(watch::Sender<bool>);

impl Told {
    /// Takes in why a peer refused a call.
    pub fn heed(&self, refusal: &Status) {
        if Reason::from_status(refusal) == Some(Reason::Retired) {
            self.0.send_if_modified(|told| !std::mem::replace(told, true));
        }
    }

    /// Turns true once, for ever.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }

    fn rpc_error(&self, status: &Status) -> RpcError {
        self.heed(status);
        match status.code() {
            // Openraft backs off from an unreachable peer, and tries a network error again at once.
            Code::Unavailable | Code::FailedPrecondition => RPCError::Unreachable(Unreachable::new(status)),
            _ => RPCError::Network(NetworkError::new(status)),
        }
    }

    async fn bounded<T>(
        &self,
        timeout: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RpcError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.rpc_error(&status)),
            Err(_) => Err(RPCError::Network(NetworkError::from_string(format!(
                "no answer within {timeout:?}"
            )))),
        }
    }
}

impl Network {
    /// In whose name.
    pub fn new(cluster_id: &str, node_id: u64) -> Self {
        Network {
            cluster_id: cluster_id.into(),
            node_id,
            told: Told::default(),
            addresses: Addresses::default(),
        }
    }

    /// What every call to a peer carries.
    pub fn peer(&self, target: u64, node: &Node) -> proto::Peer {
        proto::Peer {
            cluster_id: self.cluster_id.to_string(),
            from_node_id: self.node_id,
            to_node_id: target,
            to_store_uuid: node.store_uuid.clone(),
        }
    }

    fn connect(&self, target: u64, node: &Node) -> PeerNetwork {
        PeerNetwork {
            peer: self.peer(target, node),
            told: self.told.clone(),
            addresses: self.addresses.clone(),
            client: connect(&node.peer_address),
            address: node.peer_address.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &Node) -> PeerNetwork {
        self.connect(target, node)
    }

    /// On a connection of its own, so that a snapshot does not stand in the way of heartbeats.
    async fn new_snapshot_client(&mut self, target: u64, node: &Node) -> PeerNetwork {
        self.connect(target, node)
    }
}

fn connect(address: &str) -> Result<RaftClient<Channel>, String> {
    lazy_channel(address)
        .map(raft_client)
        .map_err(|error| error.to_string())
}

/// The way to one peer.
pub struct PeerNetwork {
    peer: proto::Peer,
    told: Told,
    addresses: Addresses,
    // What it is connected to, or will be.
    address: String,
    client: Result<RaftClient<Channel>, String>,
}

impl PeerNetwork {
    fn client(&mut self) -> Result<RaftClient<Channel>, RpcError> {
        // Whoever answers at a wrong address refuses the call: it names the member and its disk.
        if let Some(now) = self.addresses.of(self.peer.to_node_id)
            && now != self.address
        {
            self.client = connect(&now);
            self.address = now;
        }
        self.client
            .clone()
            .map_err(|error| RPCError::Unreachable(Unreachable::from_string(error)))
    }

    fn vote_request(&self, rpc: VoteRequest<TypeConfig>) -> proto::VoteRequest {
        proto::VoteRequest {
            peer: Some(self.peer.clone()),
            vote: Some(ballot_out(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(log_id_out),
            leadership_transfer: rpc.leadership_transfer,
        }
    }
}

/// A request without entries brings only how far the log is committed, and the next one brings that too. While writes follow
/// each other this spares both sides every second request; after the last one the peer applies it a moment later. Of a write
/// that comes alone the news goes at once.
fn merged(
    requests: impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> {
    let start = (requests.fuse(), None::<Instant>, false);
    futures_util::stream::unfold(start, async |(mut requests, mut last_entries, mut in_a_row)| {
        let mut request = requests.next().await?;
        while in_a_row
            && request.entries.is_empty()
            && let Ok(Some(next)) = tokio::time::timeout(NEWS_WAIT, requests.next()).await
        {
            request = next;
        }
        if !request.entries.is_empty() {
            let before = last_entries.replace(Instant::now());
            in_a_row = before.is_some_and(|before| before.elapsed() < IN_A_ROW);
        }
        Some((request, (requests, last_entries, in_a_row)))
    })
}

fn missing(field: &'static str) -> RpcError {
    RPCError::Network(NetworkError::from_string(format!("an answer without {field}")))
}

fn vote_response(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, RpcError> {
    let vote = ballot_in(response.vote.ok_or_else(|| missing("vote"))?);
    Ok(VoteResponse::new(
        vote,
        response.last_log_id.map(log_id_in),
        response.granted,
    ))
}

fn append_out(peer: proto::Peer, rpc: &AppendEntriesRequest<TypeConfig>) -> proto::AppendRequest {
    proto::AppendRequest {
        peer: Some(peer),
        vote: Some(ballot_out(&rpc.vote)),
        prev_log_id: rpc.prev_log_id.as_ref().map(log_id_out),
        entries: rpc.entries.iter().map(entry_out).collect(),
        leader_commit: rpc.leader_commit.as_ref().map(log_id_out),
    }
}

fn append_result(response: proto::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
    use proto::append_response::Result as In;
    match response.result.ok_or_else(|| missing("result"))? {
        In::Success(success) => Ok(Ok(success.log_id.map(log_id_in))),
        In::Conflict(conflict) => {
            let log_id = conflict.log_id.ok_or_else(|| missing("conflict.log_id"))?;
            Ok(Err(StreamAppendError::Conflict(log_id_in(log_id))))
        }
        In::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(ballot_in(vote)))),
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = State;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut answers = self.stream_append(futures_util::stream::iter([rpc]), option).await?;
        let answer = answers.next().await.ok_or_else(|| missing("anything"))??;
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // openraft waits after a failure before it gives out the next request, and not before it asks for a stream. A
            // stream to a peer that refuses connections would be asked for again and again, without a pause.
            let mut input = input;
            let Some(first) = input.next().await else {
                return Ok(futures_util::stream::empty().boxed());
            };
            let input = futures_util::stream::iter([first]).chain(merged(input));
            let owed = Arc::new(AtomicUsize::new(0));
            let (peer, sent) = (self.peer.clone(), owed.clone());
            let requests = input.map(move |rpc| {
                sent.fetch_add(1, Ordering::Relaxed);
                append_out(peer.clone(), &rpc)
            });
            let mut client = self.client()?;
            let answers = self.told.bounded(ANSWER_TIMEOUT, client.append(requests)).await?;
            let told = self.told.clone();
            // The stream may be silent for as long as there is nothing to replicate, but not while an answer is owed.
            let results = futures_util::stream::unfold(Some(answers), move |answers| {
                let (owed, told) = (owed.clone(), told.clone());
                async move {
                    let mut answers = answers?;
                    let message = loop {
                        let before = owed.load(Ordering::Relaxed);
                        match tokio::time::timeout(ANSWER_TIMEOUT, answers.message()).await {
                            Ok(message) => break message,
                            Err(_) if before == 0 => {}
                            Err(_) => {
                                let error = NetworkError::from_string(format!("no answer within {ANSWER_TIMEOUT:?}"));
                                return Some((Err(RPCError::Network(error)), None));
                            }
                        }
                    };
                    owed.fetch_sub(1, Ordering::Relaxed);
                    match message {
                        Ok(Some(response)) => Some((append_result(response), Some(answers))),
                        Ok(None) => None,
                        Err(status) => Some((Err(told.rpc_error(&status)), None)),
                    }
                }
            });
            Ok(results.boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (request, mut client) = (self.vote_request(rpc), self.client()?);
        vote_response(self.told.bounded(option.soft_ttl(), client.vote(request)).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let (request, mut client) = (self.vote_request(rpc), self.client()?);
        vote_response(self.told.bounded(option.soft_ttl(), client.pre_vote(request)).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let header = proto::SnapshotHeader {
            peer: Some(self.peer.clone()),
            vote: Some(ballot_out(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(log_id_out),
            membership: Some(stored_membership_out(&snapshot.meta.last_membership)),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        // The call answers only after it has read the stream, so both run side by side.
        let feed = async move {
            let _ = sender
                .send(request(proto::snapshot_request::Part::Header(header)))
                .await;
            for part in snapshot::encode(&snapshot.snapshot) {
                let part = part.map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
                if sender
                    .send(request(proto::snapshot_request::Part::Chunk(part)))
                    .await
                    .is_err()
                {
                    break;
                }
            }
            Ok::<_, StreamingError<TypeConfig>>(())
        };
        let mut client = self.client()?;
        let call = self
            .told
            .bounded(SNAPSHOT_TIMEOUT, client.snapshot(ReceiverStream::new(receiver)));
        let transfer = async move {
            let (answer, fed) = tokio::join!(call, feed);
            fed?;
            let vote = answer?.vote.ok_or_else(|| missing("vote"))?;
            Ok(SnapshotResponse::new(ballot_in(vote)))
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            done = transfer => done,
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let (vote, log) = (*rpc.from_leader(), rpc.last_log_id().copied());
        let request = proto::TransferLeaderRequest {
            peer: Some(self.peer.clone()),
            from_leader: Some(ballot_out(&vote)),
            to_node_id: *rpc.to_node_id(),
            last_log_id: log.as_ref().map(log_id_out),
        };
        let mut client = self.client()?;
        let response = self
            .told
            .bounded(option.soft_ttl(), client.transfer_leader(request))
            .await?;
        Ok(transfer_result(response, vote, log))
    }
}

fn transfer_result(
    response: proto::TransferLeaderResponse,
    vote: Vote,
    log: Option<LogId>,
) -> TransferLeaderResponse<TypeConfig> {
    use proto::transfer_leader_response::Declined;
    match response.declined {
        None => Ok(()),
        Some(Declined::Vote(actual)) => Err(TransferLeaderError::VoteChanged {
            expected: vote,
            actual: ballot_in(actual),
        }),
        Some(Declined::Log(actual)) => Err(TransferLeaderError::LogNotFlushed {
            expected: log,
            actual: actual.log_id.map(log_id_in),
        }),
    }
}

fn request(part: proto::snapshot_request::Part) -> proto::SnapshotRequest {
    proto::SnapshotRequest { part: Some(part) }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::consensus::types::{Entry, LeaderId};

    fn request(index: u64, entries: u64) -> AppendEntriesRequest<TypeConfig> {
        let log_id = |index| LogId::new(LeaderId { term: 1, node_id: 1 }, index);
        let entry = |index| Entry {
            log_id: log_id(index),
            payload: EntryPayload::Blank,
        };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(index)),
            entries: (index + 1..=index + entries).map(entry).collect(),
            leader_commit: Some(log_id(index)),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_row_of_writes_news_of_a_commit_goes_with_the_next_entries_or_alone_a_moment_later() {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let mut merged = Box::pin(merged(ReceiverStream::new(receiver)));
        for (index, entries) in [(1, 1), (2, 1), (3, 0), (3, 0), (3, 3), (6, 2), (8, 0), (8, 0)] {
            sender.send(request(index, entries)).await.unwrap();
        }
        let mut next = async || {
            let request = merged.next().await?;
            Some((request.leader_commit?.index, request.entries.len()))
        };
        let began = Instant::now();
        assert_eq!(next().await, Some((1, 1)));
        assert_eq!(next().await, Some((2, 1)));
        assert_eq!(next().await, Some((3, 3)));
        assert_eq!(next().await, Some((6, 2)));
        assert!(began.elapsed() < NEWS_WAIT, "entries wait for nothing");
        assert_eq!(next().await, Some((8, 0)), "with nothing to go with");
        assert!(began.elapsed() >= NEWS_WAIT);
        sender.send(request(9, 0)).await.unwrap();
        drop(sender);
        assert_eq!(next().await, Some((9, 0)), "the last one is not lost");
        assert_eq!(next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_write_that_comes_alone_does_not_wait() {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let mut merged = Box::pin(merged(ReceiverStream::new(receiver)));
        for index in 1..5 {
            let began = Instant::now();
            sender.send(request(index, 1)).await.unwrap();
            assert_eq!(merged.next().await.unwrap().entries.len(), 1);
            sender.send(request(index + 1, 0)).await.unwrap();
            assert!(merged.next().await.unwrap().entries.is_empty());
            assert!(began.elapsed() < NEWS_WAIT);
            tokio::time::advance(IN_A_ROW).await;
        }
    }
}
