//! Policy: how requests and answers are changed on their way.

use std::net::IpAddr;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::headers::is_of_one_hop;
use holdfast_table::ranges::IpRange;

/// How requests and answers are changed on their way. The default changes what it must and nothing else.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whose word about the user before them is believed.
    pub trusted_proxies: TrustedProxies,
    /// Tells targets who asks, by `X-Forwarded-For` and its like.
    pub x_forward: bool,
    /// Set in every request, instead of what the client says.
    pub custom_headers: HeaderMap,
    /// Puts the target's own path before the request's.
    pub prepend_path: bool,
    /// Leaves the routespec in the request's path.
    pub include_prefix: bool,
    /// Replaces `Host` by the target's own.
    pub change_origin: bool,
    /// In redirects of the target to itself, replaces its host by the one that the user asked.
    pub auto_rewrite: bool,
    /// In redirects of the target to itself, replaces the protocol.
    pub protocol_rewrite: Option<Protocol>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            trusted_proxies: TrustedProxies::default(),
            x_forward: true,
            custom_headers: HeaderMap::new(),
            prepend_path: true,
            include_prefix: true,
            change_origin: false,
            auto_rewrite: false,
            protocol_rewrite: None,
        }
    }
}

/// What a redirect leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Protocol {
    /// Parses `http` or `https`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "http" => Ok(Protocol::Http),
            "https" => Ok(Protocol::Https),
            _ => Err("must be http or https".into()),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Https => "https",
        }
    }
}

/// Reverse proxies in front of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    ranges: Vec<IpRange>,
    unix: bool,
}

impl TrustedProxies {
    /// Parses a list like `10.0.0.0/8,192.168.1.7,unix`; `unix` is whoever comes in by a unix socket.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut trusted = TrustedProxies::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part {
                "unix" => trusted.unix = true,
                range => trusted
                    .ranges
                    .push(IpRange::parse(range).map_err(|problem| format!("{range:?} {problem}; or unix"))?),
            }
        }
        Ok(trusted)
    }

    /// `None` is a client that came in by a unix socket.
    pub(crate) fn trusts(&self, address: Option<IpAddr>) -> bool {
        match address {
            Some(address) => self.ranges.iter().any(|range| range.contains(address)),
            None => self.unix,
        }
    }
}

/// Parses `name: value`, as the flag `--custom-header` takes it.
///
/// # Errors
/// What to write instead.
pub fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a colon is expected, as in X-Frame-Options: DENY")?;
    let name = HeaderName::try_from(name.trim()).map_err(|_| format!("{:?} is no name of a header", name.trim()))?;
    let value = HeaderValue::try_from(value.trim()).map_err(|_| format!("{:?} is no header's value", value.trim()))?;
    match is_of_one_hop(&name) || name == CONTENT_LENGTH {
        true => Err(format!(
            "{name} says how a request is sent, which is the proxy's to say"
        )),
        false => Ok((name, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_given_by_range_and_by_name() {
        let trusted = TrustedProxies::parse("10.0.0.0/8, ::1,unix").unwrap();
        let trusts = |address: &str| trusted.trusts(Some(address.parse().unwrap()));
        assert!(trusts("10.1.1.1") && trusts("::ffff:10.1.1.1") && trusts("::1") && trusted.trusts(None));
        assert!(!trusts("11.0.0.1"));
        let nobody = TrustedProxies::parse("").unwrap();
        assert!(!nobody.trusts(None) && !nobody.trusts(Some("127.0.0.1".parse().unwrap())));
        assert!(TrustedProxies::parse("10.0.0.0/8,everybody").is_err());
    }

    #[test]
    fn a_header_is_a_name_a_colon_and_a_value() {
        let (name, value) = parse_header("X-Frame-Options: a:b ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-frame-options", "a:b"));
        for wrong in [
            "X-Frame-Options",
            "X Y: 1",
            ": 1",
            "X: a\nb",
            "Connection: close",
            "Transfer-Encoding: chunked",
            "Content-Length: 1",
        ] {
            assert!(parse_header(wrong).is_err(), "{wrong:?}");
        }
    }
}
