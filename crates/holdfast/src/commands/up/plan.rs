//! Plan: what runs where. Pure, but for trying the ports.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use holdfast_client::Endpoints;
use holdfast_proxy::{Address, ProxyConfig, Redirect};
use holdfast_replica::{ApiAccess, ClusterConfig, PeerAddress, ReplicaConfig};
use holdfast_table::HoldPolicy;
use holdfast_tls::Tokens;

use crate::supervise::ChildSpec;

/// Between the first ports of two replicas.
const REPLICA_STEP: u16 = 10;
/// What a child may take to stop beyond its drain times.
const GRACE: Duration = Duration::from_secs(10);

/// What `holdfast up` was asked for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub data_dir: PathBuf,
    /// Each line opens the API; the proxies show the first one.
    pub api_token_file: PathBuf,
    pub replicas: u16,
    pub proxies: u16,
    pub ip: IpAddr,
    pub port: u16,
    /// The first proxy's, instead of a port.
    pub socket: Option<PathBuf>,
    pub base_port: u16,
    pub proxy_admin_base: u16,
    pub drain_delay: Duration,
    pub drain_timeout: Duration,
    /// What all proxies are told; the first one's redirect.
    pub serving: ProxyConfig,
    /// The same as flags.
    pub serving_flags: Vec<OsString>,
    pub hold: Option<HoldPolicy>,
    pub log_format: String,
    pub log_level: String,
}

/// One address that we are going to listen on.
struct Listener {
    /// The flag that it comes from.
    flag: &'static str,
    value: u16,
    what: String,
    address: SocketAddr,
}

impl Plan {
    /// One of each needs no second process.
    pub(super) fn is_embedded(&self) -> bool {
        (self.replicas, self.proxies) == (1, 1)
    }

    /// Which flags, with their values, lead to ports that do not exist or to one port twice, and why.
    pub(super) fn problems(&self) -> Vec<(&'static str, u16, String)> {
        let mut problems = Vec::new();
        let mut last_port = |flag, first: u16, beyond: u16| {
            if first.checked_add(beyond).is_none() {
                problems.push((
                    flag,
                    first,
                    format!("needs {beyond} ports after it, and 65535 is the last: give a lower one"),
                ));
            }
        };
        if self.socket.is_none() {
            last_port("port", self.port, self.proxies - 1);
        }
        last_port("base-port", self.base_port, (self.replicas - 1) * REPLICA_STEP + 2);
        last_port("proxy-admin-base", self.proxy_admin_base, self.proxies - 1);
        if let Some(redirect) = self.serving.redirect {
            last_port("redirect-port", redirect.listen.port(), self.proxies - 1);
        }
        if !problems.is_empty() {
            return problems;
        }
        let listeners = self.listeners();
        for (at, listener) in listeners.iter().enumerate() {
            let before = &listeners[..at];
            if let Some(other) = before
                .iter()
                .find(|other| other.address.port() == listener.address.port())
            {
                let problem = format!(
                    "leads to port {} for {}, which --{} {} has taken for {}: give others",
                    listener.address.port(),
                    listener.what,
                    other.flag,
                    other.value,
                    other.what,
                );
                problems.push((listener.flag, listener.value, problem));
            }
        }
        problems
    }

    /// Tries every port.
    ///
    /// # Errors
    /// Those that are taken or not to be had, all of them, each with the flag that it comes from.
    pub(super) fn check_ports(&self) -> anyhow::Result<()> {
        let problems: Vec<String> = self.listeners().iter().filter_map(Listener::problem).collect();
        if !problems.is_empty() {
            bail!("nothing was started:\n  {}", problems.join("\n  "));
        }
        Ok(())
    }

    /// The replicas' client addresses.
    pub(super) fn endpoints(&self) -> Vec<String> {
        (0..self.replicas)
            .map(|index| self.replica_address(index, 0).to_string())
            .collect()
    }

    /// Where users come in, as a browser on this machine writes it.
    pub(super) fn urls(&self) -> Vec<String> {
        let scheme = match self.serving.tls {
            Some(_) => "https",
            None => "http",
        };
        let url = |index| match self.door(index) {
            Address::Tcp(_) => format!("{scheme}://{}", self.reachable(index)),
            socket => socket.to_string(),
        };
        (0..self.proxies).map(url).collect()
    }

    /// Each proxy's name, and where it says how it is, with TLS for users or without.
    pub(super) fn proxy_probes(&self) -> Vec<(String, SocketAddr)> {
        (0..self.proxies)
            .map(|index| (format!("p{index}"), self.admin_address(index)))
            .collect()
    }

    /// The line that says so.
    pub(super) fn is_up(&self) -> String {
        format!(
            "holdfast is up: {} api={}",
            self.urls().join(","),
            self.endpoints().join(",")
        )
    }

    /// What other commands have to be told to ask this cluster, for a shell.
    pub(super) fn environment(&self) -> String {
        format!(
            "export HOLDFAST_ENDPOINTS={} HOLDFAST_ENDPOINTS_TOKEN_FILE={}",
            self.endpoints().join(","),
            quoted(&self.api_token_file.to_string_lossy())
        )
    }

    pub(super) fn replica_configs(&self, api_tokens: &Tokens) -> Vec<ReplicaConfig> {
        let config = |index| ReplicaConfig {
            cluster: ClusterConfig {
                peers: self.peers(),
                heartbeat: ClusterConfig::HEARTBEAT,
                election_timeout: None,
                auto_replace: true,
                hold: self.hold,
            },
            name: format!("r{index}"),
            data_dir: self.data_dir.join(format!("r{index}")),
            listen_client: self.replica_address(index, 0).into(),
            // On loopback alone, where other accounts of this machine are, too.
            api: ApiAccess {
                tls: None,
                tokens: api_tokens.clone(),
            },
            allow_targets: self.serving.allow_targets.clone(),
            listen_peer: self.peers_door(index),
            listen_admin: Some(self.replica_address(index, 2)),
            chp_api: None,
            advertise_client: None,
        };
        (0..self.replicas).map(config).collect()
    }

    pub(super) fn proxy_configs(&self, endpoints: &Endpoints) -> Vec<ProxyConfig> {
        let config = |index| ProxyConfig {
            name: format!("p{index}"),
            endpoints: endpoints.clone(),
            listen: vec![self.door(index)],
            redirect: self.redirect(index),
            listen_admin: Some(self.admin_address(index)),
            // Other accounts of this machine get there, too.
            drain_on_request: false,
            data_dir: self.data_dir.join(format!("p{index}")),
            drain_delay: self.drain_delay,
            drain_timeout: self.drain_timeout,
            ..self.serving.clone()
        };
        (0..self.proxies).map(config).collect()
    }

    /// The same replicas and proxies as processes. All that they are told is on their command lines.
    pub(super) fn children(&self, program: &Path) -> Vec<ChildSpec> {
        let child = |name: String, grace: Duration, role: &str, own: Vec<(&str, OsString)>| {
            let mut arguments: Vec<OsString> = vec![role.into(), "--exit-with-parent".into()];
            let common = [
                ("--name", name.clone().into()),
                ("--data-dir", self.data_dir.join(&name).into()),
                ("--log-format", self.log_format.clone().into()),
                ("--log-level", self.log_level.clone().into()),
            ];
            arguments.extend(
                common
                    .into_iter()
                    .chain(own)
                    .flat_map(|(flag, value)| [flag.into(), value]),
            );
            ChildSpec {
                name,
                program: program.to_owned(),
                arguments,
                grace,
            }
        };
        let peers: Vec<String> = self
            .peers()
            .iter()
            .map(|peer| format!("{}={}", peer.name, peer.address))
            .collect();
        let replicas = (0..self.replicas).map(|index| {
            let peers_door = self.peers_door(index).map(|address| address.to_string());
            let own = vec![
                ("--peers", peers.join(",").into()),
                ("--listen-client", self.replica_address(index, 0).to_string().into()),
                ("--api-token-file", self.api_token_file.clone().into()),
                ("--listen-peer", peers_door.unwrap_or_default().into()),
                ("--listen-admin", self.replica_address(index, 2).to_string().into()),
                ("--hold-deletes-for", milliseconds(self.hold_for())),
            ];
            let mut child = child(format!("r{index}"), GRACE, "replica", own);
            let shared = |flag: &&OsString| flag.as_encoded_bytes().starts_with(b"--allow-targets=");
            child
                .arguments
                .extend(self.serving_flags.iter().filter(shared).cloned());
            child
        });
        let proxies = (0..self.proxies).map(|index| {
            let own = vec![
                ("--endpoints", self.endpoints().join(",").into()),
                ("--endpoints-token-file", self.api_token_file.clone().into()),
                ("--listen-admin", self.admin_address(index).to_string().into()),
                ("--drain-delay", milliseconds(self.drain_delay)),
                ("--drain-timeout", milliseconds(self.drain_timeout)),
            ];
            let grace = self.drain_delay + self.drain_timeout + GRACE;
            let door = match self.door(index) {
                Address::Unix(path) => vec![("--socket", path.into())],
                _ => vec![
                    ("--ip", self.ip.to_string().into()),
                    ("--port", self.public_address(index).port().to_string().into()),
                ],
            };
            let mut child = child(format!("p{index}"), grace, "proxy", [door, own].concat());
            child.arguments.extend_from_slice(&self.serving_flags);
            if let Some(redirect) = self.redirect(index) {
                let port = redirect.listen.port();
                child.arguments.push(format!("--redirect-port={port}").into());
            }
            child
        });
        replicas.chain(proxies).collect()
    }

    fn hold_for(&self) -> Duration {
        self.hold
            .map_or(Duration::ZERO, |policy| Duration::from_millis(policy.hold_ms))
    }

    fn peers(&self) -> Vec<PeerAddress> {
        let peer = |index| PeerAddress {
            name: format!("r{index}"),
            address: self.replica_address(index, 1).to_string(),
        };
        (0..self.replicas).map(peer).collect()
    }

    fn listeners(&self) -> Vec<Listener> {
        let mut listeners = Vec::new();
        for index in (0..self.proxies).filter(|_| self.socket.is_none()) {
            listeners.push(Listener {
                flag: "port",
                value: self.port,
                what: format!("p{index}'s users"),
                address: self.public_address(index),
            });
        }
        for (index, redirect) in (0..self.proxies).filter_map(|index| Some((index, self.redirect(index)?))) {
            listeners.push(Listener {
                flag: "redirect-port",
                value: redirect.listen.port() - index,
                what: format!("p{index}'s users without TLS"),
                address: redirect.listen,
            });
        }
        for index in 0..self.replicas {
            let doors = [
                ("API", Some(self.replica_address(index, 0))),
                ("peers", self.peers_door(index)),
                ("probes", Some(self.replica_address(index, 2))),
            ];
            for (what, address) in doors {
                listeners.extend(address.map(|address| Listener {
                    flag: "base-port",
                    value: self.base_port,
                    what: format!("r{index}'s {what}"),
                    address,
                }));
            }
        }
        for index in 0..self.proxies {
            listeners.push(Listener {
                flag: "proxy-admin-base",
                value: self.proxy_admin_base,
                what: format!("p{index}'s probes"),
                address: self.admin_address(index),
            });
        }
        listeners
    }

    fn replica_address(&self, index: u16, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base_port + index * REPLICA_STEP + offset))
    }

    /// Where the other replicas come in, who are believed without a token.
    fn peers_door(&self, index: u16) -> Option<SocketAddr> {
        (self.replicas > 1).then(|| self.replica_address(index, 1))
    }

    fn admin_address(&self, index: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.proxy_admin_base + index))
    }

    fn redirect(&self, index: u16) -> Option<Redirect> {
        let mut redirect = self.serving.redirect?;
        redirect.listen.set_port(redirect.listen.port() + index);
        Some(redirect)
    }

    /// Where users come in.
    fn door(&self, index: u16) -> Address {
        let further = |path: &Path| PathBuf::from(format!("{}.{index}", path.display()));
        match &self.socket {
            None => Address::Tcp(self.public_address(index)),
            Some(path) if index == 0 => Address::Unix(path.clone()),
            Some(path) => Address::Unix(further(path)),
        }
    }

    fn public_address(&self, index: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port + index)
    }

    fn reachable(&self, index: u16) -> SocketAddr {
        let mut address = self.public_address(index);
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        address
    }
}

impl Listener {
    fn problem(&self) -> Option<String> {
        let Listener {
            flag,
            value,
            what,
            address,
        } = self;
        let error = TcpListener::bind(address).err()?;
        let problem = match error.kind() {
            ErrorKind::AddrInUse => {
                "is in use by another process (`ss -ltnp` shows which): stop that one, or give others"
            }
            ErrorKind::PermissionDenied => "is not allowed to this user: give a port from 1024 on",
            ErrorKind::AddrNotAvailable => "is not an address of this machine: check --ip",
            _ => {
                return Some(format!(
                    "--{flag} {value}: {address}, for {what}, cannot be listened on: {error}"
                ));
            }
        };
        Some(format!("--{flag} {value}: {address}, for {what}, {problem}"))
    }
}

/// As one word of a shell's.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    match text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn milliseconds(duration: Duration) -> OsString {
    format!("{}ms", duration.as_millis()).into()
}

#[cfg(test)]
mod tests {
    use holdfast_proxy::ServerTls;

    use super::*;

    fn nowhere() -> Endpoints {
        Endpoints::parse(&["127.0.0.1:1"]).unwrap()
    }

    fn plan(replicas: u16, proxies: u16) -> Plan {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Plan {
            serving: ProxyConfig::new(String::new(), nowhere(), any, PathBuf::new()),
            serving_flags: Vec::new(),
            data_dir: "/d".into(),
            api_token_file: "/d/api-token".into(),
            replicas,
            proxies,
            ip: Ipv4Addr::UNSPECIFIED.into(),
            port: 8000,
            socket: None,
            base_port: 7011,
            proxy_admin_base: 8100,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
            hold: Some(HoldPolicy::DEFAULT),
            log_format: "text".into(),
            log_level: "info".into(),
        }
    }

    #[test]
    fn the_line_names_every_public_port_and_every_api() {
        assert_eq!(
            plan(1, 1).is_up(),
            "holdfast is up: http://127.0.0.1:8000 api=127.0.0.1:7011"
        );
        assert_eq!(
            plan(3, 2).is_up(),
            "holdfast is up: http://127.0.0.1:8000,http://127.0.0.1:8001 api=127.0.0.1:7011,127.0.0.1:7021,127.0.0.1:7031"
        );
    }

    #[test]
    fn a_shell_is_told_where_the_cluster_is_and_what_opens_it() {
        assert_eq!(
            plan(1, 1).environment(),
            "export HOLDFAST_ENDPOINTS=127.0.0.1:7011 HOLDFAST_ENDPOINTS_TOKEN_FILE=/d/api-token"
        );
        let elsewhere = Plan {
            api_token_file: "/the hub's/$t".into(),
            ..plan(3, 1)
        };
        assert_eq!(
            elsewhere.environment(),
            "export HOLDFAST_ENDPOINTS=127.0.0.1:7011,127.0.0.1:7021,127.0.0.1:7031 \
             HOLDFAST_ENDPOINTS_TOKEN_FILE='/the hub'\\''s/$t'"
        );
    }

    #[test]
    fn one_replica_alone_has_no_door_for_peers() {
        let tokens = Tokens::default();
        let doors = |plan: Plan| -> Vec<_> {
            let configs = plan.replica_configs(&tokens).into_iter();
            configs.map(|config| config.listen_peer).collect()
        };
        assert_eq!(doors(plan(1, 1)), [None]);
        assert!(doors(plan(3, 1)).iter().all(Option::is_some));
        let arguments = &plan(1, 2).children(Path::new("/bin/holdfast"))[0].arguments;
        let at = arguments
            .iter()
            .position(|argument| argument == "--listen-peer")
            .unwrap();
        assert_eq!(arguments[at + 1], "");
        let taken: Vec<_> = plan(1, 2)
            .listeners()
            .into_iter()
            .map(|listener| listener.address.port())
            .collect();
        assert_eq!(taken, [8000, 8001, 7011, 7013, 8100, 8101]);
    }

    #[test]
    fn a_socket_takes_the_place_of_the_ports() {
        let plan = Plan {
            // Never used, so they are no mistake.
            port: 65535,
            socket: Some("/run/x".into()),
            ..plan(1, 2)
        };
        assert_eq!(plan.problems(), []);
        assert_eq!(plan.urls(), ["unix:/run/x", "unix:/run/x.1"]);
        let doors = plan
            .proxy_configs(&nowhere())
            .into_iter()
            .map(|config| config.listen[0].to_string());
        assert_eq!(doors.collect::<Vec<_>>(), plan.urls());
        let arguments = &plan.children(Path::new("/bin/holdfast"))[2].arguments;
        let at = arguments.iter().position(|argument| argument == "--socket").unwrap();
        assert_eq!(arguments[at + 1], "/run/x.1");
        assert!(!arguments.contains(&"--port".into()));
    }

    #[test]
    fn ports_that_do_not_exist_or_meet_are_refused_under_their_flag() {
        assert_eq!(plan(3, 2).problems(), []);
        let beyond = Plan {
            port: 65535,
            base_port: 65530,
            ..plan(3, 2)
        };
        let flags: Vec<_> = beyond
            .problems()
            .into_iter()
            .map(|(flag, value, _)| (flag, value))
            .collect();
        assert_eq!(flags, [("port", 65535), ("base-port", 65530)]);
        let meeting = Plan {
            proxy_admin_base: 7022,
            ..plan(3, 1)
        };
        let [(flag, value, problem)] = &meeting.problems()[..] else {
            panic!("{:?}", meeting.problems());
        };
        assert_eq!((*flag, *value), ("proxy-admin-base", 7022));
        assert!(
            problem.contains("7022") && problem.contains("--base-port 7011"),
            "{problem}"
        );
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let listener = Listener {
            flag: "port",
            value: port,
            what: "p0's users".into(),
            address: taken.local_addr().unwrap(),
        };
        let problem = listener.problem().unwrap();
        assert!(
            problem.starts_with(&format!("--port {port}: 127.0.0.1:{port}, for p0's users, is in use")),
            "{problem}"
        );
    }

    #[test]
    fn a_child_is_told_everything_on_its_command_line() {
        let children = plan(3, 1).children(Path::new("/bin/holdfast"));
        let names: Vec<_> = children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["r0", "r1", "r2", "p0"]);
        let line = children[1].arguments.join(&OsString::from(" ")).into_string().unwrap();
        assert_eq!(
            line,
            "replica --exit-with-parent --name r1 --data-dir /d/r1 --log-format text --log-level info \
             --peers r0=127.0.0.1:7012,r1=127.0.0.1:7022,r2=127.0.0.1:7032 --listen-client 127.0.0.1:7021 \
             --api-token-file /d/api-token --listen-peer 127.0.0.1:7022 --listen-admin 127.0.0.1:7023 --hold-deletes-for 600000ms"
        );
        let proxys = children[3].arguments.join(&OsString::from(" ")).into_string().unwrap();
        assert!(
            proxys.contains(
                " --endpoints 127.0.0.1:7011,127.0.0.1:7021,127.0.0.1:7031 --endpoints-token-file /d/api-token "
            ),
            "{proxys}"
        );
    }

    #[test]
    fn proxies_are_told_alike_but_for_their_ports() {
        let mut secure = plan(1, 2);
        secure.serving.tls = Some(ServerTls::new("/c".into(), "/k".into()));
        secure.serving.redirect = Some(Redirect {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            to: Some(443),
        });
        secure.serving_flags = vec![
            "--ssl-cert=/c".into(),
            "--ssl-key=/k".into(),
            "--redirect-to=443".into(),
        ];
        assert_eq!(secure.problems(), []);
        assert_eq!(secure.urls(), ["https://127.0.0.1:8000", "https://127.0.0.1:8001"]);
        let redirects = secure.proxy_configs(&nowhere()).into_iter().map(|config| {
            assert!(config.tls.is_some());
            config.redirect.unwrap()
        });
        let redirects: Vec<_> = redirects
            .map(|redirect| (redirect.listen.port(), redirect.to))
            .collect();
        assert_eq!(redirects, [(8080, Some(443)), (8081, Some(443))]);
        let line = secure.children(Path::new("/bin/holdfast"))[2].arguments.clone();
        let line = line.join(&OsString::from(" ")).into_string().unwrap();
        assert!(
            line.ends_with(" --ssl-cert=/c --ssl-key=/k --redirect-to=443 --redirect-port=8081"),
            "{line}"
        );
        secure.port = 8081;
        let [(flag, value, problem)] = &secure.problems()[..] else {
            panic!("{:?}", secure.problems());
        };
        assert_eq!((*flag, *value), ("redirect-port", 8080));
        assert!(problem.contains("8081") && problem.contains("--port 8081"), "{problem}");
    }
}
