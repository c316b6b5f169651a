//! Those who use the cluster: writers with sessions, readers, subscribers, and one who checks every frame of a stream.

pub mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use holdfast_client::{Endpoints, Subscriber, SubscriberConfig};
use holdfast_table::Digest;
use holdfast_table::fence::PREDECESSORS_MAX;
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::routes_client::RoutesClient;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::cluster::{Phase, World};
use super::history::{Ask, Content, Sight, Told, content, route, value};
use super::network;

const KEYS: [&str; 7] = [
    "/",
    "/user/a/",
    "/user/b/",
    "/user/a/srv/",
    "/user/%40c/",
    "hub.org/",
    "hub.org/user/a/",
];
/// One attempt of a call takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// The copy of a hub's call comes at most so many hubs too late: well below as many as are remembered.
const LATE_BY: u64 = PREDECESSORS_MAX as u64 / 2;
/// And every third one no longer than this: so answers are lost often, and nobody waits long for a leader that is none.
const IMPATIENCE_MS: std::ops::Range<u64> = 5..300;

/// A client of every replica.
struct Calls {
    world: Rc<World>,
    who: String,
    rng: StdRng,
    channels: Vec<Channel>,
    // Whom to ask first: the last one that answered well.
    favourite: usize,
}

impl Calls {
    fn new(world: &Rc<World>, who: &str) -> Self {
        let addresses = world.addresses();
        let channels = addresses.iter().map(|address| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            network::channel(
                endpoint
                    .connect_timeout(Duration::from_millis(500))
                    .http2_keep_alive_interval(Duration::from_secs(1))
                    .keep_alive_timeout(Duration::from_secs(1))
                    .keep_alive_while_idle(true),
            )
        });
        Calls {
            world: world.clone(),
            who: who.to_owned(),
            rng: world.rng(who),
            channels: channels.collect(),
            favourite: 0,
        }
    }

    fn key(&mut self) -> String {
        KEYS[self.rng.random_range(0..KEYS.len())].to_owned()
    }

    /// A replica, the last good one more often than others.
    fn someone(&mut self) -> RoutesClient<Channel> {
        if self.rng.random_range(0..4) == 0 {
            self.favourite = self.rng.random_range(0..self.channels.len());
        }
        RoutesClient::new(self.channels[self.favourite].clone())
    }

    fn failed(&mut self) {
        self.favourite = (self.favourite + 1) % self.channels.len();
        self.world.history.borrow_mut().retries += 1;
    }

    async fn pause(&mut self, most_ms: u64) {
        let wait = self.rng.random_range(0..=most_ms);
        sleep(Duration::from_millis(wait)).await;
    }

    fn patience(&mut self) -> Duration {
        match self.rng.random_range(0..3) {
            0 => Duration::from_millis(self.rng.random_range(IMPATIENCE_MS)),
            _ => PATIENCE,
        }
    }

    /// What the replica is asked with may be more patient than the caller: it goes on while nobody listens.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        request
    }

    /// Asks until the write is decided, always with the same sequence.
    async fn write(&mut self, session: [u8; 16], sequence: u64, ask: &Ask) -> Told {
        let Ask::Write { changes, expect, hub } = ask else {
            unreachable!("only writes are written")
        };
        let changes = changes.iter().map(|(key, value)| {
            use proto::change::Change;
            let change = match value {
                Some(value) => Change::Put((&route(key, value).expect("a route")).into()),
                None => Change::Delete(key.clone()),
            };
            proto::Change { change: Some(change) }
        });
        let preconditions = expect.iter().map(|(key, revision)| proto::Precondition {
            precondition: Some(proto::precondition::Precondition::RouteRevision(proto::RouteRevision {
                routespec: key.clone(),
                mod_revision: *revision,
            })),
        });
        let mut message = proto::WriteRequest {
            changes: changes.collect(),
            preconditions: preconditions.collect(),
            session: session.to_vec().into(),
            sequence,
            hub_epoch: *hub,
            ..Default::default()
        };
        loop {
            let mut client = self.someone();
            let answer = timeout(self.patience(), client.write(self.request(message.clone()))).await;
            // As writers do: from now on an earlier copy may be on its way.
            message.retry = true;
            match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
                Ok(response) => {
                    let response = response.into_inner();
                    return Told::Written {
                        revision: response.revision,
                        changed: response.changed,
                        held: response.held,
                    };
                }
                Err(status) => match Reason::from_status(&status) {
                    Some(Reason::Precondition) => return Told::Refused,
                    Some(Reason::Fenced) => return Told::Fenced,
                    Some(reason) if !reason.is_retryable() => {
                        self.world.violation(format!(
                            "{}: sequence {sequence} was answered with {}: {}",
                            self.who,
                            reason.as_str(),
                            status.message()
                        ));
                        return Told::Refused;
                    }
                    _ => {}
                },
            }
            self.failed();
            self.pause(100).await;
        }
    }

    /// Asks until it is the hub, or was; returns its id and its epoch, 0 if another one has taken over already.
    async fn open(&mut self) -> ([u8; 16], u64) {
        let hub: [u8; 16] = self.rng.random();
        (hub, self.open_as(hub, Ask::Open).await)
    }

    async fn open_as(&mut self, hub: [u8; 16], ask: Ask) -> u64 {
        let call = self.world.history.borrow_mut().begin(&self.who, ask);
        let told = loop {
            let request = self.request(proto::OpenHubRequest {
                hub: hub.to_vec().into(),
                ..Default::default()
            });
            let mut client = self.someone();
            match timeout(self.patience(), client.open_hub(request)).await {
                Ok(Ok(opened)) => break Told::Opened(opened.into_inner().hub_epoch),
                Ok(Err(status)) if Reason::from_status(&status) == Some(Reason::Fenced) => break Told::Fenced,
                _ => {}
            }
            self.failed();
            self.pause(100).await;
        };
        self.world.history.borrow_mut().end(call, told.clone());
        match told {
            Told::Opened(epoch) => epoch,
            _ => 0,
        }
    }
}

fn called(world: &World) -> impl Drop + use<'_> {
    struct Busy<'a>(&'a World);
    impl Drop for Busy<'_> {
        fn drop(&mut self) {
            self.0.busy.set(self.0.busy.get() - 1);
        }
    }
    world.busy.set(world.busy.get() + 1);
    Busy(world)
}

/// Writes until the faults end, and finishes what it began.
pub async fn writer(world: Rc<World>, number: usize) -> turmoil::Result {
    let _busy = called(&world);
    let who = format!("w{number}");
    let mut calls = Calls::new(&world, &who);
    let session: [u8; 16] = calls.rng.random();
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    let (mut sequence, mut hub) = (0, 0);
    let mut last_hub = None;
    while world.phase.get() == Phase::Faults {
        if calls.rng.random_range(0..60) == 0 {
            let (id, epoch) = calls.open().await;
            last_hub = (epoch > 0).then_some((id, epoch));
            hub = epoch;
        }
        if calls.rng.random_range(0..60) == 0
            && let Some((id, epoch)) = last_hub
        {
            let hubs = world.history.borrow().hubs_asked();
            if hubs < epoch + LATE_BY {
                calls.open_as(id, Ask::OpenAgain(epoch)).await;
            }
        }
        sequence += 1;
        let value = || format!("{who}-{sequence}");
        let first = calls.key();
        let mut expect = None;
        let changes = match calls.rng.random_range(0..10) {
            0..2 => vec![(first, None)],
            // Two keys, to be seen together or not at all.
            2..4 => {
                let second = calls.key();
                let both = BTreeSet::from([first, second]);
                both.into_iter().map(|key| (key, Some(value()))).collect()
            }
            4..7 => {
                expect = Some((first.clone(), known.get(&first).copied().unwrap_or(0)));
                vec![(first, Some(value()))]
            }
            _ => vec![(first, Some(value()))],
        };
        let ask = Ask::Write { changes, expect, hub };
        let call = world.history.borrow_mut().begin(&who, ask.clone());
        let told = calls.write(session, sequence, &ask).await;
        let Ask::Write { changes, .. } = &ask else { continue };
        for (key, value) in changes {
            match (&told, value) {
                (Told::Written { revision, .. }, Some(_)) => drop(known.insert(key.clone(), *revision)),
                // Somebody else has written it: read it, then expect what is there.
                _ => drop(known.remove(key)),
            }
        }
        let refused = told == Told::Refused;
        if told == Told::Fenced {
            hub = 0;
        }
        world.history.borrow_mut().end(call, told);
        if refused && let Some(modified) = get(&mut calls, &changes[0].0).await {
            known.insert(changes[0].0.clone(), modified);
        }
        calls.pause(40).await;
    }
    Ok(())
}

/// One linearizable read; `None` if it got no answer in time. Returns the revision that wrote the route.
async fn get(calls: &mut Calls, key: &str) -> Option<u64> {
    let world = calls.world.clone();
    let call = world.history.borrow_mut().begin(&calls.who, Ask::Get(key.to_owned()));
    let request = calls.request(proto::GetRequest {
        routespec: key.to_owned(),
    });
    let mut client = calls.someone();
    let Ok(Ok(response)) = timeout(calls.patience(), client.get(request)).await else {
        world.history.borrow_mut().give_up(call);
        calls.failed();
        return None;
    };
    let response = response.into_inner();
    let found = response.route.map(|route| (value(&route.data), route.mod_revision));
    let modified = found.as_ref().map_or(0, |(_, modified)| *modified);
    world
        .history
        .borrow_mut()
        .end(call, Told::Got(found, response.revision));
    Some(modified)
}

async fn list(calls: &mut Calls) {
    let world = calls.world.clone();
    let call = world.history.borrow_mut().begin(&calls.who, Ask::List);
    let request = calls.request(proto::ListRequest {
        namespace: "*".into(),
        ..Default::default()
    });
    let mut client = calls.someone();
    let whole = async {
        let mut pages = client.list(request).await?.into_inner();
        let mut routes = Content::new();
        let mut head = None;
        while let Some(page) = pages.message().await? {
            head.get_or_insert((page.revision, page.digest.clone()));
            let rows = page.routes.into_iter();
            routes.extend(rows.map(|route| (route.routespec, (value(&route.data), route.mod_revision))));
        }
        let (revision, digest) = head.ok_or_else(|| Status::unavailable("nothing came"))?;
        Ok::<_, Status>((routes, revision, digest))
    };
    match timeout(calls.patience(), whole).await {
        Ok(Ok((routes, revision, digest))) => match Digest::from_bytes(&digest) {
            Some(digest) => world
                .history
                .borrow_mut()
                .end(call, Told::Listed(routes, revision, digest)),
            None => world.violation("a list without a digest"),
        },
        _ => {
            world.history.borrow_mut().give_up(call);
            calls.failed();
        }
    }
}

/// Reads until the faults end.
pub async fn reader(world: Rc<World>, number: usize) -> turmoil::Result {
    let _busy = called(&world);
    let mut calls = Calls::new(&world, &format!("g{number}"));
    while world.phase.get() == Phase::Faults {
        if calls.rng.random_range(0..8) == 0 {
            list(&mut calls).await;
        } else {
            let key = calls.key();
            get(&mut calls, &key).await;
        }
        calls.pause(30).await;
    }
    Ok(())
}

/// Has the leadership moved while everything breaks. It may be refused; nobody may notice.
pub async fn operator(world: Rc<World>) -> turmoil::Result {
    let mut calls = Calls::new(&world, "o");
    while world.phase.get() == Phase::Faults {
        calls.pause(4000).await;
        let at = calls.rng.random_range(0..calls.channels.len());
        let mut client = ClusterClient::new(calls.channels[at].clone());
        let request = calls.request(proto::LeaderMoveRequest::default());
        if let Ok(Ok(_)) = timeout(PATIENCE, client.leader_move(request)).await {
            world.history.borrow_mut().moves += 1;
        }
    }
    Ok(())
}

/// The subscriber that proxies have, for the whole simulation.
pub async fn follower(world: Rc<World>, number: usize) -> turmoil::Result {
    let who = format!("f{number}");
    let endpoints = Endpoints::parse(&world.addresses())?.connected_by(network::channel);
    let subscriber = Subscriber::new(SubscriberConfig {
        endpoints,
        name: who.clone(),
        proxy: true,
        cached: None,
    });
    let live = subscriber.table();
    let mut positions = live.watch();
    let mut last = 0;
    let watch = async {
        while positions.changed().await.is_ok() {
            positions.mark_unchanged();
            let Some(table) = live.load() else { continue };
            let revision = table.revision().0;
            if revision < last {
                world.violation(format!("{who} went back from revision {last} to {revision}"));
            }
            last = revision;
            world.history.borrow_mut().saw(Sight {
                who: who.clone(),
                revision,
                content: content(&table),
                digest: table.recompute_digest(),
            });
        }
    };
    tokio::join!(subscriber.run(CancellationToken::new()), watch);
    Ok(())
}
