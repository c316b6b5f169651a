//! What clients do: each kind of load once.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, try_join3};
use h2::Reason;
use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::MEGABYTE;
use crate::echo::IDENTITY;
use crate::fixture::cluster::SOON;
use crate::http::{self, Answer};
use crate::http2::{self, request};
use crate::tls;
use crate::websocket::{self, TEXT};

/// Where clients come in.
pub(super) struct Doors {
    /// The proxy without TLS.
    pub(super) plain: String,
    /// The proxy with TLS.
    pub(super) tls: String,
    /// Speaks HTTP/1.1 there.
    pub(super) http1: TlsConnector,
    /// Speaks HTTP/2 there.
    pub(super) http2: TlsConnector,
}

/// What a client does, which goes as it must or fails.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) act: fn(&Doors) -> BoxFuture<'_, Result<()>>,
}

pub(super) const KINDS: [Kind; 23] = [
    kind("ordinary requests", |to| ordinary(to).boxed()),
    kind("targets that nobody listens at", |to| nobody_listens(to).boxed()),
    kind("targets that answer nothing, given up by the client", |to| {
        silent_target(to).boxed()
    }),
    kind("targets that hang up", |to| target_hangs_up(to).boxed()),
    kind("WebSockets, closed", |to| websocket_closed(to).boxed()),
    kind("WebSockets, reset by the client", |to| websocket_reset(to).boxed()),
    kind("WebSockets, ended on the target's side alone", |to| {
        websocket_half_ended(to).boxed()
    }),
    kind("uploads broken off", |to| upload_broken_off(to).boxed()),
    kind("answers given up half read", |to| answer_given_up(to).boxed()),
    kind("slow readers that vanish", |to| slow_reader(to).boxed()),
    kind("requests to a unix socket", |to| unix_request(to).boxed()),
    kind("WebSockets to a unix socket", |to| unix_websocket(to).boxed()),
    kind("HTTP/2: requests", |to| http2_requests(to).boxed()),
    kind("HTTP/2: WebSockets, closed", |to| http2_websocket_closed(to).boxed()),
    kind("HTTP/2: WebSockets, taken back", |to| http2_websocket_reset(to).boxed()),
    kind("HTTP/2: uploads taken back", |to| http2_upload_reset(to).boxed()),
    kind("HTTP/2: slow readers that vanish", |to| http2_slow_reader(to).boxed()),
    kind("HTTP/2: requests taken back until that is too many", |to| {
        rapid_reset(to).boxed()
    }),
    kind("TLS: requests over HTTP/1.1", |to| tls_request(to).boxed()),
    kind("TLS: WebSockets over HTTP/1.1", |to| tls_websocket(to).boxed()),
    kind("TLS: requests over HTTP/2", |to| tls_http2_requests(to).boxed()),
    kind("TLS: WebSockets over HTTP/2", |to| tls_http2_websocket(to).boxed()),
    kind("TLS: handshakes broken off", |to| handshake_broken_off(to).boxed()),
];

const fn kind(name: &'static str, act: fn(&Doors) -> BoxFuture<'_, Result<()>>) -> Kind {
    Kind { name, act }
}

async fn ordinary(to: &Doors) -> Result<()> {
    is_of("alice", &http::get(&to.plain, "/user/alice/x").await?)
}

async fn nobody_listens(to: &Doors) -> Result<()> {
    is_no_answer(&http::get(&to.plain, "/dead/x").await?)
}

async fn silent_target(to: &Doors) -> Result<()> {
    let mut client = send(&to.plain, "GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let early = timeout(Duration::from_millis(30), client.read_u8()).await;
    ensure!(early.is_err(), "{early:?}");
    vanish(&client)
}

async fn target_hangs_up(to: &Doors) -> Result<()> {
    is_no_answer(&http::get(&to.plain, "/hangs-up").await?)
}

async fn websocket_closed(to: &Doors) -> Result<()> {
    let mut client = websocket::open(&to.plain, "/user/alice/ws").await?;
    for _ in 0..3 {
        websocket::write(&mut client, TEXT, &[b'x'; 2000], true).await?;
        ensure!(websocket::read(&mut client).await?.opcode == TEXT, "no echo");
    }
    // Alone; the server ends after it.
    client.shutdown().await?;
    ensure!(timeout(SOON, client.read_u8()).await?.is_err(), "it goes on");
    Ok(())
}

async fn websocket_reset(to: &Doors) -> Result<()> {
    let mut client = websocket::open(&to.plain, "/user/alice/ws").await?;
    websocket::write(&mut client, TEXT, b"x", true).await?;
    vanish(&client)
}

async fn websocket_half_ended(to: &Doors) -> Result<()> {
    let mut client = websocket::open(&to.plain, "/half-ends").await?;
    ensure!(timeout(SOON, client.read_u8()).await?.is_err(), "it says something");
    // It does not end for a while, and then vanishes.
    websocket::write(&mut client, TEXT, b"x", true).await?;
    sleep(Duration::from_millis(100)).await;
    vanish(&client)
}

async fn upload_broken_off(to: &Doors) -> Result<()> {
    let head = format!("POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: {MEGABYTE}\r\n\r\n");
    let mut client = send(&to.plain, &head).await?;
    client.write_all(&vec![7; MEGABYTE / 4]).await?;
    vanish(&client)
}

async fn answer_given_up(to: &Doors) -> Result<()> {
    let mut client = send(&to.plain, "GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut some = vec![0; 64 * 1024];
    timeout(SOON, client.read_exact(&mut some)).await??;
    ensure!(some.starts_with(b"HTTP/1.1 200 "), "no answer");
    vanish(&client)
}

/// Everything between it and the target is full when it vanishes.
async fn slow_reader(to: &Doors) -> Result<()> {
    let mut client = send(&to.plain, "GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut some = vec![0; 1024];
    for _ in 0..10 {
        timeout(SOON, client.read_exact(&mut some)).await??;
        sleep(Duration::from_millis(20)).await;
    }
    vanish(&client)
}

async fn unix_request(to: &Doors) -> Result<()> {
    is_of("socket", &http::get(&to.plain, "/sockets/echo/x").await?)
}

async fn unix_websocket(to: &Doors) -> Result<()> {
    let mut client = websocket::open(&to.plain, "/sockets/echo/ws").await?;
    websocket::write(&mut client, TEXT, b"x", true).await?;
    ensure!(websocket::read(&mut client).await?.payload == b"socket x", "no echo");
    vanish(&client)
}

async fn http2_requests(to: &Doors) -> Result<()> {
    beside_each_other(&http2::Connection::open(&to.plain).await?).await
}

async fn http2_websocket_closed(to: &Doors) -> Result<()> {
    echoed(&http2::Connection::open(&to.plain).await?).await
}

async fn http2_websocket_reset(to: &Doors) -> Result<()> {
    let client = http2::Connection::open(&to.plain).await?;
    let mut websocket = client.websocket("/user/alice/ws").await?;
    let mut frame = Vec::new();
    websocket::write(&mut frame, TEXT, b"x", true).await?;
    websocket.send(frame)?;
    websocket.reset();
    // What was beside it goes on.
    is_of("alice", &client.get("/user/alice/x").await?)
}

async fn http2_upload_reset(to: &Doors) -> Result<()> {
    let client = http2::Connection::open(&to.plain).await?;
    let (_answer, mut up) = client.begin(request(Method::POST, "/reads")?, false).await?;
    up.send_data(Bytes::from(vec![7; 32 * 1024]), false)?;
    // So that the target has some of it.
    sleep(Duration::from_millis(30)).await;
    up.send_reset(Reason::CANCEL);
    is_of("alice", &client.get("/user/alice/x").await?)
}

/// As much of the answer is on its way as may be when it vanishes, for none of it was taken.
async fn http2_slow_reader(to: &Doors) -> Result<()> {
    let client = http2::Connection::open(&to.plain).await?;
    let (answer, _) = client.begin(request(Method::GET, "/big")?, true).await?;
    let answer = timeout(SOON, answer).await??;
    ensure!(answer.status() == 200, "{}", answer.status());
    sleep(Duration::from_millis(200)).await;
    drop(client);
    Ok(())
}

/// CVE-2023-44487, at a unix socket, for the connections of so many requests would use up the ports.
async fn rapid_reset(to: &Doors) -> Result<()> {
    const TOO_MANY: usize = 2_000;
    let client = http2::Connection::open(&to.plain).await?;
    for _ in 0..TOO_MANY {
        let asked = request(Method::GET, "/sockets/hostile/silent")?;
        let Ok((_answer, mut up)) = client.begin(asked, false).await else {
            return client.ended().await;
        };
        // What has not left is not taken back.
        sleep(Duration::from_millis(1)).await;
        up.send_reset(Reason::CANCEL);
    }
    bail!("{TOO_MANY} requests were taken back on one connection");
}

async fn tls_request(to: &Doors) -> Result<()> {
    let client = tls::connect(&to.http1, &to.tls).await?;
    let asked = http::request(Method::GET, "localhost", "/user/alice/x");
    is_of("alice", &http::exchange(client, asked, Bytes::new()).await?)
}

async fn tls_websocket(to: &Doors) -> Result<()> {
    let client = tls::connect(&to.http1, &to.tls).await?;
    let mut client = websocket::open_over(client, "localhost", "/user/alice/ws").await?;
    websocket::write(&mut client, TEXT, b"x", true).await?;
    ensure!(websocket::read(&mut client).await?.payload == b"alice x", "no echo");
    vanish(client.get_ref().0)
}

async fn tls_http2_requests(to: &Doors) -> Result<()> {
    beside_each_other(&http2_over_tls(to).await?).await
}

async fn tls_http2_websocket(to: &Doors) -> Result<()> {
    echoed(&http2_over_tls(to).await?).await
}

async fn handshake_broken_off(to: &Doors) -> Result<()> {
    // A ClientHello of 512 bytes begins so.
    const BEGIN: [u8; 9] = [22, 3, 1, 2, 0, 1, 0, 1, 252];
    let mut client = TcpStream::connect(&to.tls).await?;
    client.write_all(&BEGIN).await?;
    sleep(Duration::from_millis(20)).await;
    vanish(&client)
}

async fn http2_over_tls(to: &Doors) -> Result<http2::Connection> {
    let client = tls::connect(&to.http2, &to.tls).await?;
    let spoken = client.get_ref().1.alpn_protocol();
    ensure!(spoken == Some(b"h2"), "{spoken:?} was negotiated");
    http2::Connection::over(client).await
}

async fn beside_each_other(client: &http2::Connection) -> Result<()> {
    let ask = || client.get("/user/alice/x");
    let answers = try_join3(ask(), ask(), ask()).await?;
    [answers.0, answers.1, answers.2]
        .iter()
        .try_for_each(|answer| is_of("alice", answer))
}

async fn echoed(client: &http2::Connection) -> Result<()> {
    let mut websocket = client.websocket("/user/alice/ws").await?;
    let (mut said, mut echo) = (Vec::new(), Vec::new());
    websocket::write(&mut said, TEXT, &[b'x'; 2000], true).await?;
    websocket::write(&mut echo, TEXT, &[&b"alice "[..], &[b'x'; 2000]].concat(), false).await?;
    for _ in 0..3 {
        websocket.send(said.clone())?;
        ensure!(websocket.take(echo.len()).await? == echo, "no echo");
    }
    websocket.finish().await
}

async fn send(address: &str, head: &str) -> Result<TcpStream> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(head.as_bytes()).await?;
    Ok(client)
}

/// Has the connection reset when it is dropped.
fn vanish(client: &TcpStream) -> Result<()> {
    Ok(client.set_zero_linger()?)
}

fn is_of(identity: &str, answer: &Answer) -> Result<()> {
    ensure!(
        answer.status == 200 && answer.header(IDENTITY) == identity,
        "{answer:?}"
    );
    Ok(())
}

fn is_no_answer(answer: &Answer) -> Result<()> {
    ensure!(answer.status == 503, "{answer:?}");
    Ok(())
}
