//! Everything that leaks in proxies, all the time: dead targets, WebSockets that end on one side, clients that vanish, uploads and
//! answers that are given up, over HTTP/1.1 and HTTP/2, with TLS and without. Descriptors and memory must be flat.

mod hostile;
mod kinds;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use holdfast_table::{Batch, Change, Namespace, Route};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::hostile::Hostile;
use self::kinds::{Doors, KINDS, Kind};
use crate::echo::Echo;
use crate::fixture::cluster::SOON;
use crate::fixture::{Cluster, Proxy, free_port, until};
use crate::http;
use crate::tls::Authority;

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const TOLD_EVERY: usize = 120;
/// Of each kind, so many at once, with this pause between two.
const EACH: usize = 2;
const PAUSE: Duration = Duration::from_millis(40);
/// Of each kind, at least one in so long, and so many in all: what was hardly tried shows nothing.
const ONE_IN: Duration = Duration::from_secs(5);
const DONE_MIN: u64 = 10;
/// How much more there may be at the end of the second half than at its begin: descriptors, and memory.
const OPEN_FILES_GROWTH_MAX: f64 = 25.0;
const MEMORY_GROWTH_MAX_KIB: f64 = 4.0 * 1024.0;
/// Descriptors that may be left once all clients are gone: connections to targets that are kept for a while count.
const OPEN_FILES_LEFT_MAX: f64 = 10.0;
const MEGABYTE: usize = 1024 * 1024;

/// The proxies, in the order in which they are started.
const PROXIES: [&str; 2] = ["without TLS", "with TLS"];

/// What was seen.
#[derive(Debug)]
pub struct Soaked {
    /// How long it lasted.
    pub lasted: Duration,
    /// How often each of [`KINDS`] went as it must.
    done: [u64; KINDS.len()],
    /// Each of [`PROXIES`].
    proxies: Vec<Seen>,
}

/// What was seen of one proxy's process.
#[derive(Debug)]
struct Seen {
    pid: u32,
    before: Sample,
    samples: Vec<Sample>,
    after: Sample,
}

/// One look at it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: f64,
    open_files: f64,
    memory_kib: f64,
}

/// Attacks two proxies, one of them with TLS, for `lasting` and looks at their processes meanwhile. `progress` is told of a
/// look now and then.
///
/// # Errors
/// Something is answered as it must not be.
pub async fn soak(lasting: Duration, mut progress: impl FnMut(&str)) -> Result<Soaked> {
    let mut site = Site::start().await?;
    for Kind { name, act } in &KINDS {
        // What is made once, such as buffers of threads, is no growth.
        act(&site.doors).await.context(*name)?;
    }
    site.quiet().await?;
    let began = Instant::now();
    let mut proxies = site.look(began)?;
    let done: Arc<[AtomicU64; KINDS.len()]> = Arc::default();
    let mut clients = JoinSet::new();
    for client in 0..KINDS.len() * EACH {
        clients.spawn(act_on(client % KINDS.len(), site.doors.clone(), done.clone()));
    }
    while began.elapsed() < lasting {
        tokio::select! {
            Some(ended) = clients.join_next() => ended??,
            () = sleep(SAMPLE_EVERY) => {}
        }
        for (seen, what) in proxies.iter_mut().zip(PROXIES) {
            let sample = look(seen.pid, began)?;
            seen.samples.push(sample);
            if seen.samples.len().is_multiple_of(TOLD_EVERY) {
                progress(&format!("{what:<12} {sample}"));
            }
        }
    }
    clients.shutdown().await;
    site.quiet().await?;
    for seen in &mut proxies {
        seen.after = look(seen.pid, began)?;
    }
    site.cluster.finish().await?;
    Ok(Soaked {
        lasted: began.elapsed(),
        done: std::array::from_fn(|kind| done[kind].load(Ordering::Relaxed)),
        proxies,
    })
}

async fn act_on(kind: usize, doors: Arc<Doors>, done: Arc<[AtomicU64; KINDS.len()]>) -> Result<()> {
    let Kind { name, act } = &KINDS[kind];
    loop {
        act(&doors).await.context(*name)?;
        done[kind].fetch_add(1, Ordering::Relaxed);
        sleep(PAUSE).await;
    }
}

/// What is attacked.
struct Site {
    doors: Arc<Doors>,
    cluster: Cluster,
    // Answer until this is dropped.
    _servers: (Echo, Hostile),
}

impl Site {
    async fn start() -> Result<Self> {
        let mut cluster = Cluster::start_with_proxies(1, 1).await?;
        let authority = Authority::new(cluster.folder())?;
        let shown = authority.vouch_for("proxy")?;
        let at = cluster.add_proxy()?;
        let process = &mut cluster.proxies[at].process;
        process.set_flag("--ssl-cert", &shown.certificate);
        process.set_flag("--ssl-key", &shown.key);
        process.start()?;
        cluster.proxies[at].ready().await?;

        let mut echo = Echo::start().await?;
        let echo_at_socket = echo.listen_at(&cluster.folder().join("echo.sock"), "socket")?;
        let hostile = Hostile::start(&cluster.folder().join("hostile.sock")).await?;
        let dead = format!("http://127.0.0.1:{}", free_port());
        let mut changes = vec![Change::Put(echo.route("alice", "")?)];
        for (spec, target) in [
            ("/dead/", &dead),
            ("/sockets/echo/", &echo_at_socket),
            ("/sockets/hostile/", &hostile.unix_url),
            ("/", &hostile.url),
        ] {
            changes.push(Change::Put(Route::parse(spec, target, "{}", "")?));
        }
        let batch = Batch::new(Namespace::default(), changes, Vec::new())?;
        cluster.writer("default", SOON)?.write(batch).await?;
        let [plain, tls] = [0, at].map(|at| cluster.proxies[at].address());
        let doors = Doors {
            plain,
            tls,
            http1: authority.connector(&["http/1.1"])?,
            http2: authority.connector(&["h2"])?,
        };
        Ok(Site {
            doors: Arc::new(doors),
            cluster,
            _servers: (echo, hostile),
        })
    }

    /// The first look at each proxy.
    fn look(&mut self, began: Instant) -> Result<Vec<Seen>> {
        let first = |proxy: &mut Proxy| {
            let pid = proxy.process.pid().context("the proxy has ended")?;
            let before = look(pid, began)?;
            Ok(Seen {
                pid,
                before,
                samples: Vec::new(),
                after: before,
            })
        };
        self.cluster.proxies.iter_mut().map(first).collect()
    }

    /// Waits until the proxies serve nobody any more.
    async fn quiet(&self) -> Result<()> {
        for proxy in &self.cluster.proxies {
            quiet(proxy).await?;
        }
        // Kept connections to targets are closed after four seconds without a request, in one sweep a second or so.
        sleep(Duration::from_secs(6)).await;
        Ok(())
    }
}

impl Soaked {
    /// # Errors
    /// Descriptors or memory of a proxy have grown, or something is left when all clients are gone, or something was hardly
    /// tried.
    pub fn flat(&self) -> Result<()> {
        let least = DONE_MIN.max(self.lasted.as_secs() / ONE_IN.as_secs());
        for (kind, done) in KINDS.iter().zip(self.done) {
            ensure!(
                done >= least,
                "hardly tried: {}: {done}, not {least}\n{self}",
                kind.name
            );
        }
        for (seen, what) in self.proxies.iter().zip(PROXIES) {
            seen.flat().with_context(|| format!("the proxy {what}\n{self}"))?;
        }
        Ok(())
    }
}

impl Seen {
    fn flat(&self) -> Result<()> {
        let files = self.growth(|sample| sample.open_files);
        ensure!(
            files < OPEN_FILES_GROWTH_MAX,
            "{files:.1} more descriptors over the second half"
        );
        let memory = self.growth(|sample| sample.memory_kib);
        ensure!(
            memory < MEMORY_GROWTH_MAX_KIB,
            "{memory:.0} KiB more memory over the second half"
        );
        let left = self.after.open_files - self.before.open_files;
        ensure!(left <= OPEN_FILES_LEFT_MAX, "{left} descriptors are left");
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
            writeln!(f, "{done:>9}  {}", kind.name)?;
        }
        for (seen, what) in self.proxies.iter().zip(PROXIES) {
            write!(f, "the proxy {what}\n{seen}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let samples = &self.samples;
        for (what, sample) in [
            ("before", Some(&self.before)),
            ("half time", samples.get(samples.len() / 2)),
            ("end", samples.last()),
            ("all clients gone", Some(&self.after)),
        ] {
            if let Some(sample) = sample {
                writeln!(f, "  {what:<17} {sample}")?;
            }
        }
        writeln!(
            f,
            "  second half: {:+.1} descriptors, {:+.0} KiB on the best line through {} looks",
            self.growth(|sample| sample.open_files),
            self.growth(|sample| sample.memory_kib),
            samples.len() - samples.len() / 2
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
    .await
}
