//! Connections to targets: which are used again, which are never opened.

use std::time::Duration;

use crate::fixture::{Conversation, Setup, Target, get, soon, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[tokio::test]
async fn a_connection_that_is_done_with_its_exchange_is_used_again() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url), ("/again/", &hub.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    for path in ["/", "/again/", "/x"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(client.answer().await.status(), 200);
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
            ))
            .await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert_eq!(hub.connections(), 1);
    // Other clients may be served by other threads, and these have connections of their own.
    for _ in 0..50 {
        assert_eq!(get(setup.proxy.public, "/").await.status(), 200);
    }
    let threads = std::thread::available_parallelism().unwrap().get();
    assert!(hub.connections() <= 4 * threads, "{}", hub.connections());
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.target_idle_timeout = Duration::from_millis(200)
    })
    .await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection.send(OK).await;
    assert_eq!(client.answer().await.status(), 200);
    assert_eq!(connection.rest().await, b"");
}

/// Nobody knows what a target that has answered already will take the rest of a request for.
#[tokio::test]
async fn a_target_that_answers_before_it_has_everything_keeps_its_connection() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client
        .send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\n\r\nGET /smuggled")
        .await;
    let mut first = soon(connections.recv()).await.unwrap();
    soon(first.head()).await.unwrap();
    assert_eq!(first.take(13).await, b"GET /smuggled");
    first
        .send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert_eq!(client.answer().await.status(), 413);
    let mut other = Conversation::connect(setup.proxy.public).await;
    other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut second = soon(connections.recv()).await.unwrap();
    assert!(soon(second.head()).await.unwrap().starts_with("GET /other "));
    second.send(OK).await;
    assert_eq!(other.answer().await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_its_connection() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut first = soon(connections.recv()).await.unwrap();
    soon(first.head()).await.unwrap();
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    soon(client.head()).await.unwrap();
    drop(client);
    assert_eq!(first.rest().await, b"");
    until(async || setup.proxy.status().await["active_requests"] == 0).await;
    let mut other = Conversation::connect(setup.proxy.public).await;
    other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut second = soon(connections.recv()).await.unwrap();
    soon(second.head()).await.unwrap();
    second.send(OK).await;
    assert_eq!(other.answer().await.status(), 200);
}

/// A target that sends an answer nobody has asked for yet must not have it given to whoever asks next.
#[tokio::test]
async fn an_answer_too_many_is_given_to_nobody() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut first = soon(connections.recv()).await.unwrap();
    soon(first.head()).await.unwrap();
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    first.send(format!("{OK}{poison}")).await;
    assert_eq!(client.answer().await.status(), 200);
    client.send("GET /two HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut second = soon(connections.recv()).await.unwrap();
    assert!(soon(second.head()).await.unwrap().starts_with("GET /two "));
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
    assert_eq!(client.answer().await.text(), "good");
    assert_eq!(first.rest().await, b"");
}

#[tokio::test]
async fn a_refused_upgrade_leaves_no_connection_behind() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send(crate::websockets::REQUEST).await;
    let mut first = soon(connections.recv()).await.unwrap();
    soon(first.head()).await.unwrap();
    first.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(client.answer().await.status(), 403);
    assert_eq!(first.rest().await, b"");
}

/// Clouds keep a machine's secrets behind such addresses.
#[tokio::test]
async fn metadata_and_own_ports_are_never_connected_to() {
    let setup = Setup::new(&[("/", "http://127.0.0.1:1")]).await;
    let admin = format!("http://{}", setup.proxy.admin);
    let own = format!("http://{}", setup.proxy.public);
    let replica = format!("http://{}", setup.replica.address);
    let by_name = format!("http://localhost:{}", setup.proxy.admin.port());
    let by_zero = format!("http://0.0.0.0:{}", setup.proxy.admin.port());
    let routes = [
        ("/metadata/", "http://169.254.169.254"),
        ("/mapped/", "http://[::ffff:a9fe:a9fe]"),
        ("/admin/", &admin),
        ("/own/", &own),
        ("/replica/", &replica),
        ("/name/", &by_name),
        ("/zero/", &by_zero),
    ];
    setup.replica.set(crate::fixture::table(2, &routes));
    setup.proxy.at(2).await;
    for (path, _) in routes {
        let answer = get(setup.proxy.public, path).await;
        assert_eq!(answer.status(), 503, "{path}: {}", answer.text());
    }
    let series = r#"holdfast_proxy_target_failures_total{reason="denied"}"#;
    assert_eq!(setup.proxy.metric(series).await, routes.len() as f64);
}

#[tokio::test]
async fn only_allowed_targets_are_connected_to() {
    let (inside, outside) = tokio::join!(Target::mirror("inside"), Target::mirror("outside"));
    let port = inside.url.rsplit_once(':').unwrap().1.to_owned();
    let by_name = format!("http://localhost:{port}");
    let routes = [
        ("/in/", inside.url.as_str()),
        ("/name/", &by_name),
        ("/out/", &outside.url),
        ("/socket/", "http+unix://%2Ftmp%2Fx.sock"),
    ];
    let setup = Setup::with(&routes, |config| {
        let rule = format!("http://127.0.0.0/8:{port}");
        config.allow_targets = vec![holdfast_table::TargetRule::parse(&rule).unwrap()];
    })
    .await;
    for (path, status) in [("/in/", 200), ("/name/", 200), ("/out/", 503), ("/socket/", 503)] {
        assert_eq!(get(setup.proxy.public, path).await.status(), status, "{path}");
    }
    assert_eq!(outside.connections(), 0);
}

#[tokio::test]
async fn interim_answers_stay_here() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::new(&[("/", &target.url)]).await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET /one HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    connection
        .send(format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{OK}"
        ))
        .await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.header("link")), (200, None));
    client.send("GET /two HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(soon(connection.head()).await.unwrap().starts_with("GET /two "));
    connection.send(OK).await;
    assert_eq!(client.answer().await.status(), 200);
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn interim_answers_without_end_are_silence() {
    let (target, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/", &target.url)], |config| {
        config.target_timeout = Some(Duration::from_millis(500))
    })
    .await;
    let mut client = Conversation::connect(setup.proxy.public).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut connection = soon(connections.recv()).await.unwrap();
    soon(connection.head()).await.unwrap();
    let hints = async {
        loop {
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        answer = client.answer() => assert_eq!(answer.status(), 503),
        () = hints => {}
    }
    let series = r#"holdfast_proxy_target_failures_total{reason="silent"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
}
