//! P9: proxies are restarted while users work, and nobody notices.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use holdfast_table::{Batch, Change, Namespace};
use holdfast_tests::echo::{Echo, IDENTITY};
use holdfast_tests::fixture::cluster::SOON;
use holdfast_tests::fixture::{Cluster, Process, until};
use holdfast_tests::http::{self, Connection};
use holdfast_tests::websocket::{self, CLOSE, TEXT};
use http_body_util::Full;
use hyper::Method;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const USERS: usize = 100;
const CLIENTS: usize = 8;
const SOCKETS: usize = 12;
/// How often readiness is asked for; a load balancer asks less often, and a drain's delay is made for that.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PAUSE: Duration = Duration::from_millis(2);
/// Requests between two restarts.
const REQUESTS: usize = 300;

/// What a load balancer knows of one proxy.
struct Way {
    address: String,
    admin: String,
    ready: AtomicBool,
}

/// What users have seen.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    echoes: AtomicUsize,
    /// WebSockets that were told that the proxy goes away.
    told: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Seen {
    fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    async fn goes_on(&self) -> Result<()> {
        let from = self.requests.load(Ordering::SeqCst);
        until("requests go on", SOON, async || {
            let done = self.requests.load(Ordering::SeqCst) - from;
            if done >= REQUESTS { Ok(()) } else { Err(done) }
        })
        .await
    }
}

#[tokio::test]
async fn p9_a_rolling_restart_of_two_proxies_fails_no_request_and_cuts_no_websocket_short() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(3, 2).await?;
    put_users(&cluster, &echo).await?;
    let ways = cluster.proxies.iter().map(|proxy| {
        Arc::new(Way {
            address: proxy.address(),
            admin: proxy.admin(),
            ready: AtomicBool::new(true),
        })
    });
    let ways: Arc<[Arc<Way>]> = ways.collect();
    let seen = Arc::new(Seen::default());
    let mut tasks = JoinSet::new();
    for way in ways.iter() {
        tasks.spawn(follow_readiness(way.clone()));
    }
    for number in 0..CLIENTS {
        tasks.spawn(ask(number, ways.clone(), seen.clone()));
    }
    for number in 0..SOCKETS {
        tasks.spawn(hold_socket(number, ways.clone(), seen.clone()));
    }
    seen.goes_on().await?;
    for at in [0, 1, 0, 1] {
        let ended = cluster.proxies[at].process.terminate(SOON).await?;
        ensure!(ended.success(), "p{at} ended with {ended}");
        cluster.proxies[at].process.start()?;
        cluster.proxies[at].ready().await?;
        let way = &ways[at];
        until("it is used again", SOON, async || {
            way.ready.load(Ordering::SeqCst).then_some(()).ok_or("it is not")
        })
        .await?;
        seen.goes_on().await?;
    }
    tasks.shutdown().await;
    let (requests, echoes) = (seen.requests.load(Ordering::SeqCst), seen.echoes.load(Ordering::SeqCst));
    let told = seen.told.load(Ordering::SeqCst);
    let failures = std::mem::take(&mut *seen.failures.lock().unwrap());
    println!(
        "4 restarts of 2 proxies: {requests} requests and {echoes} echoes, {} failed; {told} WebSockets were told to come again (1001)",
        failures.len()
    );
    ensure!(failures.is_empty(), "{failures:#?}");
    ensure!(told >= SOCKETS && echoes > 0, "{told} told, {echoes} echoes");
    cluster.finish().await
}

async fn put_users(cluster: &Cluster, echo: &Echo) -> Result<()> {
    let changes: Result<Vec<_>, _> = (0..USERS)
        .map(|n| echo.route(&format!("user-{n}"), "").map(Change::Put))
        .collect();
    let batch = Batch::new(Namespace::default(), changes?, Vec::new())?;
    cluster.writer("default", SOON)?.write(batch).await?;
    Ok(())
}

async fn follow_readiness(way: Arc<Way>) {
    loop {
        let ready = http::get(&way.admin, "/readyz")
            .await
            .is_ok_and(|answer| answer.status == 200);
        way.ready.store(ready, Ordering::SeqCst);
        sleep(LOOK_EVERY).await;
    }
}

/// The ready one of this turn.
async fn choose(turn: usize, ways: &[Arc<Way>]) -> usize {
    loop {
        let ready: Vec<usize> = (0..ways.len())
            .filter(|at| ways[*at].ready.load(Ordering::SeqCst))
            .collect();
        if let Some(at) = ready.get(turn % ready.len().max(1)) {
            return *at;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Asks again and again, over connections that are kept, and repeats nothing.
async fn ask(number: usize, ways: Arc<[Arc<Way>]>, seen: Arc<Seen>) {
    let mut kept: Vec<Option<Connection>> = ways.iter().map(|_| None).collect();
    for turn in number.. {
        for (kept, way) in kept.iter_mut().zip(ways.iter()) {
            kept.take_if(|kept| !kept.is_open() || !way.ready.load(Ordering::SeqCst));
        }
        let at = choose(turn, &ways).await;
        let user = format!("user-{}", turn * 31 % USERS);
        if let Err(error) = ask_once(&mut kept[at], &ways[at].address, &user).await {
            seen.fail(format!("{user} through p{at}: {error:#}"));
        }
        seen.requests.fetch_add(1, Ordering::SeqCst);
        sleep(PAUSE).await;
    }
}

async fn ask_once(kept: &mut Option<Connection>, address: &str, user: &str) -> Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(address).await.context("connecting")?,
    };
    let request = http::request(Method::GET, address, &format!("/user/{user}/x")).body(Full::new(Bytes::new()))?;
    let answer = connection.ask(request).await?;
    let found = answer.header(IDENTITY);
    ensure!(answer.status == 200 && found == user, "{} by {found:?}", answer.status);
    *kept = Some(connection);
    Ok(())
}

/// Holds a WebSocket open; a goodbye is the one end that it may have.
async fn hold_socket(number: usize, ways: Arc<[Arc<Way>]>, seen: Arc<Seen>) {
    for turn in number.. {
        let at = choose(turn, &ways).await;
        match until_goodbye(&ways[at].address, &format!("user-{number}"), &seen).await {
            Ok(()) => seen.told.fetch_add(1, Ordering::SeqCst),
            Err(error) => {
                seen.fail(format!("a WebSocket through p{at}: {error:#}"));
                return;
            }
        };
    }
}

async fn until_goodbye(address: &str, user: &str, seen: &Seen) -> Result<()> {
    let mut stream = websocket::open(address, &format!("/user/{user}/ws")).await?;
    loop {
        websocket::write(&mut stream, TEXT, b"x", true).await?;
        let frame = timeout(SOON, websocket::read(&mut stream)).await.context("no echo")??;
        match frame.opcode {
            TEXT => seen.echoes.fetch_add(1, Ordering::SeqCst),
            CLOSE if frame.payload == [0x03, 0xe9] => return Ok(()),
            other => bail!("opcode {other}, {:?}", frame.payload),
        };
        // Silent for a while: the goodbye comes unasked.
        if let Ok(frame) = timeout(Duration::from_millis(50), websocket::read(&mut stream)).await {
            let frame = frame?;
            ensure!(frame.opcode == CLOSE && frame.payload == [0x03, 0xe9], "{frame:?}");
            return Ok(());
        }
    }
}

/// As systemd does with a `.socket` unit: the socket outlives the process, and who comes meanwhile waits in it.
#[tokio::test]
async fn p9_a_restart_with_a_handed_over_socket_turns_nobody_away() -> Result<()> {
    let echo = Echo::start().await?;
    let cluster = Cluster::start_with_proxies(1, 1).await?;
    put_users(&cluster, &echo).await?;
    let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?.to_string();
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    // bash, for other shells know descriptors of one digit alone.
    let handed = format!(
        "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"",
        socket.as_raw_fd()
    );
    let data_dir = cluster.folder().join("handed-data");
    let mut process = Process::new("handed", "bash", cluster.folder())
        .args(["-c", &handed])
        .args([holdfast_tests::fixture::holdfast()?])
        .args(["proxy", "--name", "handed", "--listen-admin", "", "--drain-delay", "0s"])
        .args(["--drain-timeout", "5s", "--endpoints", &cluster.endpoints().join(",")])
        .args(["--data-dir"])
        .args([&data_dir]);
    process.start()?;
    // Only the first start has no table yet.
    until("it has a table", SOON, async || {
        ask_once(&mut None, &address, "user-1").await
    })
    .await?;
    let seen = Arc::new(Seen::default());
    let mut tasks = JoinSet::new();
    for client in 0..CLIENTS {
        let (seen, address) = (seen.clone(), address.clone());
        tasks.spawn(async move {
            for turn in client.. {
                let user = format!("user-{}", turn * 31 % USERS);
                // Each time on a connection of its own.
                if let Err(error) = ask_once(&mut None, &address, &user).await {
                    seen.fail(format!("{user}: {error:#}"));
                }
                seen.requests.fetch_add(1, Ordering::SeqCst);
                sleep(PAUSE).await;
            }
        });
    }
    seen.goes_on().await?;
    for restart in 0..5 {
        let ended = process.terminate(SOON).await?;
        ensure!(ended.success(), "restart {restart}: {ended}: {}", process.log_tail(20));
        process.start()?;
        seen.goes_on().await?;
    }
    tasks.shutdown().await;
    let failures = std::mem::take(&mut *seen.failures.lock().unwrap());
    let requests = seen.requests.load(Ordering::SeqCst);
    println!(
        "5 restarts of the one proxy on a socket that stays: {requests} requests, {} failed",
        failures.len()
    );
    ensure!(failures.is_empty(), "{failures:#?}\n{}", process.log_tail(20));
    cluster.finish().await
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_leaves_no_pid_file() -> Result<()> {
    let echo = Echo::start().await?;
    let mut cluster = Cluster::start_with_proxies(1, 1).await?;
    put_users(&cluster, &echo).await?;
    let pid_file = cluster.folder().join("p0.pid");
    let proxy = &mut cluster.proxies[0];
    proxy.process.terminate(SOON).await?;
    proxy.process.set_flag("--pid-file", &pid_file);
    proxy.process.set_flag("--drain-timeout", "1h");
    proxy.process.start()?;
    proxy.ready().await?;
    let written = std::fs::read_to_string(&pid_file)?;
    ensure!(Some(written.trim().parse()?) == proxy.process.pid(), "{written}");
    let mut socket = websocket::open(&proxy.address(), "/user/user-1/ws").await?;
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    let admin = proxy.admin();
    until("it drains", SOON, async || {
        let answer = http::get(&admin, "/readyz").await?;
        ensure!(answer.status == 503, "{}", answer.status);
        Ok(())
    })
    .await?;
    websocket::write(&mut socket, TEXT, b"x", true).await?;
    ensure!(websocket::read(&mut socket).await?.opcode == TEXT, "it is waited for");
    proxy.process.signal(nix::sys::signal::Signal::SIGTERM);
    let ended = proxy.process.ended(Duration::from_secs(5)).await?;
    ensure!(ended.code() == Some(1), "{ended}");
    ensure!(!pid_file.exists(), "it left its pid file");
    ensure!(websocket::read(&mut socket).await.is_err(), "the WebSocket goes on");
    cluster.finish().await
}

#[tokio::test]
async fn the_log_level_is_read_again_without_a_restart() -> Result<()> {
    let mut cluster = Cluster::start_with_proxies(1, 1).await?;
    let config = cluster.folder().join("proxy.toml");
    let proxy = &mut cluster.proxies[0];
    proxy.process.terminate(SOON).await?;
    std::fs::write(&config, "log-level = \"error\"\n")?;
    proxy.process.set_flag("--config", &config);
    let from = proxy.process.log().len();
    proxy.process.start()?;
    proxy.ready().await?;
    let pid = proxy.process.pid();
    let said = |proxy: &holdfast_tests::fixture::Proxy, what: &str| proxy.process.log()[from..].contains(what);
    ensure!(
        !said(proxy, "serving"),
        "it says what it should not: {}",
        proxy.process.log()
    );
    for (level, sign) in [
        ("\"info\"", "the log level is read again"),
        ("\"loud\"", "the log level stays"),
    ] {
        std::fs::write(&config, format!("log-level = {level}\n"))?;
        proxy.process.signal(nix::sys::signal::Signal::SIGHUP);
        until(format!("{level} is read"), SOON, async || {
            said(proxy, sign).then_some(()).ok_or(proxy.process.log())
        })
        .await?;
    }
    ensure!(proxy.process.pid() == pid, "it was restarted");
    proxy.ready().await?;
    cluster.finish().await
}
