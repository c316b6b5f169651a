//! The way into the log: commands that come in while others are under way share one entry.
//!
//! An entry has a price of its own, on each replica, whatever is in it. So one is under way at a time, and all that came in
//! meanwhile is the next one: a lone writer never waits, and many writers pay for few entries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::types::{Answer, Proposal};
use super::{ProposeError, Raft};
use crate::admission::Admitted;

/// An entry is closed at this size; the command that reaches it is in it still.
const ENTRY_BYTES: usize = 256 * 1024;

/// Takes commands into the log, in the order in which they come.
#[derive(Clone)]
pub struct Proposals {
    queue: Arc<Queue>,
    _task: Arc<JoinSet<()>>,
}

/// Commands that wait for the next entry. Each is there for as long as its caller waits, and no longer: a leader that
/// decides nothing, for it is cut off, has only what its callers have not yet given up.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Default)]
struct Waiting {
    // By place: the order in which they came.
    commands: BTreeMap<u64, Proposed>,
    next_place: u64,
}

struct Proposed {
    command: Bytes,
    answer: oneshot::Sender<Result<Answer, ProposeError>>,
    // With the command wherever it goes: it takes memory until it is decided, whether its caller waits or not.
    admitted: Admitted,
}

/// A caller's place in the queue, given up with this.
struct Place<'a> {
    queue: &'a Queue,
    place: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock().expect("nobody panics with it");
        drop(waiting.commands.remove(&self.place));
    }
}

impl Queue {
    fn push(&self, proposed: Proposed) -> Place<'_> {
        let mut waiting = self.waiting.lock().expect("nobody panics with it");
        let place = waiting.next_place;
        waiting.next_place += 1;
        waiting.commands.insert(place, proposed);
        drop(waiting);
        self.more.notify_one();
        Place { queue: self, place }
    }

    /// What goes into the next entry; nothing if nothing waits.
    fn entry(&self) -> Vec<Proposed> {
        let mut waiting = self.waiting.lock().expect("nobody panics with it");
        let mut bytes = 0;
        let mut entry = Vec::new();
        while bytes < ENTRY_BYTES
            && let Some((_, proposed)) = waiting.commands.pop_first()
        {
            bytes += proposed.command.len();
            entry.push(proposed);
        }
        entry
    }
}

impl Proposals {
    /// Starts on this runtime; ends with the last clone.
    pub fn start(raft: Raft) -> Self {
        let queue = Arc::<Queue>::default();
        let mut task = JoinSet::new();
        task.spawn(run(raft, queue.clone()));
        Proposals {
            queue,
            _task: Arc::new(task),
        }
    }

    /// Has an encoded `Command` decided. Dropping the future takes it back only if it is on its way nowhere yet.
    ///
    /// # Errors
    /// [`ProposeError`], never `Rejected`: that is in the answer.
    pub async fn decide(&self, command: Bytes, admitted: Admitted, deadline: Instant) -> Result<Answer, ProposeError> {
        let (answer, decided) = oneshot::channel();
        let _place = self.queue.push(Proposed {
            command,
            answer,
            admitted,
        });
        match timeout_at(deadline, decided).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }
}

async fn run(raft: Raft, queue: Arc<Queue>) {
    loop {
        let entry = queue.entry();
        match entry.is_empty() {
            true => queue.more.notified().await,
            false => propose(&raft, entry).await,
        }
    }
}

async fn propose(raft: &Raft, entry: Vec<Proposed>) {
    let mut commands = Vec::new();
    let mut callers = Vec::new();
    for proposed in entry {
        commands.push(proposed.command);
        callers.push((proposed.answer, proposed.admitted));
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
        .for_each(|((caller, _), answer)| drop(caller.send(answer)));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_table::{Batch, Command, Revision, Route, Written};
    use holdfast_wire::proto;
    use prost::Message as _;

    use super::*;
    use crate::admission::Admission;
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
        let decide = |name| consensus.proposals.decide(put(name), Admitted::own(), deadline);
        let writes = (0..WRITERS).map(decide);
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

    #[test]
    fn a_full_entry_is_closed() {
        let queue = Queue::default();
        let waiting = [1, 2, 3, ENTRY_BYTES, 4, 5].map(|bytes| {
            let (answer, caller) = oneshot::channel();
            let command = vec![0; bytes].into();
            let admitted = Admitted::own();
            let place = queue.push(Proposed {
                command,
                answer,
                admitted,
            });
            (place, caller)
        });
        let next = || {
            let entry = queue.entry();
            entry.iter().map(|proposed| proposed.command.len()).collect::<Vec<_>>()
        };
        assert_eq!(next(), [1, 2, 3, ENTRY_BYTES]);
        assert_eq!(next(), [4, 5]);
        assert!(next().is_empty());
        drop(waiting);
    }

    /// Nothing is ever taken from its queue, as on a leader whose last entry no quorum answers.
    fn stuck() -> Proposals {
        Proposals {
            queue: Arc::default(),
            _task: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_decides_nothing_keeps_only_what_its_callers_wait_for() {
        const LARGE: usize = 10 * 1024 * 1024;
        let (admission, proposals) = (Admission::default(), stuck());
        let held = || {
            let waiting = proposals.queue.waiting.lock().unwrap();
            let bytes = waiting.commands.values().map(|proposed| proposed.command.len());
            bytes.sum::<usize>()
        };
        let ask = async |patience: Duration| {
            let admitted = admission.take(LARGE).unwrap();
            let deadline = Instant::now() + patience;
            proposals.decide(vec![0; LARGE].into(), admitted, deadline).await
        };
        for _ in 0..100 {
            let answer = ask(Duration::from_secs(1)).await;
            assert!(matches!(answer, Err(ProposeError::Unknown)), "{answer:?}");
            assert_eq!(held(), 0);
        }
        // Nor what callers wait for that are gone before their deadline.
        let gone = tokio::time::timeout(Duration::from_secs(1), ask(Duration::from_secs(10)));
        assert!(gone.await.is_err());
        assert_eq!(held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_counts_as_admitted_until_it_is_decided_whoever_waits() {
        let (admission, proposals) = (Admission::default(), stuck());
        let all = admission.take(usize::MAX).unwrap();
        let gone = proposals.decide(vec![0; 10].into(), all, Instant::now() + Duration::from_secs(1));
        let under_way = async {
            // Its entry is proposed, and the caller has gone.
            tokio::time::sleep(Duration::from_millis(1)).await;
            proposals.queue.entry()
        };
        let (answer, entry) = tokio::join!(gone, under_way);
        assert!(answer.is_err());
        assert!(admission.take(1).is_err(), "its bytes are in memory");
        drop(entry);
        assert!(admission.take(usize::MAX).is_ok());
    }
}
