//! Headers on their way: those of one hop stay here, and those that targets believe are ours.

use std::net::IpAddr;

use http::header::{
    self, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::policy::{Policy, TrustedProxies};

const FORWARDED: HeaderName = header::FORWARDED;
/// Which trace a request belongs to (W3C Trace Context). It passes: this proxy adds no span of its own.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Names a request, for whoever follows it from log to log.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_SCHEME: HeaderName = HeaderName::from_static("x-scheme");

/// Headers that a target may believe, so that nobody but us, and whom we trust, may write them.
const OURS: [HeaderName; 7] = [
    FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PROTO,
    X_REAL_IP,
    X_SCHEME,
];

/// Headers of one hop (RFC 9110, section 7.6.1, and what older software sends).
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// End-to-end headers that `Connection` must not take away: a target decides by them who asks, for what, and how much.
const PROTECTED: [HeaderName; 13] = [
    HOST,
    X_REQUEST_ID,
    TRACEPARENT,
    TRACESTATE,
    COOKIE,
    header::SET_COOKIE,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::REFERER,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    EXPECT,
];

/// Who asks, as far as this proxy can tell.
pub(crate) struct Origin {
    /// `None` for who comes in by a unix socket.
    pub(crate) address: Option<(IpAddr, HeaderValue)>,
    /// Whether it is believed what it says of the user before it.
    pub(crate) trusted: bool,
    /// Whether it came in by TLS.
    pub(crate) secure: bool,
    /// The port that it came in by.
    pub(crate) port: u16,
}

impl Origin {
    pub(crate) fn new(address: Option<IpAddr>, secure: bool, port: u16, trusted: &TrustedProxies) -> Self {
        let address = address.map(|address| address.to_canonical());
        Origin {
            trusted: trusted.trusts(address),
            // Digits, letters, dots and colons always make a header's value.
            address: address.and_then(|ip| Some((ip, HeaderValue::try_from(ip.to_string()).ok()?))),
            secure,
            port,
        }
    }

    fn protocol(&self) -> HeaderValue {
        HeaderValue::from_static(match self.secure {
            true => "https",
            false => "http",
        })
    }

    /// The port that the user asked for, by the `Host` of the request.
    fn port_of(&self, host: Option<&HeaderValue>) -> HeaderValue {
        let Some(host) = host.and_then(|host| host.to_str().ok()) else {
            return HeaderValue::from(self.port);
        };
        let after_address = host.rfind(']').map_or(host, |end| &host[end..]);
        let port = after_address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match (port, self.secure) {
            (Some(Ok(port)), _) => HeaderValue::from(port),
            (_, true) => HeaderValue::from_static("443"),
            (_, false) => HeaderValue::from_static("80"),
        }
    }
}

/// Gives a request a name, unless somebody who is believed has.
pub(crate) fn name_request(headers: &mut HeaderMap, origin: &Origin) {
    const BYTES_MAX: usize = 128;
    let mut names = headers.get_all(X_REQUEST_ID).iter();
    let named = match (names.next(), names.next()) {
        (Some(name), None) => (1..=BYTES_MAX).contains(&name.len()) && name.as_bytes().iter().all(u8::is_ascii_graphic),
        _ => false,
    };
    if !(named && origin.trusted) {
        let name = format!("{:032x}", rand::random::<u128>());
        // Digits always make a header's value.
        let name = HeaderValue::try_from(name).unwrap_or(HeaderValue::from_static("-"));
        headers.insert(X_REQUEST_ID, name);
    }
}

/// The id of the trace that a request says it belongs to, if it says so as the standard wants it.
pub(crate) fn trace_id(headers: &HeaderMap) -> Option<String> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let (parent, None) = (parents.next()?.to_str().ok()?, parents.next()) else {
        return None;
    };
    let mut parts = parent.split('-');
    let sizes = [2, 32, 16, 2];
    let parts: Vec<&str> = sizes
        .iter()
        .filter_map(|size| parts.next().filter(|part| part.len() == *size))
        .collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let whole = [version, trace, span, flags].into_iter().all(is_hex) && version != "ff";
    let longer = parent.len() > 55;
    (whole && !is_zero(trace) && !is_zero(span) && (version != "00" || !longer)).then(|| trace.to_owned())
}

/// Makes the headers of a client's request those of one of ours, but for `Host`.
pub(crate) fn prepare(headers: &mut HeaderMap, origin: &Origin, policy: &Policy) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| tokens(value).any(|token| token.eq_ignore_ascii_case("trailers")));
    strip_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    strip_aliases(headers);
    join_cookies(headers);
    join_lengths(headers);
    match (origin.trusted, policy.x_forward) {
        (true, true) => complete_forwarded(headers, origin, &policy.trusted_proxies),
        (true, false) => {}
        (false, true) => replace_forwarded(headers, origin),
        (false, false) => OURS.iter().for_each(|name| drop(headers.remove(name))),
    }
    for (name, value) in &policy.custom_headers {
        headers.insert(name, value.clone());
    }
}

/// Says who asks, whatever the client says of that.
fn replace_forwarded(headers: &mut HeaderMap, origin: &Origin) {
    headers.remove(FORWARDED);
    headers.remove(X_SCHEME);
    match &origin.address {
        Some((_, address)) => {
            headers.insert(X_FORWARDED_FOR, address.clone());
            headers.insert(X_REAL_IP, address.clone());
        }
        None => {
            headers.remove(X_FORWARDED_FOR);
            headers.remove(X_REAL_IP);
        }
    }
    headers.insert(X_FORWARDED_PROTO, origin.protocol());
    let host = headers.get(HOST).cloned();
    headers.insert(X_FORWARDED_PORT, origin.port_of(host.as_ref()));
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
}

/// The address of the user: of those that trusted proxies say the nearest that is none of theirs, for further ones may be
/// invented.
pub(crate) fn user(headers: &HeaderMap, origin: &Origin, trusted: &TrustedProxies) -> Option<HeaderValue> {
    let mut user = None;
    if origin.trusted {
        let chain = joined(headers, &X_FORWARDED_FOR, ", ").unwrap_or_default();
        for part in chain.rsplit(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some(ip) = address_of(part) else { break };
            user = Some(ip);
            if !trusted.trusts(user) {
                break;
            }
        }
    }
    match user {
        Some(user) => HeaderValue::try_from(user.to_string()).ok(),
        None => origin.address.as_ref().map(|(_, address)| address.clone()),
    }
}

/// Adds to what a trusted proxy says the proxy itself, and what it does not say.
fn complete_forwarded(headers: &mut HeaderMap, origin: &Origin, trusted: &TrustedProxies) {
    let user = user(headers, origin, trusted);
    let mut chain = joined(headers, &X_FORWARDED_FOR, ", ").unwrap_or_default();
    if let Some((ip, _)) = &origin.address {
        if !chain.is_empty() {
            chain.push_str(", ");
        }
        chain.push_str(&ip.to_string());
    }
    set(headers, X_FORWARDED_FOR, &chain);
    match user {
        Some(user) => headers.insert(X_REAL_IP, user),
        None => headers.remove(X_REAL_IP),
    };
    let host = headers.get(HOST).cloned();
    headers.entry(X_FORWARDED_PROTO).or_insert_with(|| origin.protocol());
    let port = origin.port_of(host.as_ref());
    headers.entry(X_FORWARDED_PORT).or_insert(port);
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::try_from(value) {
        Ok(value) if !value.is_empty() => drop(headers.insert(name, value)),
        _ => drop(headers.remove(name)),
    }
}

/// `1.2.3.4`, `1.2.3.4:5678`, `::1` or `[::1]:5678`.
fn address_of(text: &str) -> Option<IpAddr> {
    let ip = text.parse().ok();
    let ip = ip.or_else(|| text.parse().ok().map(|with_port: std::net::SocketAddr| with_port.ip()));
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    ip.or_else(bare).map(|ip: IpAddr| ip.to_canonical())
}

/// HTTP/2 splits cookies for its compression (RFC 9113, section 8.2.3), but Tornado joins headers with a comma.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut bytes = Vec::new();
    for cookie in headers.get_all(COOKIE) {
        if !bytes.is_empty() {
            bytes.extend_from_slice(b"; ");
        }
        bytes.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::try_from(bytes) {
        headers.insert(COOKIE, joined);
    }
}

/// A length that is said more than once, each time the same as far as hyper reads it, is said once.
pub(crate) fn join_lengths(headers: &mut HeaderMap) {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else { return };
    if lengths.next().is_none() && !first.as_bytes().contains(&b',') {
        return;
    }
    let one = tokens(first).next().map(HeaderValue::try_from);
    match one {
        Some(Ok(length)) => drop(headers.insert(CONTENT_LENGTH, length)),
        _ => drop(headers.remove(CONTENT_LENGTH)),
    }
}

/// All values of one name in one, if they are text.
fn joined(headers: &HeaderMap, name: &HeaderName, separator: &str) -> Option<String> {
    let values: Result<Vec<&str>, _> = headers.get_all(name).iter().map(HeaderValue::to_str).collect();
    values.ok().map(|values| values.join(separator))
}

/// True for what is meant for the next hop alone.
pub(crate) fn is_of_one_hop(name: &HeaderName) -> bool {
    name == CONNECTION || HOP_BY_HOP.contains(name)
}

/// Removes what is meant for the next hop alone, and what `Connection` says is.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(tokens)
            .filter_map(|token| HeaderName::try_from(token).ok())
            .filter(|name| !PROTECTED.contains(name) && !OURS.contains(name))
            .collect();
        headers.remove(CONNECTION);
        for name in nominated {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes headers that some servers take for one of [`OURS`] or the request's name: CGI and WSGI read `x_real_ip` as `x-real-ip`.
fn strip_aliases(headers: &mut HeaderMap) {
    let is_alias = |name: &HeaderName| {
        name.as_str().contains('_') && {
            let dashed = name.as_str().replace('_', "-");
            OURS.iter().chain([&X_REQUEST_ID]).any(|ours| ours.as_str() == dashed)
        }
    };
    if headers.keys().any(is_alias) {
        let aliases: Vec<HeaderName> = headers.keys().filter(|name| is_alias(name)).cloned().collect();
        for alias in aliases {
            headers.remove(alias);
        }
    }
}

/// The parts of a list like that in `Connection`.
pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value
        .to_str()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn from(address: Option<&str>, trusted: &str, secure: bool) -> (Origin, Policy) {
        let policy = Policy {
            trusted_proxies: TrustedProxies::parse(trusted).unwrap(),
            ..Policy::default()
        };
        let address = address.map(|address| address.parse().unwrap());
        (Origin::new(address, secure, 8000, &policy.trusted_proxies), policy)
    }

    #[test]
    fn headers_of_one_hop_are_stripped_and_no_others() {
        let mut headers = headers(&[
            ("connection", "close, X-Secret, cookie, x-forwarded-for"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-secret", "1"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-other", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "x-forwarded-for", "x-other"]);
    }

    #[test]
    fn names_that_pass_for_ours_are_stripped() {
        let mut headers = headers(&[
            ("x_real_ip", "1.2.3.4"),
            ("x-forwarded_for", "1.2.3.4"),
            ("x_mine", "1"),
        ]);
        strip_aliases(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x_mine"]);
    }

    #[test]
    fn a_request_has_one_name_which_strangers_do_not_choose() {
        let named = |trusted: &str, names: &[&'static str]| {
            let (origin, policy) = from(Some("10.0.0.1"), trusted, false);
            let given: Vec<_> = names.iter().map(|name| ("x-request-id", *name)).collect();
            let mut headers = headers(&given);
            name_request(&mut headers, &origin);
            headers.insert(CONNECTION, HeaderValue::from_static("x-request-id"));
            prepare(&mut headers, &origin, &policy);
            let mut names = headers.get_all(X_REQUEST_ID).iter();
            let name = names.next().unwrap().to_str().unwrap().to_owned();
            assert!(names.next().is_none());
            name
        };
        let is_ours = |name: &str| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(is_ours(&named("", &["a"])) && is_ours(&named("", &[])) && is_ours(&named("10.0.0.1", &[])));
        assert_eq!(named("10.0.0.1", &["a-b/1"]), "a-b/1");
        assert!(is_ours(&named("10.0.0.1", &["a", "b"])) && is_ours(&named("10.0.0.1", &["a b"])));
        assert_ne!(named("", &[]), named("", &[]));
    }

    #[test]
    fn a_trace_is_read_as_the_standard_has_it() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        let read = |parents: &[&'static str]| {
            let parents: Vec<_> = parents.iter().map(|parent| ("traceparent", *parent)).collect();
            trace_id(&headers(&parents))
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(read(&[good]).as_deref(), Some(TRACE));
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes";
        assert_eq!(read(&[later]).as_deref(), Some(TRACE));
        assert_eq!(read(&[good, good]), None);
        for bad in [
            "",
            "00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
        ] {
            assert_eq!(read(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn split_cookies_are_joined() {
        let mut headers = headers(&[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
        join_cookies(&mut headers);
        assert_eq!(
            headers.get_all(COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2; c=3; d=4"]
        );
    }

    #[test]
    fn a_length_is_said_once() {
        for said in [&["5"][..], &["5", "5"], &["5, 5"]] {
            let lengths = said.iter().map(|length| ("content-length", *length));
            let mut headers = headers(&lengths.collect::<Vec<_>>());
            join_lengths(&mut headers);
            assert_eq!(
                headers.get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(),
                ["5"],
                "{said:?}"
            );
        }
        let mut none = HeaderMap::new();
        join_lengths(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn who_is_not_trusted_says_nothing_of_itself() {
        let said = [
            ("host", "hub.example"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "6.6.6.6"),
            ("x-scheme", "https"),
            ("forwarded", "for=6.6.6.6"),
        ];
        let (origin, policy) = from(Some("::ffff:10.0.0.1"), "10.0.0.2", false);
        let mut seen = headers(&said);
        prepare(&mut seen, &origin, &policy);
        assert_eq!(seen["x-forwarded-for"], "10.0.0.1");
        assert_eq!(seen["x-real-ip"], "10.0.0.1");
        assert_eq!(seen["x-forwarded-proto"], "http");
        assert_eq!(seen["x-forwarded-port"], "80");
        assert!(!seen.contains_key("x-scheme") && !seen.contains_key("forwarded"));

        // Nor does it where nothing is said of it.
        let silent = Policy {
            x_forward: false,
            ..policy
        };
        let mut seen = headers(&said);
        prepare(&mut seen, &origin, &silent);
        assert_eq!(seen.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["host"]);

        let (origin, policy) = from(None, "10.0.0.0/8", false);
        let mut seen = headers(&said);
        prepare(&mut seen, &origin, &policy);
        assert!(!seen.contains_key("x-forwarded-for") && !seen.contains_key("x-real-ip"));
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added() {
        let (origin, policy) = from(Some("10.0.0.1"), "10.0.0.0/8", false);
        let mut seen = headers(&[
            ("host", "hub.example:8000"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "7.7.7.7, 10.0.0.2"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "public.example"),
        ]);
        prepare(&mut seen, &origin, &policy);
        assert_eq!(seen["x-forwarded-for"], "6.6.6.6, 7.7.7.7, 10.0.0.2, 10.0.0.1");
        assert_eq!(seen["x-real-ip"], "7.7.7.7", "6.6.6.6 may be the user's own invention");
        assert_eq!(seen["x-forwarded-proto"], "https");
        assert_eq!(seen["x-forwarded-host"], "public.example");
        assert_eq!(seen["x-forwarded-port"], "8000");

        let mut silent = headers(&[("host", "hub.example")]);
        let (origin, policy) = from(Some("10.0.0.1"), "10.0.0.0/8", true);
        prepare(&mut silent, &origin, &policy);
        assert_eq!(silent["x-forwarded-for"], "10.0.0.1");
        assert_eq!(silent["x-real-ip"], "10.0.0.1");
        assert_eq!(silent["x-forwarded-proto"], "https");
        assert_eq!(silent["x-forwarded-port"], "443");
    }

    #[test]
    fn custom_headers_replace_the_clients() {
        let (origin, mut policy) = from(Some("10.0.0.1"), "", false);
        policy.custom_headers = headers(&[("x-mine", "ours")]);
        let mut seen = headers(&[("x-mine", "theirs"), ("x-other", "theirs")]);
        prepare(&mut seen, &origin, &policy);
        assert_eq!(seen.get_all("x-mine").iter().collect::<Vec<_>>(), ["ours"]);
        assert_eq!(seen["x-other"], "theirs");
    }
}
