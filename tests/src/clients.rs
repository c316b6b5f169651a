//! Clients that ask any replica, whatever they are told, and write down everything: writers with sessions, readers, and
//! subscribers who keep every frame. None of them uses the client library, whose kindness would hide what they look for.

mod subscriber;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use holdfast_wire::proto::routes_client::RoutesClient;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::fixture::cluster::SOON;
use crate::history::{Ask, Content, History, Told, Version, digest};

/// The routes that everybody writes and reads: so few that no deletion is held. The last two are always written together.
const SPECS: [&str; 8] = [
    "/",
    "/user/alice/",
    "/user/bob/",
    "/user/alice/lab/",
    "/user/%40carol/",
    "hub.example.org/user/alice/",
    "/pair/left/",
    "/pair/right/",
];
const PAIR: usize = 6;
/// One attempt of a call.
const PATIENCE: Duration = Duration::from_secs(2);
/// A client waits so long at most between two calls.
const PAUSE_MS: u64 = 12;

/// How many of each.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Each with one write under way at a time, or several that it has left open.
    pub writers: usize,
    /// The first as many as there are replicas ask always the same one.
    pub readers: usize,
    /// Each with one stream at a time.
    pub subscribers: usize,
}

/// Clients at work.
pub struct Clients {
    history: History,
    acknowledged: Arc<AtomicU64>,
    stop: CancellationToken,
    // Writers and readers.
    callers: JoinSet<Vec<Open>>,
    subscribers: JoinSet<()>,
    stop_subscribers: CancellationToken,
    held: Vec<Arc<AtomicU64>>,
    caller: Caller,
}

/// A write whose end is not known.
struct Open {
    call: usize,
    request: proto::WriteRequest,
}

impl Clients {
    /// Starts them; what they leave to chance comes from `random`.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn start(endpoints: &[String], crowd: Crowd, random: &mut SmallRng) -> Result<Self> {
        let history = History::default();
        let channels = endpoints
            .iter()
            .map(|endpoint| channel(endpoint))
            .collect::<Result<Vec<_>>>()?;
        let caller = |who: String, random: &mut SmallRng| Caller {
            who,
            history: history.clone(),
            channels: channels.clone(),
            favourite: random.random_range(0..channels.len()),
            random: SmallRng::seed_from_u64(random.random()),
        };
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let (mut callers, mut subscribers) = (JoinSet::new(), JoinSet::new());
        for number in 0..crowd.writers {
            let caller = caller(format!("w{number}"), random);
            callers.spawn(write(caller, acknowledged.clone(), stop.clone()));
        }
        for number in 0..crowd.readers {
            let mut caller = caller(format!("g{number}"), random);
            if number < channels.len() {
                // Whatever becomes of its replica: so there is always somebody who asks one that is cut off.
                caller.channels = vec![channels[number].clone()];
                caller.favourite = 0;
            }
            callers.spawn(read(caller, stop.clone()));
        }
        let stop_subscribers = CancellationToken::new();
        let mut held = Vec::new();
        for number in 0..crowd.subscribers {
            let caller = caller(format!("s{number}"), random);
            let revision = Arc::new(AtomicU64::new(0));
            held.push(revision.clone());
            let follow = subscriber::follow(caller, revision);
            let stop = stop_subscribers.clone();
            subscribers.spawn(async move { stop.run_until_cancelled(follow).await.unwrap_or_default() });
        }
        Ok(Clients {
            caller: caller("the last one".into(), random),
            history,
            acknowledged,
            stop,
            callers,
            subscribers,
            stop_subscribers,
            held,
        })
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends them after all faults: what they left open is decided, and every subscriber gets what there is.
    ///
    /// # Errors
    /// A write cannot be decided, a subscriber is not told, or a client has panicked.
    pub async fn finish(mut self) -> Result<History> {
        self.stop.cancel();
        let mut open = Vec::new();
        while let Some(left) = self.callers.join_next().await {
            open.extend(left?);
        }
        for write in open {
            let decided = timeout(SOON, self.caller.decide(&write)).await;
            ensure!(
                decided.is_ok(),
                "a write was not decided within {SOON:?}: {:?}",
                write.request
            );
        }
        let revision = self.caller.revision().await?;
        let held = &self.held;
        crate::fixture::until(format!("all subscribers have revision {revision}"), SOON, async || {
            let held: Vec<u64> = held.iter().map(|held| held.load(Ordering::Relaxed)).collect();
            if held.iter().all(|held| *held == revision) {
                Ok(())
            } else {
                Err(held)
            }
        })
        .await?;
        self.stop_subscribers.cancel();
        while let Some(ended) = self.subscribers.join_next().await {
            ended?;
        }
        Ok(self.history)
    }
}

fn channel(endpoint: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_millis(500))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// One client.
struct Caller {
    who: String,
    history: History,
    channels: Vec<Channel>,
    // Whom it asks first: the last one that answered well.
    favourite: usize,
    random: SmallRng,
}

impl Caller {
    fn chance(&mut self, one_of: u32) -> bool {
        self.random.random_range(0..one_of) == 0
    }

    fn spec(&mut self) -> String {
        SPECS[self.random.random_range(0..SPECS.len())].to_owned()
    }

    async fn pause(&mut self) {
        let wait = self.random.random_range(0..=PAUSE_MS);
        sleep(Duration::from_millis(wait)).await;
    }

    fn client(&self, at: usize) -> RoutesClient<Channel> {
        RoutesClient::new(self.channels[at].clone()).max_decoding_message_size(64 * 1024 * 1024)
    }

    /// A replica, mostly the last good one.
    fn someone(&mut self) -> RoutesClient<Channel> {
        if self.chance(8) {
            self.favourite = self.random.random_range(0..self.channels.len());
        }
        self.client(self.favourite)
    }

    async fn failed(&mut self) {
        self.favourite = (self.favourite + 1) % self.channels.len();
        self.pause().await;
    }

    /// One attempt. Whether it is a final refusal decides the caller.
    async fn attempt(&mut self, request: &proto::WriteRequest) -> Result<Told, Status> {
        let mut client = self.someone();
        let response = answer(client.write(patient(request.clone()))).await?;
        Ok(Told::Written {
            revision: response.revision,
            changed: response.changed,
        })
    }

    /// A write that nobody may refuse: what does is a violation, and what does not answer is asked again.
    async fn write(&mut self, request: &mut proto::WriteRequest, gives_up: Option<Instant>) -> Option<Told> {
        loop {
            match self.attempt(request).await {
                Ok(told) => return Some(told),
                Err(status) => {
                    if let Some(reason) = Reason::from_status(&status).filter(|reason| !reason.is_retryable()) {
                        let (who, word) = (&self.who, reason.as_str());
                        let violation = format!("{who}: {word}, {}: {request:?}", status.message());
                        self.history.violation(violation);
                        return None;
                    }
                }
            }
            request.retry = true;
            if gives_up.is_some_and(|at| Instant::now() >= at) {
                return None;
            }
            self.failed().await;
        }
    }

    async fn decide(&mut self, open: &Open) {
        let mut request = open.request.clone();
        if let Some(told) = self.write(&mut request, None).await {
            self.history.end(open.call, told);
        }
    }

    async fn revision(&mut self) -> Result<u64> {
        let request = proto::GetRequest { routespec: "/".into() };
        crate::fixture::until("a last read", SOON, async || {
            let mut client = self.someone();
            let answer = answer(client.get(patient(request.clone()))).await;
            if answer.is_err() {
                self.failed().await;
            }
            answer.map(|response| response.revision)
        })
        .await
    }

    async fn get(&mut self) {
        let spec = self.spec();
        let request = proto::GetRequest {
            routespec: spec.clone(),
        };
        let call = self.history.begin(&self.who, Ask::Get(spec));
        let mut client = self.someone();
        match answer(client.get(patient(request))).await {
            Ok(response) => {
                let found = response.route.as_ref().map(version);
                self.history.end(call, Told::Got(found, response.revision));
            }
            Err(_) => {
                self.history.forget(call);
                self.failed().await;
            }
        }
    }

    async fn list(&mut self) {
        let request = proto::ListRequest {
            namespace: "*".into(),
            ..Default::default()
        };
        let call = self.history.begin(&self.who, Ask::List);
        let mut client = self.someone();
        let whole = async {
            let mut pages = client.list(patient(request)).await?.into_inner();
            let (mut content, mut head) = (Content::new(), None);
            while let Some(page) = pages.message().await? {
                head.get_or_insert((page.revision, page.digest.to_vec()));
                content.extend(
                    page.routes
                        .iter()
                        .map(|route| (route.routespec.clone(), version(route))),
                );
            }
            let (revision, digest) = head.ok_or_else(|| Status::unavailable("an empty answer"))?;
            Ok(Told::Listed(content, revision, digest))
        };
        match timeout(PATIENCE, whole).await {
            Ok(Ok::<_, Status>(told)) => self.history.end(call, told),
            _ => {
                self.history.forget(call);
                self.failed().await;
            }
        }
    }
}

fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

async fn answer<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match timeout(PATIENCE, call).await {
        Ok(response) => response.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

/// A route in plain words. Fields that no client writes are part of the value, so that a wrong one shows.
fn version(route: &proto::Route) -> Version {
    let target = route.target.strip_prefix(digest::TARGET).unwrap_or(&route.target);
    let others = (route.data.as_str(), route.namespace.as_str());
    Version {
        value: match others {
            ("{}", "default") => target.to_owned(),
            others => format!("{target} {others:?}"),
        },
        modified: route.mod_revision,
    }
}

/// Writes until it is stopped; returns what it has left open.
async fn write(mut caller: Caller, acknowledged: Arc<AtomicU64>, stop: CancellationToken) -> Vec<Open> {
    let mut open = Vec::new();
    let (mut session, mut sequence): ([u8; 16], u64) = (caller.random.random(), 1);
    for number in 0_u64.. {
        if stop.is_cancelled() {
            break;
        }
        let value = (!caller.chance(5)).then(|| format!("{}-{number}", caller.who));
        let at = caller.random.random_range(0..=PAIR);
        let specs = if at == PAIR { &SPECS[PAIR..] } else { &SPECS[at..=at] };
        let changes: Vec<_> = specs.iter().map(|spec| ((*spec).to_owned(), value.clone())).collect();
        let mut request = proto::WriteRequest {
            changes: changes.iter().map(change).collect(),
            session: session.to_vec().into(),
            sequence,
            ..Default::default()
        };
        let call = caller.history.begin(&caller.who, Ask::Write(changes));
        // Half of them do not wait for longer than one attempt.
        let patience = if caller.chance(2) { Duration::ZERO } else { 2 * PATIENCE };
        let told = caller.write(&mut request, Some(Instant::now() + patience)).await;
        match told {
            Some(told) => {
                let has_changed = matches!(told, Told::Written { changed: true, .. });
                caller.history.end(call, told);
                acknowledged.fetch_add(1, Ordering::Relaxed);
                // What changed nothing is not remembered, and must not be repeated after its answer.
                if has_changed && caller.chance(8) {
                    request.retry = true;
                    caller.favourite = caller.random.random_range(0..caller.channels.len());
                    if let Ok(told) = caller.attempt(&request).await {
                        caller.history.repeated(call, &told);
                    }
                }
                sequence += 1;
            }
            None => {
                caller.history.leave_open(call);
                open.push(Open { call, request });
                (session, sequence) = (caller.random.random(), 1);
            }
        }
        caller.pause().await;
    }
    open
}

fn change((spec, value): &(String, Option<String>)) -> proto::Change {
    use proto::change::Change;
    let change = match value {
        Some(value) => Change::Put(proto::Route {
            routespec: spec.clone(),
            target: format!("{}{value}", digest::TARGET),
            ..Default::default()
        }),
        None => Change::Delete(spec.clone()),
    };
    proto::Change { change: Some(change) }
}

/// Reads until it is stopped.
async fn read(mut caller: Caller, stop: CancellationToken) -> Vec<Open> {
    while !stop.is_cancelled() {
        if caller.chance(8) {
            caller.list().await;
        } else {
            caller.get().await;
        }
        caller.pause().await;
    }
    Vec::new()
}
