//! How many requests per second does a proxy forward, at what cost in CPU, and does the number of routes matter?
//!
//! Load, proxy and target share one machine. Load and target do next to nothing per request, so that the proxy gets
//! most of the machine; "direct" is the same load without a proxy: the limit of this setup.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_benches::usage::{cpu, resident_mib};
use holdfast_benches::{Latencies, Run, median};
use holdfast_table::{Batch, Change, Namespace, Route};
use holdfast_tests::fixture::Cluster;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const ROUTES: [usize; 3] = [10, 10_000, 100_000];
const CONNECTIONS: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const BATCH: usize = 10_000;
const BODY: &str = "a small answer, as from an API";

struct Subject {
    name: String,
    address: String,
    /// Of the proxy; `None`: the target itself.
    pid: Option<u32>,
    paths: Arc<Vec<String>>,
    rounds: Vec<Round>,
}

struct Round {
    per_second: f64,
    cpu_us: Option<f64>,
    latencies: Latencies,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut run = Run::start(
        "proxy",
        "requests per second and CPU per request, by number of routes; 1 proxy",
        &[],
    )?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let target = listener.local_addr()?.to_string();
    let mut target_tasks = JoinSet::new();
    target_tasks.spawn(serve(listener));

    let mut subjects = vec![Subject {
        name: "direct".to_owned(),
        address: target.clone(),
        pid: None,
        paths: Arc::new(paths(10)),
        rounds: Vec::new(),
    }];
    // One cluster for each number of routes, all up all the time: an idle one costs next to nothing.
    let mut clusters = Vec::new();
    for routes in ROUTES {
        let routes = if run.is_quick() { routes.min(1_000) } else { routes };
        let mut cluster = cluster_with(routes, &target).await?;
        let pid = cluster.proxies[0].process.pid();
        subjects.push(Subject {
            name: format!("{routes} routes"),
            address: cluster.proxies[0].address(),
            pid,
            paths: Arc::new(paths(routes)),
            rounds: Vec::new(),
        });
        clusters.push(cluster);
    }

    let time = run.time(ROUND);
    run.say(format!(
        "\n{CONNECTIONS} keep-alive connections, one request at a time on each, a random route each time; {} rounds of {time:?}, \
         interleaved; medians of the rounds",
        run.rounds(ROUNDS)
    ));
    for subject in &subjects {
        // Warm: connections to the target, and the pages of the table.
        measure(subject, time / 4).await?;
    }
    for _ in 0..run.rounds(ROUNDS) {
        for subject in &mut subjects {
            let round = measure(subject, time).await?;
            subject.rounds.push(round);
        }
    }
    for subject in &subjects {
        let of = |figure: fn(&Round) -> f64| subject.rounds.iter().map(figure).collect::<Vec<_>>();
        let rates = of(|round| round.per_second);
        let each: Vec<_> = rates.iter().map(|rate| format!("{rate:.0}")).collect();
        let cpu: Vec<_> = subject.rounds.iter().filter_map(|round| round.cpu_us).collect();
        let cpu = if cpu.is_empty() {
            String::new()
        } else {
            format!("{:.1} us CPU/request, ", median(&cpu))
        };
        run.say(format!(
            "{:<14} {:>6.0} requests/s, {cpu}p50 {:.2} ms, p99 {:.2} ms   (rounds: {})",
            subject.name,
            median(&rates),
            median(&of(|round| round.latencies.ms(50.0))),
            median(&of(|round| round.latencies.ms(99.0))),
            each.join(" ")
        ));
    }
    for cluster in &clusters {
        let pid = subjects
            .iter()
            .find(|subject| subject.address == cluster.proxies[0].address());
        let memory = pid.and_then(|subject| resident_mib(subject.pid?).ok()).unwrap_or(0.0);
        run.say(format!(
            "{} routes: {memory:.0} MiB resident",
            cluster.proxies[0].status().await?["routes"]
        ));
    }
    wrk(&mut run, &subjects);
    for cluster in clusters {
        cluster.finish().await?;
    }
    run.finish()
}

async fn cluster_with(routes: usize, target: &str) -> Result<Cluster> {
    let cluster = Cluster::start_with_proxies(1, 1).await?;
    let writer = cluster.writer("default", Duration::ZERO)?;
    let target = format!("http://{target}");
    for first in (0..routes).step_by(BATCH) {
        let put = |number: usize| {
            let data = format!(r#"{{"user":"user-{number}","server_name":""}}"#);
            anyhow::Ok(Change::Put(Route::parse(&spec(number), &target, &data, "")?))
        };
        let changes = (first..routes.min(first + BATCH)).map(put).collect::<Result<_>>()?;
        writer
            .write(Batch::new(Namespace::default(), changes, Vec::new())?)
            .await?;
    }
    let mut cluster = cluster;
    cluster.agree().await?;
    Ok(cluster)
}

fn spec(number: usize) -> String {
    format!("/user/user-{number}/")
}

fn paths(routes: usize) -> Vec<String> {
    (0..routes)
        .map(|number| format!("{}api/contents?type=directory", spec(number)))
        .collect()
}

async fn measure(subject: &Subject, time: Duration) -> Result<Round> {
    let cpu_before = subject.pid.map(cpu).transpose()?;
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for seed in 0..CONNECTIONS {
        tasks.spawn(ask_until(
            subject.address.clone(),
            subject.paths.clone(),
            seed as u64,
            began + time,
        ));
    }
    let mut latencies = Latencies::new();
    for asked in tasks.join_all().await {
        latencies.merge(&asked?);
    }
    let took = began.elapsed();
    let cpu_us = match (cpu_before, subject.pid) {
        (Some(before), Some(pid)) => Some((cpu(pid)? - before).as_micros() as f64 / latencies.count() as f64),
        _ => None,
    };
    Ok(Round {
        per_second: latencies.count() as f64 / took.as_secs_f64(),
        cpu_us,
        latencies,
    })
}

/// One connection's load.
async fn ask_until(address: String, paths: Arc<Vec<String>>, seed: u64, end: Instant) -> Result<Latencies> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut latencies = Latencies::new();
    let mut stream = TcpStream::connect(&address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 4096];
    while Instant::now() < end {
        let path = &paths[random.random_range(0..paths.len())];
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\nuser-agent: bench\r\n\r\n");
        let began = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        // The body is known, so its end is the answer's end.
        while !buffer[..filled].ends_with(BODY.as_bytes()) {
            let read = stream.read(&mut buffer[filled..]).await?;
            ensure!(
                read > 0,
                "closed after {:?}",
                String::from_utf8_lossy(&buffer[..filled])
            );
            filled += read;
        }
        latencies.add(began.elapsed());
        ensure!(
            buffer.starts_with(b"HTTP/1.1 200"),
            "{:?}",
            String::from_utf8_lossy(&buffer[..filled])
        );
    }
    Ok(latencies)
}

/// Answers every request alike, as cheaply as can be.
async fn serve(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => { connections.spawn(answer_all(stream)); }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Ends with the connection.
async fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut buffer = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        // Requests without a body, one at a time.
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            stream.write_all(answer.as_bytes()).await?;
            filled = 0;
        }
    }
}

/// The same question asked with another program, on one path.
fn wrk(run: &mut Run, subjects: &[Subject]) {
    let seconds = if run.is_quick() { "1s" } else { "5s" };
    for subject in subjects {
        let url = format!("http://{}{}", subject.address, subject.paths[0]);
        let connections = CONNECTIONS.to_string();
        let Ok(output) = Command::new("wrk")
            .args(["-t1", "-c", &connections, "-d", seconds, "--latency", &url])
            .output()
        else {
            run.say("\nwrk is not installed: no second opinion");
            return;
        };
        let told = String::from_utf8_lossy(&output.stdout);
        let lines = told.lines().filter(|line| {
            ["Requests/sec", "50%", "99%", "Non-2xx", "Socket errors"]
                .iter()
                .any(|word| line.contains(word))
        });
        let lines: Vec<_> = lines.map(str::trim).collect();
        run.say(format!(
            "wrk -t1 -c{connections} -d{seconds}, {:<14} {}",
            subject.name,
            lines.join("; ")
        ));
    }
}
