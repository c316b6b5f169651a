//! The ways in.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use holdfast_proxy::{Address, Redirect};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

use crate::certificates::Authority;
use crate::fixture::{Conversation, Setup, Target, ask, get, header};

#[tokio::test]
async fn users_come_in_by_every_listener() {
    let hub = Target::mirror("hub").await;
    let sockets = TempDir::new().unwrap();
    let (path, inherited_path) = (sockets.path().join("a.sock"), sockets.path().join("b.sock"));
    // Left behind by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let inherited_address = inherited.local_addr().unwrap();
    let inherited_unix = std::os::unix::net::UnixListener::bind(&inherited_path).unwrap();
    let setup = Setup::with(&[("/", &hub.url)], |config| {
        config.listen = vec![
            Address::Tcp("127.0.0.1:0".parse().unwrap()),
            Address::Tcp("127.0.0.2:0".parse().unwrap()),
            Address::Unix(path.clone()),
            Address::Inherited(Arc::new(OwnedFd::from(inherited))),
            Address::Inherited(Arc::new(OwnedFd::from(inherited_unix))),
        ]
    })
    .await;
    assert_eq!(get(setup.proxy.public, "/").await.status(), 200);
    assert_eq!(get(inherited_address, "/").await.status(), 200);
    for path in [&path, &inherited_path] {
        let mut client = Conversation::over(UnixStream::connect(path).await.unwrap());
        client
            .send("GET / HTTP/1.1\r\nHost: hub.example\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            header(&answer.text(), "x-forwarded-for"),
            None,
            "its address is not known"
        );
    }
    setup.proxy.stop().await;
    assert!(!path.exists(), "its own socket is taken away");
    assert!(inherited_path.exists(), "another's is not");
}

#[tokio::test]
async fn a_socket_that_somebody_listens_on_is_not_taken_from_them() {
    let sockets = TempDir::new().unwrap();
    let path = sockets.path().join("a.sock");
    let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut config = crate::fixture::config(sockets.path());
    config.listen = vec![Address::Unix(path.clone())];
    let error = config.build().await.err().unwrap().to_string();
    assert!(error.contains("listen") && error.contains("a.sock"), "{error}");
    assert!(path.exists());
}

#[tokio::test]
async fn who_comes_without_tls_is_sent_to_where_it_is() {
    let authority = Authority::new();
    let hub = Target::mirror("hub").await;
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    for to in [Some(443), Some(8443), None] {
        let setup = Setup::with(&[("/", &hub.url)], |config| {
            config.tls = Some(identity.shown());
            config.redirect = Some(Redirect {
                listen: "127.0.0.1:0".parse().unwrap(),
                to,
            });
        })
        .await;
        let plain = setup.proxy.redirect.unwrap();
        let port = match to.unwrap_or(setup.proxy.public.port()) {
            443 => String::new(),
            port => format!(":{port}"),
        };
        for (host, path, expected) in [
            (
                "Hub.Example:8080",
                "/user/a%20b/?x=1",
                format!("https://hub.example{port}/user/a%20b/?x=1"),
            ),
            ("[::1]:80", "/", format!("https://[::1]{port}/")),
        ] {
            let answer = ask(plain, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(answer.status(), 301);
            assert_eq!(answer.header("location"), Some(expected.as_str()));
        }
        for bad in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET //evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@evil.example\r\n\r\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let answer = ask(plain, bad).await;
            assert_eq!((answer.status(), answer.header("location")), (400, None), "{bad}");
        }
    }
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn connections_that_cannot_be_accepted_cost_no_other_their_turn() {
    // The first one is reset before it is looked at.
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    for _ in 0..20 {
        let stream = TcpStream::connect(setup.proxy.public).await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
        assert_eq!(get(setup.proxy.public, "/").await.status(), 200);
    }
}
