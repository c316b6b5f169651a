//! The stores that are measured, and one client program for all of them.
//!
//! Every store is three processes on this machine, with directories on the same disk; the client is tonic for all of
//! them, over the same number of connections. "Bare" is the client's counterpart without any store: it answers and
//! hands on, and so it is the floor for everything with gRPC.

pub mod bare;
pub mod etcd;
pub mod holdfast;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_table::{Entry, Epoch, Revision, Route, Table};
use holdfast_tests::fixture::{Cluster, Process};
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::comparison::HOLDFAST;
use crate::payload::{self, Payload};

/// What any single call may take at most, and any wait for a store: longer means that something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// No message may be refused for its size: a range read of everything is one message.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Three members of etcd as Debian has it, with its defaults.
    Etcd,
    /// Three replicas of Holdfast, with its defaults.
    Holdfast,
    /// One gRPC server that keeps nothing.
    Bare,
}

impl System {
    /// As in the output.
    pub fn name(self) -> &'static str {
        match self {
            System::Etcd => "etcd",
            System::Holdfast => HOLDFAST,
            System::Bare => "no store",
        }
    }
}

impl From<System> for &'static str {
    fn from(system: System) -> Self {
        system.name()
    }
}

/// A store that runs. Dropping it kills its processes.
pub enum Store {
    /// See [`System::Etcd`].
    Etcd(etcd::EtcdCluster),
    /// See [`System::Holdfast`].
    Holdfast(Box<Cluster>),
    /// See [`System::Bare`].
    Bare(Box<bare::BareServer>),
}

impl Store {
    /// Starts one with empty directories and waits until it takes writes.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn start(system: System) -> Result<Self> {
        Ok(match system {
            System::Etcd => Store::Etcd(etcd::EtcdCluster::start(3).await?),
            System::Holdfast => Store::Holdfast(Box::new(holdfast::start(3).await?)),
            System::Bare => Store::Bare(Box::new(bare::BareServer::start().await?)),
        })
    }

    /// Which one it is.
    pub fn system(&self) -> System {
        match self {
            Store::Etcd(_) => System::Etcd,
            Store::Holdfast(_) => System::Holdfast,
            Store::Bare(_) => System::Bare,
        }
    }

    /// The addresses of all members' APIs.
    pub fn endpoints(&self) -> Vec<String> {
        match self {
            Store::Etcd(cluster) => cluster.endpoints(),
            Store::Holdfast(cluster) => cluster.endpoints(),
            Store::Bare(server) => vec![server.endpoint()],
        }
    }

    /// The member that leads.
    ///
    /// # Errors
    /// None does, in time.
    pub async fn leader(&mut self) -> Result<usize> {
        match self {
            Store::Etcd(cluster) => cluster.leader().await,
            Store::Holdfast(cluster) => cluster.leader().await,
            Store::Bare(_) => Ok(0),
        }
    }

    /// Waits until all members run and have everything.
    ///
    /// # Errors
    /// They have not, in time.
    pub async fn healthy(&mut self) -> Result<()> {
        match self {
            Store::Etcd(cluster) => cluster.healthy().await,
            Store::Holdfast(cluster) => holdfast::healthy(cluster).await,
            Store::Bare(_) => Ok(()),
        }
    }

    /// Hands leadership from one member to another, as an operator would; returns when it is done.
    ///
    /// # Errors
    /// It did not work.
    pub async fn move_leader(&self, from: usize, to: usize) -> Result<()> {
        match self {
            Store::Etcd(cluster) => cluster.move_leader(from, to).await,
            Store::Holdfast(cluster) => holdfast::move_leader(cluster, from, to).await,
            Store::Bare(_) => bail!("nobody leads"),
        }
    }

    /// The process of one member.
    pub fn process(&mut self, member: usize) -> &mut Process {
        match self {
            Store::Etcd(cluster) => &mut cluster.members[member].process,
            Store::Holdfast(cluster) => &mut cluster.replicas[member].process,
            Store::Bare(server) => &mut server.process,
        }
    }

    /// The process ids of all members that run.
    pub fn pids(&mut self) -> Vec<u32> {
        (0..self.endpoints().len())
            .filter_map(|member| self.process(member).pid())
            .collect()
    }

    /// The last lines of every member's log.
    pub fn logs(&mut self) -> String {
        const LINES: usize = 20;
        (0..self.endpoints().len())
            .map(|member| {
                let process = self.process(member);
                format!("--- {}\n{}\n", process.name(), process.log_tail(LINES))
            })
            .collect()
    }

    /// Opens a connection to one member.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(&self, member: usize) -> Result<Connection> {
        let endpoints = self.endpoints();
        let address = endpoints.get(member).context("no such member")?;
        Connection::open(self.system(), address).await
    }

    /// Fetches every route from one member into a table that requests could be served from, over a new connection.
    ///
    /// # Errors
    /// There are not `routes` of them.
    pub async fn fetch_table(&self, member: usize, routes: usize) -> Result<()> {
        let endpoints = self.endpoints();
        let address = endpoints.get(member).context("no such member")?;
        let fetch = async {
            match self.system() {
                System::Etcd => {
                    let connection = self.connect(member).await?;
                    let pairs = etcd::range(connection.channel).await?;
                    let entries: Vec<Entry> = pairs.iter().map(entry).collect::<Result<_>>()?;
                    let table = Table::from_entries(Epoch(1), Revision(1), entries);
                    ensure!(table.len() == routes, "{} routes instead of {routes}", table.len());
                    Ok(())
                }
                System::Holdfast => holdfast::follow_until(address, routes).await,
                System::Bare => bail!("there is nothing to fetch"),
            }
        };
        timeout(PATIENCE, fetch).await.context("no answer")?
    }
}

/// One connection to one member: what all stores are asked through.
#[derive(Clone)]
pub struct Connection {
    system: System,
    channel: Channel,
}

/// One write: all of it or nothing.
#[derive(Clone, Debug)]
pub struct Write {
    /// What is put.
    pub payloads: Vec<Payload>,
    /// Whose write it is.
    pub session: Session,
}

/// A row of writes, one at a time. Known to Holdfast alone, which applies a repeated write once.
#[derive(Clone, Debug)]
pub struct Session {
    id: [u8; 16],
    sequence: u64,
}

impl Session {
    /// Another one than all others.
    pub fn new() -> Self {
        Session {
            id: rand::random(),
            sequence: 1,
        }
    }

    /// To be called after each acknowledged write.
    pub fn advance(&mut self) {
        self.sequence += 1;
    }
}

impl Default for Session {
    fn default() -> Self {
        Session::new()
    }
}

/// A stream of everything that is written from its opening on.
pub enum Follower {
    /// A watch of etcd or of the bare server.
    Watch(Box<etcd::Watcher>),
    /// A subscription to Holdfast.
    Subscription(Box<holdfast::Subscription>),
}

impl Connection {
    async fn open(system: System, address: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            // As Holdfast's own client has it: a large answer is not paced by window updates.
            .initial_stream_window_size(2 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024)
            .connect()
            .await?;
        Ok(Connection { system, channel })
    }

    /// Writes; returns when it is durable on a quorum (except on the bare server).
    ///
    /// # Errors
    /// What the store answered.
    pub async fn write(&self, write: &Write) -> Result<(), Status> {
        match self.system {
            System::Etcd | System::Bare => etcd::write(self.channel.clone(), write).await,
            System::Holdfast => holdfast::write(self.channel.clone(), write).await,
        }
    }

    /// Follows from now on. With `acknowledges` each revision is acknowledged, as a proxy of Holdfast does; etcd has
    /// nothing like it.
    ///
    /// # Errors
    /// The stream could not be opened.
    pub async fn follow(&self, name: &str, acknowledges: bool) -> Result<Follower> {
        let open = async {
            Ok(match self.system {
                System::Etcd | System::Bare => Follower::Watch(Box::new(etcd::watch(self.channel.clone()).await?)),
                System::Holdfast => {
                    let subscription = holdfast::subscribe(self.channel.clone(), name, acknowledges).await?;
                    Follower::Subscription(Box::new(subscription))
                }
            })
        };
        timeout(PATIENCE, open).await.context("a stream does not open")?
    }

    /// Fetches every route as a subscriber that has nothing does, decoded, and returns how many there are.
    ///
    /// # Errors
    /// What the store answered.
    pub async fn fetch(&self) -> Result<usize> {
        let fetch = async {
            match self.system {
                System::Etcd => Ok(etcd::range(self.channel.clone()).await?.len()),
                System::Holdfast => holdfast::snapshot(self.channel.clone()).await,
                System::Bare => bail!("there is nothing to fetch"),
            }
        };
        timeout(PATIENCE, fetch).await.context("no answer")?
    }
}

/// A proxy that used etcd would have to parse as well.
fn entry(pair: &etcd::proto::KeyValue) -> Result<Entry> {
    let (target, data) = payload::parts(&pair.value)?;
    Ok(Entry {
        route: Route::parse(std::str::from_utf8(&pair.key)?, target, data, "")?,
        modified: Revision(u64::try_from(pair.mod_revision)?),
    })
}

impl Follower {
    /// Waits for the next message and adds the numbers of the writes in it, if it has any.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self, writes: &mut Vec<u64>) -> Result<()> {
        match self {
            Follower::Watch(watcher) => watcher.next(writes).await,
            Follower::Subscription(subscription) => subscription.next(writes).await,
        }
    }
}
