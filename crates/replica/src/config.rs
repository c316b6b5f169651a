//! ClusterConfig: equal on all replicas; ReplicaConfig: this one.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_table::{HoldPolicy, TargetRule};
use holdfast_tls::{ServerTls, Tokens};

use crate::listen::Address;
use crate::services::chp_api::ChpApiConfig;
use crate::storage::probe;

/// Where a replica listens for its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The replica's name.
    pub name: String,
    /// `host:port`; a host name is resolved at every connection.
    pub address: String,
}

/// What must be equal on all replicas of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Every replica, this one included. The first one leads the first start.
    pub peers: Vec<PeerAddress>,
    /// How often a leader is heard.
    pub heartbeat: Duration,
    /// A follower without leader asks for votes after the end plus a random time from the range. `None`: as this replica's
    /// disk allows.
    pub election_timeout: Option<Range<Duration>>,
    /// The leader by itself replaces a replica that lost its disk, and adds configured peers that are no members.
    pub auto_replace: bool,
    /// When deletions are held. Each entry carries the leader's, so replicas that differ decide alike. `None`: never.
    pub hold: Option<HoldPolicy>,
}

impl ClusterConfig {
    /// The default for a local network and a disk that syncs within 20 ms.
    pub const HEARTBEAT: Duration = Duration::from_millis(50);
    /// Likewise.
    pub const ELECTION_TIMEOUT: Range<Duration> = Duration::from_millis(120)..Duration::from_millis(200);
    /// For a disk that is slower. The heartbeat stays: a replica that waits longer gets on with others that do not.
    pub const ELECTION_TIMEOUT_SLOW: Range<Duration> = Duration::from_millis(1_000)..Duration::from_millis(1_500);

    /// The election timeout of a replica whose disk takes so long to sync.
    pub fn election_timeout(&self, sync: Duration) -> Range<Duration> {
        match &self.election_timeout {
            Some(given) => given.clone(),
            None if sync >= probe::SLOW => Self::ELECTION_TIMEOUT_SLOW,
            None => Self::ELECTION_TIMEOUT,
        }
    }
}

/// Who may come in by the client listener, and how.
#[derive(Clone, Debug, Default)]
pub struct ApiAccess {
    /// The certificate that callers are shown, and whether they show one; `None`: they come without TLS.
    pub tls: Option<ServerTls>,
    /// Every call but a health check must show one of them. Without any, whoever comes in is believed.
    pub tokens: Tokens,
}

impl ApiAccess {
    /// True if whoever reaches the listener may change routes.
    pub fn is_open(&self) -> bool {
        let asks_for_certificates = self.tls.as_ref().is_some_and(|tls| tls.clients.is_some());
        self.tokens.is_empty() && !asks_for_certificates
    }
}

/// One replica.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// What all replicas share.
    pub cluster: ClusterConfig,
    /// Which of the peers this one is.
    pub name: String,
    /// Belongs to this replica alone.
    pub data_dir: PathBuf,
    /// gRPC for hub, CLI and proxies.
    pub listen_client: Address,
    /// Who may come in there.
    pub api: ApiAccess,
    /// Which targets routes may have; empty: all but link-local and metadata addresses and our own ports.
    pub allow_targets: Vec<TargetRule>,
    /// gRPC for the other replicas; `None`: not served, which a cluster of one can do without.
    pub listen_peer: Option<SocketAddr>,
    /// HTTP for probes and metrics; `None`: not served.
    pub listen_admin: Option<SocketAddr>,
    /// configurable-http-proxy's REST API; `None`: not served.
    pub chp_api: Option<ChpApiConfig>,
    /// The client address that others are told; `None`: the one that is listened on.
    pub advertise_client: Option<String>,
}

/// One mistake in a configuration: the flag, its value, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: {problem}")]
pub struct ConfigError {
    /// The flag without dashes.
    pub field: &'static str,
    /// What it says.
    pub value: String,
    /// What is wrong.
    pub problem: String,
}

impl ReplicaConfig {
    /// Every mistake there is; empty if it can be built.
    pub fn problems(&self) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        let mut wrong = |field, value: String, problem: &str| {
            problems.push(ConfigError {
                field,
                value,
                problem: problem.to_owned(),
            });
        };
        let peers = &self.cluster.peers;
        let list = || {
            peers
                .iter()
                .map(|peer| format!("{}={}", peer.name, peer.address))
                .collect::<Vec<_>>()
                .join(",")
        };
        if !peers.iter().any(|peer| peer.name == self.name) {
            wrong(
                "peers",
                list(),
                &format!("does not name this replica, --name {:?}", self.name),
            );
        }
        for (at, peer) in peers.iter().enumerate() {
            if peers[..at].iter().any(|other| other.name == peer.name) {
                wrong("peers", peer.name.clone(), "is named twice");
            }
            if peers[..at].iter().any(|other| other.address == peer.address) {
                wrong("peers", peer.address.clone(), "is the address of two replicas");
            }
            if !is_host_port(&peer.address) {
                wrong("peers", peer.address.clone(), "must be host:port");
            }
            if peer.name.is_empty() {
                wrong(
                    "peers",
                    peer.address.clone(),
                    "must have a name before it: name=host:port",
                );
            }
        }
        if peers.len() > 1 && self.listen_peer.is_none() {
            wrong(
                "listen-peer",
                String::new(),
                "must be an address: there are other replicas",
            );
        }
        if let Some(address) = self.advertise_client.as_ref().filter(|address| !is_host_port(address)) {
            wrong("advertise-client", address.clone(), "must be host:port");
        }
        if let Some(api) = self.chp_api.as_ref().filter(|api| api.tokens.is_empty())
            && !api.listen.is_local()
        {
            let problem = "is open to everybody who reaches it: give a token, or a loopback address";
            wrong("listen-chp-api", api.listen.to_string(), problem);
        }
        let Range { start, end } = self.cluster.election_timeout(Duration::ZERO);
        let range = || format!("{start:?}..{end:?}");
        if self.cluster.heartbeat < Duration::from_millis(5) {
            wrong(
                "heartbeat",
                format!("{:?}", self.cluster.heartbeat),
                "must be at least 5ms",
            );
        }
        if start >= end {
            wrong("election-timeout", range(), "must begin below its end: 120ms..200ms");
        }
        if start < self.cluster.heartbeat * 2 {
            wrong("election-timeout", range(), "must begin at two heartbeats or more");
        }
        problems
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && !bare_v6 && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use holdfast_table::Namespace;

    use super::*;

    fn config(peers: &[(&str, &str)], name: &str) -> ReplicaConfig {
        let peers = peers
            .iter()
            .map(|(name, at)| PeerAddress {
                name: (*name).into(),
                address: (*at).into(),
            })
            .collect();
        ReplicaConfig {
            cluster: ClusterConfig {
                peers,
                heartbeat: ClusterConfig::HEARTBEAT,
                election_timeout: None,
                auto_replace: true,
                hold: Some(HoldPolicy::DEFAULT),
            },
            name: name.into(),
            data_dir: "/nowhere".into(),
            listen_client: SocketAddr::from(([127, 0, 0, 1], 0)).into(),
            api: ApiAccess::default(),
            allow_targets: Vec::new(),
            listen_peer: Some(([127, 0, 0, 1], 0).into()),
            listen_admin: None,
            chp_api: None,
            advertise_client: None,
        }
    }

    #[test]
    fn a_slow_disk_is_given_time_unless_told_otherwise() {
        let mut cluster = config(&[("r0", "a:1")], "r0").cluster;
        assert_eq!(
            cluster.election_timeout(Duration::from_millis(2)),
            ClusterConfig::ELECTION_TIMEOUT
        );
        assert_eq!(
            cluster.election_timeout(probe::SLOW),
            ClusterConfig::ELECTION_TIMEOUT_SLOW
        );
        let given = Duration::from_millis(300)..Duration::from_millis(500);
        cluster.election_timeout = Some(given.clone());
        assert_eq!(cluster.election_timeout(probe::SLOW), given);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_field_and_value() {
        assert_eq!(
            config(&[("r0", "[::1]:7012"), ("r1", "r1.peers:7012")], "r0").problems(),
            []
        );
        let mut bad = config(&[("r0", "a:1"), ("r0", "a:1"), ("r2", "nowhere")], "r9");
        bad.advertise_client = Some("x".into());
        bad.cluster.heartbeat = Duration::from_millis(500);
        bad.chp_api = Some(ChpApiConfig {
            listen: SocketAddr::from(([0, 0, 0, 0], 8001)).into(),
            tls: None,
            tokens: Tokens::default(),
            namespace: Namespace::default(),
            host_routing: false,
        });
        let problems: Vec<String> = bad.problems().iter().map(ToString::to_string).collect();
        let text = problems.join("\n");
        for expected in [
            "does not name this replica",
            "\"r9\"",
            "named twice",
            "two replicas",
            "\"nowhere\"",
            "\"x\"",
            "two heartbeats",
            "listen-chp-api \"0.0.0.0:8001\"",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
