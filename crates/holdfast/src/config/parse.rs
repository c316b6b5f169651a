//! Values of settings, from text. Each problem says what to write instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_client::Endpoints;
use holdfast_replica::PeerAddress;
use holdfast_table::{HoldPolicy, TargetRule};
use holdfast_tls::{TlsError, Tokens};

/// The longest name of a replica or proxy.
const NAME_BYTES_MAX: usize = 253;

/// `50ms`, `10s`, `1m`, `2h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = "must be a whole number with a unit: ms, s, m or h, like 50ms, 10s or 1m";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected)?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => {
            return Err(format!(
                "has no unit: write {number}ms, {number}s, {number}m or {number}h"
            ));
        }
        _ => return Err(expected.into()),
    };
    let ms = number.checked_mul(ms).ok_or("is too long")?;
    // A year: nothing here waits longer, and sums of durations stay far from any overflow.
    if ms > 365 * 24 * 3_600_000 {
        return Err("is too long: at most 8760h".into());
    }
    Ok(Duration::from_millis(ms))
}

/// A duration that is not zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        duration => Ok(duration),
    }
}

/// How long deletions are held; after no time at all none is.
pub fn hold_policy(text: &str) -> Result<Option<HoldPolicy>, String> {
    let duration = duration(text)?;
    let policy = HoldPolicy {
        hold_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        ..HoldPolicy::DEFAULT
    };
    Ok((!duration.is_zero()).then_some(policy))
}

/// `120ms..200ms`: the first is included, the last is not.
pub fn duration_range(text: &str) -> Result<Range<Duration>, String> {
    let (from, to) = text
        .split_once("..")
        .ok_or("must be two durations with .. between them, like 120ms..200ms")?;
    let bound = |text| positive_duration(text).map_err(|problem| format!("{text:?} {problem}"));
    let range = bound(from)?..bound(to)?;
    if range.is_empty() {
        return Err("must begin with the shorter duration, like 120ms..200ms".into());
    }
    Ok(range)
}

/// An address to listen on. Port 0 lets the system choose.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, like 127.0.0.1:7011, 0.0.0.0:7011 or [::]:7011".into())
}

/// `host:port` as others may reach it: a name or an address.
pub fn host_port(text: &str) -> Result<String, String> {
    match Endpoints::parse(&[text]) {
        Ok(endpoints) if !text.starts_with("unix:") => Ok(endpoints.addresses().next().unwrap_or(text).to_owned()),
        _ => Err("must be HOST:PORT with a port from 1 to 65535, like 10.0.0.1:7011".into()),
    }
}

/// Replicas to talk to: `host:port,host:port,...`.
pub fn endpoints(text: &str) -> Result<Endpoints, String> {
    let addresses: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .collect();
    Endpoints::parse(&addresses).map_err(|error| error.to_string())
}

/// true or false.
pub fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

/// What a replica or a proxy is called.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    match text {
        "" => Err("must not be empty".into()),
        _ if text.len() > NAME_BYTES_MAX => Err(format!("must have at most {NAME_BYTES_MAX} bytes")),
        _ if !text.bytes().all(plain) => Err("may have letters, digits, '.', '_' and '-' only".into()),
        _ => Ok(text.to_owned()),
    }
}

/// Every replica's name and peer address: `r0=host:port,r1=host:port,...`.
pub fn peers(text: &str) -> Result<Vec<PeerAddress>, String> {
    let mut peers: Vec<PeerAddress> = Vec::new();
    let mut problems = Vec::new();
    for peer in text.split(',').map(str::trim).filter(|peer| !peer.is_empty()) {
        match self::peer(peer) {
            Ok(peer) if peers.iter().any(|known| known.name == peer.name) => {
                problems.push(format!("the name {:?} is there twice", peer.name));
            }
            Ok(peer) if peers.iter().any(|known| known.address == peer.address) => {
                problems.push(format!("the address {:?} is there twice", peer.address));
            }
            Ok(peer) => peers.push(peer),
            Err(problem) => problems.push(format!("{peer:?} {problem}")),
        }
    }
    match (peers.is_empty(), problems.is_empty()) {
        (_, false) => Err(problems.join("; ")),
        (true, true) => Err("must name at least this replica, like r0=127.0.0.1:7012".into()),
        (false, true) => Ok(peers),
    }
}

/// One replica's name and peer address: `r0=host:port`.
pub fn peer(text: &str) -> Result<PeerAddress, String> {
    let (name, address) = text
        .split_once('=')
        .ok_or("must be NAME=HOST:PORT, like r0=10.0.0.1:7012")?;
    Ok(PeerAddress {
        name: self::name(name).map_err(|problem| format!("has a bad name: it {problem}"))?,
        address: host_port(address).map_err(|problem| format!("has a bad address: it {problem}"))?,
    })
}

/// A directory; it need not exist.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match std::fs::metadata(&path) {
        _ if text.is_empty() => Err("must not be empty".into()),
        Ok(metadata) if !metadata.is_dir() => Err("is a file: give a directory".into()),
        _ => Ok(path),
    }
}

/// Which targets are allowed, comma-separated.
pub fn target_rules(text: &str) -> Result<Vec<TargetRule>, String> {
    let rules = text.split(',').map(str::trim).filter(|rule| !rule.is_empty());
    rules
        .map(|rule| TargetRule::parse(rule).map_err(|problem| format!("{rule:?} {problem}")))
        .collect()
}

/// A file of tokens, one a line.
pub fn tokens(path: &str) -> Result<Tokens, String> {
    Tokens::read(path.into()).map_err(|error| match error {
        TlsError::Read { source, .. } => format!("cannot be read: {source}"),
        TlsError::NoToken { .. } => "has no token in it: write one a line".into(),
        other => other.to_string(),
    })
}

/// A file that is there.
pub fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match std::fs::metadata(&path) {
        Ok(metadata) if !metadata.is_dir() => Ok(path),
        Ok(_) => Err("is a directory: give a file".into()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// How many of something, at least one.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("must be a whole number from 1 on".into()),
    }
}

/// The first line of a file, as a token to show to others.
pub fn token(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    match text.lines().next().unwrap_or_default().trim() {
        "" => Err("has no token in its first line".into()),
        token if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err("has a first line that is no token: it must be of printable ASCII characters without spaces".into())
        }
        token => Ok(token.to_owned()),
    }
}

/// A port to listen on.
pub fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "must be a port from 0 to 65535; 0 lets the system choose".into())
}

/// A port that others are counted from.
pub fn first_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("must be a port from 1 to 65535".into()),
    }
}

/// An address to listen on without a port, or a host name that has one. `""` and `*` mean all addresses.
pub fn ip(text: &str) -> Result<IpAddr, String> {
    if matches!(text, "" | "*") {
        return Ok(every_address());
    }
    let text = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(ip) = text.parse() {
        return Ok(ip);
    }
    let found = (text, 0).to_socket_addrs().ok().and_then(|mut found| found.next());
    found
        .map(|address| address.ip())
        .ok_or_else(|| "must be an IP address of this machine, like 127.0.0.1, or empty for all".into())
}

/// Takes IPv6 and IPv4 alike, or IPv4 alone where the system has no IPv6.
pub fn every_address() -> IpAddr {
    match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => Ipv6Addr::UNSPECIFIED.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("50ms", ms(50)),
            ("0s", ms(0)),
            ("10s", ms(10_000)),
            ("1m", ms(60_000)),
            ("2h", ms(7_200_000)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        assert_eq!(duration("10").unwrap_err(), "has no unit: write 10ms, 10s, 10m or 10h");
        for wrong in [
            "",
            "ms",
            "-1s",
            "1.5s",
            "1d",
            "1 s",
            "9999999999999999999s",
            "18446744073709551615h",
            "8761h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(positive_duration("0ms").unwrap_err(), "must be more than 0");
    }

    #[test]
    fn a_range_of_durations_begins_with_the_shorter_one() {
        let ms = Duration::from_millis;
        assert_eq!(duration_range("120ms..200ms"), Ok(ms(120)..ms(200)));
        for wrong in ["120ms", "120..200", "200ms..120ms", "1s..1s", "0s..1s", "1s..=2s"] {
            assert!(duration_range(wrong).is_err(), "{wrong}");
        }
        assert!(duration_range("1s..5").unwrap_err().contains("\"5\" has no unit"));
    }

    #[test]
    fn peers_report_everything_that_is_wrong_with_them() {
        let good = peers("r0=127.0.0.1:7012, r1=[::1]:7022,r2=host.example:7032").unwrap();
        assert_eq!(good.len(), 3);
        assert_eq!((good[1].name.as_str(), good[1].address.as_str()), ("r1", "[::1]:7022"));
        let problems = peers("r0=h:1,r0=h:2,r1=h:1,r2,a b=h:3,r3=h").unwrap_err();
        for part in [
            "\"r0\" is there twice",
            "\"h:1\" is there twice",
            "\"r2\" must be",
            "\"a b=h:3\"",
            "\"r3=h\"",
        ] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
        assert!(peers("").is_err());
    }

    #[test]
    fn an_ip_is_an_address_or_a_name_that_has_one() {
        assert_eq!(ip("127.0.0.1"), Ok(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(ip("[::1]"), Ok(Ipv6Addr::LOCALHOST.into()));
        assert!(ip("*").unwrap().is_unspecified() && ip("").unwrap().is_unspecified());
        assert!(ip("localhost").unwrap().is_loopback());
        assert!(ip("no such host").is_err());
    }
}
