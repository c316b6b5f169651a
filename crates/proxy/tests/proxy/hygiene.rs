//! The bytes of one request make at most one request to a target.

use std::time::Duration;

use crate::fixture::{Conversation, Setup, Target, ask, soon, until};

#[tokio::test]
async fn ambiguous_framing_is_refused() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for head in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3, 4\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Folded: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        "NONSENSE\r\n\r\n",
    ] {
        let answer = ask(setup.proxy.public, head).await;
        assert_eq!(answer.status(), 400, "{head:?}: {}", answer.head);
    }
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn too_large_a_head_is_refused() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let long = "a".repeat(80 * 1024);
    let answer = ask(
        setup.proxy.public,
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
    )
    .await;
    assert_eq!(answer.status(), 431);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let answer = ask(setup.proxy.public, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).await;
    assert_eq!(answer.status(), 431);
    assert_eq!(hub.connections(), 0);
}

/// Framed twice, a request is read as chunked (RFC 9112, section 6.3) and goes on framed once: the target cannot read it
/// any other way than we did.
#[tokio::test]
async fn a_body_framed_twice_goes_on_framed_once() {
    for order in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let (target, mut connections) = Target::manual().await;
        let setup = Setup::new(&[("/", &target.url)]).await;
        let mut client = Conversation::connect(setup.proxy.public).await;
        client
            .send(format!(
                "POST /one HTTP/1.1\r\nHost: a\r\n{order}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            ))
            .await;
        let mut connection = soon(connections.recv()).await.unwrap();
        let head = soon(connection.head()).await.unwrap().to_lowercase();
        assert!(
            head.contains("transfer-encoding: chunked") && !head.contains("content-length"),
            "{head}"
        );
        assert_eq!(connection.chunk().await, b"abc");
        assert_eq!(connection.chunk().await, b"");
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.answer().await.status(), 200);
        assert!(connection.unread.is_empty());
    }
}

#[tokio::test]
async fn what_follows_a_refused_request_is_not_read_as_one() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send(
            "POST /../x HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n     \
             GET /second HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    assert_eq!(client.answer().await.status(), 400);
    assert_eq!(client.rest().await, b"", "the connection is closed");
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn a_slow_head_and_an_idle_connection_are_closed() {
    let hub = Target::mirror("hub").await;
    let timeout = Duration::from_millis(300);
    let setup = Setup::with(&[("/", &hub.url)], |config| config.header_read_timeout = timeout).await;
    let mut slow = Conversation::connect(setup.proxy.public).await;
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    let mut silent = Conversation::connect(setup.proxy.public).await;
    let mut idle = Conversation::connect(setup.proxy.public).await;
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(idle.answer().await.status(), 200);
    assert_eq!(idle.rest().await, b"");
    assert_eq!(silent.rest().await, b"");
    slow.rest().await;
    until(async || setup.proxy.metric("holdfast_proxy_connections").await == 0.0).await;
}

#[tokio::test]
async fn connections_beyond_the_most_wait_for_their_turn() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::with(&[("/", &hub.url)], |config| config.connections_max = 1).await;
    let mut first = Conversation::connect(setup.proxy.public).await;
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(first.answer().await.status(), 200);
    let mut second = Conversation::connect(setup.proxy.public).await;
    second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(200), second.read_more()).await;
    assert!(early.is_err());
    drop(first);
    assert_eq!(second.answer().await.status(), 200);
}

#[tokio::test]
async fn a_target_cannot_switch_protocols_by_itself() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    for upgrade in ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"] {
        let mut client = Conversation::connect(setup.proxy.public).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n")).await;
        let mut connection = soon(connections.recv()).await.unwrap();
        soon(connection.head()).await.unwrap();
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nevil")
            .await;
        assert_eq!(client.answer().await.status(), 503);
    }
}

/// One framing of two in an answer is an attack on whoever reads the other one.
#[tokio::test]
async fn an_answer_framed_twice_goes_on_framed_once() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send("HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "abc"));
    assert_eq!(answer.header("content-length"), None);
}
