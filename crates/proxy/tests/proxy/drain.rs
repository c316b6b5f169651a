//! P9: what a drain waits for, and for how long.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::fixture::{Conversation, Setup, Target, ask, get, soon, until};
use crate::websockets::open;

/// Close code 1001, by a server and by a client.
const GOODBYE: &[u8] = &[0x88, 2, 0x03, 0xe9];
const GOODBYE_MASKED: &[u8] = &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9];

#[tokio::test]
async fn unready_at_once_but_served_until_the_delay_is_over() {
    let hub = Target::mirror("hub").await;
    let mut setup = Setup::with(&[("/", &hub.url)], |config| config.drain_delay = Duration::from_secs(2)).await;
    let mut before = Conversation::connect(setup.proxy.public).await;
    setup.proxy.shutdown.cancel();
    until(async || get(setup.proxy.admin, "/readyz").await.status() == 503).await;
    assert_eq!(get(setup.proxy.admin, "/livez").await.status(), 200);
    assert_eq!(get(setup.proxy.public, "/_chp_healthz").await.status(), 503);
    before.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    for answer in [before.answer().await, get(setup.proxy.public, "/new").await] {
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(setup.proxy.status().await["draining"], true);
    assert!(setup.proxy.is_running());
    setup.proxy.ended().await;
}

#[tokio::test]
async fn a_drain_waits_for_a_request_to_end() {
    let (target, mut connections) = Target::manual().await;
    let mut setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    let mut idle = Conversation::connect(setup.proxy.public).await;
    idle.send("GET /_chp_healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(idle.answer().await.status(), 200);
    setup.proxy.shutdown.cancel();
    // Idle connections are closed, and the port too: the drain is on.
    assert_eq!(idle.rest().await, b"");
    until(async || tokio::net::TcpStream::connect(setup.proxy.public).await.is_err()).await;
    assert!(setup.proxy.is_running());
    connection
        .send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "done"));
    assert_eq!(client.rest().await, b"");
    setup.proxy.ended().await;
}

#[tokio::test]
async fn a_drain_waits_for_a_websocket_and_ends_with_it() {
    let (target, mut connections) = Target::manual().await;
    let mut setup = Setup::with(&[("/", &target.url)], |config| {
        config.drain_timeout = Duration::from_secs(3600)
    })
    .await;
    let (mut client, mut target) = open(&setup, &mut connections).await;
    setup.proxy.shutdown.cancel();
    until(async || tokio::net::TcpStream::connect(setup.proxy.public).await.is_err()).await;
    client.send("ping").await;
    assert_eq!(target.take(4).await, b"ping");
    target.send("pong").await;
    assert_eq!(client.take(4).await, b"pong");
    assert!(setup.proxy.is_running());
    drop((client, target));
    setup.proxy.ended().await;
}

#[tokio::test]
async fn a_drain_lets_go_at_its_timeout() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.drain_timeout = Duration::from_secs(1)
    })
    .await;
    let (mut client, mut tunnel_target) = open(&setup, &mut connections).await;
    let mut waiting = Conversation::connect(setup.proxy.public).await;
    waiting.send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    let started = Instant::now();
    setup.proxy.shutdown.cancel();
    assert_eq!(client.rest().await, GOODBYE);
    assert_eq!(tunnel_target.rest().await, GOODBYE_MASKED);
    assert_eq!(waiting.rest().await, b"");
    setup.proxy.ended().await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// Ten thousand that are told at once come back at once.
#[tokio::test]
async fn websockets_live_to_the_grace_limit_and_are_told_one_after_the_other() {
    const SOCKETS: usize = 24;
    const GRACE: Duration = Duration::from_secs(4);
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| config.drain_timeout = GRACE).await;
    let mut tunnels = Vec::new();
    for _ in 0..SOCKETS {
        tunnels.push(open(&setup, &mut connections).await);
    }
    assert_eq!(setup.proxy.status().await["active_websockets"], SOCKETS);
    let started = Instant::now();
    setup.proxy.shutdown.cancel();
    let mut told = JoinSet::new();
    for (mut client, mut target) in tunnels {
        told.spawn(async move {
            // Frames pass until the goodbye, and none is cut by it.
            let (ping, pong) = ([0x82, 4, 1, 2, 3, 4], [0x82, 3, 5, 6, 7]);
            client.send(ping).await;
            assert_eq!(target.take(6).await, ping);
            target.send(&pong[..2]).await;
            target.send(&pong[2..]).await;
            let heard = client.rest().await;
            let after = started.elapsed();
            assert_eq!(heard, [&pong, GOODBYE].concat());
            assert_eq!(target.rest().await, GOODBYE_MASKED);
            after
        });
    }
    let mut after: Vec<Duration> = Vec::new();
    while let Some(told) = told.join_next().await {
        after.push(told.unwrap());
    }
    setup.proxy.ended().await;
    after.sort();
    let (first, last) = (after[0], after[SOCKETS - 1]);
    println!("{SOCKETS} WebSockets, grace {GRACE:?}: told from {first:?} to {last:?}");
    assert!(first >= GRACE / 2 && last <= GRACE, "{after:?}");
    assert!(last - first > GRACE / 8, "not spread: {after:?}");
}

#[tokio::test]
async fn who_takes_no_such_request_is_not_drained_by_one() {
    let setup = Setup::with(&[], |config| config.drain_on_request = false).await;
    let request = "POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(setup.proxy.admin, request).await.status(), 404);
    assert_eq!(get(setup.proxy.admin, "/readyz").await.status(), 200);
}

#[tokio::test]
async fn who_is_asked_to_drain_is_unready_and_serves_on() {
    let (target, mut connections) = Target::manual().await;
    let hub = Target::mirror("hub").await;
    let delay = Duration::from_secs(1);
    let mut setup = Setup::with(&[("/user/", &target.url), ("/", &hub.url)], |config| {
        config.drain_delay = delay;
    })
    .await;
    let tunnel = open(&setup, &mut connections).await;
    assert_eq!(get(setup.proxy.admin, "/drain").await.status(), 405, "it takes a POST");
    assert_eq!(get(setup.proxy.admin, "/readyz").await.status(), 200);
    let asked = Instant::now();
    for _ in 0..2 {
        let answer = ask(
            setup.proxy.admin,
            "POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        assert_eq!(answer.status(), 200);
        let left: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            left,
            serde_json::json!({"draining": true, "connections": 1, "active_requests": 0, "active_websockets": 1})
        );
    }
    assert_eq!(get(setup.proxy.admin, "/readyz").await.status(), 503);
    // For as long as nobody ends it.
    while asked.elapsed() < delay {
        let answer = get(setup.proxy.public, "/").await;
        assert_eq!((answer.status(), answer.header("connection")), (200, Some("close")));
    }
    assert!(setup.proxy.is_running());
    // The load balancer has had its time.
    drop(tunnel);
    setup.proxy.shutdown.cancel();
    let told = Instant::now();
    setup.proxy.ended().await;
    assert!(told.elapsed() < delay, "{:?}", told.elapsed());
}
