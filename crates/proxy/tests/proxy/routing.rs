//! Which target a request goes to, and which goes to none.

use crate::fixture::{Setup, Target, ask, get};

#[tokio::test]
async fn whole_segments_match_and_the_longest_route_wins() {
    let (hub, alice, deep, al) = tokio::join!(
        Target::mirror("hub"),
        Target::mirror("alice"),
        Target::mirror("deep"),
        Target::mirror("al"),
    );
    let setup = Setup::new(&[
        ("/", &hub.url),
        ("/user/alice/", &alice.url),
        ("/user/alice/deep/", &deep.url),
        ("/user/al/", &al.url),
    ])
    .await;
    for (path, expected) in [
        ("/", "hub"),
        ("/user/", "hub"),
        ("/user/bob/", "hub"),
        ("/user/alice", "alice"),
        ("/user/alice/", "alice"),
        ("/user/alice/api?x=/user/al/", "alice"),
        ("/user/alice2/", "hub"),
        ("/user/ali", "hub"),
        ("/user/al/x", "al"),
        ("/user/alice/deep", "deep"),
        ("/user/alice/deeper", "alice"),
        ("/user/%61lice/deep/x", "deep"),
        ("/user/alice%2Fdeep/x", "hub"),
        ("/User/alice/", "hub"),
    ] {
        let answer = get(setup.proxy.public, path).await;
        assert_eq!(answer.header("x-target"), Some(expected), "{path}: {}", answer.head);
    }
}

#[tokio::test]
async fn a_route_of_the_host_comes_before_one_without() {
    let (hub, alice) = tokio::join!(Target::mirror("hub"), Target::mirror("alice"));
    let setup = Setup::new(&[("/", &hub.url), ("alice.hub.example.org/", &alice.url)]).await;
    for (host, expected) in [
        ("alice.hub.example.org", "alice"),
        ("ALICE.hub.example.org.:8000", "alice"),
        ("bob.hub.example.org", "hub"),
        ("hub.example.org", "hub"),
    ] {
        let answer = ask(setup.proxy.public, format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.header("x-target"), Some(expected), "{host}");
    }
}

#[tokio::test]
async fn no_route_is_404_once_the_table_is_known() {
    let alice = Target::mirror("alice").await;
    let setup = Setup::new(&[("/user/alice/", &alice.url)]).await;
    let answer = get(setup.proxy.public, "/user/bob/").await;
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.header("retry-after"), None);
    let series = r#"holdfast_proxy_no_route_total{cause="known_absent"}"#;
    assert_eq!(setup.proxy.metric(series).await, 1.0);
}

#[tokio::test]
async fn what_cannot_be_read_in_one_way_gets_400_and_reaches_nobody() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let paths = [
        "/user/alice/../bob/api",
        "/user/alice/./x",
        "/user/alice/%2e%2e/bob/api",
        "/user/alice/%2E./bob",
        "/user/alice/..%2fbob/%2e%2E",
        "/..",
        "/user\\bob\\api",
        "/user%5cbob",
        "//evil.example/user/bob/api",
        "/user/%zz",
        "/user/%",
        "/user/bob%00/x",
        "/user/bob%0d%0a/x",
        "/user/%ff/x",
    ];
    for path in paths {
        let answer = get(setup.proxy.public, path).await;
        assert_eq!(answer.status(), 400, "{path}: {}", answer.head);
        assert_eq!(answer.header("connection"), Some("close"), "{path}");
    }
    let heads = [
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET http://b/user/bob/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for head in heads {
        let answer = ask(setup.proxy.public, head).await;
        assert_eq!(answer.status(), 400, "{head}: {}", answer.head);
    }
    assert_eq!(hub.connections(), 0);
    let metric = async |reason: &str| {
        let series = format!(r#"holdfast_proxy_rejected_total{{reason="{reason}"}}"#);
        setup.proxy.metric(&series).await
    };
    assert_eq!(metric("path").await, paths.len() as f64);
    assert_eq!(metric("host").await + metric("method").await, heads.len() as f64);
}

#[tokio::test]
async fn absolute_form_is_taken_if_it_agrees_with_the_host() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    let answer = ask(
        setup.proxy.public,
        "GET http://A.example:80/x?y HTTP/1.1\r\nHost: a.example:80\r\n\r\n",
    )
    .await;
    assert_eq!(answer.status(), 200);
    assert!(answer.text().starts_with("GET /x?y HTTP/1.1\r\n"), "{}", answer.text());
}
