//! Upgraded connections.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::fixture::{Conversation, Setup, Target, ask, get, header, soon, table, until};

pub const REQUEST: &str = "GET /user/alice/api/kernels/1/channels?token=x HTTP/1.1\r\nHost: hub.example.org\r\n\
    Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v1.kernel\r\n\
    Origin: http://hub.example.org\r\n\r\n";
pub const ACCEPT: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v1.kernel\r\n\r\n";

/// Opens a tunnel and returns both ends.
pub async fn open(setup: &Setup, connections: &mut mpsc::Receiver<Conversation>) -> (Conversation, Conversation) {
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send(REQUEST).await;
    let mut target = soon(connections.recv()).await.unwrap();
    soon(target.head()).await.unwrap();
    target.send(ACCEPT).await;
    assert_eq!(client.answer().await.status(), 101);
    (client, target)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_none_before_the_101() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    // A client that does not wait for the answer: its bytes must not reach a target that may yet refuse.
    client.send(format!("{REQUEST}early")).await;
    let mut target = soon(connections.recv()).await.unwrap();
    let head = soon(target.head()).await.unwrap();
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("host", "hub.example.org"),
        ("origin", "http://hub.example.org"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("x-forwarded-for", "127.0.0.1"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{head}");
    }
    let early = tokio::time::timeout(Duration::from_millis(300), target.read_more()).await;
    assert!(early.is_err() && target.unread.is_empty(), "{:?}", target.unread);
    target.send(format!("{ACCEPT}first")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(answer.header("sec-websocket-protocol"), Some("v1.kernel"));
    assert_eq!(client.take(5).await, b"first");
    assert_eq!(target.take(5).await, b"early");
    for size in [1, 125, 8192, 100_000] {
        client.send(vec![b'c'; size]).await;
        assert_eq!(target.take(size).await, vec![b'c'; size]);
        target.send(vec![b't'; size]).await;
        assert_eq!(client.take(size).await, vec![b't'; size]);
    }
    let status = setup.proxy.status().await;
    assert_eq!(
        (&status["active_websockets"], &status["active_requests"]),
        (&1.into(), &0.into())
    );
    drop(client);
    assert_eq!(target.rest().await, b"");
    drop(target);
    until(async || setup.proxy.status().await["active_websockets"] == 0).await;
    let series = r#"holdfast_proxy_requests_total{kind="websocket",code_class="1xx"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
}

#[tokio::test]
async fn each_side_may_end_alone() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let (mut client, mut target) = open(&setup, &mut connections).await;
    client.send("bye").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(target.rest().await, b"bye");
    target.send("still here").await;
    target.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"still here");
    until(async || setup.proxy.status().await["active_websockets"] == 0).await;
}

#[tokio::test]
async fn a_refusal_is_an_ordinary_answer() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send(REQUEST).await;
    let mut target = soon(connections.recv()).await.unwrap();
    soon(target.head()).await.unwrap();
    target
        .send("HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.text().as_str()), (403, "no"));
    assert_eq!(answer.header("upgrade"), None);
    // What a client has sent ahead was meant for its WebSocket, so nobody may take it for a request.
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(client.rest().await, b"");
    assert_eq!(target.rest().await, b"");
    assert_eq!(setup.proxy.status().await["active_websockets"], 0);
}

#[tokio::test]
async fn no_target_and_no_route_are_answers_with_a_body() {
    let setup = Setup::new(&[("/user/", "http://127.0.0.1:1")]).await;
    let answer = ask(setup.proxy.public, REQUEST).await;
    assert_eq!(answer.status(), 503);
    assert!(!answer.body.is_empty());
    let answer = ask(setup.proxy.public, REQUEST.replace("/user/alice", "/nowhere")).await;
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn another_protocol_is_not_switched_to_but_answered() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    for (request, connection) in [
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n",
            None,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
            Some("close"),
        ),
    ] {
        client.send(request).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200, "{request}");
        assert_eq!(answer.header("connection"), connection, "{request}");
        let seen = answer.text();
        assert_eq!(
            (header(&seen, "upgrade"), header(&seen, "http2-settings")),
            (None, None),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn an_upgrade_has_no_body() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send(REQUEST.replace("\r\n\r\n", "\r\nContent-Length: 4\r\n\r\nbody"))
        .await;
    assert_eq!(client.answer().await.status(), 400);
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn a_tunnel_outlives_its_route() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/user/alice/", &target.url)]).await;
    let (mut client, mut target) = open(&setup, &mut connections).await;
    setup.replica.set(table(2, &[]));
    setup.proxy.at(2).await;
    assert_eq!(get(setup.proxy.public, "/user/alice/").await.status(), 404);
    client.send("ping").await;
    assert_eq!(target.take(4).await, b"ping");
    target.send("pong").await;
    assert_eq!(client.take(4).await, b"pong");
}

#[tokio::test]
async fn a_slow_client_slows_the_target_down() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let (mut client, mut target) = open(&setup, &mut connections).await;
    let chunk = vec![9; 64 * 1024];
    let mut sent = 0;
    while sent < 64 * 1024 * 1024 {
        match tokio::time::timeout(Duration::from_millis(500), target.stream.write(&chunk)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    assert!(sent < 64 * 1024 * 1024, "the tunnel took everything");
    assert!(client.take(sent).await.iter().all(|byte| *byte == 9));
}

#[tokio::test]
async fn a_target_may_listen_on_a_unix_socket() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("server.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let target = format!("http+unix://{}", path.display().to_string().replace('/', "%2F"));
    let setup = Setup::new(&[("/", &target)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send(REQUEST).await;
    let (stream, _) = soon(listener.accept()).await.unwrap();
    let mut server = Conversation::over(stream);
    let head = soon(server.head()).await.unwrap();
    assert_eq!(header(&head, "host"), Some("hub.example.org"), "{head}");
    server.send(ACCEPT).await;
    assert_eq!(client.answer().await.status(), 101);
    client.send("ping").await;
    assert_eq!(server.take(4).await, b"ping");
    server.send("pong").await;
    assert_eq!(client.take(4).await, b"pong");
    drop(client);
    assert_eq!(server.rest().await, b"");
}
