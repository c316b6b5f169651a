//! The network to peers, as openraft calls it: one connection per peer for control, one for snapshots.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

use super::snapshots::{self, Snapshots};
use super::types::{
    LogId, Node, Snapshot, TypeConfig, Vote, ballot_in, ballot_out, entry_out, log_id_in, log_id_out,
    stored_membership_out,
};

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
    snapshots: Snapshots,
    withheld: Arc<watch::Sender<u64>>,
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

/// Up to which entry the log is no longer kept for peers that are slow to take it: they get a snapshot.
#[derive(Clone)]
pub struct Withheld(watch::Receiver<u64>);

impl Withheld {
    /// Returns once entries after `reached` are withheld.
    async fn after(&mut self, reached: u64) {
        if self.0.wait_for(|upto| *upto > reached).await.is_err() {
            std::future::pending::<()>().await;
        }
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
            snapshots: Snapshots::default(),
            withheld: Arc::default(),
        }
    }

    /// Sends entries up to this one to nobody any more.
    pub fn withhold(&self, upto: u64) {
        self.withheld.send_replace(upto);
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
            snapshots: self.snapshots.clone(),
            withheld: Withheld(self.withheld.subscribe()),
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
    snapshots: Snapshots,
    withheld: Withheld,
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

/// What a peer has been sent and has not answered.
#[derive(Default)]
struct Debt {
    answers: AtomicUsize,
    entries: AtomicBool,
}

impl Debt {
    fn owes(&self, entries: bool) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.entries.fetch_or(entries, Ordering::Relaxed);
    }

    fn answered(&self) {
        self.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a peer that has `reached` this entry answers.
///
/// The stream may be silent for as long as there is nothing to replicate, but not while an answer is owed. It ends for a
/// peer that takes entries which are `withheld` by now.
fn results(
    answers: impl Stream<Item = Result<proto::AppendResponse, Status>> + Unpin + Send + 'static,
    debt: Arc<Debt>,
    reached: u64,
    withheld: Withheld,
    told: Told,
) -> impl Stream<Item = Result<StreamAppendResult<TypeConfig>, RpcError>> + Send {
    let broken = |reason: String| Some((Err(RPCError::Network(NetworkError::from_string(reason))), None));
    futures_util::stream::unfold(Some((answers, reached)), move |stream| {
        let (debt, mut withheld, told) = (debt.clone(), withheld.clone(), told.clone());
        async move {
            let (mut answers, reached) = stream?;
            let answer = loop {
                let before = debt.answers.load(Ordering::Relaxed);
                // Heartbeats have no entries, and are sent to whoever is behind, too.
                let takes_entries = debt.entries.load(Ordering::Relaxed);
                tokio::select! {
                    biased;
                    answer = tokio::time::timeout(ANSWER_TIMEOUT, answers.next()) => match answer {
                        Ok(answer) => break answer?,
                        Err(_) if before == 0 => {}
                        Err(_) => return broken(format!("no answer within {ANSWER_TIMEOUT:?}")),
                    },
                    () = withheld.after(reached), if takes_entries => {
                        return broken(format!("too slow: what comes after entry {reached} is no longer kept for it"));
                    }
                }
            };
            debt.answered();
            let result = match answer {
                Ok(response) => append_result(response),
                Err(status) => return Some((Err(told.rpc_error(&status)), None)),
            };
            let reached = match &result {
                Ok(Ok(matched)) => reached.max(matched.map_or(0, |log_id| log_id.index)),
                _ => reached,
            };
            Some((result, Some((answers, reached))))
        }
    })
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
            let debt = Arc::new(Debt::default());
            let reached = first.prev_log_id.map_or(0, |log_id| log_id.index);
            let input = futures_util::stream::iter([first]).chain(merged(input));
            let (peer, sent) = (self.peer.clone(), debt.clone());
            let requests = input.map(move |rpc| {
                sent.owes(!rpc.entries.is_empty());
                append_out(peer.clone(), &rpc)
            });
            let mut client = self.client()?;
            let answers = self.told.bounded(ANSWER_TIMEOUT, client.append(requests)).await?;
            let results = results(answers, debt, reached, self.withheld.clone(), self.told.clone());
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
        let fed = snapshots::feed(header, self.snapshots.parts(&snapshot), sender);
        let mut client = self.client()?;
        let transfer = async {
            let mut call = pin!(client.snapshot(ReceiverStream::new(receiver)));
            // The call answers only after it has read the stream, unless it refuses; so both run side by side.
            let answer = tokio::select! {
                answer = &mut call => answer.map_err(|status| self.told.rpc_error(&status))?.into_inner(),
                fed = fed => {
                    fed?;
                    self.told.bounded(snapshots::PATIENCE, call).await?
                }
            };
            let vote = answer.vote.ok_or_else(|| missing("vote"))?;
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

    fn reached(index: u64) -> Result<proto::AppendResponse, Status> {
        let log_id = LogId::new(LeaderId { term: 1, node_id: 1 }, index);
        let success = proto::Success {
            log_id: Some(log_id_out(&log_id)),
        };
        Ok(proto::AppendResponse {
            result: Some(proto::append_response::Result::Success(success)),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_withheld_entries_too_slowly_is_cut_off_and_nobody_else() {
        const UPTO: u64 = 1_000;
        const A_WHILE: Duration = Duration::from_secs(60);
        let (withhold, withheld) = watch::channel(0);
        let stream = |entries: bool, from: u64| {
            let (answer, answers) = tokio::sync::mpsc::channel(1);
            let debt = Arc::new(Debt::default());
            debt.owes(entries);
            let answers = ReceiverStream::new(answers);
            let withheld = Withheld(withheld.clone());
            (
                answer,
                debt.clone(),
                Box::pin(results(answers, debt, from, withheld, Told::default())),
            )
        };
        let (slow, debt, mut slow_results) = stream(true, 5);
        let (quick, _, mut quick_results) = stream(true, 5);
        let (heartbeat, _, mut heartbeats) = stream(false, 5);
        slow.send(reached(UPTO - 1)).await.unwrap();
        quick.send(reached(UPTO)).await.unwrap();
        assert!(slow_results.next().await.unwrap().is_ok() && quick_results.next().await.unwrap().is_ok());
        debt.owes(true);
        withhold.send_replace(UPTO);
        let began = Instant::now();
        assert!(slow_results.next().await.unwrap().is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(slow_results.next().await.is_none());
        assert!(tokio::time::timeout(A_WHILE, quick_results.next()).await.is_err());
        heartbeat.send(reached(5)).await.unwrap();
        assert!(heartbeats.next().await.unwrap().is_ok());
        assert!(tokio::time::timeout(A_WHILE, heartbeats.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_may_be_silent_unless_it_owes_an_answer() {
        let (_withhold, withheld) = watch::channel(0);
        let (answer, answers) = tokio::sync::mpsc::channel(1);
        let debt = Arc::new(Debt::default());
        let answers = ReceiverStream::new(answers);
        let mut results = Box::pin(results(answers, debt.clone(), 0, Withheld(withheld), Told::default()));
        assert!(tokio::time::timeout(ANSWER_TIMEOUT * 5, results.next()).await.is_err());
        debt.owes(true);
        answer.send(reached(1)).await.unwrap();
        assert!(results.next().await.unwrap().is_ok());
        debt.owes(true);
        let began = Instant::now();
        assert!(results.next().await.unwrap().is_err());
        assert_eq!(began.elapsed(), ANSWER_TIMEOUT);
    }
}
