//! Endpoints: the replicas, and who seems to lead.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use holdfast_wire::errors::leader_hint;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::credentials::{Bearer, Credentials, CredentialsError, Tls};

/// The largest message that is taken from a replica: a merged delta can hold several batches of 16 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a leader's address that did not answer is not believed again. It is an address as the replicas know it,
/// and the caller may sit on another network.
const DISBELIEF: Duration = Duration::from_secs(60);

/// The replicas' client addresses, with connections that are made when they are first used.
///
/// Clones share connections and what is known about the leader.
#[derive(Clone)]
pub struct Endpoints {
    shared: Arc<Shared>,
}

/// Makes a connection, once it is used, to where an endpoint leads.
type Connect = Arc<dyn Fn(Endpoint) -> Channel + Send + Sync>;

/// A connection that shows the token, if there is one, with every call.
pub(crate) type Connection = InterceptedService<Channel, Bearer>;

/// How replicas are connected to, all of them alike.
#[derive(Clone, Default)]
struct Way {
    // Instead of TCP.
    connect: Option<Connect>,
    tls: Option<Tls>,
    bearer: Bearer,
}

struct Shared {
    // As configured, in that order.
    replicas: Vec<Replica>,
    way: Way,
    state: Mutex<State>,
}

struct State {
    // The order of asking: one that failed goes to the end.
    order: Vec<Replica>,
    // Asked before all others. Need not be one of `replicas`.
    leader: Option<Replica>,
    disbelieved: Option<(Arc<str>, Instant)>,
}

/// What cannot be an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is none.
    #[error("endpoints: at least one host:port is needed")]
    None,
    /// One of them is not an address.
    #[error("endpoint {value:?}: {problem}")]
    Malformed {
        /// As it was given.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// One replica's client address.
#[derive(Clone)]
pub(crate) struct Replica {
    address: Arc<str>,
    // What was said of TLS: `https://`, `http://`, or nothing.
    encrypted: Option<bool>,
    endpoint: Endpoint,
    way: Way,
    channel: Arc<OnceLock<Channel>>,
}

impl Endpoints {
    /// Takes each as `host:port`, `http://host:port`, `https://host:port` or `unix:/path/of/a/socket`; connects to none of them
    /// yet. With `https://` all are known by the system's authorities, until [`with`](Self::with) says otherwise.
    ///
    /// # Errors
    /// [`EndpointError`]: which one, and why.
    pub fn parse<A: AsRef<str>>(addresses: &[A]) -> Result<Self, EndpointError> {
        let mut replicas: Vec<Replica> = Vec::with_capacity(addresses.len());
        for address in addresses {
            let replica = Replica::parse(address.as_ref())?;
            if !replicas.iter().any(|known| known.address == replica.address) {
                replicas.push(replica);
            }
        }
        if replicas.is_empty() {
            return Err(EndpointError::None);
        }
        let mut way = Way::default();
        if replicas.iter().any(|replica| replica.encrypted == Some(true)) {
            refuse_plain(&replicas)?;
            way.tls = Some(Tls::of_the_system());
        }
        Ok(Endpoints::new(replicas, way))
    }

    /// The same replicas, known and called with these credentials. Reads files: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`CredentialsError`]: a file to be mended, or an endpoint that says the contrary.
    pub fn with(&self, credentials: Credentials) -> Result<Self, CredentialsError> {
        let mut way = self.shared.way.clone();
        way.bearer = Bearer::open(credentials.token_file)?;
        if let Some(tls) = credentials.tls {
            refuse_plain(self.replicas())?;
            way.tls = Some(Tls::load(tls)?);
        }
        Ok(Endpoints::new(self.replicas().to_vec(), way))
    }

    /// The same replicas over another network than TCP: every connection is made by `connect`, which must not wait for
    /// it. For those who carry their bytes themselves, a simulation among them.
    #[must_use]
    pub fn connected_by(&self, connect: impl Fn(Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        let connect: Connect = Arc::new(connect);
        let way = Way {
            connect: Some(connect),
            ..self.shared.way.clone()
        };
        Endpoints::new(self.replicas().to_vec(), way)
    }

    fn new(replicas: Vec<Replica>, way: Way) -> Self {
        let replicas: Vec<Replica> = replicas.into_iter().map(|replica| replica.by(&way)).collect();
        let state = State {
            order: replicas.clone(),
            leader: None,
            disbelieved: None,
        };
        Endpoints {
            shared: Arc::new(Shared {
                replicas,
                way,
                state: Mutex::new(state),
            }),
        }
    }

    /// True if they are connected to with TLS.
    pub fn are_encrypted(&self) -> bool {
        self.shared.way.tls.is_some()
    }

    /// Each `host:port` or `unix:/path`, as configured.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.shared.replicas.iter().map(Replica::address)
    }

    /// The replica at an address that is perhaps not among them, reached as they are.
    ///
    /// # Errors
    /// It is no address.
    pub(crate) fn replica(&self, address: &str) -> Result<Replica, EndpointError> {
        let parsed = Replica::parse(address)?;
        let known = self.replicas().iter().find(|known| known.address == parsed.address);
        Ok(known.cloned().unwrap_or_else(|| parsed.by(&self.shared.way)))
    }

    pub(crate) fn replicas(&self) -> &[Replica] {
        &self.shared.replicas
    }

    /// Whom to ask next: the leader, then the others; `None` if all were tried.
    pub(crate) fn next(&self, tried: &[Arc<str>]) -> Option<Replica> {
        let state = self.state();
        let mut candidates = state.leader.iter().chain(&state.order);
        candidates.find(|replica| !tried.contains(&replica.address)).cloned()
    }

    /// `replica` gave an answer. Without a better hint it is asked first from now on.
    pub(crate) fn answered(&self, replica: &Replica, metadata: &MetadataMap) {
        self.heard(metadata);
        let mut state = self.state();
        if state.leader.is_none() {
            state.leader = Some(replica.clone());
        }
    }

    /// `replica` gave no answer, or none that helps: others are asked first.
    pub(crate) fn failed(&self, replica: &Replica, metadata: &MetadataMap) {
        {
            let mut state = self.state();
            if state
                .leader
                .as_ref()
                .is_some_and(|leader| leader.address == replica.address)
            {
                state.leader = None;
            }
            match state.order.iter().position(|known| known.address == replica.address) {
                Some(at) => {
                    let last = state.order.remove(at);
                    state.order.push(last);
                }
                None => state.disbelieved = Some((replica.address.clone(), Instant::now())),
            }
        }
        self.heard(metadata);
    }

    fn heard(&self, metadata: &MetadataMap) {
        // A hint is a help, not a part of the answer: one that cannot be used is no error.
        let Some(mut leader) = leader_hint(metadata).and_then(|hint| Replica::parse(&hint).ok()) else {
            return;
        };
        if leader.is_unspecified() {
            return;
        }
        leader = leader.by(&self.shared.way);
        let mut state = self.state();
        if let Some((address, since)) = &state.disbelieved
            && *address == leader.address
            && since.elapsed() < DISBELIEF
        {
            return;
        }
        let mut known = state.order.iter().chain(&state.leader);
        if let Some(known) = known.find(|known| known.address == leader.address) {
            leader = known.clone();
        }
        state.leader = Some(leader);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.addresses()).finish()
    }
}

/// Some are said to use TLS, or credentials that are for nothing else were given.
fn refuse_plain(replicas: &[Replica]) -> Result<(), EndpointError> {
    match replicas.iter().find(|replica| replica.encrypted == Some(false)) {
        None => Ok(()),
        Some(plain) => Err(EndpointError::Malformed {
            value: plain.address.to_string(),
            problem: "is said to be without TLS, and the replicas to be with it: leave http:// and unix: out",
        }),
    }
}

impl Replica {
    fn parse(text: &str) -> Result<Self, EndpointError> {
        let refuse = |problem| EndpointError::Malformed {
            value: text.to_owned(),
            problem,
        };
        let address = text.trim();
        let schemes = [("https://", true), ("http://", false)];
        let named = schemes.into_iter().find_map(|(scheme, encrypted)| {
            let rest = address.strip_prefix(scheme)?;
            Some((rest.strip_suffix('/').unwrap_or(rest), Some(encrypted)))
        });
        let (address, encrypted) = named.unwrap_or((address, None));
        let expected = "expected host:port, https://host:port, http://host:port or unix:/path";
        if let Some(path) = address.strip_prefix("unix:") {
            let endpoint = Endpoint::from_shared(address.to_owned())
                .ok()
                .filter(|_| path.starts_with('/'));
            return Ok(Replica {
                address: address.into(),
                encrypted: Some(false),
                endpoint: endpoint.ok_or_else(|| refuse(expected))?,
                way: Way::default(),
                channel: Arc::default(),
            });
        }
        let uri = Uri::from_str(&format!("http://{address}")).map_err(|_| refuse(expected))?;
        let authority = uri.authority().filter(|authority| authority.as_str() == address);
        let port = authority.and_then(|authority| authority.port_u16());
        if authority.is_none_or(|authority| authority.host().is_empty()) || address.contains('@') {
            return Err(refuse(expected));
        }
        if port.is_none_or(|port| port == 0) {
            return Err(refuse("expected a port from 1 to 65535 after the host"));
        }
        Ok(Replica {
            address: address.into(),
            encrypted,
            endpoint: Endpoint::from(uri),
            way: Way::default(),
            channel: Arc::default(),
        })
    }

    fn by(self, way: &Way) -> Self {
        Replica {
            way: way.clone(),
            channel: Arc::default(),
            ..self
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn shared_address(&self) -> Arc<str> {
        self.address.clone()
    }

    /// True for `0.0.0.0` and `[::]`: an address to listen on, which leads a caller to its own machine.
    fn is_unspecified(&self) -> bool {
        let address: Result<SocketAddr, _> = self.address.parse();
        address.is_ok_and(|address| address.ip().is_unspecified())
    }

    /// The connection, which is made by the first call on it and made again by a call after it was lost.
    ///
    /// Must be called within a Tokio runtime.
    pub(crate) fn channel(&self) -> Connection {
        let connect = || {
            let endpoint = self
                .endpoint
                .clone()
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                // A machine that vanishes closes no connection, and a process that stands still answers no call.
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_millis(1500))
                .keep_alive_while_idle(true)
                // Large enough that a snapshot is not paced by window updates, and does not starve calls beside it.
                .initial_stream_window_size(2 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024);
            match &self.way {
                Way {
                    connect: Some(connect), ..
                } => connect(endpoint),
                Way { tls: Some(tls), .. } => endpoint.connect_with_connector_lazy(tls.clone()),
                _ => endpoint.connect_lazy(),
            }
        };
        let channel = self.channel.get_or_init(connect).clone();
        InterceptedService::new(channel, self.way.bearer.clone())
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::ReplicaTls;
    use holdfast_wire::errors::hint_leader;

    fn hint(address: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        hint_leader(&mut metadata, address);
        metadata
    }

    fn next(endpoints: &Endpoints, tried: &[&str]) -> Option<String> {
        let tried: Vec<Arc<str>> = tried.iter().map(|address| (*address).into()).collect();
        endpoints.next(&tried).map(|replica| replica.address().to_owned())
    }

    #[test]
    fn addresses_are_taken_with_and_without_scheme_and_once_each() {
        let given = [
            "127.0.0.1:7011",
            "http://[::1]:7011/",
            "r0.example:1",
            "127.0.0.1:7011",
            "unix:/run/a b",
        ];
        let endpoints = Endpoints::parse(&given).unwrap();
        assert_eq!(
            endpoints.addresses().collect::<Vec<_>>(),
            ["127.0.0.1:7011", "[::1]:7011", "r0.example:1", "unix:/run/a b"]
        );
    }

    #[test]
    fn tls_is_for_all_or_for_none() {
        let encrypted = |given: &[&str]| Endpoints::parse(given).map(|endpoints| endpoints.are_encrypted());
        assert_eq!(encrypted(&["a:1", "http://b:1", "unix:/s"]), Ok(false));
        assert_eq!(encrypted(&["https://a:1/", "b:1"]), Ok(true));
        for plain in ["http://b:1", "unix:/s"] {
            let refused = encrypted(&["https://a:1", plain]).unwrap_err();
            let EndpointError::Malformed { value, .. } = refused else {
                panic!("{refused:?}")
            };
            assert!(plain.ends_with(&value), "{value}");
        }
        let given = Endpoints::parse(&["a:1", "http://b:1"]).unwrap();
        let credentials = || Credentials {
            tls: Some(ReplicaTls::default()),
            token_file: None,
        };
        assert!(matches!(given.with(credentials()), Err(CredentialsError::Endpoint(_))));
        assert!(
            Endpoints::parse(&["a:1"])
                .unwrap()
                .with(credentials())
                .unwrap()
                .are_encrypted()
        );
        let mut wrong = credentials();
        wrong.tls = Some(ReplicaTls {
            server_name: Some("a b".into()),
            ..ReplicaTls::default()
        });
        let refused = Endpoints::parse(&["a:1"]).unwrap().with(wrong);
        assert!(matches!(refused, Err(CredentialsError::ServerName(name)) if name == "a b"));
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let none: [&str; 0] = [];
        assert_eq!(Endpoints::parse(&none).unwrap_err(), EndpointError::None);
        for bad in [
            "",
            "host",
            "host:0",
            "host:99999",
            ":7011",
            "https://h",
            "h:1/x",
            "u@h:1",
            "ftp://h:1",
            "a b:1",
            "unix:",
            "unix:socket",
        ] {
            match Endpoints::parse(&[bad]) {
                Err(EndpointError::Malformed { value, .. }) => assert_eq!(value, bad),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_leader_is_asked_first_and_a_failed_one_last() {
        let endpoints = Endpoints::parse(&["a:1", "b:1", "c:1"]).unwrap();
        let a = endpoints.next(&[]).unwrap();
        assert_eq!(a.address(), "a:1");
        endpoints.failed(&a, &hint("c:1"));
        assert_eq!(next(&endpoints, &["a:1"]).unwrap(), "c:1");
        assert_eq!(next(&endpoints, &["a:1", "c:1"]).unwrap(), "b:1");
        assert_eq!(next(&endpoints, &["a:1", "b:1", "c:1"]), None);
        let c = endpoints.next(&[]).unwrap();
        endpoints.failed(&c, &MetadataMap::new());
        assert_eq!(next(&endpoints, &[]).unwrap(), "b:1");
    }

    #[test]
    fn a_hint_that_leads_nowhere_is_passed_over() {
        let endpoints = Endpoints::parse(&["a:1"]).unwrap();
        let a = endpoints.next(&[]).unwrap();
        for bad in ["0.0.0.0:7011", "[::]:7011", "nonsense", ""] {
            endpoints.failed(&a, &hint(bad));
            assert_eq!(next(&endpoints, &[]).unwrap(), "a:1", "{bad:?}");
        }
    }

    #[test]
    fn a_leader_outside_the_list_is_followed_until_it_fails() {
        let endpoints = Endpoints::parse(&["a:1"]).unwrap();
        let a = endpoints.next(&[]).unwrap();
        endpoints.answered(&a, &hint("elsewhere:2"));
        let elsewhere = endpoints.next(&[]).unwrap();
        assert_eq!(elsewhere.address(), "elsewhere:2");
        endpoints.failed(&elsewhere, &MetadataMap::new());
        endpoints.answered(&a, &hint("elsewhere:2"));
        assert_eq!(next(&endpoints, &[]).unwrap(), "a:1");
    }
}
