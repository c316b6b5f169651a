//! The way into the log: commands that come in while others are under way share one entry.
//!
//! An entry has a price of its own, on each replica, whatever is in it. So one is under way at a time, and all that came in
//! meanwhile is the next one: a lone writer never waits, and many writers pay for few entries.

use std::sync::Arc;

use bytes::Bytes;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::types::{Answer, Proposal};
use super::{ProposeError, Raft};

/// An entry is closed at this size; the command that reaches it is in it still.
const ENTRY_BYTES: usize = 256 * 1024;

/// Takes commands into the log, in the order in which they come.
#[derive(Clone)]
pub struct Proposals {
    // Bounded by what a replica admits (services/admission.rs).
    queue: mpsc::UnboundedSender<Proposed>,
    _task: Arc<JoinSet<()>>,
}

struct Proposed {
    command: Bytes,
    answer: oneshot::Sender<Result<Answer, ProposeError>>,
}

impl Proposals {
    /// Starts on this runtime; ends with the last clone.
    #[allow(
        clippy::disallowed_methods,
        reason = "bounded by what a replica admits, and no caller may wait to be queued"
    )]
    pub fn start(raft: Raft) -> Self {
        let (queue, proposed) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(raft, proposed));
        Proposals {
            queue,
            _task: Arc::new(task),
        }
    }

    /// Has an encoded `Command` decided. Dropping the future takes it back only if it is on its way nowhere yet.
    ///
    /// # Errors
    /// [`ProposeError`], never `Rejected`: that is in the answer.
    pub async fn decide(&self, command: Bytes, deadline: Instant) -> Result<Answer, ProposeError> {
        let (answer, decided) = oneshot::channel();
        if self.queue.send(Proposed { command, answer }).is_err() {
            return Err(ProposeError::Unknown);
        }
        match timeout_at(deadline, decided).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }
}

async fn run(raft: Raft, mut queue: mpsc::UnboundedReceiver<Proposed>) {
    while let Some(first) = queue.recv().await {
        propose(&raft, entry(first, &mut queue)).await;
    }
}

/// What waits, from `first` on.
fn entry(first: Proposed, queue: &mut mpsc::UnboundedReceiver<Proposed>) -> Vec<Proposed> {
    let mut bytes = 0;
    let waiting = std::iter::once(first).chain(std::iter::from_fn(|| queue.try_recv().ok()));
    // Nobody waits any more for one whose call was given up.
    let wanted = waiting.filter(|proposed| !proposed.answer.is_closed());
    let mut entry = Vec::new();
    for proposed in wanted {
        bytes += proposed.command.len();
        entry.push(proposed);
        if bytes >= ENTRY_BYTES {
            break;
        }
    }
    entry
}

async fn propose(raft: &Raft, entry: Vec<Proposed>) {
    let (commands, callers): (Vec<_>, Vec<_>) = entry
        .into_iter()
        .map(|proposed| (proposed.command, proposed.answer))
        .unzip();
    if callers.is_empty() {
        return;
    }
    let answers: Vec<Result<Answer, ProposeError>> = match raft.client_write(Proposal::new(commands)).await {
        Ok(response) => response.data.into_iter().map(Ok).collect(),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            callers.iter().map(|_| Err(ProposeError::NotLeader)).collect()
        }
        // Discarded by another leader's log, a storage error or a stop: it may have reached a quorum before.
        Err(_) => callers.iter().map(|_| Err(ProposeError::Unknown)).collect(),
    };
    // A caller may have left; its command is decided all the same.
    callers
        .into_iter()
        .zip(answers)
        .for_each(|(caller, answer)| drop(caller.send(answer)));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_table::{Batch, Command, Revision, Route, Written};
    use holdfast_wire::proto;
    use prost::Message as _;

    use super::*;
    use crate::consensus::membership::tests::{founder, leads, replica};

    fn put(name: usize) -> Bytes {
        let route = Route::parse(&format!("/user/{name}/"), "http://10.0.0.1:1", "", "").unwrap();
        let command = Command {
            batch: Batch::put(route),
            session: None,
        };
        let command = proto::command::Command::Write((&command).into());
        let command = proto::Command {
            command: Some(command),
            ..Default::default()
        };
        command.encode_to_vec().into()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn writers_share_entries_and_each_gets_its_own_answer() {
        const WRITERS: usize = 200;
        let dir = tempfile::tempdir().unwrap();
        let consensus = replica(&dir, vec![founder()]).await;
        leads(&consensus).await;
        let before = consensus.metrics().last_log_index.unwrap();

        let deadline = Instant::now() + Duration::from_secs(10);
        let writes = (0..WRITERS).map(|name| consensus.proposals.decide(put(name), deadline));
        let answers = futures_util::future::join_all(writes).await;
        for (name, answer) in answers.into_iter().enumerate() {
            let written = Written {
                revision: Revision(name as u64 + 1),
                changed: true,
                held: 0,
            };
            assert_eq!(
                answer.unwrap(),
                Answer::Write(Ok(written)),
                "in the order in which they came"
            );
        }
        let entries = consensus.metrics().last_log_index.unwrap() - before;
        assert!((1..20).contains(&entries), "{entries} entries for {WRITERS} writes");
        consensus.shutdown().await;
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the queue as it is")]
    async fn who_has_left_is_left_out_and_a_full_entry_is_closed() {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let mut callers = Vec::new();
        let mut ask = |bytes: usize| {
            let (answer, caller) = oneshot::channel();
            let command = vec![0; bytes].into();
            queue.send(Proposed { command, answer }).unwrap();
            callers.push(caller);
        };
        for bytes in [1, 2, 3, ENTRY_BYTES, 4, 5] {
            ask(bytes);
        }
        drop(callers.remove(1));
        let mut next = || {
            let first = waiting.try_recv().ok()?;
            let entry = entry(first, &mut waiting);
            Some(entry.iter().map(|proposed| proposed.command.len()).collect::<Vec<_>>())
        };
        assert_eq!(next().unwrap(), [1, 3, ENTRY_BYTES]);
        assert_eq!(next().unwrap(), [4, 5]);
        assert_eq!(next(), None);
    }
}
