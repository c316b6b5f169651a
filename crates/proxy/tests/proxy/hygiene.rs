//! The bytes of one request make at most one request to a target.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Conversation, Setup, Target, ask, header, soon, until};

#[tokio::test]
async fn ambiguous_framing_is_refused() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let heads = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3, 4\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\nX: y\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Folded: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Folded: a\r\n\tb\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        "NONSENSE\r\n\r\n",
    ];
    for head in heads {
        let mut client = Conversation::connect(setup.proxy.public).await;
        client.send(head).await;
        let answered = String::from_utf8(client.rest().await).unwrap();
        assert!(answered.starts_with("HTTP/1.1 400 "), "{head:?}: {answered}");
    }
    assert_eq!(hub.connections(), 0);
    let (framing, head) = (rejected(&setup, "framing").await, rejected(&setup, "head").await);
    assert!(framing > 10.0 && head > 3.0, "{framing}, {head}");
    assert_eq!(framing + head, heads.len() as f64, "each is counted once");
}

async fn rejected(setup: &Setup, reason: &str) -> f64 {
    let series = format!(r#"holdfast_proxy_rejected_total{{reason="{reason}"}}"#);
    setup.proxy.metric(&series).await
}

async fn dropped(setup: &Setup, reason: &str) -> f64 {
    let series = format!(r#"holdfast_proxy_connections_dropped_total{{reason="{reason}"}}"#);
    setup.proxy.metric(&series).await
}

/// What is refused in the second of two requests does not harm the first one, and is refused all the same.
#[tokio::test]
async fn ambiguous_framing_is_refused_behind_a_good_request_too() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for first in [
        "GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\n\n\n\n",
    ] {
        for second in [
            "POST /second HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /second HTTP/1.1\nHost: a\r\n\r\n",
            "GET /second HTTP/1.1\r\nHost: a\r\n\n",
            "GET /second HTTP/1.1\nHost: a\n\n",
        ] {
            let mut client = Conversation::connect(setup.proxy.public).await;
            // In one piece, and then byte by byte.
            client.send(format!("{first}{second}")).await;
            let good = client.answer().await;
            assert_eq!(good.status(), 200);
            assert!(good.text().contains("/first"));
            assert_eq!(client.answer().await.status(), 400);
            assert_eq!(client.rest().await, b"");

            let mut client = Conversation::connect(setup.proxy.public).await;
            client.send(first).await;
            assert_eq!(client.answer().await.status(), 200);
            for byte in second.bytes() {
                client.send([byte]).await;
            }
            assert_eq!(client.answer().await.status(), 400);
            assert_eq!(client.rest().await, b"");
        }
    }
}

/// Chunks are read as the RFC has them or not at all, and what a target gets are chunks of our own making.
#[tokio::test]
async fn chunks_are_read_strictly_and_written_anew() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send(
            "POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=\"1\"\r\nabc\r\n0\r\n\r\n\
             GET /two HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    let head = soon(connection.head()).await.unwrap();
    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"));
    assert_eq!(connection.take(13).await, b"3\r\nabc\r\n0\r\n\r\n");
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
    assert!(soon(connection.head()).await.unwrap().starts_with("GET /two "));
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);

    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(32 * 1024));
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3;\nabc\r\n0\r\n\r\n",
        "3\r\nabcde\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: y\n\r\n",
        "3\r\nabc\r\n0\r\n\nX: y\r\n\r\n",
        &long,
    ] {
        let (seen, sink) = sink().await;
        let setup = Setup::new(&[("/", &sink.url)]).await;
        let mut client = Conversation::connect(setup.proxy.public).await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            ))
            .await;
        let answered = String::from_utf8(client.rest().await).unwrap();
        assert!(
            answered.is_empty() || answered.starts_with("HTTP/1.1 400 "),
            "{body:?}: {answered}"
        );
        until(async || setup.proxy.status().await["active_requests"] == 0).await;
        // Closed in the middle of a request, the target cannot take it for a whole one.
        let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert!(
            !seen.contains("smuggled") && !seen.ends_with("0\r\n\r\n"),
            "{body:?}: {seen}"
        );
    }
}

/// A target that only listens, and what it has heard.
async fn sink() -> (Arc<Mutex<Vec<u8>>>, Target) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = seen.clone();
    let target = Target::start(move |mut connection| {
        let heard = heard.clone();
        async move {
            while let Ok(1..) = connection.read_more().await {
                heard.lock().unwrap().append(&mut connection.unread);
            }
        }
    })
    .await;
    (seen, target)
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
    let long = "a".repeat(70 * 1024);
    let answer = ask(setup.proxy.public, format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(matches!(answer.status(), 414 | 431), "{}", answer.head);
    assert_eq!(hub.connections(), 0);
    until(async || rejected(&setup, "head").await == 3.0).await;
    assert_eq!(rejected(&setup, "framing").await, 0.0);
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
    let setup = Setup::with(&[("/", &hub.url)], |config| {
        (config.header_timeout, config.keep_alive_timeout) = (timeout, timeout);
    })
    .await;
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
    let counted = (dropped(&setup, "slow").await, dropped(&setup, "silent").await);
    assert_eq!(counted, (1.0, 1.0), "who is idle after an answer does nothing wrong");
}

#[tokio::test]
async fn a_long_keep_alive_gives_no_head_more_time() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.header_timeout = Duration::from_millis(300);
        config.keep_alive_timeout = Duration::from_secs(3600);
    })
    .await;
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = Conversation::connect(setup.proxy.public).await;
    // Neither a target that takes its time nor a pause between two requests is a head that is late.
    for _ in 0..2 {
        client.send(REQUEST).await;
        let mut server = soon(connections.recv()).await.unwrap();
        soon(server.head()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(700)).await;
        server
            .send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            .await;
        assert_eq!(client.answer().await.status(), 204);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    client.send("GET / HTTP/1.1\r\n").await;
    assert_eq!(client.rest().await, b"");
    // Nor does it help to send a byte now and then.
    let (mut from, mut to) = TcpStream::connect(setup.proxy.public).await.unwrap().into_split();
    let drip = async {
        while to.write_all(b"X").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut rest = Vec::new();
    // However it is closed.
    let (_, ()) = soon(async { tokio::join!(from.read_to_end(&mut rest), drip) }).await;
    assert_eq!(rest, b"");
    until(async || dropped(&setup, "slow").await == 2.0).await;
}

/// Slow is who sends little while his target waits for more of it, not who sends slowly.
#[tokio::test]
async fn a_body_of_which_too_little_comes_is_given_up() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.body_timeout = Duration::from_secs(2)
    })
    .await;
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4096\r\n\r\n";
    const KIBIBYTE: [u8; 1024] = [b'x'; 1024];
    let (mut from, mut to) = TcpStream::connect(setup.proxy.public).await.unwrap().into_split();
    let drip = async {
        to.write_all(HEAD).await.unwrap();
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    // However it is closed.
    let (_, ()) = soon(async { tokio::join!(from.read_to_end(&mut answer), drip) }).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", answer.escape_ascii());
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    assert!(connection.rest().await.len() < 4096);
    let slow = "holdfast_proxy_slow_bodies_total";
    assert_eq!(setup.proxy.metric(slow).await, 1.0);

    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send(HEAD).await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        client.send(KIBIBYTE).await;
        assert_eq!(connection.take(1024).await, KIBIBYTE);
    }
    connection.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 204);
    assert_eq!(setup.proxy.metric(slow).await, 1.0);
}

/// Such as one that talks with its client, each in one body.
#[tokio::test]
async fn a_target_that_answers_already_does_not_wait_for_the_rest_of_a_body() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.body_timeout = Duration::from_secs(1)
    })
    .await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    soon(client.head()).await.unwrap();
    assert_eq!(client.chunk().await, b"a");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    connection.send("1\r\nb\r\n0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"b");
    assert_eq!(client.chunk().await, b"");
    assert_eq!(setup.proxy.metric("holdfast_proxy_slow_bodies_total").await, 0.0);
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
    let series = r#"holdfast_proxy_accept_paused_total{reason="full"}"#;
    assert_eq!(setup.proxy.metric(series).await, 2.0);
    assert_eq!(setup.proxy.metric("holdfast_proxy_connections_max").await, 1.0);
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

/// It would make a request that the client thinks it has not sent yet of what it sends next.
#[tokio::test]
async fn a_request_that_breaks_off_is_none() {
    let (seen, sink) = sink().await;
    let setup = Setup::new(&[("/", &sink.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        .await;
    until(async || seen.lock().unwrap().ends_with(b"abc")).await;
    drop(client);
    until(async || setup.proxy.status().await["active_requests"] == 0).await;
    let series = r#"holdfast_proxy_target_failures_total{reason="response"}"#;
    assert_eq!(setup.proxy.metric(series).await, 0.0, "it was not the target's failure");
}

#[tokio::test]
async fn one_address_has_no_more_connections_than_it_may() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::with(&[("/", &hub.url)], |config| {
        config.connections_per_address_max = Some(2)
    })
    .await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut first = Conversation::connect(setup.proxy.public).await;
    let mut second = Conversation::connect(setup.proxy.public).await;
    for client in [&mut first, &mut second] {
        client.send(request).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    let mut third = Conversation::connect(setup.proxy.public).await;
    third.send(request).await;
    assert_eq!(third.rest().await, b"");
    let series = r#"holdfast_proxy_connections_dropped_total{reason="address"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
    drop(first);
    until(async || setup.proxy.metric("holdfast_proxy_connections").await == 1.0).await;
    assert_eq!(ask(setup.proxy.public, request).await.status(), 200);
    second.send(request).await;
    assert_eq!(second.answer().await.status(), 200);
}

/// Counted from the last byte either way, and not counted for a WebSocket.
#[tokio::test]
async fn a_connection_on_which_nothing_passes_is_closed_if_that_is_wished() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.client_timeout = Some(Duration::from_millis(600))
    })
    .await;
    let (mut websocket, mut server) = crate::websockets::open(&setup, &mut connections).await;
    let mut slow = Conversation::connect(setup.proxy.public).await;
    slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    for _ in 0..5 {
        // Slow, but not silent.
        tokio::time::sleep(Duration::from_millis(250)).await;
        slow.send("x").await;
        assert_eq!(connection.take(1).await, b"x");
    }
    let rest = slow.rest().await;
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "),
        "now it is silent"
    );
    assert_eq!(connection.rest().await, b"");
    websocket.send("still here").await;
    assert_eq!(server.take(10).await, b"still here");
}

#[tokio::test]
async fn a_target_that_is_silent_for_too_long_is_given_up_if_that_is_wished() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.target_timeout = Some(Duration::from_millis(500))
    })
    .await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    assert_eq!(client.answer().await.status(), 503);
    assert_eq!(connection.rest().await, b"");
    let series = r#"holdfast_proxy_target_failures_total{reason="silent"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);

    // An upload that goes on is no silence; and within an answer each part of it counts.
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        client.send("x").await;
    }
    connection.take(5).await;
    connection
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    soon(client.head()).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        connection.send("1\r\nx\r\n").await;
        assert_eq!(client.chunk().await, b"x");
    }
    let rest = client.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it broke off: {rest:?}");
}

/// What a target says in its head costs memory here, and a client's buffers there.
#[tokio::test]
async fn a_target_with_too_large_a_head_has_not_answered() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let long = format!("X-Long: {}\r\n", "a".repeat(80 * 1024));
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let folded = "X: a\r\n b\r\n".to_owned();
    for headers in [long, many, folded] {
        let mut client = Conversation::connect(setup.proxy.public).await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut connection = soon(connections.recv()).await.unwrap();
        soon(connection.head()).await.unwrap();
        connection
            .send(format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 0\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.status(), 503);
    }
}
