//! What a target sees of a request, and a client of its answer.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::fixture::{Conversation, Setup, Target, ask, get, header, soon, until};

#[tokio::test]
async fn the_path_goes_on_byte_for_byte() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for path in [
        "/user/alice%2Fx/%7Ey/a%20b;c=1?q=%2F..&r=a+b//../c",
        "/user/%61lice//x/",
        "/a|b\"c{d}'e~^!$&()*+,;=:@?",
        "/x?`{|}^'\\[]/?",
        "/%E2%9C%93?%zz",
    ] {
        let seen = get(setup.proxy.public, path).await.text();
        assert_eq!(seen.lines().next(), Some(format!("GET {path} HTTP/1.1").as_str()));
    }
}

/// No request's target has a fragment, so whoever sends one wants it to be read in two ways.
#[tokio::test]
async fn a_fragment_goes_nowhere() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    assert_eq!(get(setup.proxy.public, "/a#/../b").await.status(), 400);
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn an_http_1_0_client_is_served_in_its_own_way() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    let head = soon(connection.head()).await.unwrap();
    assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "host"), target.url.strip_prefix("http://"));
    assert_eq!(header(&head, "x-forwarded-host"), None);
    connection
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    let head = soon(client.head()).await.unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert_eq!(header(&head, "transfer-encoding"), None);
    assert_eq!(client.rest().await, b"abc");
}

#[tokio::test]
async fn the_targets_own_path_and_query_come_first() {
    let hub = Target::mirror("hub").await;
    let target = format!("{}/base/?t=1", hub.url);
    let setup = Setup::new(&[("/", &target)]).await;
    let seen = get(setup.proxy.public, "/a%2Fb?q=2").await.text();
    assert!(seen.starts_with("GET /base/a%2Fb?t=1&q=2 HTTP/1.1\r\n"), "{seen}");
}

#[tokio::test]
async fn headers_of_this_hop_stay_here_and_the_others_pass() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let seen = ask(
        setup.proxy.public,
        "GET / HTTP/1.1\r\nHost: Hub.Example.org:8000\r\nConnection: keep-alive, X-Mine, Cookie, Host\r\nX-Mine: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close\r\nTE: gzip, trailers\r\n\
         Upgrade: h2c\r\nCookie: a=b\r\nAuthorization: token x\r\nX-Other: 2\r\nOrigin: http://o\r\n\r\n",
    )
    .await
    .text();
    for gone in [
        "connection",
        "x-mine",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "upgrade",
    ] {
        assert_eq!(header(&seen, gone), None, "{gone} in {seen}");
    }
    for (kept, value) in [
        ("host", "Hub.Example.org:8000"),
        ("te", "trailers"),
        ("cookie", "a=b"),
        ("authorization", "token x"),
        ("x-other", "2"),
        ("origin", "http://o"),
    ] {
        assert_eq!(header(&seen, kept), Some(value), "{kept} in {seen}");
    }
}

#[tokio::test]
async fn what_a_client_says_of_itself_is_overwritten() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let seen = ask(
        setup.proxy.public,
        "GET / HTTP/1.1\r\nHost: hub.example.org:8000\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil\r\nX-Forwarded-Port: 6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
         X-Scheme: https\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.7\r\n\
         Connection: x-forwarded-for, x-real-ip\r\n\r\n",
    )
    .await
    .text();
    assert!(
        !seen.contains("6.6.6") && !seen.contains("evil") && !seen.contains("https"),
        "{seen}"
    );
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "hub.example.org:8000"),
        ("x-forwarded-port", "8000"),
    ] {
        assert_eq!(header(&seen, name), Some(value), "{name} in {seen}");
    }
}

#[tokio::test]
async fn the_answer_passes_without_headers_of_its_hop() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send(
            "HTTP/1.1 418 Short and Stout\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nLocation: http://elsewhere/\r\nContent-Length: 3\r\n\r\npot",
        )
        .await;
    let answer = client.answer().await;
    assert!(
        answer.head.starts_with("HTTP/1.1 418 Short and Stout\r\n"),
        "{}",
        answer.head
    );
    assert_eq!(answer.text(), "pot");
    assert_eq!(answer.header("x-hop"), None);
    assert_eq!(answer.header("keep-alive"), None);
    assert_eq!(answer.head.to_lowercase().matches("set-cookie:").count(), 2);
    assert_eq!(answer.header("location"), Some("http://elsewhere/"));
    // The target's connection is closed; the client's is not.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 204);
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    for (request, answer) in [("HEAD", "200 OK"), ("GET", "304 Not Modified")] {
        let mut client = Conversation::connect(setup.proxy.public).await;
        client.send(format!("{request} /x HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let mut connection = soon(connections.recv()).await.unwrap();
        assert!(soon(connection.head()).await.unwrap().starts_with(request));
        connection
            .send(format!(
                "HTTP/1.1 {answer}\r\nContent-Length: 1234\r\nETag: \"x\"\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let head = soon(client.head()).await.unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {answer}\r\n")), "{head}");
        assert_eq!(header(&head, "etag"), Some("\"x\""));
        // The next answer on this connection begins right behind this head.
        client.send("GET /_chp_healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

/// A kernel's events and a page's server-sent events are of use only while they are new.
#[tokio::test]
async fn a_chunk_arrives_before_the_next_one_is_sent() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nAccept-Encoding: gzip\r\n\r\n")
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let head = soon(client.head()).await.unwrap();
    assert_eq!(header(&head, "content-encoding"), None);
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        connection.send(format!("{:x}\r\n{event}\r\n", event.len())).await;
        assert_eq!(client.chunk().await, event.as_bytes());
    }
    connection.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn a_large_upload_streams_and_waits_for_the_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    const LENGTH: usize = 64 * 1024 * 1024;
    let client = Conversation::connect(setup.proxy.public).await;
    let (mut from, mut to) = client.stream.into_split();
    to.write_all(format!("PUT /big HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut connection = soon(connections.recv()).await.unwrap();
    let head = soon(connection.head()).await.unwrap();
    assert_eq!(header(&head, "content-length"), Some(LENGTH.to_string().as_str()));

    let sent = fill_until_it_stalls(&mut to, LENGTH).await;
    assert!(
        sent < LENGTH,
        "the proxy took all {LENGTH} bytes while the target read none"
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        to.write_all(&vec![7; LENGTH - sent]).await.unwrap();
        to
    });
    let mut received = connection.unread.len();
    let mut ok = connection.unread.iter().all(|byte| *byte == 7);
    while received < LENGTH {
        connection.unread.clear();
        received += soon(connection.read_more()).await.unwrap();
        ok &= connection.unread.iter().all(|byte| *byte == 7);
    }
    assert!(ok && received == LENGTH);
    connection
        .send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        .await;
    let _to = soon(tasks.join_next()).await;
    let mut answer = [0; 12];
    soon(tokio::io::AsyncReadExt::read_exact(&mut from, &mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
}

#[tokio::test]
async fn a_large_download_waits_for_the_client() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    const LENGTH: usize = 64 * 1024 * 1024;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"))
        .await;
    let (_from, mut to) = connection.stream.into_split();
    let sent = fill_until_it_stalls(&mut to, LENGTH).await;
    assert!(
        sent < LENGTH,
        "the proxy took all {LENGTH} bytes while the client read none"
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        to.write_all(&vec![7; LENGTH - sent]).await.unwrap();
        to
    });
    let answer = client.answer().await;
    assert!(answer.body.len() == LENGTH && answer.body.iter().all(|byte| *byte == 7));
}

/// Writes until nothing has been taken for a while; returns how much was.
pub async fn fill_until_it_stalls(to: &mut (impl tokio::io::AsyncWrite + Unpin), most: usize) -> usize {
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    while sent < most {
        let some = &chunk[..chunk.len().min(most - sent)];
        match tokio::time::timeout(Duration::from_millis(500), to.write(some)).await {
            Ok(written) => sent += written.unwrap(),
            Err(_) => break,
        }
    }
    sent
}

#[tokio::test]
async fn a_target_that_does_not_answer_is_503() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[
        ("/", &target.url),
        ("/refused/", "http://127.0.0.1:1"),
        ("/https/", "https://127.0.0.1:1"),
        ("/socket/", "http+unix://%2Fnonexistent.sock"),
    ])
    .await;
    for path in ["/refused/", "/https/", "/socket/"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n");
        let answer = ask(setup.proxy.public, request).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(!answer.text().contains("127.0.0.1"), "{}", answer.text());
    }
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection.send("220 smtp.example.org ESMTP\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 503);
    for (reason, count) in [("connect", 3.0), ("response", 1.0), ("denied", 0.0)] {
        let series = format!(r#"holdfast_proxy_target_failures_total{{reason="{reason}"}}"#);
        assert_eq!(setup.proxy.metric(&series).await, count, "{reason}");
    }
}

#[tokio::test]
async fn a_request_that_was_sent_is_never_sent_again() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    // The second request goes out on a connection that was used before, which is where a retry would be tempting.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
    client
        .send("POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    assert!(soon(connection.head()).await.unwrap().starts_with("POST /run"));
    drop(connection);
    assert_eq!(client.answer().await.status(), 503);
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn a_stale_connection_to_a_target_is_replaced_without_a_failure() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    for _ in 0..3 {
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .await;
        let mut connection = soon(connections.recv()).await.unwrap();
        soon(connection.head()).await.unwrap();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(client.answer().await.status(), 200);
        // Closed while it is idle; the proxy has noticed when it closes its own side.
        soon(connection.stream.shutdown()).await.unwrap();
        assert_eq!(connection.rest().await, b"");
    }
}

#[tokio::test]
async fn a_unix_socket_is_a_target_too() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("server.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        use tokio::io::{AsyncBufReadExt, BufReader};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}",
            line.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let target = format!("http+unix://{}/p", path.display().to_string().replace('/', "%2F"));
    let setup = Setup::new(&[("/", &target)]).await;
    let answer = get(setup.proxy.public, "/x").await;
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (200, "GET /p/x HTTP/1.1\r\n")
    );
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_continue() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let interim = soon(client.head()).await.unwrap();
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.send("body").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    assert_eq!(connection.take(4).await, b"body");
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn trailers_reach_a_client_that_takes_them() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n")
        .await;
    soon(client.head()).await.unwrap();
    assert_eq!(client.chunk().await, b"a");
    assert_eq!(client.take(3).await, b"0\r\n");
    assert_eq!(soon(client.head()).await.unwrap(), "x-sum: 7\r\n\r\n");
}

/// Who has gone away is not served on: the target learns of it.
#[tokio::test]
async fn a_client_that_leaves_ends_the_request_at_the_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    drop(client);
    assert_eq!(connection.rest().await, b"");
    until(async || setup.proxy.status().await["active_requests"] == 0).await;
}

/// Searches are asked so now and then.
#[tokio::test]
async fn a_get_keeps_its_body() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    let head = soon(connection.head()).await.unwrap();
    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"), "{head}");
    assert_eq!(connection.take(13).await, b"3\r\nabc\r\n0\r\n\r\n");
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
}

/// As under configurable-http-proxy.
#[tokio::test]
async fn a_delete_without_a_body_says_so() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for (method, body, length) in [
        ("DELETE", "", Some("0")),
        ("OPTIONS", "", Some("0")),
        ("GET", "", None),
        ("DELETE", "Content-Length: 0\r\n", Some("0")),
    ] {
        let request = format!("{method} /x HTTP/1.1\r\nHost: a\r\n{body}\r\n");
        let seen = ask(setup.proxy.public, request).await.text();
        assert_eq!(header(&seen, "content-length"), length, "{seen}");
        assert_eq!(header(&seen, "transfer-encoding"), None, "{seen}");
    }
    let request = "DELETE /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let seen = ask(setup.proxy.public, request).await.text();
    assert_eq!(header(&seen, "content-length"), Some("3"), "{seen}");
}

#[tokio::test]
async fn trailers_of_a_request_reach_its_target() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
             3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    assert_eq!(connection.chunk().await, b"abc");
    assert_eq!(soon(connection.head()).await.unwrap(), "0\r\nx-sum: 7\r\n\r\n");
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_host_may_be_an_ipv6_address() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for (host, port) in [("[2001:db8::1]:8443", "8443"), ("[2001:db8::1]", "80")] {
        let answer = ask(setup.proxy.public, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), 200, "{host}");
        let seen = answer.text();
        for (name, value) in [("host", host), ("x-forwarded-host", host), ("x-forwarded-port", port)] {
            assert_eq!(header(&seen, name), Some(value), "{seen}");
        }
    }
    for host in ["[2001:db8::1", "2001:db8::1", "[2001:db8::1]x", "[g::1]"] {
        let answer = ask(setup.proxy.public, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status(), 400, "{host}");
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_told_that_its_connection_is_kept() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status(), answer.header("connection")),
            (200, Some("keep-alive"))
        );
    }
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.answer().await.header("connection"), None);
}
