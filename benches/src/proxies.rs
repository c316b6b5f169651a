//! Holdfast's proxy and its peers, each told the same routes, and each as its makers would want it measured.
//!
//! All keep connections to the targets, write no access log, set the `X-Forwarded-*` headers, take WebSockets, and have
//! as many workers as the machine has processors, by their own defaults; configurable-http-proxy has one.

pub mod chp;
pub mod envoy;
pub mod haproxy;
pub mod holdfast;
pub mod nginx;
pub mod traefik;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use holdfast_tests::fixture::{Cluster, Process, free_port, until};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::client::{Client, first_right};
use crate::comparison::HOLDFAST;
use crate::programs::{self, Program};
use crate::targets::answer_of;
use crate::usage::memory_mib;

/// What a proxy may take until it serves its routes; one that takes longer is told without a figure.
pub const READY_WITHIN: Duration = Duration::from_secs(90);
/// What it may need for them; the machine has to hold the others too.
const MEMORY_MIB_MAX: f64 = 6.0 * 1024.0;
/// What comes in a path after the route: a small request, as pages of a notebook make many.
pub const SMALL: &str = "/api/contents?type=directory";
/// Routes that are looked at before a proxy is believed to serve them all.
const SAMPLE: usize = 50;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A location for each route.
    Nginx,
    /// One map of prefixes.
    Haproxy,
    /// A list of routes, as most control planes write it.
    Envoy,
    /// A matcher tree.
    EnvoyTree,
    /// A router for each route.
    Traefik,
    /// configurable-http-proxy.
    Chp,
    /// Holdfast's proxy and its replicas.
    Holdfast,
    /// No proxy: the target itself, the limit of all.
    Direct,
}

impl Kind {
    /// All of them, in the order of the output.
    pub const ALL: [Kind; 8] = [
        Kind::Nginx,
        Kind::Haproxy,
        Kind::Envoy,
        Kind::EnvoyTree,
        Kind::Traefik,
        Kind::Chp,
        Kind::Holdfast,
        Kind::Direct,
    ];

    /// As in the output.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Envoy => "envoy",
            Kind::EnvoyTree => "envoy-tree",
            Kind::Traefik => "traefik",
            Kind::Chp => "chp",
            Kind::Holdfast => HOLDFAST,
            Kind::Direct => "direct",
        }
    }

    /// The program on PATH, its flag for its version, and what installs it. `None`: it is there with the benchmark.
    pub fn program(self) -> Option<(&'static str, &'static str, &'static str)> {
        let debian = "scripts/install_debian_proxies.sh";
        let pypi = "scripts/install_pypi_proxies.sh";
        match self {
            Kind::Nginx => Some(("nginx", "-v", debian)),
            Kind::Haproxy => Some(("haproxy", "-v", debian)),
            Kind::Envoy | Kind::EnvoyTree => Some(("envoy", "--version", pypi)),
            Kind::Traefik => Some(("traefik", "version", pypi)),
            Kind::Chp => Some(("configurable-http-proxy", "--version", "scripts/install_chp.sh")),
            Kind::Holdfast | Kind::Direct => None,
        }
    }
}

impl From<Kind> for &'static str {
    fn from(kind: Kind) -> Self {
        kind.name()
    }
}

/// What every proxy is told: `/user/user-0/`, `/user/user-1/` and so on, to the targets in turn.
#[derive(Clone, Debug)]
pub struct Routes {
    count: usize,
    targets: Arc<[SocketAddr]>,
}

impl Routes {
    /// So many.
    pub fn new(count: usize, targets: &[SocketAddr]) -> Self {
        Routes {
            count,
            targets: targets.into(),
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Every target, in the order of their numbers.
    pub fn targets(&self) -> &[SocketAddr] {
        &self.targets
    }

    /// The path of a route, and of everything under it.
    pub fn prefix(&self, route: usize) -> String {
        format!("/user/user-{route}/")
    }

    /// The number of a route's target.
    pub fn target(&self, route: usize) -> usize {
        route % self.targets.len()
    }

    /// A route's target as Holdfast and configurable-http-proxy are told it.
    pub fn url(&self, route: usize) -> String {
        format!("http://{}", self.targets[self.target(route)])
    }

    /// A path to ask a route for.
    pub fn path(&self, route: usize) -> String {
        self.path_to(route, SMALL)
    }

    /// Another path under a route.
    pub fn path_to(&self, route: usize, rest: &str) -> String {
        format!("/user/user-{route}{rest}")
    }

    /// What the right target answers.
    pub fn body(&self, route: usize) -> String {
        answer_of(self.target(route))
    }
}

/// How one more route is given to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// With the command that an operator has for it, its start included.
    Command,
    /// By a call of its API.
    Call,
}

/// Where a proxy runs.
pub struct Place {
    folder: TempDir,
    port: u16,
    control_port: u16,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Place {
            folder: tempfile::Builder::new().prefix("holdfast-bench-proxy-").tempdir()?,
            port: free_port(),
            control_port: free_port(),
        })
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn control_address(&self) -> String {
        format!("127.0.0.1:{}", self.control_port)
    }

    fn process(&self, kind: Kind) -> Result<Process> {
        let (name, _, installed_by) = kind.program().context("not a program of others")?;
        let program = programs::find(name).with_context(|| format!("no {name} on PATH: {installed_by} installs it"))?;
        Ok(Process::new(kind.name(), program, self.folder()))
    }
}

/// A proxy that serves its routes. Dropping it ends it and all that belongs to it.
pub struct Proxy {
    kind: Kind,
    routes: Routes,
    address: String,
    state: State,
}

enum State {
    Direct,
    Peer { program: Program, place: Place },
    Holdfast(Box<holdfast::Holdfast>),
}

impl Proxy {
    /// Starts one and waits until it serves every route that is looked at from the right target. `replicas`: Holdfast's.
    ///
    /// # Errors
    /// It does not, or needs too much time or memory.
    pub async fn start(kind: Kind, routes: &Routes, replicas: usize) -> Result<Self> {
        let mut proxy = Proxy::begin(kind, routes, replicas).await?;
        proxy
            .serves()
            .await
            .with_context(|| format!("{}, {} routes", kind.name(), routes.count))?;
        Ok(proxy)
    }

    async fn begin(kind: Kind, routes: &Routes, replicas: usize) -> Result<Self> {
        let place = Place::new()?;
        let process = match kind {
            Kind::Nginx => nginx::prepare(&place, routes)?,
            Kind::Haproxy => haproxy::prepare(&place, routes)?,
            Kind::Envoy => envoy::prepare(&place, routes, envoy::Form::List)?,
            Kind::EnvoyTree => envoy::prepare(&place, routes, envoy::Form::Tree)?,
            Kind::Traefik => traefik::prepare(&place, routes)?,
            Kind::Chp => chp::prepare(&place)?,
            Kind::Holdfast => {
                let holdfast = holdfast::Holdfast::start(routes, replicas).await?;
                return Ok(Proxy {
                    kind,
                    routes: routes.clone(),
                    address: holdfast.address(),
                    state: State::Holdfast(Box::new(holdfast)),
                });
            }
            Kind::Direct => {
                // Only one can be asked without a proxy.
                let routes = Routes::new(routes.count, &routes.targets[..1]);
                return Ok(Proxy {
                    kind,
                    address: routes.targets[0].to_string(),
                    routes,
                    state: State::Direct,
                });
            }
        };
        let program = Program::start(process)?;
        if kind == Kind::Chp {
            chp::load(&place, routes).await?;
        }
        Ok(Proxy {
            kind,
            routes: routes.clone(),
            address: place.address(),
            state: State::Peer { program, place },
        })
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where users reach it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it was told.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Its processes, without what only tells it its routes. None: it is no proxy.
    ///
    /// # Errors
    /// It has ended.
    pub fn pids(&mut self) -> Result<Vec<u32>> {
        match &mut self.state {
            State::Direct => Ok(Vec::new()),
            State::Peer { program, .. } => program.pids(),
            State::Holdfast(holdfast) => holdfast.pids(),
        }
    }

    /// The cluster, if it is Holdfast.
    pub fn cluster(&mut self) -> Option<&mut Cluster> {
        match &mut self.state {
            State::Holdfast(holdfast) => Some(&mut holdfast.cluster),
            _ => None,
        }
    }

    /// Kills the proxy, starts it again and returns how long that takes until it serves a route, the last one.
    /// Holdfast's replicas stay.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn restart(&mut self, from: holdfast::Table) -> Result<Duration> {
        match &mut self.state {
            State::Direct => {}
            State::Peer { program, .. } => program.stop(),
            State::Holdfast(holdfast) => holdfast.stop(from)?,
        }
        // Killed is not yet gone, and a listener that is left would be in the next one's way.
        let address = self.address.clone();
        until(
            "nobody listens any more",
            READY_WITHIN,
            async || match TcpStream::connect(&address).await {
                Ok(_) => Err("somebody listens"),
                Err(_) => Ok(()),
            },
        )
        .await?;
        let began = Instant::now();
        match &mut self.state {
            State::Direct => {}
            State::Peer { program, .. } => program.start_again()?,
            State::Holdfast(holdfast) => holdfast.start_again()?,
        }
        let first = self.first_right(self.routes.count - 1, READY_WITHIN).await;
        Ok(first? - began)
    }

    /// Adds one more route, and returns how long it takes from the command until it is served. `None`: it has no such way.
    ///
    /// # Errors
    /// It is not, in time.
    pub async fn add_route(&mut self, by: By) -> Result<Option<Duration>> {
        let is_possible = match self.kind {
            Kind::Nginx | Kind::Envoy | Kind::EnvoyTree | Kind::Traefik => by == By::Command,
            Kind::Haproxy | Kind::Chp | Kind::Holdfast => true,
            Kind::Direct => false,
        };
        if !is_possible {
            return Ok(None);
        }
        let route = self.routes.count;
        self.routes.count += 1;
        let began = Instant::now();
        let first = self.first_right(route, READY_WITHIN);
        let added = async {
            match &mut self.state {
                State::Peer { program, place } => match self.kind {
                    Kind::Nginx => nginx::add(place, program, &self.routes, route),
                    Kind::Haproxy => haproxy::add(place, &self.routes, route, by).await,
                    Kind::Envoy => envoy::write_routes(place, &self.routes, envoy::Form::List),
                    Kind::EnvoyTree => envoy::write_routes(place, &self.routes, envoy::Form::Tree),
                    Kind::Traefik => traefik::add(place, &self.routes, route),
                    _ => chp::add(place, &self.routes, route, by).await,
                },
                State::Holdfast(holdfast) => holdfast.add(&self.routes, route, by).await,
                State::Direct => Ok(()),
            }
        };
        let (first, added) = tokio::join!(first, added);
        added.with_context(|| format!("{} takes no more routes", self.kind.name()))?;
        Ok(Some(first? - began))
    }

    /// When the right target has answered for a route, from now on; asked again every half millisecond.
    fn first_right(&self, route: usize, within: Duration) -> impl Future<Output = Result<Instant>> + use<> {
        const EVERY: Duration = Duration::from_micros(500);
        let (address, path, body) = (self.address.clone(), self.routes.path(route), self.routes.body(route));
        let asked = spawn_blocking(move || first_right(&address, &path, &body, EVERY, within));
        async move { asked.await? }
    }

    /// Waits until routes from first to last are served from the right targets.
    async fn serves(&mut self) -> Result<()> {
        let (address, routes) = (self.address.clone(), self.routes.clone());
        let last = routes.count - 1;
        let ready = until("it serves the last route", READY_WITHIN, async || {
            if let State::Peer { program, .. } = &mut self.state {
                let pids = match program.pids() {
                    Ok(pids) => pids,
                    Err(ended) => return Ok(Err(ended)),
                };
                let memory = memory_mib(&pids).unwrap_or(0.0);
                if memory > MEMORY_MIB_MAX {
                    return Ok(Err(anyhow!("it has {memory:.0} MiB and does not serve yet")));
                }
            }
            let (address, routes) = (address.clone(), routes.clone());
            spawn_blocking(move || serves(&address, &routes, [last])).await?.map(Ok)
        });
        ready.await??;
        let sample = (0..routes.count).step_by((routes.count / SAMPLE).max(1));
        spawn_blocking(move || serves(&address, &routes, sample)).await?
    }
}

fn serves(address: &str, routes: &Routes, sample: impl IntoIterator<Item = usize>) -> Result<()> {
    for route in sample {
        let answer = Client::open(address)?.ask(&routes.path(route))?;
        ensure!(answer.is_right(&routes.body(route)), "route {route}: {answer:?}");
    }
    Ok(())
}
