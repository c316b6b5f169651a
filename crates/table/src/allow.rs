//! Which targets are allowed: who can write a route must not thereby reach what is not a user's server. Asked when a route is
//! written, as far as it can be told then, and by every proxy before it connects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::ranges::{IpRange, translated};
use crate::route::{Scheme, Target};

/// Where clouds keep the secrets of a machine, outside the link-local ranges.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// One kind of target that is allowed.
///
/// `10.0.0.0/8`, `10.0.0.0/8:8888`, `https://10.0.0.0/8:8000-9000`, `[fd00::/8]:8888`, or for sockets
/// `http+unix:///run/servers`, which allows all below that directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRule(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Address {
        /// `None`: http and https.
        scheme: Option<Scheme>,
        range: IpRange,
        ports: RangeInclusive<u16>,
    },
    Sockets {
        below: PathBuf,
    },
}

impl TargetRule {
    /// Parses one rule.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            "must be a range, and if need be a scheme and ports, like 10.0.0.0/8, https://10.0.0.0/8:8000-9000, \
             [fd00::/8]:8888 or http+unix:///run/servers"
                .to_owned()
        };
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(("http+unix", path)) if path.starts_with('/') && !path.contains("..") => {
                return Ok(TargetRule(Kind::Sockets { below: path.into() }));
            }
            Some(_) => return Err(wrong()),
            None => (None, text),
        };
        let (range, ports) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (range, ports) = rest.split_once(']').ok_or_else(wrong)?;
                match ports.strip_prefix(':') {
                    Some(ports) => (range, Some(ports)),
                    None if ports.is_empty() => (range, None),
                    None => return Err(wrong()),
                }
            }
            None if rest.matches(':').count() == 1 => match rest.split_once(':') {
                Some((range, ports)) => (range, Some(ports)),
                None => (rest, None),
            },
            None => (rest, None),
        };
        let ports = match ports {
            Some(ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
                port(first)?..=port(last)?
            }
            None => 1..=u16::MAX,
        };
        if ports.is_empty() {
            return Err(wrong());
        }
        let range = IpRange::parse(range)?;
        Ok(TargetRule(Kind::Address { scheme, range, ports }))
    }
}

/// Why a target is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Never allowed, whatever the rules say.
    #[error("it is a link-local or metadata address, where no user's server is")]
    Metadata,
    /// Never allowed either.
    #[error("it is a port of a proxy or replica of this cluster")]
    Control,
    /// There are rules, and none of them names it.
    #[error("--allow-targets does not name it")]
    NotAllowed,
}

/// What all rules together allow. Without a rule: everything but what is never allowed.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    rules: Vec<TargetRule>,
    /// Listeners of this process.
    own: Vec<SocketAddr>,
    /// Listeners of replicas, as `host:port` or `unix:/path`.
    replicas: Vec<String>,
}

impl Allowed {
    /// `own` are listeners of this process, `replicas` those of replicas, as `host:port` or `unix:/path`.
    pub fn new(rules: Vec<TargetRule>, own: Vec<SocketAddr>, replicas: Vec<String>) -> Self {
        Allowed { rules, own, replicas }
    }

    /// When a route is written: all that can be told without resolving a name or opening a connection.
    ///
    /// # Errors
    /// Why no proxy would connect to it.
    pub fn written(&self, target: &Target) -> Result<(), Denied> {
        if let Some(path) = target.socket_path() {
            return self.socket(Path::new(&path));
        }
        self.target(target)?;
        let ip = target
            .host()
            .and_then(|host| host.trim_matches(['[', ']']).parse().ok());
        match (ip, target.port()) {
            (Some(ip), Some(port)) => self.address(target.scheme(), SocketAddr::new(ip, port)),
            _ => Ok(()),
        }
    }

    /// Before a name is resolved.
    ///
    /// # Errors
    /// It is a replica's by its name.
    pub fn target(&self, target: &Target) -> Result<(), Denied> {
        let names = |replica: &String| replica.eq_ignore_ascii_case(target.authority());
        match self.replicas.iter().any(names) {
            true => Err(Denied::Control),
            false => Ok(()),
        }
    }

    /// Before a connection is opened.
    ///
    /// # Errors
    /// Why it must not be.
    pub fn address(&self, scheme: Scheme, address: SocketAddr) -> Result<(), Denied> {
        let ip = translated(address.ip());
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if link_local || METADATA.contains(&ip) {
            return Err(Denied::Metadata);
        }
        let plain = SocketAddr::new(ip, address.port()).to_string();
        let local = ip.is_loopback() || ip.is_unspecified();
        let leads_to =
            |own: IpAddr| own == ip || (own.is_unspecified() && local) || (own.is_loopback() && ip.is_unspecified());
        if self.replicas.contains(&plain) || self.is_own(address.port(), leads_to) {
            return Err(Denied::Control);
        }
        let allows = |rule: &TargetRule| match &rule.0 {
            Kind::Address {
                scheme: only,
                range,
                ports,
            } => only.is_none_or(|only| only == scheme) && range.contains(ip) && ports.contains(&address.port()),
            Kind::Sockets { .. } => false,
        };
        match self.rules.is_empty() || self.rules.iter().any(allows) {
            true => Ok(()),
            false => Err(Denied::NotAllowed),
        }
    }

    /// Before anything is sent: where a connection from `local` to `peer` stayed on this machine, whatever the machine's
    /// address is called.
    ///
    /// # Errors
    /// It leads to a listener of this process.
    pub fn connected(&self, local: SocketAddr, peer: SocketAddr) -> Result<(), Denied> {
        let leads_to = |own: IpAddr| own.is_unspecified() || own == peer.ip().to_canonical();
        match local.ip() == peer.ip() && self.is_own(peer.port(), leads_to) {
            true => Err(Denied::Control),
            false => Ok(()),
        }
    }

    /// Before a unix socket is connected to.
    ///
    /// # Errors
    /// Why it must not be.
    pub fn socket(&self, path: &Path) -> Result<(), Denied> {
        if self.replicas.contains(&format!("unix:{}", path.display())) {
            return Err(Denied::Control);
        }
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        let allows = |rule: &TargetRule| match &rule.0 {
            Kind::Sockets { below } => path.starts_with(below) && !climbs,
            Kind::Address { .. } => false,
        };
        match self.rules.is_empty() || self.rules.iter().any(allows) {
            true => Ok(()),
            false => Err(Denied::NotAllowed),
        }
    }

    fn is_own(&self, port: u16, leads_to: impl FnMut(IpAddr) -> bool) -> bool {
        let own = self.own.iter().filter(|own| own.port() == port);
        own.map(|own| own.ip().to_canonical()).any(leads_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(rules: &[&str]) -> Allowed {
        let rules = rules.iter().map(|rule| TargetRule::parse(rule).unwrap()).collect();
        let own = vec!["0.0.0.0:8002".parse().unwrap(), "10.0.0.9:8000".parse().unwrap()];
        Allowed::new(rules, own, vec!["10.0.0.1:7011".into(), "replica.example:7011".into()])
    }

    fn ask(allowed: &Allowed, scheme: Scheme, address: &str) -> Result<(), Denied> {
        allowed.address(scheme, address.parse().unwrap())
    }

    #[test]
    fn metadata_and_control_ports_are_never_allowed() {
        for rules in [&[][..], &["0.0.0.0/0", "::/0"]] {
            let allowed = allowed(rules);
            for address in [
                "169.254.169.254:80",
                "169.254.170.2:80",
                "100.100.100.200:80",
                "[fe80::1]:80",
                "[fd00:ec2::254]:80",
                "[fd20:ce::254]:80",
                "[::ffff:169.254.169.254]:80",
                "[64:ff9b::a9fe:a9fe]:80",
            ] {
                assert_eq!(ask(&allowed, Scheme::Http, address), Err(Denied::Metadata), "{address}");
            }
            for address in [
                "127.0.0.1:8002",
                "127.9.9.9:8002",
                "0.0.0.0:8002",
                "[::1]:8002",
                "10.0.0.9:8000",
                "10.0.0.1:7011",
                "[::ffff:10.0.0.1]:7011",
            ] {
                assert_eq!(ask(&allowed, Scheme::Http, address), Err(Denied::Control), "{address}");
            }
            for address in ["127.0.0.1:8888", "127.0.0.1:8000", "10.0.0.8:8000", "10.0.0.1:7012"] {
                assert_eq!(ask(&allowed, Scheme::Http, address), Ok(()), "{address}");
            }
            let local = "10.0.0.9:50000".parse().unwrap();
            assert_eq!(
                allowed.connected(local, "10.0.0.9:8002".parse().unwrap()),
                Err(Denied::Control)
            );
            assert_eq!(allowed.connected(local, "10.0.0.8:8002".parse().unwrap()), Ok(()));
            let by_name = Target::parse("http://Replica.Example:7011/x").unwrap();
            assert_eq!(allowed.target(&by_name), Err(Denied::Control));
        }
    }

    #[test]
    fn a_rule_allows_by_range_port_and_scheme() {
        let allowed = allowed(&[
            "10.0.0.0/8:8888",
            "https://192.168.0.0/16:8000-9000",
            "[fd00::/8]:8888",
            "http+unix:///run/servers",
        ]);
        for (scheme, address) in [
            (Scheme::Http, "10.1.2.3:8888"),
            (Scheme::Https, "10.1.2.3:8888"),
            (Scheme::Https, "192.168.1.1:8500"),
            (Scheme::Http, "[fd12::1]:8888"),
        ] {
            assert_eq!(ask(&allowed, scheme, address), Ok(()), "{address}");
        }
        for (scheme, address) in [
            (Scheme::Http, "10.1.2.3:8889"),
            (Scheme::Http, "192.168.1.1:8500"),
            (Scheme::Https, "192.168.1.1:9001"),
            (Scheme::Http, "11.0.0.1:8888"),
            (Scheme::Http, "127.0.0.1:8888"),
        ] {
            assert_eq!(ask(&allowed, scheme, address), Err(Denied::NotAllowed), "{address}");
        }
        assert_eq!(allowed.socket(Path::new("/run/servers/alice/x.sock")), Ok(()));
        for path in ["/run/servers2/x.sock", "/run/x.sock", "/run/servers/../x.sock"] {
            assert_eq!(allowed.socket(Path::new(path)), Err(Denied::NotAllowed), "{path}");
        }
    }

    #[test]
    fn what_is_written_is_refused_as_far_as_it_can_be_told() {
        let written = |allowed: &Allowed, target: &str| allowed.written(&Target::parse(target).unwrap());
        let none = allowed(&[]);
        let some = allowed(&["10.0.0.0/8:8888", "[fd00::/8]", "http+unix:///run/servers"]);
        for (target, without, with) in [
            ("http://10.1.2.3:8888/user", Ok(()), Ok(())),
            ("http://10.1.2.3", Ok(()), Err(Denied::NotAllowed)),
            ("https://[fd12::1]", Ok(()), Ok(())),
            ("https://[fe80::1]:8888", Err(Denied::Metadata), Err(Denied::Metadata)),
            (
                "http://169.254.169.254/latest",
                Err(Denied::Metadata),
                Err(Denied::Metadata),
            ),
            ("http://10.0.0.1:7011", Err(Denied::Control), Err(Denied::Control)),
            (
                "http://REPLICA.example:7011/",
                Err(Denied::Control),
                Err(Denied::Control),
            ),
            ("http://127.0.0.1:8002", Err(Denied::Control), Err(Denied::Control)),
            ("http://some-server:1", Ok(()), Ok(())),
            ("http+unix://%2Frun%2Fservers%2Fa.sock", Ok(()), Ok(())),
            (
                "http+unix://%2Frun%2Fservers%2F..%2Fa.sock",
                Ok(()),
                Err(Denied::NotAllowed),
            ),
        ] {
            assert_eq!(
                (written(&none, target), written(&some, target)),
                (without, with),
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for wrong in [
            "",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:9-8",
            "ftp://10.0.0.0/8",
            "http+unix://run",
            "[fd00::/8",
            "[fd00::/8]8888",
            "name:80",
        ] {
            assert!(TargetRule::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
