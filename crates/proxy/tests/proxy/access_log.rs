//! What the access log tells, and what it does not.

use std::path::{Path, PathBuf};

use holdfast_proxy::{AccessLogTo, ProxyConfig, TrustedProxies};
use serde_json::Value;

use crate::fixture::{Conversation, Setup, Target, get, soon, until};
use crate::websockets;

/// Waits for so many lines.
async fn lines(path: &Path, count: usize) -> Vec<Value> {
    let read = || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // What comes after the last end of a line is being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(|line| serde_json::from_str(line).expect(line));
        lines.collect::<Vec<Value>>()
    };
    until(async || read().len() >= count).await;
    let lines = read();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

async fn setup(routes: &[(&str, &str)]) -> (Setup, PathBuf) {
    setup_with(routes, |_| {}).await
}

async fn setup_with(routes: &[(&str, &str)], change: impl FnOnce(&mut ProxyConfig)) -> (Setup, PathBuf) {
    let mut path = PathBuf::new();
    let setup = Setup::with(routes, |config| {
        path = config.data_dir.join("access.log");
        config.access_log = Some(AccessLogTo::File(path.clone()));
        change(config);
    })
    .await;
    (setup, path)
}

#[tokio::test]
async fn a_request_is_a_line_without_anything_that_could_be_a_secret() {
    let target = Target::mirror("alice").await;
    let url = format!("{}/base?token=of-the-target", target.url);
    let (setup, path) = setup(&[("/user/alice/", &url)]).await;
    let mut user = Conversation::connect(setup.proxy.public).await;
    user.send(
        "POST /user/%61lice/a%20b?token=in-the-query HTTP/1.1\r\nHost: Hub.example.org:8000\r\nContent-Length: 5\r\n\
         Cookie: session=in-the-cookie\r\nAuthorization: token in-a-header\r\nUser-Agent: evil\"\r\n\
         X-Request-Id: mine\r\nX_Request_Id: mine-too\r\nConnection: x-request-id\r\n\
         Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\nhello",
    )
    .await;
    let answer = user.answer().await;
    assert_eq!(answer.status(), 200);
    let seen = answer.text();
    let line = lines(&path, 1).await.remove(0);
    for (field, expected) in [
        ("client", Value::from("127.0.0.1")),
        ("protocol", "HTTP/1.1".into()),
        ("method", "POST".into()),
        ("host", "hub.example.org".into()),
        ("route", "/user/alice/".into()),
        ("target", target.url.as_str().into()),
        ("status", 200.into()),
        ("bytes_in", 5.into()),
        ("bytes_out", seen.len().into()),
        ("upgraded", false.into()),
        ("error", Value::Null),
        ("trace", "0af7651916cd43dd8448eb211c80319c".into()),
    ] {
        assert_eq!(line[field], expected, "{field} of {line}");
    }
    assert!(line["path"].as_str().unwrap().starts_with("/user/alice/a"), "{line}");
    assert!(line["duration_ms"].as_f64().unwrap() >= 0.0);
    let text = line.to_string();
    for secret in ["token", "session", "cookie", "in-", "evil", "mine"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    // The target is told the same name, once, and none of the client's own.
    let id = line["id"].as_str().unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(seen.to_lowercase().matches("request").count(), 1, "{seen}");
    assert!(seen.contains(id), "{seen}");
    assert!(seen.contains("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_line_says_why_there_was_no_answer() {
    let good = Target::mirror("good").await;
    let cut = Target::start(|mut connection| async move {
        let _ = connection.head().await;
        connection
            .send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
            .await;
    })
    .await;
    let none = Target::start(|mut connection| async move {
        let _ = connection.head().await;
        connection.send("what?").await;
    })
    .await;
    let routes = [
        ("/good/", good.url.as_str()),
        ("/dead/", "http://127.0.0.1:1"),
        ("/denied/", "http://169.254.169.254"),
        ("/cut/", &cut.url),
        ("/none/", &none.url),
    ];
    let (setup, log) = setup(&routes).await;
    let mut expected = Vec::new();
    for (path, status, error, route) in [
        ("/good/", 200, None, true),
        ("/nowhere", 404, Some("no_route"), false),
        ("/dead/", 503, Some("connect"), true),
        ("/denied/", 503, Some("denied"), true),
        ("/none/", 503, Some("response"), true),
        ("/cut/", 200, Some("response"), true),
        ("/a/../b", 400, Some("path"), false),
    ] {
        let mut user = Conversation::connect(setup.proxy.public).await;
        user.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let head = soon(user.head()).await.unwrap();
        assert!(head.contains(&status.to_string()), "{path}: {head}");
        expected.push((path, status, error, route));
        while path == "/cut/" && soon(user.read_more()).await.is_ok_and(|read| read > 0) {}
        drop(user);
        // Written in the order in which they end.
        lines(&log, expected.len()).await;
    }
    let found = lines(&log, expected.len()).await;
    for (line, (path, status, error, route)) in found.iter().zip(expected) {
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["error"].as_str(), error, "{line}");
        assert_eq!(line["route"].is_string(), route, "{line}");
        let read = error != Some("path");
        assert_eq!(line["path"].as_str(), read.then_some(path), "{line}");
        assert!(line["id"].is_string());
    }
    assert!(found[2]["cause"].as_str().unwrap().contains("refused"), "{}", found[2]);
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_websocket_is_a_line_when_it_has_ended() {
    let (target, mut connections) = Target::manual().await;
    let (setup, log) = setup(&[("/user/alice/", &target.url)]).await;
    let (mut client, mut target) = websockets::open(&setup, &mut connections).await;
    client.send("hello").await;
    target.take(5).await;
    target.send("there!").await;
    client.take(6).await;
    assert_eq!(lines(&log, 0).await.len(), 0, "it goes on");
    drop((client, target));
    let line = lines(&log, 1).await.remove(0);
    assert_eq!(line["upgraded"], true, "{line}");
    assert_eq!(
        (&line["bytes_in"], &line["bytes_out"]),
        (&5.into(), &6.into()),
        "{line}"
    );
    assert_eq!(line["status"], 101);
    assert!(!line.to_string().contains("token"), "{line}");
    setup.proxy.stop().await;
}

#[tokio::test]
async fn who_is_believed_names_requests_and_users() {
    let target = Target::mirror("target").await;
    let (setup, log) = setup_with(&[("/hub/", &target.url)], |config| {
        config.policy.trusted_proxies = TrustedProxies::parse("127.0.0.1").unwrap();
    })
    .await;
    let long = "x".repeat(129);
    let mut ids = Vec::new();
    for (id, passes) in [
        ("from-the-load-balancer/1", true),
        ("", false),
        ("with space", false),
        (long.as_str(), false),
    ] {
        let mut user = Conversation::connect(setup.proxy.public).await;
        user.send(format!(
            "GET /hub/ HTTP/1.1\r\nHost: h\r\nX-Request-Id: {id}\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
        ))
        .await;
        let seen = user.answer().await.text();
        assert_eq!(!id.is_empty() && seen.contains(&format!("{id}\r\n")), passes, "{seen}");
        ids.push((id.to_owned(), passes));
        let line = lines(&log, ids.len()).await.pop().unwrap();
        assert_eq!(line["id"] == id, passes, "{line}");
        assert_eq!(line["client"], "203.0.113.9");
    }
    let mut stranger = Conversation::connect(setup.proxy.public).await;
    stranger
        .send("GET /elsewhere HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1, 203.0.113.10, 127.0.0.1\r\n\r\n")
        .await;
    assert_eq!(stranger.answer().await.status(), 404);
    let line = lines(&log, ids.len() + 1).await.pop().unwrap();
    assert_eq!(
        (&line["route"], &line["client"]),
        (&Value::Null, &"203.0.113.10".into())
    );
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_a_line_too() {
    let (target, mut connections) = Target::manual().await;
    let (setup, log) = setup(&[("/", &target.url)]).await;
    let mut user = Conversation::connect(setup.proxy.public).await;
    user.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut target = soon(connections.recv()).await.unwrap();
    soon(target.head()).await.unwrap();
    drop(user);
    let line = lines(&log, 1).await.remove(0);
    assert_eq!(
        (&line["status"], &line["error"]),
        (&0.into(), &"client".into()),
        "{line}"
    );
    setup.proxy.stop().await;
}

#[tokio::test]
async fn what_was_answered_is_written_before_the_proxy_ends() {
    let target = Target::mirror("target").await;
    let (setup, log) = setup(&[("/", &target.url)]).await;
    for _ in 0..100 {
        assert_eq!(get(setup.proxy.public, "/").await.status(), 200);
    }
    let text = async || std::fs::read_to_string(&log).unwrap();
    let _directory = setup.directory;
    setup.proxy.stop().await;
    assert_eq!(text().await.lines().count(), 100);
}
