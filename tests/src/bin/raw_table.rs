//! `raw_table`: what configurable-http-proxy and Holdfast make of the same bytes on a raw socket, side by side: who got which
//! request, or what the client was told instead. Fails where that is not what is expected of Holdfast.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Process, free_port, until};
use holdfast_tests::http;
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A proxy that says nothing more for so long has said everything.
const SILENCE: Duration = Duration::from_millis(400);
const NAMES: [&str; 3] = ["alice", "bob", "hub"];

/// Request targets, each in a GET of its own, and what is to become of it: the server that gets it as it was sent, or the status
/// that the client gets instead.
const PATHS: [(&str, &str); 18] = [
    ("/user/alice/api", "alice"),
    ("/user/alice/../bob/api", "400"),
    ("/user/alice/%2e%2e/bob/api", "400"),
    ("/user\\bob\\api", "400"),
    ("http://zzz/user/bob/api", "400"),
    ("/user%2fbob/api", "hub"),
    ("//evil/user/bob/api", "400"),
    ("/user/alice/..%2fbob", "alice"),
    ("/user/constructor/x", "hub"),
    ("/__proto__/x", "hub"),
    ("/user/%zz", "400"),
    ("/user//bob/x", "hub"),
    ("/user/bob;x=1/x", "hub"),
    ("/User/bob/x", "hub"),
    ("/user/bob%00/x", "400"),
    ("/user%252fbob/x", "hub"),
    ("/user/al", "hub"),
    ("/user/alice#/../bob", "400"),
];

/// What a message is, the whole of it, and what is to become of it.
const MESSAGES: [(&str, &str, &str); 14] = [
    (
        "Content-Length and chunked",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "Content-Length twice, alike",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "400",
    ),
    (
        "Content-Length twice, unlike",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "400",
    ),
    (
        "Transfer-Encoding: gzip, chunked",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a space before the colon",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "HTTP/1.0 and chunked",
        "POST /user/bob/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    ),
    (
        "a folded header",
        "GET /user/bob/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "400",
    ),
    ("bare line feeds", "GET /user/bob/x HTTP/1.1\nHost: a\n\n", "400"),
    (
        "a bare carriage return",
        "GET /user/bob/x HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "400",
    ),
    (
        "a chunk extension",
        "POST /user/bob/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        "bob",
    ),
    (
        "two Hosts",
        "GET /user/bob/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "400",
    ),
    ("no Host", "GET /user/bob/x HTTP/1.1\r\n\r\n", "400"),
    (
        "Upgrade: h2c",
        "GET /user/bob/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n\r\n",
        "bob",
    ),
    ("CONNECT", "CONNECT bob:80 HTTP/1.1\r\nHost: bob:80\r\n\r\n", "400"),
];

#[tokio::main]
async fn main() -> Result<()> {
    let servers = Servers::start().await?;
    let cluster = Cluster::start_with_proxies(1, 1).await?;
    let routes: Result<Vec<_>, _> = ["/user/alice/", "/user/bob/", "/"]
        .into_iter()
        .zip(&servers.urls)
        .map(|(spec, url)| Route::parse(spec, url, "{}", "").map(Change::Put))
        .collect();
    let batch = Batch::new(Namespace::default(), routes?, Vec::new())?;
    cluster.writer("default", SOON)?.write(batch).await?;
    let (chp, chp_address) = start_chp(&cluster, &servers).await?;
    let holdfast = cluster.proxies[0].address();
    println!("{:<36} {:<44} Holdfast", "sent", "configurable-http-proxy 5.3.0");
    let of_path = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let paths = PATHS.map(|(path, expected)| (path, of_path(path), expected));
    let messages = MESSAGES.map(|(what, message, expected)| (what, message.to_owned(), expected));
    let mut differences = Vec::new();
    for (what, message, expected) in paths.into_iter().chain(messages) {
        // Not all of these messages get an answer of configurable-http-proxy.
        let theirs = servers.fate(&chp_address, &message, SILENCE).await?;
        let ours = servers.fate(&holdfast, &message, SOON).await?;
        println!("{what:<36} {theirs:<44} {ours}");
        let expected = match NAMES.contains(&expected) {
            true => told(expected, &message),
            false => expected.to_owned(),
        };
        if ours != expected {
            differences.push(format!("{what}: {expected} is expected, not {ours}"));
        }
    }
    drop(chp);
    cluster.finish().await?;
    let rows = PATHS.len() + MESSAGES.len();
    ensure!(
        differences.is_empty(),
        "Holdfast differs from what is expected of it in {} of {rows} rows:\n{}",
        differences.len(),
        differences.join("\n")
    );
    println!("Holdfast is as expected in all {rows} rows");
    Ok(())
}

async fn start_chp(cluster: &Cluster, servers: &Servers) -> Result<(Process, String)> {
    let (port, api_port) = (free_port().to_string(), free_port().to_string());
    let (address, api) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{api_port}"));
    let mut chp = Process::new("configurable-http-proxy", program()?, cluster.folder())
        .args([
            "--ip",
            "127.0.0.1",
            "--port",
            &port,
            "--api-ip",
            "127.0.0.1",
            "--api-port",
            &api_port,
        ])
        .args(["--default-target", &servers.urls[2]])
        .env("CONFIGPROXY_AUTH_TOKEN", "raw");
    chp.start()?;
    until("configurable-http-proxy answers", SOON, async || {
        http::get(&address, "/_chp_healthz").await
    })
    .await
    .with_context(|| chp.log_tail(20))?;
    for (name, url) in NAMES.iter().zip(&servers.urls).take(2) {
        let body = format!(r#"{{"target": "{url}"}}"#);
        let request = http::request(Method::POST, &api, &format!("/api/routes/user/{name}"));
        let request = request.header("authorization", "token raw");
        let answer = http::send(&api, request, Bytes::from(body)).await?;
        ensure!(answer.status == 201, "{answer:?}");
    }
    Ok((chp, address))
}

fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("configurable-http-proxy"))
        .find(|program| program.is_file())
        .context("no configurable-http-proxy in PATH: `make raw-table` installs it")
}

/// The hub and two users' servers, which write down what they are asked.
struct Servers {
    urls: Vec<String>,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Servers {
    async fn start() -> Result<Self> {
        let (mut urls, mut tasks) = (Vec::new(), JoinSet::new());
        let asked = Arc::new(Mutex::new(Vec::new()));
        for name in NAMES {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            urls.push(format!("http://{}", listener.local_addr()?));
            let asked = asked.clone();
            tasks.spawn(async move {
                let mut served = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    served.spawn(serve(stream, name, asked.clone()));
                }
            });
        }
        Ok(Servers {
            urls,
            asked,
            _tasks: tasks,
        })
    }

    /// Who was asked for what, or the status that the client got instead, if an answer begins `within` so long.
    async fn fate(&self, proxy: &str, message: &str, within: Duration) -> Result<String> {
        let mut client = TcpStream::connect(proxy).await?;
        client.write_all(message.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut patience = within;
        // Closed or reset: it has said everything as well.
        while let Ok(Ok(1..)) = timeout(patience, client.read_buf(&mut answer)).await {
            patience = SILENCE;
        }
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or("no answer");
        Ok(match asked.is_empty() {
            true => status.to_owned(),
            false => asked.join("; "),
        })
    }
}

/// Who was asked for what, by a message's method and target.
fn told(name: &str, message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let (asking, _) = line.rsplit_once(' ').unwrap_or((line, ""));
    format!("{name}: {asking}")
}

/// Ends with the connection.
async fn serve(mut stream: TcpStream, name: &'static str, asked: Arc<Mutex<Vec<String>>>) {
    let mut bytes = Vec::new();
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read_buf(&mut bytes).await {
                Ok(1..) => continue,
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes.drain(..end + 4);
        asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(told(name, &head));
        let lower = head.to_ascii_lowercase();
        let is_whole = |body: &[u8]| match lower.split("\ncontent-length:").nth(1) {
            Some(rest) => {
                rest.trim_start()
                    .split('\r')
                    .next()
                    .and_then(|length| length.parse().ok())
                    <= Some(body.len())
            }
            None => !lower.contains("\ntransfer-encoding:") || body.ends_with(b"0\r\n\r\n"),
        };
        while !is_whole(&bytes) {
            // Broken off: whoever sent it has ended, or says nothing more.
            let Ok(Ok(1..)) = timeout(SILENCE, stream.read_buf(&mut bytes)).await else {
                return;
            };
        }
        // One request at a time is asked for.
        bytes.clear();
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .is_err()
        {
            return;
        }
    }
}
