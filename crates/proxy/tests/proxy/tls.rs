//! TLS on either side.

use std::io;
use std::sync::Arc;

use holdfast_proxy::{ClientCertificates, ProxyConfig, ServerTls, TlsCiphers, TlsVersions};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates::{Authority, Identity};
use crate::fixture::{Conversation, Http2, Setup, Target, config, get, header, mirror, soon, until};
use crate::websockets::{ACCEPT, REQUEST};

/// A target that speaks TLS.
struct TlsTarget {
    port: u16,
    _tasks: JoinSet<()>,
}

impl TlsTarget {
    async fn start(tls: Arc<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = TlsAcceptor::from(tls.clone());
                served.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        mirror(Conversation::over(stream), "tls").await;
                    }
                });
            }
        });
        TlsTarget { port, _tasks: tasks }
    }
}

async fn status(setup: &Setup, path: &str) -> u16 {
    get(setup.proxy.public, path).await.status()
}

#[tokio::test]
async fn a_target_must_be_vouched_for_by_name() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let local = ["127.0.0.1", "localhost"];
    let known = TlsTarget::start(ours.server(&ours.vouch_for("known", &local), false)).await;
    let named = TlsTarget::start(ours.server(&ours.vouch_for("named", &["other.example"]), false)).await;
    let unknown = TlsTarget::start(theirs.server(&theirs.vouch_for("unknown", &local), false)).await;
    let urls = [
        format!("https://127.0.0.1:{}", known.port),
        format!("https://localhost:{}/base", known.port),
        format!("https://127.0.0.1:{}", named.port),
        format!("https://127.0.0.1:{}", unknown.port),
        format!("http://127.0.0.1:{}", known.port),
    ];
    let paths = ["/known/", "/localhost/", "/named/", "/unknown/", "/plain/"];
    let routes: Vec<_> = paths.into_iter().zip(urls.iter().map(String::as_str)).collect();
    let strict = Setup::with(&routes, |config| config.target_tls.ca = Some(ours.ca.clone())).await;
    for (path, expected) in paths.into_iter().zip([200, 200, 503, 503, 503]) {
        assert_eq!(status(&strict, path).await, expected, "{path}");
    }
    let seen = get(strict.proxy.public, "/localhost/x").await;
    assert_eq!(seen.header("x-target"), Some("tls"));
    assert!(seen.text().starts_with("GET /base/localhost/x HTTP/1.1\r\n"));

    // Without an authority of its own, the system's do not know our targets.
    let system = Setup::new(&routes).await;
    assert_eq!(status(&system, "/known/").await, 503);

    let insecure = Setup::with(&routes, |config| config.target_tls.insecure = true).await;
    for (path, expected) in paths.into_iter().zip([200, 200, 200, 200, 503]) {
        assert_eq!(status(&insecure, path).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_target_that_asks_is_shown_a_certificate() {
    let authority = Authority::new();
    let target = TlsTarget::start(authority.server(&authority.vouch_for("target", &["127.0.0.1"]), true)).await;
    let url = format!("https://127.0.0.1:{}", target.port);
    let own = authority.vouch_for("proxy", &["proxy"]);
    let routes = [("/", url.as_str())];
    let with_ca = |config: &mut ProxyConfig| config.target_tls.ca = Some(authority.ca.clone());
    let shows = Setup::with(&routes, |config| {
        with_ca(config);
        config.target_tls.identity = Some((own.certificate.clone(), own.key.clone()));
    })
    .await;
    assert_eq!(status(&shows, "/").await, 200);
    let shows_none = Setup::with(&routes, with_ca).await;
    assert_eq!(status(&shows_none, "/").await, 503);
}

fn shows(identity: &Identity) -> impl FnOnce(&mut ProxyConfig) + use<> {
    let tls = identity.shown();
    move |config| config.tls = Some(tls)
}

async fn connect(setup: &Setup, tls: &Arc<ClientConfig>, name: &'static str) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(setup.proxy.public).await?;
    let name = ServerName::try_from(name).unwrap();
    soon(TlsConnector::from(tls.clone()).connect(name, stream)).await
}

#[tokio::test]
async fn users_come_in_by_tls() {
    let authority = Authority::new();
    let hub = Target::mirror("hub").await;
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    let setup = Setup::with(&[("/", &hub.url)], shows(&identity)).await;
    for protocols in [&[][..], &["http/1.1"]] {
        let tls = authority.client(None, protocols);
        let mut client = Conversation::over(connect(&setup, &tls, "hub.example").await.unwrap());
        for _ in 0..2 {
            client.send("GET /x HTTP/1.1\r\nHost: hub.example\r\n\r\n").await;
            let answer = client.answer().await;
            assert_eq!(answer.status(), 200);
            let seen = answer.text();
            assert_eq!(header(&seen, "x-forwarded-proto"), Some("https"));
            assert_eq!(header(&seen, "x-forwarded-port"), Some("443"));
        }
    }
    let tls = authority.client(None, &["h2", "http/1.1"]);
    let stream = connect(&setup, &tls, "hub.example").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut client = Http2::over(stream).await;
    let (answer, body) = client.get("https://hub.example/x").await;
    assert_eq!(answer.status(), 200);
    let seen = String::from_utf8(body).unwrap();
    assert_eq!(header(&seen, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(&seen, "host"), Some("hub.example"));

    // Who does not speak TLS gets nothing.
    let mut plain = Conversation::connect(setup.proxy.public).await;
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!plain.rest().await.starts_with(b"HTTP"));
    let series = r#"holdfast_proxy_connections_dropped_total{reason="handshake"}"#;
    until(async || setup.proxy.metric(series).await == 1.0).await;
}

#[tokio::test]
async fn who_is_silent_behind_a_handshake_is_not_kept() {
    let authority = Authority::new();
    let hub = Target::mirror("hub").await;
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    let tls = identity.shown();
    let setup = Setup::with(&[("/", &hub.url)], |config| {
        config.tls = Some(tls);
        config.header_timeout = std::time::Duration::from_millis(300);
        config.keep_alive_timeout = std::time::Duration::from_secs(3600);
    })
    .await;
    for protocols in [&["http/1.1"], &["h2"]] {
        let tls = authority.client(None, protocols);
        let mut silent = Conversation::over(connect(&setup, &tls, "hub.example").await.unwrap());
        silent.rest().await;
    }
    until(async || setup.proxy.metric("holdfast_proxy_connections").await == 0.0).await;
}

#[tokio::test]
async fn only_the_named_versions_and_ciphers_are_spoken() {
    let authority = Authority::new();
    let hub = Target::mirror("hub").await;
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    for (version, cipher, spoken) in [
        (
            "TLSv1_2",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        ),
        (
            "TLSv1_3",
            "TLS_CHACHA20_POLY1305_SHA256",
            "TLS13_CHACHA20_POLY1305_SHA256",
        ),
    ] {
        let setup = Setup::with(&[("/", &hub.url)], |config| {
            shows(&identity)(config);
            let tls = config.tls.as_mut().unwrap();
            tls.versions = TlsVersions::parse(version).unwrap();
            tls.ciphers = TlsCiphers::parse(cipher).unwrap();
        })
        .await;
        let stream = connect(&setup, &authority.client(None, &[]), "hub.example").await;
        let stream = stream.unwrap();
        let tls = stream.get_ref().1;
        let seen_version = tls.protocol_version().and_then(|version| version.as_str());
        let seen_cipher = tls.negotiated_cipher_suite().and_then(|cipher| cipher.suite().as_str());
        assert_eq!((seen_version, seen_cipher), (Some(version), Some(spoken)));
    }
}

#[tokio::test]
async fn a_websocket_passes_through_tls() {
    let authority = Authority::new();
    let (target, mut connections) = Target::manual().await;
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    let setup = Setup::with(&[("/", &target.url)], shows(&identity)).await;
    let tls = authority.client(None, &["http/1.1"]);
    let mut client = Conversation::over(connect(&setup, &tls, "hub.example").await.unwrap());
    client.send(REQUEST).await;
    let mut server = soon(connections.recv()).await.unwrap();
    soon(server.head()).await.unwrap();
    server.send(ACCEPT).await;
    assert_eq!(client.answer().await.status(), 101);
    for size in [1, 100_000] {
        client.send(vec![b'c'; size]).await;
        assert_eq!(server.take(size).await, vec![b'c'; size]);
        server.send(vec![b't'; size]).await;
        assert_eq!(client.take(size).await, vec![b't'; size]);
    }
}

#[tokio::test]
async fn users_show_certificates_where_they_must() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let hub = Target::mirror("hub").await;
    let identity = ours.vouch_for("proxy", &["hub.example"]);
    let user = ours.vouch_for("user", &["alice"]);
    let stranger = theirs.vouch_for("stranger", &["eve"]);
    for (required, without) in [(true, false), (false, true)] {
        let setup = Setup::with(&[("/", &hub.url)], |config| {
            shows(&identity)(config);
            let users = ClientCertificates {
                ca: ours.ca.clone(),
                required,
            };
            config.tls.as_mut().unwrap().clients = Some(users);
        })
        .await;
        for (shown, let_in) in [(Some(&user), true), (Some(&stranger), false), (None, without)] {
            let tls = ours.client(shown, &[]);
            let answered = match connect(&setup, &tls, "hub.example").await {
                Ok(stream) => {
                    let mut client = Conversation::over(stream);
                    client.send("GET /x HTTP/1.1\r\nHost: hub.example\r\n\r\n").await;
                    client.rest_or_head().await
                }
                Err(_) => false,
            };
            assert_eq!(answered, let_in, "required: {required}, shown: {}", shown.is_some());
        }
    }
}

#[tokio::test]
async fn new_certificates_are_taken_without_a_restart_and_broken_ones_are_not() {
    let authority = Authority::new();
    let hub = Target::mirror("hub").await;
    let identity = authority.vouch_for("proxy", &["old.example"]);
    let setup = Setup::with(&[("/", &hub.url)], |config| {
        shows(&identity)(config);
        config.reload_interval = std::time::Duration::from_millis(20);
    })
    .await;
    let tls = authority.client(None, &[]);
    let mut before = Conversation::over(connect(&setup, &tls, "old.example").await.unwrap());
    assert!(connect(&setup, &tls, "new.example").await.is_err());
    identity.become_like(&authority.vouch_for("next", &["new.example"]));
    until(async || connect(&setup, &tls, "new.example").await.is_ok()).await;
    assert!(connect(&setup, &tls, "old.example").await.is_err());
    before.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(before.answer().await.status(), 200, "old connections go on");

    // A certificate without its key is none; when the key comes too, it is.
    let last = authority.vouch_for("last", &["last.example"]);
    std::fs::copy(&last.certificate, &identity.certificate).unwrap();
    for _ in 0..10 {
        assert!(connect(&setup, &tls, "new.example").await.is_ok());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    std::fs::copy(&last.key, &identity.key).unwrap();
    until(async || connect(&setup, &tls, "last.example").await.is_ok()).await;
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named_at_the_start() {
    let authority = Authority::new();
    let identity = authority.vouch_for("proxy", &["hub.example"]);
    let other = authority.vouch_for("other", &["hub.example"]);
    let missing = authority.directory.path().join("missing.pem");
    let directory = tempfile::TempDir::new().unwrap();
    let said = async |change: &dyn Fn(&mut ProxyConfig)| {
        let mut config = config(directory.path());
        shows(&identity)(&mut config);
        change(&mut config);
        let error = config.build().await.err().unwrap();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    let tls = |config: &mut ProxyConfig| config.tls.clone().unwrap();
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            certificate: missing.clone(),
            ..tls(config)
        })
    })
    .await;
    assert!(
        text.contains("tls") && text.contains("missing.pem: cannot be read"),
        "{text}"
    );
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            certificate: identity.key.clone(),
            ..tls(config)
        })
    })
    .await;
    assert!(text.contains("proxy.key: holds no certificate"), "{text}");
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            key: identity.certificate.clone(),
            ..tls(config)
        })
    })
    .await;
    assert!(text.contains("proxy.pem: holds no private key"), "{text}");
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            key: other.key.clone(),
            ..tls(config)
        })
    })
    .await;
    assert!(text.contains("cannot be used"), "{text}");
    let encrypted = authority.directory.path().join("encrypted.key");
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(&encrypted, pem).unwrap();
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            key: encrypted.clone(),
            ..tls(config)
        })
    })
    .await;
    assert!(
        text.contains("encrypted.key: is encrypted") && text.contains("openssl pkey -in"),
        "{text}"
    );
    let text = said(&|config| {
        config.tls = Some(ServerTls {
            versions: TlsVersions::parse("TLSv1_3").unwrap(),
            ciphers: TlsCiphers::parse("ECDHE-ECDSA-AES128-GCM-SHA256").unwrap(),
            ..tls(config)
        })
    })
    .await;
    assert!(text.contains("tls.ciphers") && text.contains("must have one"), "{text}");
    let text = said(&|config| config.target_tls.ca = Some(missing.clone())).await;
    assert!(text.contains("target_tls") && text.contains("missing.pem"), "{text}");
}
