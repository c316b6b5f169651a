//! HTTP/2 from users, HTTP/1.1 to targets.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::ext::Protocol;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fixture::{Conversation, Http2, Setup, Target, ask, header, soon, until};
use crate::forwarding::fill_until_it_stalls;
use crate::websockets::ACCEPT;

fn request(method: Method, uri: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse().unwrap();
    *request.version_mut() = Version::HTTP_2;
    request
}

#[tokio::test]
async fn a_request_becomes_one_of_http_1() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/user/alice/", &hub.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let mut asked = request(Method::GET, "http://Hub.Example:8000/user/%61lice/x?q=%20");
    for cookie in ["a=1", "b=2", "c=3"] {
        asked.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    asked
        .headers_mut()
        .insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
    let (answer, body) = client.ask(asked, Bytes::new()).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-target"], "hub");
    let seen = String::from_utf8(body).unwrap();
    assert!(seen.starts_with("GET /user/%61lice/x?q=%20 HTTP/1.1\r\n"), "{seen}");
    for (name, value) in [
        ("host", "Hub.Example:8000"),
        ("cookie", "a=1; b=2; c=3"),
        ("te", "trailers"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "Hub.Example:8000"),
        ("x-forwarded-port", "8000"),
        ("x-forwarded-proto", "http"),
    ] {
        assert_eq!(header(&seen, name), Some(value), "{name} in {seen}");
    }
    assert_eq!(seen.to_lowercase().matches("\r\ncookie:").count(), 1, "{seen}");
    assert_eq!(seen.to_lowercase().matches("\r\nhost:").count(), 1, "{seen}");

    let (answer, body) = client
        .ask(request(Method::POST, "http://a/user/alice/"), Bytes::from("abc"))
        .await;
    assert_eq!(answer.status(), 200);
    let seen = String::from_utf8(body).unwrap();
    assert_eq!(header(&seen, "transfer-encoding"), Some("chunked"), "{seen}");
}

#[tokio::test]
async fn requests_run_beside_each_other() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (slow, _) = client.send(request(Method::GET, "http://a/slow"), true).await;
    let mut first = soon(connections.recv()).await.unwrap();
    soon(first.head()).await.unwrap();
    let (quick, _) = client.send(request(Method::GET, "http://a/quick"), true).await;
    let mut second = soon(connections.recv()).await.unwrap();
    soon(second.head()).await.unwrap();
    second.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(quick).await.unwrap().status(), 204);
    first
        .send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
    let answer = soon(slow).await.unwrap();
    assert!(answer.headers().get("connection").is_none() && answer.headers().get("transfer-encoding").is_none());
    let mut body = answer.into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn what_cannot_be_read_in_one_way_gets_400() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    for path in ["/user/../x", "/user/%2e%2e/x", "//evil/x", "/%zz"] {
        let (answer, _) = client.get(&format!("http://a{path}")).await;
        assert_eq!(answer.status(), 400, "{path}");
        assert!(answer.headers().get("connection").is_none());
    }
    let mut two_hosts = request(Method::GET, "http://a/");
    two_hosts.headers_mut().insert("host", "b".parse().unwrap());
    assert_eq!(client.ask(two_hosts, Bytes::new()).await.0.status(), 400);
    let connect = request(Method::CONNECT, "a:80");
    assert_eq!(client.ask(connect, Bytes::new()).await.0.status(), 400);
    let mut other = request(Method::CONNECT, "http://a/");
    other.extensions_mut().insert(Protocol::from_static("connect-udp"));
    assert_eq!(client.ask(other, Bytes::new()).await.0.status(), 400);
    assert_eq!(hub.connections(), 0);
    assert_eq!(client.get("http://a/").await.0.status(), 200, "the connection goes on");
}

/// One frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What follows a `#` is nobody's part of a request. Over HTTP/1.1 the request is refused; over HTTP/2 it is gone
/// before anybody here sees the path, so that it can decide nothing and reaches no target.
#[tokio::test]
async fn a_fragment_is_cut_over_http_2_and_refused_over_http_1() {
    let (a, b) = tokio::join!(Target::mirror("a"), Target::mirror("b"));
    let setup = Setup::new(&[("/a/", &a.url), ("/b/", &b.url)]).await;
    for path in ["/a/x#/../../b/", "/a/x#", "/a/x#?q"] {
        let refused = ask(setup.proxy.public, format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_eq!(refused.status(), 400, "{path}");
        assert_eq!(a.connections(), 0, "{path}");
    }
    for path in ["/a/x#/../../b/", "/a/x#", "/a/x#?q"] {
        // In words of HPACK's own table: GET, http, a path, an authority. A client library would not say such a path.
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        let head: [&[u8]; 4] = [
            &[0x82, 0x86, 0x04, length(path)],
            path.as_bytes(),
            &[0x01, length("h")],
            b"h",
        ];
        let mut client = Conversation::connect(setup.proxy.public).await;
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        client
            .send([frame(4, 0, 0, &[]), frame(1, 5, 1, &head.concat())].concat())
            .await;
        let seen = b"GET /a/x HTTP/1.1\r\n";
        soon(async {
            while !client.unread.windows(seen.len()).any(|window| window == seen) {
                assert!(client.read_more().await.unwrap() > 0, "{path}");
            }
        })
        .await;
    }
    assert_eq!(b.connections(), 0);
}

fn websocket() -> Request<()> {
    let mut request = request(Method::CONNECT, "http://hub.example/user/alice/channels");
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let headers = request.headers_mut();
    headers.insert("sec-websocket-version", "13".parse().unwrap());
    headers.insert("sec-websocket-protocol", "v1.kernel".parse().unwrap());
    headers.insert("origin", "http://hub.example".parse().unwrap());
    request
}

/// What a server answers that has read the key.
fn accept(head: &str) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let key = header(head, "sec-websocket-key").unwrap();
    assert_eq!(STANDARD.decode(key).unwrap().len(), 16);
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let hashed = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    ACCEPT.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &STANDARD.encode(hashed))
}

#[tokio::test]
async fn a_websocket_over_http_2_is_one_over_http_1_to_its_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    client.until_websockets().await;
    let (answer, mut up) = client.send(websocket(), false).await;
    up.send_data(Bytes::from_static(b"early"), false).unwrap();
    let mut server = soon(connections.recv()).await.unwrap();
    let head = soon(server.head()).await.unwrap();
    assert!(head.starts_with("GET /user/alice/channels HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", "hub.example"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "v1.kernel"),
        ("origin", "http://hub.example"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{head}");
    }
    let early = tokio::time::timeout(Duration::from_millis(300), server.read_more()).await;
    assert!(early.is_err(), "nothing before the 101");
    server.send(accept(&head)).await;
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["sec-websocket-protocol"], "v1.kernel");
    for gone in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(answer.headers().get(gone).is_none(), "{gone}");
    }
    let mut down = answer.into_body();
    assert_eq!(server.take(5).await, b"early");
    server.send("from the server").await;
    assert_eq!(soon(down.data()).await.unwrap().unwrap(), "from the server");
    assert_eq!(setup.proxy.status().await["active_websockets"], 1);
    // Other requests are not in its way.
    let (other, _) = client.send(request(Method::GET, "http://a/other"), true).await;
    let mut second = soon(connections.recv()).await.unwrap();
    soon(second.head()).await.unwrap();
    second.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(other).await.unwrap().status(), 204);
    up.send_data(Bytes::from_static(b"bye"), true).unwrap();
    assert_eq!(server.rest().await, b"bye");
    server.stream.shutdown().await.unwrap();
    while let Some(data) = soon(down.data()).await {
        assert!(data.unwrap().is_empty());
    }
    until(async || setup.proxy.status().await["active_websockets"] == 0).await;
}

#[tokio::test]
async fn a_websocket_over_http_2_is_open_only_if_its_target_says_so() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    client.until_websockets().await;
    for (answered, expected) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        // In HTTP/2 any success would open it.
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 503),
        // A key that was not read.
        (ACCEPT, 503),
    ] {
        let (answer, _up) = client.send(websocket(), false).await;
        let mut server = soon(connections.recv()).await.unwrap();
        soon(server.head()).await.unwrap();
        server.send(answered).await;
        assert_eq!(soon(answer).await.unwrap().status(), expected, "{answered}");
        assert_eq!(server.rest().await, b"");
    }
    assert_eq!(setup.proxy.status().await["active_websockets"], 0);
}

/// CVE-2023-44487: to take a request back costs a client nothing, and us a connection to a target each time.
#[tokio::test]
async fn a_client_that_takes_back_request_after_request_is_cut_off() {
    let (target, _connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let mut sent = 0;
    soon(async {
        // Each one is let come to its target before it is taken back.
        while sent < 5_000 {
            let before = target.connections();
            let Ok((_answer, mut up)) = client.try_send(request(Method::GET, "http://a/"), false).await else {
                break;
            };
            sent += 1;
            let mut waited = 0;
            while target.connections() == before && waited < 50 && !client.has_ended() {
                tokio::time::sleep(Duration::from_millis(1)).await;
                waited += 1;
            }
            up.send_reset(Reason::CANCEL);
        }
    })
    .await;
    assert!((200..1_000).contains(&sent), "{sent} requests");
    let series = r#"holdfast_proxy_connections_dropped_total{reason="resets"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
    until(async || setup.proxy.status().await["active_requests"] == 0).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_alone() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.body_timeout = Duration::from_millis(500)
    })
    .await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, mut up) = client.send(request(Method::POST, "http://a/slow"), false).await;
    up.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    let mut slow = soon(connections.recv()).await.unwrap();
    assert!(!slow.rest().await.ends_with(b"0\r\n\r\n"));
    let (answer, _) = client.send(request(Method::GET, "http://a/other"), true).await;
    let mut other = soon(connections.recv()).await.unwrap();
    soon(other.head()).await.unwrap();
    other.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(answer).await.unwrap().status(), 204);
}

#[tokio::test]
async fn limits_are_told_and_held() {
    let (target, _connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.header_timeout = Duration::from_millis(400);
        config.keep_alive_timeout = Duration::from_millis(400);
    })
    .await;
    let mut client = Http2::connect(setup.proxy.public).await;
    client.until_websockets().await;
    assert_eq!(client.streams_max(), 100);
    let large = |headers: usize| {
        let mut large = request(Method::GET, "http://a/");
        for n in 0..headers {
            let value = "x".repeat(8 * 1024).parse().unwrap();
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            large.headers_mut().insert(name, value);
        }
        large
    };
    // The way heads grow too large.
    let (answer, _) = client.ask(large(9), Bytes::new()).await;
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let series = r#"holdfast_proxy_rejected_total{reason="head"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
    // Refused by 431, or by the stream's end: either way no target hears of it.
    let (answer, _) = client.send(large(20), true).await;
    if let Ok(answer) = soon(answer).await {
        assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    assert_eq!(target.connections(), 0);
    // Idle, it is told to go away.
    soon(client.ended()).await;

    // One that does not even begin is closed too.
    for begin in ["", "PRI * HTTP", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut silent = Conversation::connect(setup.proxy.public).await;
        silent.send(begin).await;
        silent.rest().await;
    }
    until(async || setup.proxy.metric("holdfast_proxy_connections").await == 0.0).await;
}

#[tokio::test]
async fn who_breaks_the_rules_is_counted() {
    let setup = Setup::new(&[]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A head that belongs to no request.
    const HEADERS: [u8; 9] = [0, 0, 0, 1, 4, 0, 0, 0, 0];
    client.send([SETTINGS, HEADERS].concat()).await;
    client.rest().await;
    let series = r#"holdfast_proxy_connections_dropped_total{reason="protocol"}"#;
    until(async || setup.proxy.metric(series).await == 1.0).await;
}

/// It answers pings, so its connection lives on; but it takes nothing of what it has asked for.
#[tokio::test]
async fn a_request_of_which_nothing_passes_is_ended_if_that_is_wished() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.client_timeout = Some(Duration::from_secs(1))
    })
    .await;
    let mut client = Http2::connect(setup.proxy.public).await;
    client.until_websockets().await;
    let (answer, mut websocket) = client.send(websocket(), false).await;
    let mut silent = soon(connections.recv()).await.unwrap();
    let head = soon(silent.head()).await.unwrap();
    silent.send(accept(&head)).await;
    assert_eq!(soon(answer).await.unwrap().status(), 200);

    let (answer, _) = client.send(request(Method::GET, "http://a/stuck"), true).await;
    let mut stuck = soon(connections.recv()).await.unwrap();
    soon(stuck.head()).await.unwrap();
    stuck.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n").await;
    stuck.send(vec![7; 200 * 1024]).await;
    let mut body = soon(answer).await.unwrap().into_body();
    stuck.rest().await;
    while let Some(data) = soon(body.data()).await {
        if let Err(error) = data {
            assert!(error.is_reset(), "{error}");
            break;
        }
    }
    assert!(
        soon(body.data()).await.is_none_or(|data| data.is_err()),
        "it is no whole answer"
    );
    drop(body);

    // Slow is not stuck: neither a client that takes an answer bit by bit, nor one that sends so.
    const LENGTH: usize = 1024 * 1024;
    let (answer, _) = client.send(request(Method::GET, "http://a/slow"), true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server
        .send(format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n"
        ))
        .await;
    let mut sending = JoinSet::new();
    sending.spawn(async move { server.send(vec![7; LENGTH]).await });
    let mut body = soon(answer).await.unwrap().into_body();
    let mut received = 0;
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap();
        received += data.len();
        // Windows are opened by halves, so that what passes shows only every 32 KiB.
        tokio::time::sleep(Duration::from_millis(20)).await;
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(received, LENGTH);
    soon(sending.join_next()).await.unwrap().unwrap();
    let (answer, mut up) = client.send(request(Method::POST, "http://a/slow"), false).await;
    for _ in 0..6 {
        up.send_data(Bytes::from_static(b"x"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    up.send_data(Bytes::new(), true).unwrap();
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(answer).await.unwrap().status(), 204);
    // And a WebSocket may be silent.
    websocket.send_data(Bytes::from_static(b"still here"), false).unwrap();
    assert_eq!(silent.take(10).await, b"still here");
}

#[tokio::test]
async fn a_request_in_progress_is_no_idleness() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.keep_alive_timeout = Duration::from_millis(100)
    })
    .await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, _) = client.send(request(Method::GET, "http://a/slow"), true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n").await;
    let mut body = soon(answer).await.unwrap().into_body();
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.send("hi").await;
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "hi");
}

#[tokio::test]
async fn a_drain_tells_clients_to_go_and_waits_for_what_they_have_asked() {
    let (target, mut connections) = Target::manual().await;
    let mut setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, _) = client.send(request(Method::GET, "http://a/slow"), true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    setup.proxy.shutdown.cancel();
    until(async || TcpStream::connect(setup.proxy.public).await.is_err()).await;
    assert!(setup.proxy.is_running());
    server.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(soon(answer.into_body().data()).await.unwrap().unwrap(), "done");
    soon(client.ended()).await;
    setup.proxy.ended().await;
}

#[tokio::test]
async fn trailers_pass() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let mut asked = request(Method::GET, "http://a/");
    asked.headers_mut().insert("te", "trailers".parse().unwrap());
    let (answer, _) = client.send(asked, true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n")
        .await;
    let mut body = soon(answer).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "a");
    let trailers: Option<HeaderMap> = soon(body.trailers()).await.unwrap();
    assert_eq!(trailers.unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn trailers_of_a_request_reach_its_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let mut asked = request(Method::POST, "http://a/");
    asked.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    let (answer, mut up) = client.send(asked, false).await;
    up.send_data(Bytes::from_static(b"abc"), false).unwrap();
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
    up.send_trailers(trailers).unwrap();
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    assert_eq!(server.chunk().await, b"abc");
    assert_eq!(soon(server.head()).await.unwrap(), "0\r\nx-sum: 7\r\n\r\n");
    server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(answer).await.unwrap().status(), 204);
}

#[tokio::test]
async fn an_event_arrives_before_the_next_one_is_sent() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, _) = client.send(request(Method::GET, "http://a/events"), true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server
        .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        server.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), event);
    }
    server.send("0\r\n\r\n").await;
    assert!(soon(body.data()).await.is_none_or(|data| data.unwrap().is_empty()));
}

const LARGE: usize = 64 * 1024 * 1024;

/// What is not taken on one side is not taken on the other one, and other requests are not in its way.
#[tokio::test]
async fn an_upload_waits_for_its_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, mut up) = client.send(request(Method::PUT, "http://a/big"), false).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    let mut sent = 0;
    while sent < LARGE {
        up.reserve_capacity(64 * 1024);
        let granted = tokio::time::timeout(Duration::from_millis(500), poll_fn(|cx| up.poll_capacity(cx)));
        let Ok(granted) = granted.await else { break };
        let bytes = granted.unwrap().unwrap();
        up.send_data(Bytes::from(vec![7; bytes]), false).unwrap();
        sent += bytes;
    }
    assert!(sent < LARGE, "the proxy took {sent} bytes while the target read none");
    let (other, _) = client.send(request(Method::GET, "http://a/other"), true).await;
    let mut second = soon(connections.recv()).await.unwrap();
    soon(second.head()).await.unwrap();
    second.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(other).await.unwrap().status(), 204);

    up.reserve_capacity(0);
    up.send_data(Bytes::new(), true).unwrap();
    let mut received = 0;
    loop {
        let chunk = server.chunk().await;
        if chunk.is_empty() {
            break;
        }
        assert!(chunk.iter().all(|byte| *byte == 7));
        received += chunk.len();
    }
    assert_eq!(received, sent);
    server.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(soon(answer).await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_download_waits_for_its_client() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Http2::connect(setup.proxy.public).await;
    let (answer, _) = client.send(request(Method::GET, "http://a/big"), true).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server
        .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"))
        .await;
    let mut body = soon(answer).await.unwrap().into_body();
    let (_from, mut to) = server.stream.into_split();
    let sent = fill_until_it_stalls(&mut to, LARGE).await;
    assert!(sent < LARGE, "the proxy took {sent} bytes while the client read none");
    let mut sending = JoinSet::new();
    sending.spawn(async move { to.write_all(&vec![7; LARGE - sent]).await });
    let mut received = 0;
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
        received += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(received, LARGE);
    soon(sending.join_next()).await.unwrap().unwrap().unwrap();
}
