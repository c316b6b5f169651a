//! What it listens on: all that it was told, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_tests::fixture::chp::configurable_http_proxy;
use holdfast_tests::fixture::{free_port, run, until};
use holdfast_tests::http::{self, exchange, request, send};
use holdfast_tests::tls::{Authority, Identity};
use hyper::Method;
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::mirror::Mirror;
use crate::subject::{SOON, Subject, TOKEN};

/// The ports of 127.0.0.1 or everywhere on which a process listens, of those that are its own.
fn listens_on(pid: u32) -> Result<BTreeSet<u16>> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode = |link: PathBuf| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let inodes: BTreeSet<String> = links.filter_map(inode).collect();
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{pid}/net/{table}"))?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            const LISTENS: &str = "0A";
            if fields[3] == LISTENS && inodes.contains(fields[9]) {
                let (_, port) = fields[1].split_once(':').context("an address")?;
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

/// Users' servers run on the same machine: what needs no token must be out of their reach.
#[tokio::test]
async fn it_listens_where_it_was_told_and_nowhere_else() -> Result<()> {
    let folder = TempDir::new()?;
    let data = folder.path().join("data");
    let metrics = free_port();
    let metrics_flag = metrics.to_string();
    let flags = [
        "--data-dir",
        data.to_str().context("a plain path")?,
        "--metrics-port",
        &metrics_flag,
        "--metrics-ip",
        "127.0.0.1",
    ];
    let mut subject = Subject::ours(folder.path(), &flags)?;
    subject.start().await?;
    let port = |address: &str| address.rsplit(':').next().unwrap_or_default().parse::<u16>();
    let told = BTreeSet::from([port(&subject.public)?, port(&subject.api)?, metrics]);
    let found = listens_on(subject.process.pid().context("it runs")?)?;
    ensure!(found == told, "{found:?}, not {told:?}");
    for directory in ["", "r0"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(data.join(directory))?.permissions().mode() & 0o777;
        ensure!(mode == 0o700, "{directory:?}: {mode:o}");
    }

    // Under configurable-http-proxy's names.
    subject.add("/user/bob", "http://127.0.0.1:9").await?;
    let scraped = http::get(&format!("127.0.0.1:{metrics}"), "/metrics").await?;
    ensure!(scraped.status == 200, "{scraped:?}");
    let text = String::from_utf8_lossy(&scraped.body);
    for line in [
        "requests_web ",
        "api_route_add 1",
        "requests_api{status=\"201\"} 1",
        "# EOF",
    ] {
        let mut lines = text.lines();
        ensure!(
            lines.any(|found| found.starts_with(line)),
            "{line} is missing in\n{text}"
        );
    }
    for path in ["/", "/status", "/readyz", "/drain"] {
        let answer = http::get(&format!("127.0.0.1:{metrics}"), path).await?;
        ensure!(answer.status == 404, "{path}: {answer:?}");
    }
    // An operator has all commands, by a socket that is nobody else's.
    subject.add("/user/alice", "http://127.0.0.1:9").await?;
    let socket = data.join("r0/client.sock");
    let endpoint = format!("unix:{}", socket.display());
    let listed = run(["routes", "list", "--endpoints", &endpoint]).await?;
    ensure!(
        listed.code == Some(0) && listed.stdout.contains("/user/alice/"),
        "{listed:?}"
    );
    // And no route leads there.
    let quoted = socket.display().to_string().replace('/', "%2F");
    subject.add("/socket", &format!("http+unix://{quoted}")).await?;
    let answer = http::get(&subject.public, "/socket/x").await?;
    ensure!(answer.status == 503, "{answer:?}");
    subject.process.terminate(SOON).await?;
    ensure!(!socket.exists());
    Ok(())
}

/// A load balancer that ends TLS is believed if it is named; else the hub would take every user to come without TLS.
#[tokio::test]
async fn what_ends_tls_before_it_is_believed_if_it_is_named() -> Result<()> {
    let mirror = Mirror::start().await?;
    for (trusted, protocol, user) in [
        (Some("127.0.0.0/8"), "https", "192.0.2.7, 127.0.0.1"),
        (Some("10.0.0.0/8"), "http", "127.0.0.1"),
        (None, "http", "127.0.0.1"),
    ] {
        let folder = TempDir::new()?;
        let mut subject = Subject::ours(folder.path(), &["--allow-targets", "127.0.0.0/8"])?;
        if let Some(trusted) = trusted {
            subject.process.set_env("HOLDFAST_TRUSTED_PROXIES", trusted);
        }
        subject.start().await?;
        subject.add("/user/alice", &mirror.target("")).await?;
        let asked = request(Method::GET, "hub.test", "/user/alice/x")
            .header("x-forwarded-proto", "https")
            .header("x-forwarded-for", "192.0.2.7");
        let seen = send(&subject.public, asked, Bytes::new()).await?.json()?;
        let headers = &seen["headers"];
        ensure!(headers["x-forwarded-proto"][0] == protocol, "{trusted:?}: {seen}");
        ensure!(headers["x-forwarded-for"][0] == user, "{trusted:?}: {seen}");
        // And routes lead nowhere else than they may.
        let elsewhere = r#"{"target": "http://192.0.2.1:8888"}"#;
        let refused = subject.ask(Method::POST, "/api/routes/user/bob", elsewhere).await?;
        ensure!(refused.status == 400, "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_token_may_be_in_a_file() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("token");
    fs::write(&file, format!("{TOKEN}\n"))?;
    let mut subject = Subject::ours(folder.path(), &[])?;
    // An empty one is as none.
    subject.process.set_env("CONFIGPROXY_AUTH_TOKEN", "");
    subject.process.set_env("CONFIGPROXY_AUTH_TOKEN_FILE", &file);
    subject.start().await?;
    let stranger = request(Method::GET, &subject.api, "/api/routes").header("authorization", "token other");
    let refused = send(&subject.api, stranger, Bytes::new()).await?;
    ensure!(refused.status == 403, "{refused:?}");
    subject.process.terminate(SOON).await?;
    Ok(())
}

#[tokio::test]
async fn unix_sockets_do_for_all_of_it() -> Result<()> {
    let folder = TempDir::new()?;
    let at = |name: &str| folder.path().join(name);
    let mirror = Mirror::start().await?;
    let program = holdfast_tests::fixture::holdfast()?;
    let mut process = holdfast_tests::fixture::Process::new("chp", program, folder.path())
        .args([
            "chp",
            "--socket",
            "users.sock",
            "--api-socket",
            "api.sock",
            "--metrics-socket",
            "metrics.sock",
        ])
        .env("CONFIGPROXY_AUTH_TOKEN", TOKEN);
    process.start()?;
    let ask = async |socket: &str, method: Method, path: &str, body: String| -> Result<(u16, Bytes)> {
        let asked = request(method, "localhost", path).header("authorization", format!("token {TOKEN}"));
        let answer = exchange(UnixStream::connect(at(socket)).await?, asked, Bytes::from(body)).await?;
        Ok((answer.status, answer.body))
    };
    let body = serde_json::json!({"target": mirror.target("")}).to_string();
    until("a route is written", SOON, async || {
        let (status, said) = ask("api.sock", Method::POST, "/api/routes/x", body.clone()).await?;
        ensure!(status == 201, "{status} {said:?} {}", process.log_tail(20));
        Ok(())
    })
    .await?;
    // A route is written before a proxy follows that is starting, too.
    until("users come in", SOON, async || {
        let (status, said) = ask("users.sock", Method::GET, "/x/y", String::new()).await?;
        ensure!(status == 200, "{status} {said:?}");
        Ok(())
    })
    .await?;
    let (status, metrics) = ask("metrics.sock", Method::GET, "/metrics", String::new()).await?;
    ensure!(status == 200 && !metrics.is_empty());
    process.terminate(SOON).await?;
    for name in ["users.sock", "api.sock", "metrics.sock"] {
        ensure!(!at(name).exists(), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn tls_is_shown_and_asked_for_as_an_internal_hub_wants_it() -> Result<()> {
    let folder = TempDir::new()?;
    let authority = Authority::new(folder.path())?;
    let (api, hub) = (authority.vouch_for("api")?, authority.vouch_for("hub")?);
    let stranger = TempDir::new()?;
    let stranger = Authority::new(stranger.path())?.vouch_for("stranger")?;
    let redirect = free_port().to_string();
    let passphrase = "a secret of the tests";
    let locked = folder.path().join("locked.key");
    encrypt(&api.key, &locked, passphrase)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a plain path");
    let (certificate, key, locked, ca) = (
        text(&api.certificate)?,
        text(&api.key)?,
        text(&locked)?,
        text(&authority.ca)?,
    );
    let flags = [
        "--ssl-cert",
        &certificate,
        "--ssl-key",
        &locked,
        "--api-ssl-cert",
        &certificate,
        "--api-ssl-key",
        &key,
        "--api-ssl-ca",
        &ca,
        "--api-ssl-request-cert",
        "--api-ssl-reject-unauthorized",
        "--redirect-port",
        &redirect,
        "--redirect-to",
        "443",
    ];
    let mut subjects = vec![Subject::ours(folder.path(), &flags)?];
    subjects.extend(Subject::theirs(folder.path(), &flags)?);
    let compared = configurable_http_proxy().is_some();
    ensure!(subjects.len() == if compared { 2 } else { 1 });
    let mut locations = Vec::new();
    for mut subject in subjects {
        subject.process.set_env("CONFIGPROXY_SSL_KEY_PASSPHRASE", passphrase);
        subject.process.start()?;
        let ask = async |address: &str, identity: Option<&Identity>, path: &str| -> Result<(u16, Bytes)> {
            let stream = authority.connect(address, identity).await?;
            let asked = request(Method::GET, address, path).header("authorization", format!("token {TOKEN}"));
            let answer = exchange(stream, asked, Bytes::new()).await?;
            Ok((answer.status, answer.body))
        };
        let known = until("the API answers", SOON, async || {
            ensure!(subject.process.is_running(), "{}", subject.process.log_tail(20));
            let (status, said) = ask(&subject.api, Some(&hub), "/api/routes").await?;
            ensure!(status == 200, "{status} {said:?}");
            Ok(())
        });
        known.await?;
        ensure!(
            ask(&subject.api, None, "/api/routes").await.is_err(),
            "who shows nothing"
        );
        ensure!(
            ask(&subject.api, Some(&stranger), "/api/routes").await.is_err(),
            "a stranger"
        );
        ensure!(http::get(&subject.api, "/api/routes").await.is_err(), "without TLS");
        let users = until("users come in", SOON, async || {
            let (status, said) = ask(&subject.public, None, "/_chp_healthz").await?;
            ensure!(status == 200, "{status} {said:?}");
            Ok(())
        });
        users.await?;
        let asked = request(Method::GET, "hub.test:8080", "/user/x?q=1");
        let sent = send(&format!("127.0.0.1:{redirect}"), asked, Bytes::new()).await?;
        // 443 need not be said, which CHP does.
        locations.push((sent.status, sent.header("location").replace(":443", "")));
        ensure!(subject.said("Added HTTP to HTTPS redirection").ends_with(&[format!(
            "[ConfigProxy] info: Added HTTP to HTTPS redirection from {redirect} to 443"
        )]));
        subject.process.kill();
    }
    let expected = (301, "https://hub.test/user/x?q=1".to_owned());
    ensure!(locations.iter().all(|location| *location == expected), "{locations:?}");
    Ok(())
}

fn encrypt(key: &Path, into: &Path, passphrase: &str) -> Result<()> {
    let status = std::process::Command::new("openssl")
        .args(["pkcs8", "-topk8", "-v2", "aes256", "-passout"])
        .arg(format!("pass:{passphrase}"))
        .arg("-in")
        .arg(key)
        .arg("-out")
        .arg(into)
        .status()?;
    ensure!(status.success());
    Ok(())
}
