//! A client that asks for every user's route through every proxy, all the time, and knows a wrong answer when it sees one.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Method;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::echo::IDENTITY;
use crate::fixture::until;
use crate::http::{self, Answer, Connection};
use crate::websocket::{self, TEXT};

const ASK_A_STARTING_PROXY_EVERY: Duration = Duration::from_millis(5);
const ROUND_WITHIN: Duration = Duration::from_secs(60);
const PING_EVERY: Duration = Duration::from_millis(250);
const ECHO_WITHIN: Duration = Duration::from_secs(10);
const EXAMPLES_MAX: usize = 20;

/// What to ask for, and who has to answer.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The path of the request.
    pub path: String,
    /// What the right server says in its header [`IDENTITY`].
    pub identity: String,
}

/// How much to ask.
#[derive(Clone, Copy, Debug)]
pub struct ProberOptions {
    /// Requests per second through each proxy.
    pub rate: u32,
    /// Connections to each proxy.
    pub connections: u32,
    /// WebSockets held open through each proxy, to the last so many subjects.
    pub sockets: usize,
}

impl Default for ProberOptions {
    fn default() -> Self {
        ProberOptions {
            rate: 400,
            connections: 4,
            sockets: 4,
        }
    }
}

/// What has been seen since the last [`Prober::take`].
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests with any outcome, those to proxies that were known to be down left out.
    pub requests: u64,
    /// Answers by another server than the right one.
    pub wrong: u64,
    /// Answers that deny that the route exists: 404, or one of the default target.
    pub no_route: u64,
    /// Requests without a right answer through a proxy that was live from their start to their end.
    pub failed: u64,
    /// Requests that were under way when their proxy was killed.
    pub cut: u64,
    /// Requests that a starting proxy did not take: refused connections, and 503 with Retry-After.
    pub not_yet: u64,
    /// Echoes through WebSockets.
    pub echoes: u64,
    /// WebSockets that broke although their proxy was live.
    pub dropped: u64,
    /// From each start of a proxy to its first right answer.
    pub first_right: Vec<(String, Duration)>,
    /// What went wrong, in words: the first few.
    pub examples: Vec<String>,
}

impl Seen {
    /// # Errors
    /// Anything that a user of a live proxy would have noticed.
    pub fn flawless(&self) -> Result<()> {
        ensure!(
            self.wrong + self.no_route + self.failed + self.dropped == 0 && self.requests > 0,
            "{self}: {:#?}",
            self.examples
        );
        Ok(())
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} wrong, {} no-route, {} failed on live proxies, {} cut, {} not yet taken; {} echoes, {} \
             dropped WebSockets",
            self.requests, self.wrong, self.no_route, self.failed, self.cut, self.not_yet, self.echoes, self.dropped
        )
    }
}

/// The running client. Its tasks end when it is dropped.
pub struct Prober {
    shared: Arc<Shared>,
    proxies: Vec<Arc<Probed>>,
    tasks: JoinSet<()>,
}

struct Shared {
    subjects: Vec<Subject>,
    options: ProberOptions,
    seen: Mutex<Seen>,
    began: Instant,
}

struct Probed {
    name: String,
    address: String,
    phase: watch::Sender<Phase>,
    next: AtomicUsize,
    answered: AtomicUsize,
}

/// What is known of a proxy. Another value after a request than before it: the proxy was killed or started meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Down,
    Starting(Instant),
    Live(Instant),
}

#[derive(Debug)]
enum Outcome {
    Right,
    Wrong(String),
    NoRoute(String),
    NoTable(String),
    Refused(String),
    Failed(String),
}

impl Prober {
    /// A client for these subjects, which asks nobody yet.
    pub fn new(subjects: Vec<Subject>, options: ProberOptions) -> Self {
        Prober {
            shared: Arc::new(Shared {
                subjects,
                options,
                seen: Mutex::default(),
                began: Instant::now(),
            }),
            proxies: Vec::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Starts to ask through one more proxy, which is being started now. Returns its number.
    pub fn add_proxy(&mut self, name: &str, address: &str) -> usize {
        let probed = Arc::new(Probed {
            name: name.to_owned(),
            address: address.to_owned(),
            phase: watch::Sender::new(Phase::Starting(Instant::now())),
            next: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        });
        let options = self.shared.options;
        for _ in 0..options.connections {
            self.tasks.spawn(ask_all(self.shared.clone(), probed.clone()));
        }
        for subject in self.shared.subjects.iter().rev().take(options.sockets) {
            self.tasks
                .spawn(hold_socket(self.shared.clone(), probed.clone(), subject.clone()));
        }
        self.proxies.push(probed);
        self.proxies.len() - 1
    }

    /// To be called just before a proxy is killed: what fails from here on is no news.
    pub fn expect_down(&self, proxy: usize) {
        self.proxies[proxy].phase.send_replace(Phase::Down);
    }

    /// To be called when a proxy is started again: from here on the time to its first right answer runs.
    pub fn expect_up(&self, proxy: usize) {
        self.proxies[proxy].phase.send_replace(Phase::Starting(Instant::now()));
    }

    /// Returns when every proxy that is not expected to be down has been asked for every subject at least once from now
    /// on, and has answered.
    ///
    /// # Errors
    /// It takes too long.
    pub async fn round(&self) -> Result<()> {
        let begun: Vec<_> = self
            .proxies
            .iter()
            .map(|proxy| (proxy, proxy.answered.load(Ordering::Relaxed)))
            .collect();
        for (proxy, from) in begun {
            // Requests under way began before, so one of every connection does not count.
            let wanted = from + self.shared.subjects.len() + self.shared.options.connections as usize;
            let what = format!("{} has answered for every route", proxy.name);
            until(what, ROUND_WITHIN, async || {
                let answered = proxy.answered.load(Ordering::Relaxed);
                let is_done = answered >= wanted || *proxy.phase.borrow() == Phase::Down;
                if is_done {
                    Ok(())
                } else {
                    Err((answered - from, self.seen().to_string()))
                }
            })
            .await?;
        }
        Ok(())
    }

    /// What has been seen since the last [`take`](Self::take).
    pub fn seen(&self) -> Seen {
        self.shared.seen().clone()
    }

    /// The same, and begins anew.
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.shared.seen())
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, proxy: &Probed, before: Phase, subject: &Subject, outcome: Outcome) {
        let after = *proxy.phase.borrow();
        let mut seen = self.seen();
        seen.requests += 1;
        let (count, told) = match (outcome, before) {
            (Outcome::Right, _) => {
                if let Phase::Starting(since) = before
                    && before == after
                    // Only the first of the connections that get an answer.
                    && proxy.phase.send_if_modified(|phase| {
                        let is_first = *phase == before;
                        if is_first {
                            *phase = Phase::Live(Instant::now());
                        }
                        is_first
                    })
                {
                    seen.first_right.push((proxy.name.clone(), since.elapsed()));
                }
                drop(seen);
                proxy.answered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            (Outcome::Wrong(told), _) => (&mut seen.wrong, format!("wrong: {told}")),
            (Outcome::NoRoute(told), _) => (&mut seen.no_route, format!("no route: {told}")),
            (Outcome::Refused(_) | Outcome::NoTable(_), Phase::Starting(_)) => {
                seen.not_yet += 1;
                return;
            }
            (Outcome::Refused(_) | Outcome::NoTable(_) | Outcome::Failed(_), _) if after != before => {
                seen.cut += 1;
                return;
            }
            (Outcome::Refused(told) | Outcome::NoTable(told) | Outcome::Failed(told), _) => {
                (&mut seen.failed, format!("failed: {told}"))
            }
        };
        *count += 1;
        self.tell(&mut seen, proxy, subject, &told);
        // Wrong or not, it is an answer: a round is done when everything was asked for.
        proxy.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn record_drop(&self, proxy: &Probed, subject: &Subject, error: &anyhow::Error) {
        let mut seen = self.seen();
        seen.dropped += 1;
        self.tell(&mut seen, proxy, subject, &format!("dropped: {error:#}"));
    }

    fn tell(&self, seen: &mut Seen, proxy: &Probed, subject: &Subject, what: &str) {
        if seen.examples.len() < EXAMPLES_MAX {
            let at = self.began.elapsed().as_secs_f64();
            seen.examples
                .push(format!("{at:.3} s, {} {}: {what}", proxy.name, subject.path));
        }
    }
}

async fn ask_all(shared: Arc<Shared>, proxy: Arc<Probed>) {
    let pause = Duration::from_secs(1) * shared.options.connections / shared.options.rate;
    let mut pace = interval(pause);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        pace.tick().await;
        let before = *proxy.phase.borrow();
        match before {
            Phase::Down => {
                connection = None;
                let mut phase = proxy.phase.subscribe();
                // The sender lives as long as `proxy`, so this cannot fail.
                let _ = phase.wait_for(|phase| *phase != Phase::Down).await;
                continue;
            }
            Phase::Starting(_) => sleep(ASK_A_STARTING_PROXY_EVERY).await,
            Phase::Live(_) => {}
        }
        let at = proxy.next.fetch_add(1, Ordering::Relaxed) % shared.subjects.len();
        let subject = &shared.subjects[at];
        let outcome = ask(&mut connection, &proxy.address, subject).await;
        shared.record(&proxy, before, subject, outcome);
    }
}

async fn ask(connection: &mut Option<Connection>, address: &str, subject: &Subject) -> Outcome {
    let mut open = match connection.take().filter(Connection::is_open) {
        Some(open) => open,
        None => match Connection::open(address).await {
            Ok(open) => open,
            Err(error) => return Outcome::Refused(format!("{error:#}")),
        },
    };
    let request = http::request(Method::GET, address, &subject.path).body(Full::new(Bytes::new()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    match open.ask(request).await {
        Ok(answer) => {
            *connection = Some(open);
            judge(&answer, subject)
        }
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn judge(answer: &Answer, subject: &Subject) -> Outcome {
    let identity = answer.header(IDENTITY);
    let told = || {
        let body = String::from_utf8_lossy(&answer.body[..answer.body.len().min(80)]).into_owned();
        let location = answer.header("location");
        format!("{} by {identity:?} {location} {body:?}", answer.status)
    };
    // A hub has no identity of ours, but says that it is one.
    let is_hub = identity == crate::echo::DEFAULT_TARGET
        || identity.is_empty() && !answer.header("x-jupyterhub-version").is_empty();
    match answer.status {
        200 if identity == subject.identity => Outcome::Right,
        503 if identity.is_empty() && !is_hub && !answer.header("retry-after").is_empty() => Outcome::NoTable(told()),
        _ if is_hub => Outcome::NoRoute(told()),
        _ if !identity.is_empty() && identity != subject.identity => Outcome::Wrong(told()),
        404 => Outcome::NoRoute(told()),
        _ => Outcome::Failed(told()),
    }
}

async fn hold_socket(shared: Arc<Shared>, proxy: Arc<Probed>, subject: Subject) {
    let mut phase = proxy.phase.subscribe();
    loop {
        let live = loop {
            let now = *phase.borrow_and_update();
            if matches!(now, Phase::Live(_)) {
                break now;
            }
            // As above, the sender lives.
            let _ = phase.changed().await;
        };
        // Ends with the connection's end alone.
        let ended = echo(&shared, &proxy.address, &subject).await;
        let was_live = *proxy.phase.borrow() == live;
        if was_live && let Err(error) = ended {
            shared.record_drop(&proxy, &subject, &error);
            sleep(PING_EVERY).await;
        }
    }
}

async fn echo(shared: &Shared, address: &str, subject: &Subject) -> Result<()> {
    let mut stream = websocket::open(address, &subject.path).await.context("opening")?;
    for number in 0u64.. {
        let text = number.to_string();
        websocket::write(&mut stream, TEXT, text.as_bytes(), true).await?;
        let frame = timeout(ECHO_WITHIN, websocket::read(&mut stream))
            .await
            .context("no echo")??;
        let expected = format!("{} {text}", subject.identity);
        ensure!(
            frame.opcode == TEXT && frame.payload == expected.as_bytes(),
            "instead of {expected:?}: opcode {} {:?}",
            frame.opcode,
            String::from_utf8_lossy(&frame.payload)
        );
        shared.seen().echoes += 1;
        sleep(PING_EVERY).await;
    }
    Ok(())
}
