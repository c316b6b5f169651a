//! Everything that leaks in proxies, all the time: dead targets, WebSockets that end on one side, clients that vanish, uploads and
//! answers that are given up. Descriptors and memory must be flat.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::echo::{Echo, IDENTITY};
use crate::fixture::cluster::SOON;
use crate::fixture::{Cluster, Proxy, free_port, until};
use crate::http;
use crate::websocket::{self, ACCEPT, TEXT};

const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Of each kind, so many at once, with this pause between two.
const EACH: usize = 3;
const PAUSE: Duration = Duration::from_millis(40);
/// How much more there may be at the end of the second half than at its begin: descriptors, and memory.
const OPEN_FILES_GROWTH_MAX: f64 = 25.0;
const MEMORY_GROWTH_MAX_KIB: f64 = 4.0 * 1024.0;
/// Descriptors that may be left once all clients are gone: connections to targets that are kept for a while count.
const OPEN_FILES_LEFT_MAX: f64 = 10.0;
const MEGABYTE: usize = 1024 * 1024;

/// What clients do, and how often it went as it must.
const KINDS: [&str; 9] = [
    "ordinary requests",
    "targets that nobody listens at",
    "targets that answer nothing, given up by the client",
    "targets that hang up",
    "WebSockets, closed",
    "WebSockets, reset by the client",
    "WebSockets, ended on the target's side alone",
    "uploads broken off",
    "answers given up half read",
];

/// What was seen.
#[derive(Debug)]
pub struct Soaked {
    /// How long it lasted.
    pub lasted: Duration,
    done: [u64; KINDS.len()],
    samples: Vec<Sample>,
    before: Sample,
    after: Sample,
}

/// One look at the proxy's process.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: f64,
    open_files: f64,
    memory_kib: f64,
}

/// Attacks one proxy for `lasting` and looks at its process meanwhile. `progress` is told of a look now and then.
///
/// # Errors
/// Something is answered as it must not be, descriptors or memory grow in the second half, or something is left when all clients
/// are gone.
pub async fn soak(lasting: Duration, mut progress: impl FnMut(&str)) -> Result<Soaked> {
    let (echo, hostile) = (Echo::start().await?, Hostile::start().await?);
    let mut cluster = Cluster::start_with_proxies(1, 1).await?;
    let mut changes = vec![Change::Put(echo.route("alice", "")?)];
    let dead = format!("http://127.0.0.1:{}", free_port());
    for (spec, target) in [("/dead/", dead.as_str()), ("/", hostile.url.as_str())] {
        changes.push(Change::Put(Route::parse(spec, target, "{}", "")?));
    }
    let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
    cluster.writer("default", SOON)?.write(batch).await?;
    let pid = cluster.proxies[0].process.pid().context("the proxy has ended")?;
    let address: Arc<str> = cluster.proxies[0].address().into();
    for (kind, name) in KINDS.iter().enumerate() {
        // What is made once, such as buffers of threads, is no growth.
        act(kind, &address).await.context(*name)?;
    }
    quiet(&cluster.proxies[0]).await?;
    let began = Instant::now();
    let before = look(pid, began)?;
    let done: Arc<[AtomicU64; KINDS.len()]> = Arc::default();
    let mut clients = JoinSet::new();
    for client in 0..KINDS.len() * EACH {
        clients.spawn(act_on(client % KINDS.len(), address.clone(), done.clone()));
    }
    let mut samples = Vec::new();
    while began.elapsed() < lasting {
        tokio::select! {
            Some(ended) = clients.join_next() => ended??,
            () = sleep(SAMPLE_EVERY) => {}
        }
        let sample = look(pid, began)?;
        samples.push(sample);
        if samples.len().is_multiple_of(60) {
            progress(&format!("{sample}"));
        }
    }
    clients.shutdown().await;
    quiet(&cluster.proxies[0]).await?;
    let soaked = Soaked {
        lasted: began.elapsed(),
        done: std::array::from_fn(|kind| done[kind].load(Ordering::Relaxed)),
        samples,
        before,
        after: look(pid, began)?,
    };
    cluster.finish().await?;
    Ok(soaked)
}

impl Soaked {
    /// # Errors
    /// Descriptors or memory have grown, or something was hardly tried.
    pub fn flat(&self) -> Result<()> {
        for (kind, done) in KINDS.iter().zip(self.done) {
            ensure!(done > 10, "hardly tried: {kind}: {done}");
        }
        let files = self.growth(|sample| sample.open_files);
        ensure!(
            files < OPEN_FILES_GROWTH_MAX,
            "{files:.1} more descriptors over the second half\n{self}"
        );
        let memory = self.growth(|sample| sample.memory_kib);
        ensure!(
            memory < MEMORY_GROWTH_MAX_KIB,
            "{memory:.0} KiB more memory over the second half\n{self}"
        );
        let left = self.after.open_files - self.before.open_files;
        ensure!(left <= OPEN_FILES_LEFT_MAX, "{left} descriptors are left\n{self}");
        Ok(())
    }

    /// By how much a figure grows over the second half, on the line that fits it best.
    fn growth(&self, figure: impl Fn(&Sample) -> f64) -> f64 {
        let half = &self.samples[self.samples.len() / 2..];
        let count = half.len() as f64;
        let mean_at = half.iter().map(|sample| sample.at).sum::<f64>() / count;
        let mean = half.iter().map(&figure).sum::<f64>() / count;
        let (mut up, mut across) = (0.0, 0.0);
        for sample in half {
            up += (sample.at - mean_at) * (figure(sample) - mean);
            across += (sample.at - mean_at).powi(2);
        }
        let span = half[half.len() - 1].at - half[0].at;
        up / across * span
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, done) in KINDS.iter().zip(self.done) {
            writeln!(f, "{done:>9}  {kind}")?;
        }
        let middle = self.samples[self.samples.len() / 2];
        let last = self.samples[self.samples.len() - 1];
        for (what, sample) in [
            ("before", self.before),
            ("half time", middle),
            ("end", last),
            ("all clients gone", self.after),
        ] {
            writeln!(f, "{what:<17} {sample}")?;
        }
        write!(
            f,
            "second half: {:+.1} descriptors, {:+.0} KiB on the best line through {} looks",
            self.growth(|sample| sample.open_files),
            self.growth(|sample| sample.memory_kib),
            self.samples.len() - self.samples.len() / 2
        )
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sample {
            at,
            open_files,
            memory_kib,
        } = self;
        write!(
            f,
            "{at:>7.1} s: {open_files:>4} descriptors, {:.1} MiB",
            memory_kib / 1024.0
        )
    }
}

fn look(pid: u32, began: Instant) -> Result<Sample> {
    let open_files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Ok(Sample {
        at: began.elapsed().as_secs_f64(),
        open_files,
        memory_kib: memory.context("no VmRSS")?.parse()?,
    })
}

/// Waits until the proxy serves nobody any more.
async fn quiet(proxy: &Proxy) -> Result<()> {
    until("nobody is served", SOON * 3, async || {
        let metrics = http::get(&proxy.admin(), "/metrics").await?.body;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        for gauge in ["connections", "active_requests", "active_websockets"] {
            let name = format!("holdfast_proxy_{gauge} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
            ensure!(value == Some("0"), "{gauge}: {value:?}");
        }
        Ok(())
    })
    .await?;
    // Kept connections to targets are closed after four seconds without a request, in one sweep a second or so.
    sleep(Duration::from_secs(6)).await;
    Ok(())
}

async fn act_on(kind: usize, address: Arc<str>, done: Arc<[AtomicU64; KINDS.len()]>) -> Result<()> {
    loop {
        act(kind, &address).await.with_context(|| KINDS[kind])?;
        done[kind].fetch_add(1, Ordering::Relaxed);
        sleep(PAUSE).await;
    }
}

/// Does the thing of this number in [`KINDS`] once.
async fn act(kind: usize, address: &str) -> Result<()> {
    match kind {
        0 => {
            let answer = http::get(address, "/user/alice/x").await?;
            ensure!(answer.status == 200 && answer.header(IDENTITY) == "alice", "{answer:?}");
        }
        1 => {
            let answer = http::get(address, "/dead/x").await?;
            ensure!(answer.status == 503, "{answer:?}");
        }
        2 => {
            let mut client = send(address, "GET /silent HTTP/1.1\r\nHost: a\r\n\r\n").await?;
            let early = timeout(Duration::from_millis(30), client.read_u8()).await;
            ensure!(early.is_err(), "{early:?}");
            client.set_zero_linger()?;
        }
        3 => {
            let answer = http::get(address, "/hangs-up").await?;
            ensure!(answer.status == 503, "{answer:?}");
        }
        4 => {
            let mut client = websocket::open(address, "/user/alice/ws").await?;
            for _ in 0..3 {
                websocket::write(&mut client, TEXT, &[b'x'; 2000], true).await?;
                ensure!(websocket::read(&mut client).await?.opcode == TEXT, "no echo");
            }
            // Alone; the server ends after it.
            client.shutdown().await?;
            ensure!(timeout(SOON, client.read_u8()).await?.is_err(), "it goes on");
        }
        5 => {
            let mut client = websocket::open(address, "/user/alice/ws").await?;
            websocket::write(&mut client, TEXT, b"x", true).await?;
            client.set_zero_linger()?;
        }
        6 => {
            let mut client = websocket::open(address, "/half-ends").await?;
            ensure!(timeout(SOON, client.read_u8()).await?.is_err(), "it says something");
            // It does not end for a while, and then vanishes.
            websocket::write(&mut client, TEXT, b"x", true).await?;
            sleep(Duration::from_millis(100)).await;
            client.set_zero_linger()?;
        }
        7 => {
            let head = format!("POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: {MEGABYTE}\r\n\r\n");
            let mut client = send(address, &head).await?;
            client.write_all(&vec![7; MEGABYTE / 4]).await?;
            client.set_zero_linger()?;
        }
        8 => {
            let mut client = send(address, "GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await?;
            let mut some = vec![0; 64 * 1024];
            timeout(SOON, client.read_exact(&mut some)).await??;
            ensure!(some.starts_with(b"HTTP/1.1 200 "), "no answer");
            client.set_zero_linger()?;
        }
        _ => bail!("nothing is known of it"),
    }
    Ok(())
}

async fn send(address: &str, head: &str) -> Result<TcpStream> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(head.as_bytes()).await?;
    Ok(client)
}

/// A user's server that misbehaves as the path says.
struct Hostile {
    url: String,
    _tasks: JoinSet<()>,
}

impl Hostile {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => drop(served.spawn(misbehave(stream))),
                    Some(_) = served.join_next() => {}
                }
            }
        });
        Ok(Hostile { url, _tasks: tasks })
    }
}

/// Ends with the connection; whatever goes wrong is what was wanted.
async fn misbehave(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
    let mut rest = vec![0; 16 * 1024];
    match path.as_slice() {
        b"/hangs-up" => return,
        b"/half-ends" => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        b"/big" => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 * MEGABYTE);
            let _ = stream.write_all(head.as_bytes()).await;
            let some = vec![7; 64 * 1024];
            while stream.write_all(&some).await.is_ok() {}
        }
        _ => {}
    }
    while let Ok(1..) = stream.read(&mut rest).await {}
}
