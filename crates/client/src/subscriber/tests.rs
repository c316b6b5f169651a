use super::*;
use crate::activity::ActivitySource;
use crate::testing::{Relay, ScriptedReplica, SubscribeCall, bookmark, delta, hello, orphaned, snapshot, soon, table};
use holdfast_wire::convert::RouteActivity;
use holdfast_wire::proto::hello::Mode;
use holdfast_wire::proto::{GoAway, ReportActivityResponse, go_away};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

const CLUSTER: &str = "c-1";

/// A subscriber that runs until this is dropped.
struct Running {
    table: LiveTable,
    freshness: watch::Receiver<Freshness>,
    _task: JoinSet<()>,
}

fn subscriber(replicas: &[&ScriptedReplica], cached: Option<Table>) -> Subscriber {
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address.as_str()).collect();
    configured(&addresses, cached)
}

fn configured(addresses: &[&str], cached: Option<Table>) -> Subscriber {
    Subscriber::new(SubscriberConfig {
        endpoints: Endpoints::parse(addresses).unwrap(),
        name: "p0".into(),
        proxy: true,
        cached: cached.map(|table| Cached {
            cluster_id: CLUSTER.into(),
            table,
            vouched: None,
        }),
    })
}

fn run(replicas: &[&ScriptedReplica], cached: Option<Table>) -> Running {
    started(subscriber(replicas, cached))
}

fn started(subscriber: Subscriber) -> Running {
    let (table, freshness) = (subscriber.table(), subscriber.freshness());
    let mut task = JoinSet::new();
    task.spawn(subscriber.run(CancellationToken::new()));
    Running {
        table,
        freshness,
        _task: task,
    }
}

impl Running {
    fn serves(&self, table: &Table) {
        let served = self.table.load().expect("a table");
        assert_eq!(
            (served.epoch(), served.revision(), served.digest(), served.len()),
            (table.epoch(), table.revision(), table.digest(), table.len())
        );
    }

    async fn until(&mut self, what: impl FnMut(&Freshness) -> bool) -> Freshness {
        soon(self.freshness.wait_for(what)).await.unwrap().clone()
    }
}

/// The next stream, at whichever of the two it comes.
async fn either(a: &mut ScriptedReplica, b: &mut ScriptedReplica) -> (SubscribeCall, bool) {
    soon(async {
        tokio::select! {
            call = a.subscribes.recv() => (call.unwrap(), true),
            call = b.subscribes.recv() => (call.unwrap(), false),
        }
    })
    .await
}

#[tokio::test]
async fn a_snapshot_then_deltas_each_served_before_it_is_acknowledged() {
    let mut a = ScriptedReplica::start().await;
    let mut running = run(&[&a], None);
    assert!(running.table.current().is_none());
    assert_eq!(running.freshness.borrow().source, Source::None);
    let mut positions = running.table.watch();

    let mut call = a.subscribe().await;
    assert!(!call.start.has_table && call.start.proxy && call.start.name == "p0");
    call.send(snapshot(CLUSTER, &table(1, 10))).await;
    call.acked(&table(1, 10)).await;
    running.serves(&table(1, 10));
    call.send([delta(10, 11), delta(11, 600)]).await;
    call.acked(&table(1, 600)).await;
    running.serves(&table(1, 600));
    soon(positions.wait_for(|position| position.is_some_and(|(_, revision)| revision.0 == 600)))
        .await
        .unwrap();

    call.send([bookmark(Revision(600), table(1, 600).digest())]).await;
    let fresh = running.until(|fresh| fresh.last_contact.is_some()).await;
    assert_eq!((fresh.source, fresh.connected), (Source::Stream, true));
    assert_eq!(
        (fresh.cluster_id.as_deref(), fresh.replica.as_deref()),
        (Some(CLUSTER), Some("r0"))
    );
}

#[tokio::test]
async fn the_last_table_is_kept_while_the_stream_is_down_and_gone_on_from() {
    let mut a = ScriptedReplica::start().await;
    let mut running = run(&[&a], None);
    let mut call = a.subscribe().await;
    call.send(snapshot(CLUSTER, &table(1, 10))).await;
    call.acked(&table(1, 10)).await;
    running.until(|fresh| fresh.connected).await;
    drop(call);
    let fresh = running.until(|fresh| !fresh.connected).await;
    assert_eq!((fresh.source, fresh.replica), (Source::Stream, None));
    running.serves(&table(1, 10));

    let mut call = a.subscribe().await;
    let start = &call.start;
    assert_eq!(
        (start.has_table, start.cluster_id.as_str(), start.epoch, start.revision),
        (true, CLUSTER, 1, 10)
    );
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), delta(10, 12)]).await;
    call.acked(&table(1, 12)).await;
    running.serves(&table(1, 12));
}

#[tokio::test]
async fn a_cut_connection_is_made_again_as_soon_as_it_can_be() {
    let mut a = ScriptedReplica::start().await;
    let relay = Relay::start("127.0.0.1:0", &a.address).await;
    let subscriber = configured(&[&relay.address], Some(table(1, 10)));
    let mut running = started(subscriber);
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 10)]).await;
    running.until(|fresh| fresh.connected).await;

    let address = relay.address.clone();
    drop(relay);
    running.until(|fresh| !fresh.connected).await;
    running.serves(&table(1, 10));

    let _relay = Relay::start(&address, &a.address).await;
    let mut call = a.subscribe().await;
    assert_eq!(call.start.revision, 10);
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), delta(10, 11)]).await;
    call.acked(&table(1, 11)).await;
    running.serves(&table(1, 11));
}

#[tokio::test]
async fn a_cached_table_is_served_at_once_and_resumed_by_revision() {
    let mut a = ScriptedReplica::start().await;
    let mut running = run(&[&a], Some(table(1, 10)));
    running.serves(&table(1, 10));
    assert_eq!(running.freshness.borrow().source, Source::Cache);

    let mut call = a.subscribe().await;
    assert_eq!((call.start.has_table, call.start.revision), (true, 10));
    call.send([hello(Mode::Resume, CLUSTER, 1, 10)]).await;
    call.acked(&table(1, 10)).await;
    let fresh = running.until(|fresh| fresh.connected).await;
    assert_eq!(fresh.source, Source::Stream);
    running.serves(&table(1, 10));
}

#[tokio::test]
async fn a_restored_clusters_table_is_never_seen_under_the_old_clusters_name() {
    let mut a = ScriptedReplica::start().await;
    let mut running = run(&[&a], Some(table(1, 10)));
    let mut call = a.subscribe().await;
    let mut positions = running.table.watch();
    positions.mark_unchanged();
    let mut frames = snapshot("c-2", &table(2, 4));
    if let Some(Frame::Hello(hello)) = frames.first_mut() {
        hello.lineage = vec![CLUSTER.into()];
    }
    call.send(frames).await;
    // Whoever keeps a copy looks at the name when the table moves.
    soon(positions.changed()).await.unwrap();
    assert_eq!(running.freshness.borrow().cluster_id.as_deref(), Some("c-2"));
    call.acked(&table(2, 4)).await;
    running.serves(&table(2, 4));
    running.until(|fresh| fresh.connected).await;
    drop(call);
    let call = a.subscribe().await;
    assert_eq!((call.start.cluster_id.as_str(), call.start.epoch), ("c-2", 2));
}

#[tokio::test]
async fn after_a_gap_another_replica_is_asked_for_what_is_missing() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let running = run(&[&a, &b], Some(table(1, 10)));
    let (call, at_a) = either(&mut a, &mut b).await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), delta(11, 12)]).await;
    let mut call = if at_a { b.subscribe().await } else { a.subscribe().await };
    assert_eq!((call.start.has_table, call.start.revision), (true, 10));
    running.serves(&table(1, 10));
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), delta(10, 12)]).await;
    call.acked(&table(1, 12)).await;
    running.serves(&table(1, 12));
}

#[tokio::test]
async fn a_digest_that_disagrees_leads_to_a_fresh_snapshot_and_the_old_table_serves_until_it_is_whole() {
    let mut a = ScriptedReplica::start().await;
    let running = run(&[&a], Some(table(1, 10)));
    let call = a.subscribe().await;
    call.send([
        hello(Mode::Resume, CLUSTER, 1, 10),
        bookmark(Revision(10), table(1, 9).digest()),
    ])
    .await;

    // The first snapshot that comes is damaged.
    let call = a.subscribe().await;
    assert!(!call.start.has_table);
    let mut frames = snapshot(CLUSTER, &table(1, 11));
    if let Some(Frame::SnapshotChunk(chunk)) = frames.last_mut() {
        chunk.checksum ^= 1;
    }
    call.send(frames).await;

    let mut call = a.subscribe().await;
    assert!(!call.start.has_table);
    running.serves(&table(1, 10));
    call.send(snapshot(CLUSTER, &table(1, 11))).await;
    call.acked(&table(1, 11)).await;
    running.serves(&table(1, 11));
}

#[tokio::test]
async fn another_cluster_and_an_older_table_are_never_taken() {
    let mut a = ScriptedReplica::start().await;
    let running = run(&[&a], Some(table(2, 10)));
    for frames in [
        snapshot("c-2", &table(3, 99)),
        snapshot(CLUSTER, &table(2, 9)),
        snapshot(CLUSTER, &table(1, 99)),
    ] {
        let mut call = a.subscribe().await;
        assert_eq!((call.start.cluster_id.as_str(), call.start.revision), (CLUSTER, 10));
        call.send(frames).await;
        assert_eq!(call.ack().await, None);
        running.serves(&table(2, 10));
        assert_eq!(running.freshness.borrow().source, Source::Cache);
    }
}

#[tokio::test]
async fn a_replica_that_sends_us_away_is_left() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let running = run(&[&a, &b], Some(table(1, 10)));
    let (call, at_a) = either(&mut a, &mut b).await;
    let go_away = GoAway {
        reason: go_away::Reason::Shutdown.into(),
        retry_after_ms: 10,
    };
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), Frame::GoAway(go_away)])
        .await;
    let call = if at_a { b.subscribe().await } else { a.subscribe().await };
    assert_eq!(call.start.revision, 10);
    running.serves(&table(1, 10));
}

#[tokio::test]
async fn a_replica_that_has_lost_its_leader_is_left_for_one_that_has_it() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let mut running = run(&[&a, &b], Some(table(1, 10)));
    let (mut call, at_a) = either(&mut a, &mut b).await;
    call.send([
        hello(Mode::Resume, CLUSTER, 1, 10),
        orphaned(Revision(10), table(1, 10).digest()),
    ])
    .await;
    let mut next = if at_a { b.subscribe().await } else { a.subscribe().await };
    assert_eq!((next.start.has_table, next.start.revision), (true, 10));
    while call.ack().await.is_some() {}
    running.serves(&table(1, 10));
    next.send([
        hello(Mode::Resume, CLUSTER, 1, 10),
        bookmark(Revision(10), table(1, 10).digest()),
        delta(10, 12),
    ])
    .await;
    next.acked(&table(1, 12)).await;
    running.serves(&table(1, 12));
    running.until(|fresh| fresh.last_contact.is_some()).await;
}

#[tokio::test]
async fn where_no_replica_has_a_leader_the_last_one_is_stayed_with() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let running = run(&[&a, &b], Some(table(1, 10)));
    let lost = || orphaned(Revision(10), table(1, 10).digest());
    let (call, at_a) = either(&mut a, &mut b).await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 10), lost()]).await;
    let mut last = if at_a { b.subscribe().await } else { a.subscribe().await };
    last.send([hello(Mode::Resume, CLUSTER, 1, 10)]).await;
    last.send((0..5).map(|_| lost())).await;
    // It is there when the replica has news again.
    last.send([delta(10, 11)]).await;
    last.acked(&table(1, 11)).await;
    running.serves(&table(1, 11));
    assert!(
        a.subscribes.is_empty() && b.subscribes.is_empty(),
        "it came once to each"
    );
}

/// One stream in memory, so that the clock may be paused: what `drive` returns, and when.
async fn driven(
    subscriber: &mut Subscriber,
    script: impl AsyncFnOnce(mpsc::Sender<Result<SubscribeResponse, Status>>),
) -> (End, Duration) {
    let (frames, frames_out) = mpsc::channel(16);
    let (acks, _acked) = watch::channel(Acked::default());
    subscriber.following.start("p0", true);
    let begun = Instant::now();
    let drive = subscriber.drive(ReceiverStream::new(frames_out), begun + HELLO, &acks);
    let (end, ()) = tokio::join!(drive, script(frames));
    (end, begun.elapsed())
}

async fn send(frames: &mpsc::Sender<Result<SubscribeResponse, Status>>, frame: Frame) {
    // Fails if the stream is over, which the test looks at afterwards.
    let _ = frames.send(Ok(SubscribeResponse { frame: Some(frame) })).await;
}

#[tokio::test(start_paused = true)]
async fn three_seconds_of_silence_end_a_stream_and_bookmarks_keep_it() {
    let mut subscriber = configured(&["127.0.0.1:1"], Some(table(1, 10)));
    let (end, took) = driven(&mut subscriber, async |frames| {
        send(&frames, hello(Mode::Resume, CLUSTER, 1, 10)).await;
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            send(&frames, bookmark(Revision(10), table(1, 10).digest())).await;
        }
        frames.closed().await;
    })
    .await;
    assert!(matches!(end, End::Silent), "{end}");
    assert_eq!(took.as_secs(), 10 + SILENCE.as_secs());
    let fresh = subscriber.freshness.borrow().clone();
    assert!(fresh.last_contact.unwrap().elapsed() >= SILENCE);
    assert_eq!(subscriber.table().load().unwrap().revision(), Revision(10));
}

#[tokio::test(start_paused = true)]
async fn a_hello_must_come_in_time() {
    let mut subscriber = configured(&["127.0.0.1:1"], None);
    let (end, took) = driven(&mut subscriber, async |frames| frames.closed().await).await;
    assert!(matches!(end, End::NoHello), "{end}");
    assert_eq!(took.as_secs(), HELLO.as_secs());
}

#[tokio::test(start_paused = true)]
async fn an_age_that_nobody_knows_proves_no_contact() {
    let mut subscriber = configured(&["127.0.0.1:1"], Some(table(1, 10)));
    driven(&mut subscriber, async |frames| {
        send(&frames, hello(Mode::Resume, CLUSTER, 1, 10)).await;
        send(&frames, orphaned(Revision(10), table(1, 10).digest())).await;
    })
    .await;
    assert_eq!(subscriber.freshness.borrow().last_contact, None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_its_replica_has_lost_its_leader_and_what_was_vouched_for_stays_so() {
    let mut subscriber = configured(&["127.0.0.1:1", "127.0.0.1:2"], Some(table(1, 10)));
    let (end, _) = driven(&mut subscriber, async |frames| {
        send(&frames, hello(Mode::Resume, CLUSTER, 1, 10)).await;
        send(&frames, bookmark(Revision(10), table(1, 10).digest())).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        send(&frames, orphaned(Revision(10), table(1, 10).digest())).await;
        frames.closed().await;
    })
    .await;
    assert!(matches!(end, End::Leaderless), "{end}");
    let contact = subscriber.freshness.borrow().last_contact;
    assert_eq!(contact.unwrap().elapsed(), Duration::from_millis(2_540));
}

#[tokio::test(start_paused = true)]
async fn a_table_of_an_earlier_run_is_as_old_as_it_was_and_the_process_together() {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);
    let now = SystemTime::now();
    for (vouched, least) in [
        (Some(now - WEEK), Some(WEEK)),
        // The clock was set back meanwhile.
        (Some(now + WEEK), Some(Duration::ZERO)),
        (None, None),
    ] {
        let mut subscriber = Subscriber::new(SubscriberConfig {
            endpoints: Endpoints::parse(&["127.0.0.1:1"]).unwrap(),
            name: "p0".into(),
            proxy: true,
            cached: Some(Cached {
                cluster_id: CLUSTER.into(),
                table: table(1, 10),
                vouched,
            }),
        });
        let age = |subscriber: &Subscriber| subscriber.freshness.borrow().age();
        let first = age(&subscriber);
        assert_eq!(first.is_some(), least.is_some());
        assert!(
            first >= least && first <= least.map(|least| least + MINUTE),
            "{first:?}"
        );
        tokio::time::advance(MINUTE).await;
        assert_eq!(age(&subscriber), first.map(|first| first + MINUTE));
        driven(&mut subscriber, async |frames| {
            send(&frames, hello(Mode::Resume, CLUSTER, 1, 10)).await;
            send(&frames, bookmark(Revision(10), table(1, 10).digest())).await;
        })
        .await;
        assert!(age(&subscriber) < Some(MINUTE), "a replica has vouched since");
    }
}

#[tokio::test]
async fn it_is_told_when_no_replica_can_be_connected_to_until_one_is_followed() {
    let mut a = ScriptedReplica::start().await;
    let relay = Relay::start("127.0.0.1:0", &a.address).await;
    let address = relay.address.clone();
    drop(relay);
    let mut running = started(configured(&["127.0.0.1:1", &address], Some(table(1, 10))));
    running.until(|fresh| fresh.unreachable).await;
    assert_eq!(running.freshness.borrow().last_contact, None);

    let _relay = Relay::start(&address, &a.address).await;
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 10)]).await;
    let fresh = running.until(|fresh| fresh.connected).await;
    assert!(!fresh.unreachable);
}

#[tokio::test]
async fn a_replica_that_is_silent_or_sends_us_away_can_be_connected_to() {
    let mut subscriber = configured(&["127.0.0.1:1", "127.0.0.1:2"], Some(table(1, 10)));
    let replica = subscriber.endpoints.replicas()[0].clone();
    let End::Lost(refused) = subscriber.follow(&replica).await else {
        panic!("nobody listens there")
    };
    for other in [End::NoHello, End::Closed, End::Lost(Status::unavailable("not ready"))] {
        subscriber.ended(&replica, &End::Lost(refused.clone()));
        subscriber.ended(&replica, &other);
        assert!(!subscriber.freshness.borrow().unreachable, "{other}");
    }
    for is_told in [false, true] {
        subscriber.ended(&replica, &End::Lost(refused.clone()));
        assert_eq!(subscriber.freshness.borrow().unreachable, is_told);
    }
}

#[tokio::test]
async fn a_purge_while_a_subscriber_was_away_is_taken_by_the_word_of_two_replicas() {
    let (mut a, mut b) = (ScriptedReplica::start().await, ScriptedReplica::start().await);
    let running = run(&[&a, &b], Some(table(1, 10)));
    let empty = Table::from_entries(holdfast_table::Epoch(1), Revision(11), []);
    let emptied = |replica: &str| {
        let mut frames = snapshot(CLUSTER, &empty);
        if let Some(Frame::Hello(hello)) = frames.first_mut() {
            hello.replica = replica.into();
        }
        frames
    };
    let (mut call, at_a) = either(&mut a, &mut b).await;
    call.send(emptied("first")).await;
    assert_eq!(call.ack().await, None);
    running.serves(&table(1, 10));
    let mut call = if at_a { b.subscribe().await } else { a.subscribe().await };
    assert_eq!((call.start.has_table, call.start.revision), (true, 10));
    call.send(emptied("second")).await;
    call.acked(&empty).await;
    running.serves(&empty);
}

#[tokio::test(start_paused = true)]
async fn waits_between_streams_grow_and_a_wish_to_wait_is_bounded() {
    let mut subscriber = configured(&["127.0.0.1:1"], None);
    let replica = subscriber.endpoints.replicas()[0].clone();
    assert!(subscriber.ended(&replica, &End::Closed) <= crate::backoff::BASE);
    for _ in 0..20 {
        assert!(subscriber.ended(&replica, &End::Closed) <= STREAM_CAP);
    }
    let go_away = End::GoAway(go_away::Reason::Behind, Duration::from_secs(3600));
    assert_eq!(subscriber.ended(&replica, &go_away), STREAM_CAP);
}

#[tokio::test]
async fn a_cancelled_subscriber_ends_and_leaves_its_table() {
    let mut a = ScriptedReplica::start().await;
    let subscriber = subscriber(&[&a], Some(table(1, 10)));
    let live = subscriber.table();
    let shutdown = CancellationToken::new();
    let script = async {
        let _call = a.subscribe().await;
        shutdown.cancel();
    };
    soon(async { tokio::join!(subscriber.run(shutdown.clone()), script) }).await;
    assert_eq!(live.load().unwrap().revision(), Revision(10));
}

/// Everything that is known, and what of it is new.
#[derive(Default)]
struct Known {
    all: std::sync::Mutex<Vec<RouteActivity>>,
    news: std::sync::Mutex<Vec<RouteActivity>>,
}

impl Known {
    fn active(&self, spec: &str) {
        let activity = RouteActivity {
            spec: holdfast_table::RouteSpec::parse(spec).unwrap(),
            modified: Revision(1),
            age: Duration::from_millis(700),
        };
        self.all.lock().unwrap().push(activity.clone());
        self.news.lock().unwrap().push(activity);
    }
}

impl ActivitySource for Known {
    fn report(&self, all: bool) -> Vec<RouteActivity> {
        let news = std::mem::take(&mut *self.news.lock().unwrap());
        if all { self.all.lock().unwrap().clone() } else { news }
    }
}

fn reporting(subscriber: Subscriber) -> (Subscriber, Arc<Known>) {
    let known = Arc::new(Known::default());
    let subscriber = subscriber.reporting(Reports {
        source: known.clone(),
        interval: Duration::from_millis(20),
    });
    (subscriber, known)
}

async fn reported(replica: &mut ScriptedReplica, good: bool) -> Vec<String> {
    let call = soon(replica.reports.recv()).await.unwrap();
    let answer = match good {
        true => Ok(tonic::Response::new(ReportActivityResponse {})),
        false => Err(Status::unavailable("not now")),
    };
    // Fails if the subscriber has left, which shows in what it does next.
    let _ = call.answer.send(answer);
    call.request.routes.into_iter().map(|route| route.routespec).collect()
}

#[tokio::test]
async fn activity_is_told_once_and_all_of_it_to_whom_it_may_be_new() {
    let mut a = ScriptedReplica::start().await;
    let (subscriber, known) = reporting(configured(&[a.address.as_str()], Some(table(1, 2))));
    known.active("/user/1/");
    let _running = started(subscriber);
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 2)]).await;
    assert_eq!(reported(&mut a, true).await, ["/user/1/"]);
    known.active("/user/2/");
    assert_eq!(reported(&mut a, true).await, ["/user/2/"]);
    // Nobody knows whether a call that failed was heard.
    known.active("/user/1/");
    assert_eq!(reported(&mut a, false).await, ["/user/1/"]);
    let all = ["/user/1/", "/user/2/", "/user/1/"];
    assert_eq!(reported(&mut a, true).await, all);
    // A replica that ends a stream may have started anew by the next one.
    drop(call);
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 2)]).await;
    assert_eq!(reported(&mut a, true).await, all);
}

#[tokio::test]
async fn a_subscriber_that_ends_says_what_it_has_not_said_yet() {
    let mut a = ScriptedReplica::start().await;
    let subscriber = configured(&[a.address.as_str()], Some(table(1, 2)));
    let known = Arc::new(Known::default());
    let subscriber = subscriber.reporting(Reports {
        source: known.clone(),
        interval: Duration::from_secs(3600),
    });
    let mut freshness = subscriber.freshness();
    let shutdown = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(subscriber.run(shutdown.clone()));
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 2)]).await;
    soon(freshness.wait_for(|freshness| freshness.connected)).await.unwrap();
    known.active("/user/1/");
    shutdown.cancel();
    assert_eq!(reported(&mut a, true).await, ["/user/1/"]);
    soon(task.join_next()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_report_comes_in_calls_of_a_bounded_size() {
    let mut a = ScriptedReplica::start().await;
    let (subscriber, known) = reporting(configured(&[a.address.as_str()], Some(table(1, 2))));
    let long = "x".repeat(4_000);
    let specs: Vec<String> = (0..100_000)
        .map(|n| match n % 100 {
            0 => format!("/user/{n}/{long}/"),
            _ => format!("/user/{n}/"),
        })
        .collect();
    specs.iter().for_each(|spec| known.active(spec));
    let _running = started(subscriber);
    let call = a.subscribe().await;
    call.send([hello(Mode::Resume, CLUSTER, 1, 2)]).await;
    let mut told = Vec::new();
    while told.len() < specs.len() {
        let some = reported(&mut a, true).await;
        assert!(some.len() <= 10_000);
        let bytes: usize = some.iter().map(String::len).sum();
        assert!(bytes <= 1024 * 1024 + long.len(), "{bytes}");
        told.extend(some);
    }
    assert!(told == specs, "each of them once");
}
