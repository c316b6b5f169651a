//! What a replica is told of the routes' activity.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_proxy::WebsocketActivity;

use crate::fixture::{Conversation, Setup, Target, get, header, mirror, soon, table, until};
use crate::websockets;

const OFTEN: Duration = Duration::from_millis(20);

fn told(setup: &Setup) -> BTreeSet<String> {
    let told = setup.replica.activity.lock().unwrap();
    told.iter().map(|route| route.routespec.clone()).collect()
}

/// Waits until the replica is told of this route. What was active before it was told before, or with it.
async fn hears_of(setup: &Setup, spec: &str) {
    until(async || told(setup).contains(spec)).await;
}

/// Answers as the first segment of the path says.
async fn by_path(mut connection: Conversation) {
    while let Ok(head) = connection.head().await {
        let length = header(&head, "content-length").and_then(|length| length.parse().ok());
        connection.take(length.unwrap_or(0)).await;
        let segment = head.split('/').nth(1).unwrap_or_default();
        let answer = match segment {
            "cut" => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome",
            "301" | "302" | "304" => &format!("HTTP/1.1 {segment} X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"),
            "204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "404" | "500" | "upload" => "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        };
        connection.send(answer).await;
        if segment == "cut" {
            return;
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_whole_and_good_is_an_activity_and_so_is_an_upload() {
    let target = Target::start(by_path).await;
    let dead = "http://127.0.0.1:1";
    let specs = [
        "200", "204", "head", "301", "302", "304", "404", "500", "cut", "upload", "empty", "last",
    ];
    let specs = specs.map(|name| format!("/{name}/"));
    let mut routes: Vec<_> = specs.iter().map(|spec| (spec.as_str(), target.url.as_str())).collect();
    routes.push(("/dead/", dead));
    let setup = Setup::with(&routes, |config| config.activity_interval = OFTEN).await;
    for path in ["200", "204", "301", "302", "304", "404", "500", "dead"] {
        get(setup.proxy.public, &format!("/{path}/x")).await;
    }
    for (method, path, body) in [("HEAD", "head", ""), ("POST", "upload", "x"), ("POST", "empty", "")] {
        let mut user = Conversation::connect(setup.proxy.public).await;
        let length = body.len();
        user.send(format!(
            "{method} /{path}/ HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await;
        soon(user.head()).await.unwrap();
    }
    let mut user = Conversation::connect(setup.proxy.public).await;
    user.send("GET /cut/ HTTP/1.1\r\nHost: h\r\n\r\n").await;
    soon(user.head()).await.unwrap();
    while soon(user.read_more()).await.is_ok_and(|read| read > 0) {}

    get(setup.proxy.public, "/last/").await;
    hears_of(&setup, "/last/").await;
    let active = ["200", "204", "head", "upload", "empty", "last"].map(|name| format!("/{name}/"));
    assert_eq!(told(&setup), BTreeSet::from(active));
    setup.proxy.stop().await;
}

#[tokio::test]
async fn of_a_websocket_the_clients_bytes_count_and_the_targets_do_not() {
    let (target, mut connections) = Target::manual().await;
    let other = Target::mirror("other").await;
    let routes = [("/user/alice/", target.url.as_str()), ("/other/", &other.url)];
    let setup = Setup::with(&routes, |config| config.activity_interval = OFTEN).await;
    let (mut client, mut target) = websockets::open(&setup, &mut connections).await;
    target.send("news").await;
    assert_eq!(client.take(4).await, b"news");
    get(setup.proxy.public, "/other/").await;
    hears_of(&setup, "/other/").await;
    assert_eq!(told(&setup), BTreeSet::from(["/other/".to_owned()]));
    client.send("x").await;
    hears_of(&setup, "/user/alice/").await;
    drop((client, target));
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_websocket_is_active_while_it_is_open_if_so_told() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/user/alice/", &target.url)], |config| {
        config.activity_interval = OFTEN;
        config.websocket_activity = WebsocketActivity::Connection;
    })
    .await;
    let open = websockets::open(&setup, &mut connections).await;
    let tellings = || setup.replica.activity.lock().unwrap().len();
    until(async || tellings() >= 3).await;
    drop(open);
    until(async || setup.proxy.status().await["active_websockets"] == 0).await;
    // Now and then a report was on its way; then there are none.
    until(async || {
        let before = tellings();
        tokio::time::sleep(10 * OFTEN).await;
        tellings() == before
    })
    .await;
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_version_of_a_route_is_told_of_and_not_the_one_before_it() {
    let (old, new) = (Target::mirror("old").await, Target::mirror("new").await);
    let setup = Setup::with(&[("/", &old.url)], |config| config.activity_interval = OFTEN).await;
    get(setup.proxy.public, "/").await;
    hears_of(&setup, "/").await;
    setup.replica.set(table(2, &[("/", &new.url)]));
    setup.proxy.at(2).await;
    setup.replica.activity.lock().unwrap().clear();
    get(setup.proxy.public, "/").await;
    hears_of(&setup, "/").await;
    let told = setup.replica.activity.lock().unwrap().clone();
    assert!(
        told.iter().all(|told| told.mod_revision == 2 && told.age_ms < 10_000),
        "{told:?}"
    );
    setup.proxy.stop().await;
}

#[tokio::test]
async fn a_proxy_that_drains_says_what_it_has_not_said_yet() {
    let target = Target::start(|connection| mirror(connection, "target")).await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.activity_interval = Duration::from_secs(3_600);
    })
    .await;
    get(setup.proxy.public, "/").await;
    assert!(told(&setup).is_empty());
    setup.proxy.shutdown.cancel();
    setup.proxy.ended().await;
    let told = setup.replica.activity.lock().unwrap();
    assert_eq!(told.len(), 1);
}
