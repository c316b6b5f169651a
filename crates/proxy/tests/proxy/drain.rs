//! P9: what a drain waits for, and for how long.

use std::time::{Duration, Instant};

use crate::fixture::{Conversation, Setup, Target, get, soon, until};
use crate::websockets::open;

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
    assert_eq!(client.rest().await, b"");
    assert_eq!(tunnel_target.rest().await, b"");
    assert_eq!(waiting.rest().await, b"");
    setup.proxy.ended().await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
