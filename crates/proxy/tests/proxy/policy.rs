//! What operators can have changed on the way of a request, and what users read when it leads nowhere.

use std::fs;

use holdfast_proxy::policy::parse_header;
use holdfast_proxy::{ErrorPages, Protocol, TrustedProxies};
use holdfast_table::Target as TargetUrl;
use tempfile::TempDir;

use crate::fixture::{Conversation, Proxy, Setup, Target, ask, config, get, header, soon, until};

#[tokio::test]
async fn the_default_target_takes_what_no_route_does() {
    let (hub, alice) = tokio::join!(Target::mirror("hub"), Target::mirror("alice"));
    let setup = Setup::with(&[("/user/alice/", &alice.url)], |config| {
        config.default_target = Some(TargetUrl::parse(&hub.url).unwrap())
    })
    .await;
    for (path, expected) in [("/", "hub"), ("/user/bob/", "hub"), ("/user/alice/x", "alice")] {
        let answer = get(setup.proxy.public, path).await;
        assert_eq!(answer.header("x-target"), Some(expected), "{path}");
    }
    assert_eq!(get(setup.proxy.public, "/user/alice/../x").await.status(), 400);
}

/// P2: ignorance is not the same as absence.
#[tokio::test]
async fn the_default_target_takes_nothing_while_there_is_no_table() {
    let hub = Target::mirror("hub").await;
    let directory = TempDir::new().unwrap();
    let mut config = config(directory.path());
    config.default_target = Some(TargetUrl::parse(&hub.url).unwrap());
    config.error_pages = ErrorPages::Target(TargetUrl::parse(&hub.url).unwrap());
    let proxy = Proxy::start(config).await;
    let answer = get(proxy.public, "/").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn the_error_target_is_asked_and_its_page_has_our_status() {
    let (pages, mut connections) = Target::manual().await;
    let setup = Setup::with(&[("/user/dead/", "http://127.0.0.1:1")], |config| {
        let url = format!("{}/hub/error", pages.url);
        config.error_pages = ErrorPages::Target(TargetUrl::parse(&url).unwrap());
    })
    .await;
    let mut connection = None;
    let mut client = Conversation::connect(setup.proxy.public).await;
    for (path, asked, status) in [
        (
            "/nowhere?a=b&c=%20",
            "/hub/error/404?url=%2Fnowhere%3Fa%3Db%26c%3D%2520",
            404,
        ),
        ("/user/dead/x", "/hub/error/503?url=%2Fuser%2Fdead%2Fx", 503),
    ] {
        client
            .send(format!(
                "GET {path} HTTP/1.1\r\nHost: a\r\nCookie: secret\r\nAuthorization: secret\r\n\r\n"
            ))
            .await;
        if connection.is_none() {
            connection = soon(connections.recv()).await;
        }
        let server = connection.as_mut().unwrap();
        let head = soon(server.head()).await.unwrap();
        assert!(head.starts_with(&format!("GET {asked} HTTP/1.1\r\n")), "{head}");
        assert!(!head.contains("secret"), "{head}");
        server
            .send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nSet-Cookie: a=b\r\nX-Other: y\r\nContent-Length: 4\r\n\r\npage",
            )
            .await;
        let answer = client.answer().await;
        assert_eq!((answer.status(), answer.text().as_str()), (status, "page"));
        assert_eq!(answer.header("content-type"), Some("text/x"));
        assert_eq!((answer.header("set-cookie"), answer.header("x-other")), (None, None));
    }
    // What cannot be read is told to nobody, and a WebSocket shows no pages.
    assert_eq!(get(setup.proxy.public, "/../x").await.status(), 400);
    let answer = ask(setup.proxy.public, crate::websockets::REQUEST).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(pages.connections(), 1);
}

#[tokio::test]
async fn without_an_error_target_there_is_a_page_all_the_same() {
    let (large, setup) = {
        let large = Target::start(|mut connection| async move {
            while connection.head().await.is_ok() {
                connection
                    .send("HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n")
                    .await;
                connection.send(vec![b'x'; 1_048_577]).await;
            }
        })
        .await;
        let url = TargetUrl::parse(&large.url).unwrap();
        let setup = Setup::with(&[("/a/", "http://127.0.0.1:1")], |config| {
            config.error_pages = ErrorPages::Target(url)
        })
        .await;
        (large, setup)
    };
    let answer = get(setup.proxy.public, "/nowhere").await;
    assert_eq!(answer.status(), 404);
    assert!(answer.text().contains("no server at this address"), "{}", answer.text());
    assert_eq!(large.connections(), 1);

    let dead = Setup::with(&[("/a/", "http://127.0.0.1:1")], |config| {
        config.error_pages = ErrorPages::Target(TargetUrl::parse("http://127.0.0.1:2").unwrap())
    })
    .await;
    let answer = get(dead.proxy.public, "/a/").await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text().contains("does not answer"), "{}", answer.text());
}

#[tokio::test]
async fn error_pages_are_read_from_files() {
    let files = TempDir::new().unwrap();
    let setup = Setup::with(&[("/dead/", "http://127.0.0.1:1")], |config| {
        config.error_pages = ErrorPages::Directory(files.path().to_owned())
    })
    .await;
    let page = async |path: &str| {
        let answer = get(setup.proxy.public, path).await;
        (answer.status(), answer.text())
    };
    assert!(page("/nowhere").await.1.contains("no server at this address"));
    fs::write(files.path().join("error.html"), "any").unwrap();
    fs::write(files.path().join("404.html"), "gone").unwrap();
    assert_eq!(page("/nowhere").await, (404, "gone".into()));
    assert_eq!(page("/dead/").await, (503, "any".into()));
    assert_eq!(page("/%zz").await.0, 400);
    assert!(!page("/%zz").await.1.contains("any"));
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_others_are_not() {
    let hub = Target::mirror("hub").await;
    let request = "GET / HTTP/1.1\r\nHost: hub.example\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
                   X-Scheme: https\r\n\r\n";
    let trusting = Setup::with(&[("/", &hub.url)], |config| {
        config.policy.trusted_proxies = TrustedProxies::parse("127.0.0.0/8").unwrap()
    })
    .await;
    let seen = ask(trusting.proxy.public, request).await.text();
    for (name, value) in [
        ("x-forwarded-for", "6.6.6.6, 127.0.0.1"),
        ("x-real-ip", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-scheme", "https"),
    ] {
        assert_eq!(header(&seen, name), Some(value), "{seen}");
    }
    let silent = Setup::with(&[("/", &hub.url)], |config| config.policy.x_forward = false).await;
    let seen = ask(silent.proxy.public, request).await.text().to_lowercase();
    assert!(
        !seen.contains("x-forwarded") && !seen.contains("x-real") && !seen.contains("x-scheme"),
        "{seen}"
    );
}

#[tokio::test]
async fn requests_are_changed_as_wished() {
    let hub = Target::mirror("hub").await;
    let target = format!("{}/base?t=1", hub.url);
    let authority = hub.url.strip_prefix("http://").unwrap();
    let routes = [("/user/alice/", target.as_str())];
    let seen = async |setup: &Setup, path: &str| get(setup.proxy.public, path).await.text();

    let setup = Setup::with(&routes, |config| {
        config.policy.change_origin = true;
        config.policy.include_prefix = false;
        config.policy.custom_headers = [parse_header("X-Mine: ours").unwrap()].into_iter().collect();
    })
    .await;
    let head = seen(&setup, "/user/alice/lab?x=1").await;
    assert!(head.starts_with("GET /base/lab?t=1&x=1 HTTP/1.1\r\n"), "{head}");
    for (name, value) in [
        ("host", authority),
        ("x-forwarded-host", "hub.example.org"),
        ("x-mine", "ours"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{head}");
    }
    assert_eq!(
        get(setup.proxy.public, "/user/alice//evil.example/").await.status(),
        400
    );

    let setup = Setup::with(&routes, |config| config.policy.prepend_path = false).await;
    let head = seen(&setup, "/user/alice/lab?x=1").await;
    assert!(head.starts_with("GET /user/alice/lab?x=1 HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn redirects_of_a_target_to_itself_are_rewritten_as_wished() {
    let target = Target::start(|mut connection| async move {
        while let Ok(head) = connection.head().await {
            let to = header(&head, "x-to").unwrap();
            connection
                .send(format!(
                    "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
                ))
                .await;
        }
    })
    .await;
    let own = format!("{}/x?y", target.url);
    let location = async |setup: &Setup, to: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: hub.example:8000\r\nX-To: {to}\r\n\r\n");
        let answer = ask(setup.proxy.public, request).await;
        answer.header("location").unwrap().to_owned()
    };
    let plain = Setup::new(&[("/", &target.url)]).await;
    assert_eq!(location(&plain, &own).await, own);
    let rewriting = Setup::with(&[("/", &target.url)], |config| {
        config.policy.auto_rewrite = true;
        config.policy.protocol_rewrite = Some(Protocol::Https);
    })
    .await;
    assert_eq!(location(&rewriting, &own).await, "https://hub.example:8000/x?y");
    for other in ["http://elsewhere.example/", "/relative"] {
        assert_eq!(location(&rewriting, other).await, other);
    }
    until(async || rewriting.proxy.status().await["active_requests"] == 0).await;
}
