//! Route, RouteSpec, Target: parsed once, valid ever after.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddrV4;
use std::sync::{Arc, LazyLock};

use crate::path::{Host, PathError, RequestPath};

/// The longest routespec or target, in bytes.
pub const SPEC_BYTES_MAX: usize = 8 * 1024;
/// The largest `data`, in bytes of JSON text.
pub const DATA_BYTES_MAX: usize = 64 * 1024;
/// How deep objects and arrays in `data` may be nested.
pub const DATA_DEPTH_MAX: usize = 100;
/// The longest number in `data`, in digits; Python may be told to read no more than 640.
pub const DATA_DIGITS_MAX: usize = 600;
/// The longest namespace, in bytes.
pub const NAMESPACE_BYTES_MAX: usize = 63;

/// A field that cannot be what it says. The message names the field, shows the value and says what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value}: {problem}")]
pub struct FieldError {
    /// The field's name, as in the proto.
    pub field: &'static str,
    /// The value, quoted and shortened.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FieldError {
    /// Says that `field` cannot hold `value`.
    pub fn new(field: &'static str, value: &str, problem: impl Into<String>) -> Self {
        const SHOWN: usize = 120;
        let value = match value.char_indices().nth(SHOWN) {
            Some((at, _)) => format!("{:?}... ({} bytes)", &value[..at], value.len()),
            None => format!("{value:?}"),
        };
        FieldError {
            field,
            value,
            problem: problem.into(),
        }
    }
}

/// What a route is found by: host and decoded segments in their one canonical spelling, without a trailing slash.
///
/// `""` is the root; `/user/alice` a path; `alice.hub.example.org/user/alice` a path on one host.
#[derive(Clone)]
pub struct RouteKey {
    /// The spelling of the routespec, and after it the key, unless that is how the spelling begins.
    text: Arc<str>,
    start: u16,
    end: u16,
}

impl RouteKey {
    /// The key of the routespec that is spelt like this.
    fn new(spelling: &str, key: &str) -> Self {
        let at = |place: usize| u16::try_from(place).expect("both are far shorter");
        if spelling.strip_suffix('/') == Some(key) {
            return RouteKey {
                text: spelling.into(),
                start: 0,
                end: at(key.len()),
            };
        }
        let text: Arc<str> = format!("{spelling}{key}").into();
        RouteKey {
            start: at(spelling.len()),
            end: at(text.len()),
            text,
        }
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text[usize::from(self.start)..usize::from(self.end)]
    }

    /// The routespec's spelling.
    fn spelling(&self) -> &str {
        match self.start {
            0 => &self.text,
            start => &self.text[..usize::from(start)],
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.as_str().bytes().filter(|b| *b == b'/').count()
    }

    pub(crate) fn has_host(&self) -> bool {
        !self.as_str().is_empty() && !self.as_str().starts_with('/')
    }
}

/// By the canonical text alone, as all that follows.
impl PartialEq for RouteKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RouteKey {}

impl PartialOrd for RouteKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RouteKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for RouteKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for RouteKey {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Which requests a route takes, in the hub's own spelling.
///
/// Ends with `/`; begins with `/`, or with a host name for host routing. Two spellings of the same path
/// (`/user/%40lice/`, `/user/@lice/`) are one route: they have one [`key`](RouteSpec::key).
#[derive(Clone)]
pub struct RouteSpec {
    key: RouteKey,
}

impl RouteSpec {
    /// Parses the hub's spelling and keeps it byte for byte.
    ///
    /// # Errors
    /// [`FieldError`] on `routespec`: nothing a request could never match is let in.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let refuse = |problem: String| FieldError::new("routespec", text, problem);
        if text.len() > SPEC_BYTES_MAX {
            return Err(refuse(format!("is longer than {SPEC_BYTES_MAX} bytes")));
        }
        let slash = text.find('/').ok_or_else(|| refuse("must end with '/'".into()))?;
        let (host, path) = text.split_at(slash);
        if !text.ends_with('/') {
            return Err(refuse("must end with '/'".into()));
        }
        if path.contains('?') || path.contains('#') {
            return Err(refuse(
                "must have no query or fragment; write '?' as %3F and '#' as %23".into(),
            ));
        }
        let path = RequestPath::parse(path).map_err(|error| refuse(error.to_string()))?;
        let path = path.as_str().strip_suffix('/').unwrap_or_default();
        if path.split('/').skip(1).any(str::is_empty) {
            return Err(refuse("must have no empty segments ('//')".into()));
        }
        if host.is_empty() {
            return Ok(RouteSpec {
                key: RouteKey::new(text, path),
            });
        }
        if !host.starts_with('[') && host.contains(':') {
            return Err(refuse("must name a host without a port".into()));
        }
        let host = Host::parse(host).map_err(|error: PathError| refuse(error.to_string()))?;
        let host = host.as_str();
        // `user/alice/` is a forgotten slash far more often than a host called "user".
        if !(host.contains('.') || host.starts_with('[') || host == "localhost") {
            return Err(refuse("must begin with '/' or with a host name that has a dot".into()));
        }
        Ok(RouteSpec {
            key: RouteKey::new(text, &format!("{host}{path}")),
        })
    }

    /// The hub's own spelling.
    pub fn as_str(&self) -> &str {
        self.key.spelling()
    }

    /// What the route is found by.
    pub fn key(&self) -> &RouteKey {
        &self.key
    }
}

impl PartialEq for RouteSpec {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RouteSpec {}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Debug for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// How a target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http://host:port`
    Http,
    /// `https://host:port`
    Https,
    /// `http+unix://%2Frun%2Fserver.sock` (also spelt `unix+http`, as configurable-http-proxy does).
    HttpUnix,
}

/// Where a route leads: a URL in the hub's own spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    text: Arc<str>,
    scheme: Scheme,
    authority_start: u16,
    authority_end: u16,
    path_end: u16,
}

impl Target {
    /// Parses a URL and keeps its text byte for byte.
    ///
    /// # Errors
    /// [`FieldError`] on `target` for anything but an http, https or http+unix URL without user, password or fragment.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let refuse = |problem: String| FieldError::new("target", text, problem);
        if text.len() > SPEC_BYTES_MAX {
            return Err(refuse(format!("is longer than {SPEC_BYTES_MAX} bytes")));
        }
        if text.bytes().any(|b| b <= 0x20 || b == 0x7f || b == b'\\') {
            return Err(refuse("must have no spaces, control characters or backslashes".into()));
        }
        let target = Target::split(text)?;
        if text.contains('#') {
            return Err(refuse("must have no fragment".into()));
        }
        if target.authority().contains('@') {
            return Err(refuse("must have no user name or password".into()));
        }
        // What most targets are, an address and a port, is a URL whatever follows. To have it found out costs more than all
        // the rest.
        if target.authority().parse::<SocketAddrV4>().is_err() {
            url::Url::parse(text).map_err(|error| refuse(format!("is not a URL: {error}")))?;
        }
        match target.scheme {
            Scheme::HttpUnix => match target.socket_path() {
                Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(target),
                _ => Err(refuse(
                    "must carry an absolute socket path, percent-encoded: http+unix://%2Frun%2Fx.sock".into(),
                )),
            },
            _ => match Host::parse(target.authority()) {
                Ok(_) if target.port() != Some(0) => Ok(target),
                Ok(_) => Err(refuse("must have a port from 1 to 65535".into())),
                Err(error) => Err(refuse(error.to_string())),
            },
        }
    }

    /// Finds the parts of a URL without looking into them.
    fn split(text: &str) -> Result<Self, FieldError> {
        let refuse = || FieldError::new("target", text, "must be an http://, https:// or http+unix:// URL");
        let (scheme, rest) = text.split_once("://").ok_or_else(refuse)?;
        let authority_start = text.len() - rest.len();
        let scheme = match scheme {
            _ if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
            _ if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
            _ if scheme.eq_ignore_ascii_case("http+unix") || scheme.eq_ignore_ascii_case("unix+http") => {
                Scheme::HttpUnix
            }
            _ => return Err(refuse()),
        };
        let authority_end = authority_start + rest.find(['/', '?']).unwrap_or(rest.len());
        let path_end = authority_start + rest.find('?').unwrap_or(rest.len());
        let offset = |at: usize| u16::try_from(at).map_err(|_| refuse());
        Ok(Target {
            text: text.into(),
            scheme,
            authority_start: offset(authority_start)?,
            authority_end: offset(authority_end)?,
            path_end: offset(path_end)?,
        })
    }

    /// The hub's own spelling.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How it is spoken to.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host and port as written: `10.1.2.3:8888`, `[::1]:80`, `name`. For a unix socket the encoded socket path.
    pub fn authority(&self) -> &str {
        &self.text[usize::from(self.authority_start)..usize::from(self.authority_end)]
    }

    /// Scheme and authority as written: targets whose origins are the same text are one server.
    pub fn origin(&self) -> &str {
        &self.text[..usize::from(self.authority_end)]
    }

    /// The host as written, IPv6 addresses in brackets; `None` for a unix socket.
    pub fn host(&self) -> Option<&str> {
        let authority = self.authority();
        match self.scheme {
            Scheme::HttpUnix => None,
            _ if authority.starts_with('[') => authority.find(']').map(|end| &authority[..=end]),
            _ => Some(authority.split_once(':').map_or(authority, |(host, _)| host)),
        }
    }

    /// The port, the scheme's own if none is written; `Some(0)` never occurs, `None` for a unix socket.
    pub fn port(&self) -> Option<u16> {
        let written = || {
            let authority = self.authority();
            let after = authority.rfind(']').map_or(authority, |end| &authority[end..]);
            after
                .rsplit_once(':')
                .map(|(_, port)| port)
                .filter(|port| !port.is_empty())
        };
        match self.scheme {
            Scheme::HttpUnix => None,
            Scheme::Http => Some(written().map_or(80, |port| port.parse().unwrap_or(0))),
            Scheme::Https => Some(written().map_or(443, |port| port.parse().unwrap_or(0))),
        }
    }

    /// The path that goes before a request's own path, without a trailing slash; mostly `""`.
    pub fn path(&self) -> &str {
        self.text[usize::from(self.authority_end)..usize::from(self.path_end)].trim_end_matches('/')
    }

    /// The query that goes before a request's own, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.text[usize::from(self.path_end)..].strip_prefix('?')
    }

    /// Whose server it is: host and port or the socket, and the path without a trailing slash; neither scheme nor query.
    pub fn address(&self) -> &str {
        self.text[usize::from(self.authority_start)..usize::from(self.path_end)].trim_end_matches('/')
    }

    /// The socket's path, decoded; `None` unless the scheme is [`Scheme::HttpUnix`].
    pub fn socket_path(&self) -> Option<String> {
        if self.scheme != Scheme::HttpUnix {
            return None;
        }
        let mut bytes = Vec::new();
        let mut rest = self.authority().bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'%' => {
                    let mut digit = || rest.next().and_then(|d| (d as char).to_digit(16));
                    (digit()? * 16 + digit()?) as u8
                }
                other => other,
            });
        }
        String::from_utf8(bytes).ok()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// What the hub keeps with a route: the text of one JSON object, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data(Arc<str>);

impl Data {
    /// Checks that `text` is one JSON object; an empty text means `{}`.
    ///
    /// # Errors
    /// [`FieldError`] on `data`: not JSON (RFC 8259), not an object, larger than [`DATA_BYTES_MAX`], or what Python does not
    /// read by default: nested deeper than [`DATA_DEPTH_MAX`], a number of more than [`DATA_DIGITS_MAX`] digits. One such
    /// route would keep a hub from listing any.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let refuse = |problem: String| FieldError::new("data", text, problem);
        if text.is_empty() {
            return Ok(Data::default());
        }
        if text.len() > DATA_BYTES_MAX {
            return Err(refuse(format!("is larger than {} KiB", DATA_BYTES_MAX / 1024)));
        }
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        if !text.trim_start().starts_with('{') {
            return Err(refuse("must be a JSON object".into()));
        }
        let (depth, digits) = extent(text);
        if depth > DATA_DEPTH_MAX || digits > DATA_DIGITS_MAX {
            return Err(refuse(format!(
                "may be nested {DATA_DEPTH_MAX} deep and have numbers of {DATA_DIGITS_MAX} digits: hubs read no more"
            )));
        }
        Ok(Data(text.into()))
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How deep JSON is nested, and how many digits in a row it has outside of its strings.
fn extent(json: &str) -> (usize, usize) {
    let (mut depth, mut deepest, mut digits, mut most) = (0usize, 0, 0, 0);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        most = most.max(digits);
        match byte {
            b'"' => {
                while bytes
                    .next()
                    .is_some_and(|byte| byte != b'"' && (byte != b'\\' || bytes.next().is_some()))
                {}
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    (deepest, most)
}

impl Default for Data {
    fn default() -> Self {
        static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "{}".into());
        Data(EMPTY.clone())
    }
}

/// Which hub owns a route. [`Namespace::default`] is `default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Parses a name; an empty one means `default`.
    ///
    /// # Errors
    /// [`FieldError`] on `namespace`: only letters, digits, `.`, `_` and `-`, at most [`NAMESPACE_BYTES_MAX`] bytes.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let refuse = |problem: String| FieldError::new("namespace", text, problem);
        if text.is_empty() || text == "default" {
            return Ok(Namespace::default());
        }
        if text.len() > NAMESPACE_BYTES_MAX {
            return Err(refuse(format!("is longer than {NAMESPACE_BYTES_MAX} bytes")));
        }
        if !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        {
            return Err(refuse("may have letters, digits, '.', '_' and '-' only".into()));
        }
        Ok(Namespace(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| "default".into());
        Namespace(DEFAULT.clone())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One route: requests for `spec` go to `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which requests.
    pub spec: RouteSpec,
    /// Where to.
    pub target: Target,
    /// What the hub keeps with it.
    pub data: Data,
    /// Which hub owns it.
    pub namespace: Namespace,
}

impl Route {
    /// Parses all four parts.
    ///
    /// # Errors
    /// The first [`FieldError`] met, in the order of the arguments.
    pub fn parse(spec: &str, target: &str, data: &str, namespace: &str) -> Result<Self, FieldError> {
        Ok(Route {
            spec: RouteSpec::parse(spec)?,
            target: Target::parse(target)?,
            data: Data::parse(data)?,
            namespace: Namespace::parse(namespace)?,
        })
    }

    /// A route that was [parsed](Self::parse) when it was written, and comes from the log, the disk or a replica: what is
    /// not needed to take it apart is not checked again.
    ///
    /// # Errors
    /// [`FieldError`]: this never was a route.
    pub fn known(spec: &str, target: &str, data: &str, namespace: &str) -> Result<Self, FieldError> {
        Ok(Route {
            spec: RouteSpec::parse(spec)?,
            target: Target::split(target)?,
            data: match data {
                "" | "{}" => Data::default(),
                _ => Data(data.into()),
            },
            namespace: Namespace::parse(namespace)?,
        })
    }

    /// The bytes that a batch counts this route with.
    pub fn size(&self) -> usize {
        self.spec.as_str().len() + self.target.as_str().len() + self.data.as_str().len() + self.namespace.as_str().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_keeps_its_spelling_and_has_one_key() {
        let spec = RouteSpec::parse("/user/zo%C3%AB%40x/").unwrap();
        assert_eq!(
            (spec.as_str(), spec.key().as_str()),
            ("/user/zo%C3%AB%40x/", "/user/zoë@x")
        );
        assert_eq!(RouteSpec::parse("/").unwrap().key().as_str(), "");
        let host = RouteSpec::parse("Alice.Hub.org/user/a%2Fb/").unwrap();
        assert_eq!(
            (host.key().as_str(), host.key().depth()),
            ("alice.hub.org/user/a%2Fb", 2)
        );
        assert_eq!(host.as_str(), "Alice.Hub.org/user/a%2Fb/");
        assert_eq!(RouteSpec::parse("hub.org/").unwrap().key().as_str(), "hub.org");
        assert_eq!(RouteSpec::parse("/").unwrap().as_str(), "/");
    }

    #[test]
    fn two_spellings_of_a_path_are_two_specs_and_one_key() {
        let [plain, escaped] = ["/user/@lice/", "/user/%40lice/"].map(|spec| RouteSpec::parse(spec).unwrap());
        assert_ne!(plain, escaped);
        assert_eq!(plain.key(), escaped.key());
        assert_eq!(plain.key().cmp(escaped.key()), Ordering::Equal);
        let found: std::collections::HashSet<_> = [plain.key().clone(), escaped.key().clone()].into();
        assert!(found.len() == 1 && found.contains("/user/@lice"));
        let longest = format!("/{}/", "é".repeat(SPEC_BYTES_MAX / 2 - 1));
        assert_eq!(RouteSpec::parse(&longest).unwrap().as_str(), longest);
    }

    #[test]
    fn a_spec_that_no_request_could_match_is_refused_by_name() {
        let long = format!("/{}/", "x".repeat(SPEC_BYTES_MAX));
        for (bad, why) in [
            ("", "end with"),
            ("user", "end with"),
            ("/user/alice", "end with"),
            ("user/alice/", "begin with '/'"),
            ("/user//alice/", "empty segments"),
            ("//user/", "'//'"),
            ("/user/../x/", "'..'"),
            ("/user/%2e%2e/x/", "'..'"),
            ("/user/\n/", "control"),
            ("/user/%0a/", "control"),
            ("/user/%zz/", "hexadecimal"),
            ("/user/%ff/", "UTF-8"),
            ("/user\\x/", "backslash"),
            ("/user?x/", "query"),
            ("hub.org:8000/", "without a port"),
            (long.as_str(), "longer than 8192 bytes"),
        ] {
            let error = RouteSpec::parse(bad).unwrap_err();
            assert_eq!(error.field, "routespec");
            assert!(error.to_string().contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_target_is_taken_apart_without_being_rewritten() {
        let target = Target::parse("http://10.1.2.3:8888").unwrap();
        assert_eq!(
            (target.host(), target.port(), target.path()),
            (Some("10.1.2.3"), Some(8888), "")
        );
        let target = Target::parse("https://[::1]/base/?q=1").unwrap();
        assert_eq!(
            (target.host(), target.port(), target.path()),
            (Some("[::1]"), Some(443), "/base")
        );
        assert_eq!((target.query(), target.origin()), (Some("q=1"), "https://[::1]"));
        let target = Target::parse("http+unix://%2Frun%2Fa%20b.sock/x").unwrap();
        assert_eq!(
            (target.socket_path().as_deref(), target.port()),
            (Some("/run/a b.sock"), None)
        );
        assert_eq!(target.path(), "/x");
        assert_eq!(Target::parse("HTTP://Name:80/").unwrap().as_str(), "HTTP://Name:80/");
    }

    #[test]
    fn what_follows_an_address_and_a_port_makes_no_difference_to_a_url() {
        let mut rest: Vec<String> = [
            "", "/", "?", "/[", "/a b", "/%", "/%zz", "/:@", "/é", "/?q=[]", "//", "/..",
        ]
        .map(str::to_owned)
        .to_vec();
        rest.extend((0x21..0x7f).map(|byte| format!("/{}", char::from(byte))));
        for scheme in ["http", "HTTPS"] {
            for rest in &rest {
                let text = format!("{scheme}://10.1.2.3:8888{rest}");
                assert!(url::Url::parse(&text).is_ok(), "{text}");
            }
        }
    }

    #[test]
    fn a_target_that_is_no_url_is_refused_by_name() {
        for bad in [
            "",
            "10.1.2.3:8888",
            "ftp://x/",
            "http://",
            "http://:80",
            "http://a b/",
            "http://u:p@h/",
            "http://h/#f",
            "http://h:0",
            "http://h:99999",
            "http+unix://run.sock",
            "http+unix:///run.sock",
            "javascript://x",
            "http://h\\x",
        ] {
            assert_eq!(Target::parse(bad).unwrap_err().field, "target", "{bad:?}");
        }
    }

    #[test]
    fn data_is_one_json_object_and_kept_as_it_is() {
        assert_eq!(
            Data::parse(r#"{"n": 1.50, "a":[true]}"#).unwrap().as_str(),
            r#"{"n": 1.50, "a":[true]}"#
        );
        assert_eq!(Data::parse("").unwrap().as_str(), "{}");
        let large = format!("{{\"x\":\"{}\"}}", "y".repeat(DATA_BYTES_MAX));
        let nested = |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let number = |digits: usize| format!("{{\"x\":{}}}", "9".repeat(digits));
        let text = format!(r#"{{"x":"\\\"{}{}"}}"#, "[".repeat(200), "9".repeat(700));
        for good in [nested(99), number(600), text] {
            assert_eq!(Data::parse(&good).unwrap().as_str(), good);
        }
        let (deep, long) = (nested(100), number(601));
        for bad in ["[]", "1", "{", "{} {}", "null", "\"{}\"", &large, &deep, &long] {
            assert_eq!(Data::parse(bad).unwrap_err().field, "data", "{bad:.20}");
        }
    }

    #[test]
    fn an_error_shows_a_long_value_shortened() {
        let error = RouteSpec::parse(&format!("/{}", "x".repeat(5000))).unwrap_err();
        assert!(error.to_string().len() < 300, "{error}");
        assert!(error.to_string().contains("(5001 bytes)"));
    }
}
