use super::*;
use crate::testing::{ScriptedReplica, WriteCall, route, soon};
use holdfast_table::Precondition;
use holdfast_wire::errors::hint_leader;
use tonic::{Response, Status};

fn writer(addresses: &[&str]) -> RouteWriter {
    let options = WriterOptions {
        timeout: Duration::from_secs(15),
        ..WriterOptions::default()
    };
    RouteWriter::new(Endpoints::parse(addresses).unwrap(), options)
}

fn ok(call: WriteCall, revision: u64) {
    let response = proto::WriteResponse {
        revision,
        changed: true,
        ..Default::default()
    };
    call.answer.send(Ok(Response::new(response))).unwrap();
}

fn fail(call: WriteCall, status: Status) {
    call.answer.send(Err(status)).unwrap();
}

fn id(call: &WriteCall) -> (Vec<u8>, u64) {
    (call.request.session.to_vec(), call.request.sequence)
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_sent_again_under_the_same_sequence() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let writer = writer(&[&a.address, &b.address]);
    let script = async {
        let first = a.write().await;
        let first_id = id(&first);
        assert_eq!((first_id.0.len(), first_id.1), (16, 1));
        drop(first);
        let second = b.write().await;
        assert_eq!(id(&second), first_id);
        ok(second, 7);
        first_id.0
    };
    let (answer, session) = soon(async { tokio::join!(writer.put(route("/a/")), script) }).await;
    assert_eq!(answer.unwrap().revision, Revision(7));

    // The next write is the session's next, and goes where the last one succeeded.
    let script = async {
        let call = b.write().await;
        assert_eq!(id(&call), (session, 2));
        ok(call, 8);
    };
    let (answer, ()) = soon(async { tokio::join!(writer.delete(route("/a/").spec), script) }).await;
    assert_eq!(answer.unwrap().revision, Revision(8));
}

#[tokio::test]
async fn the_leader_that_a_replica_names_is_asked_next_and_first_from_then_on() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let mut leader = ScriptedReplica::start().await;
    let writer = writer(&[&a.address, &b.address]);
    let script = async {
        let mut status = Reason::NoLeader.status("an election");
        hint_leader(status.metadata_mut(), &leader.address);
        fail(a.write().await, status);
        for revision in [1, 2] {
            ok(leader.write().await, revision);
        }
    };
    let writes = async {
        writer.put(route("/a/")).await.unwrap();
        writer.put(route("/b/")).await.unwrap()
    };
    let (answer, ()) = soon(async { tokio::join!(writes, script) }).await;
    assert_eq!(answer.revision, Revision(2));
    assert!(b.writes.try_recv().is_err());
}

#[tokio::test]
async fn a_good_answer_names_the_leader_too() {
    let mut a = ScriptedReplica::start().await;
    let mut leader = ScriptedReplica::start().await;
    let writer = writer(&[&a.address, &leader.address]);
    let script = async {
        let call = a.write().await;
        let mut response = Response::new(proto::WriteResponse::default());
        hint_leader(response.metadata_mut(), &leader.address);
        call.answer.send(Ok(response)).unwrap();
        ok(leader.write().await, 2);
    };
    let writes = async {
        writer.put(route("/a/")).await.unwrap();
        writer.put(route("/b/")).await.unwrap()
    };
    let (answer, ()) = soon(async { tokio::join!(writes, script) }).await;
    assert_eq!(answer.revision, Revision(2));
}

#[tokio::test]
async fn a_refusal_is_final_and_says_why() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let writer = writer(&[&a.address, &b.address]);
    let script = async {
        fail(
            a.write().await,
            Reason::Namespace.status("routespec \"/a/\": belongs to hub-2"),
        )
    };
    let (answer, ()) = soon(async { tokio::join!(writer.put(route("/a/")), script) }).await;
    let error = answer.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("hub-2"), "{error}");
    assert!(b.writes.try_recv().is_err());
}

#[tokio::test]
async fn a_forgotten_session_is_replaced() {
    let mut a = ScriptedReplica::start().await;
    let writer = writer(&[&a.address]);
    let script = async {
        drop(a.write().await);
        let call = a.write().await;
        let (session, _) = id(&call);
        assert!(call.request.retry);
        fail(call, Reason::SessionExpired.status("forgotten"));
        let call = a.write().await;
        let (renewed, sequence) = id(&call);
        assert!(renewed != session && sequence == 1);
        assert!(!call.request.retry, "of another session's write this is the first copy");
        ok(call, 3);
    };
    let (answer, ()) = soon(async { tokio::join!(writer.put(route("/a/")), script) }).await;
    assert_eq!(answer.unwrap().revision, Revision(3));
}

#[tokio::test]
async fn a_precondition_is_not_asked_again_after_a_lost_answer_and_a_lost_session() {
    let mut a = ScriptedReplica::start().await;
    let writer = writer(&[&a.address]);
    let batch = Batch::new(
        Namespace::default(),
        vec![],
        vec![Precondition::TableRevision(Revision(1))],
    )
    .unwrap();
    let script = async {
        drop(a.write().await);
        fail(a.write().await, Reason::SessionExpired.status("forgotten"));
    };
    let (answer, ()) = soon(async { tokio::join!(writer.write(batch), script) }).await;
    assert!(matches!(answer, Err(WriteError::Unknown { .. })), "{answer:?}");
}

#[tokio::test]
async fn concurrent_writes_use_sessions_of_their_own() {
    let mut a = ScriptedReplica::start().await;
    let writer = writer(&[&a.address]);
    let script = async {
        let (first, second) = (a.write().await, a.write().await);
        assert_ne!(id(&first).0, id(&second).0);
        // Answered in the other order: neither waits for the other.
        ok(second, 1);
        ok(first, 2);
    };
    let (one, two, ()) = soon(async { tokio::join!(writer.put(route("/a/")), writer.put(route("/b/")), script) }).await;
    assert_eq!(one.unwrap().revision.0 + two.unwrap().revision.0, 3);
}

#[tokio::test]
async fn with_nobody_there_nothing_was_written_and_with_a_lost_answer_nobody_knows() {
    let gone = ScriptedReplica::start().await.address;
    let options = WriterOptions {
        timeout: Duration::from_millis(500),
        ..WriterOptions::default()
    };
    let writer = RouteWriter::new(Endpoints::parse(&[gone]).unwrap(), options.clone());
    let error = soon(writer.put(route("/a/"))).await.unwrap_err();
    assert!(matches!(error, WriteError::Unavailable { .. }), "{error}");

    let mut a = ScriptedReplica::start().await;
    let writer = RouteWriter::new(Endpoints::parse(&[&a.address]).unwrap(), options);
    let lossy = async {
        loop {
            drop(a.write().await);
        }
    };
    let error = tokio::select! {
        answer = soon(writer.put(route("/a/"))) => answer.unwrap_err(),
        () = lossy => unreachable!(),
    };
    assert!(
        matches!(error, WriteError::Unknown { .. }) && error.is_retryable(),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_that_one_replica_does_not_know_yet_is_shown_to_the_others_and_one_that_none_knows_is_refused() {
    let (mut late, mut a) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let writer = writer(&[&late.address, &a.address]);
    let refuse = |call: WriteCall| {
        let refusal = Reason::Token.status("the token is none of this replica's");
        call.answer.send(Err(refusal)).unwrap();
    };
    let script = async {
        let first = late.write().await;
        let asked = id(&first);
        refuse(first);
        let second = a.write().await;
        // Nobody has looked at the first one.
        assert_eq!((id(&second), second.request.retry), (asked, false));
        ok(second, 1);
        refuse(a.write().await);
        refuse(late.write().await);
    };
    let writes = async { (writer.put(route("/a/")).await, writer.put(route("/b/")).await) };
    let ((written, refused), ()) = soon(async { tokio::join!(writes, script) }).await;
    assert_eq!(written.unwrap().revision.0, 1);
    let reason = Some(Reason::Token);
    let message = "the token is none of this replica's".to_owned();
    assert_eq!(refused.unwrap_err(), WriteError::Rejected { reason, message });
}
