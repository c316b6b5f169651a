//! The one reading of a host and of a request path: split, decode, refuse.
//!
//! A path is split at `/` first and each segment is percent-decoded once, so that an encoded slash is a character
//! within a segment and never a delimiter. What a table is keyed by, what a request is looked up by and what is logged
//! all come from here, while the raw bytes go to the target unchanged: what was matched is what is forwarded.

#[cfg(any(test, fuzzing))]
pub(crate) mod reference;

use std::borrow::Cow;
use std::fmt::Write as _;

/// Why a path or a host cannot be read. A proxy answers 400; a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not in origin form (RFC 9112, section 3.2.1).
    #[error("a path begins with '/'")]
    NotAbsolute,
    /// `//evil.example/` is a network-path reference (RFC 3986, section 4.2) to whoever reads it next.
    #[error("a path does not begin with '//'")]
    NetworkPath,
    /// `.` or `..`, raw or percent-encoded.
    #[error("a path has no '.' or '..' segments, not even percent-encoded ones")]
    DotSegment,
    /// `\`, raw or percent-encoded.
    #[error("a path has no backslash, not even a percent-encoded one")]
    Backslash,
    /// A byte below 0x20 or 0x7f, raw or percent-encoded, or a raw space.
    #[error("a path has no control characters or spaces, and no percent-encoded control characters")]
    Control,
    /// `%` without two hexadecimal digits.
    #[error("each '%' in a path is followed by two hexadecimal digits")]
    BadEscape,
    /// The decoded bytes of a segment are no text.
    #[error("a path is UTF-8 once it is percent-decoded")]
    NotUtf8,
    /// Empty, or with characters that no host name has.
    #[error("a host name has letters, digits, '.', '-' and '_', or is an IPv6 address in brackets")]
    BadHost,
}

/// A request's path as it is looked up.
///
/// Plain paths are borrowed as they are. In others each segment is decoded and then only `%` and `/` are escaped
/// again, which makes the form unique: two spellings of one path read alike, two paths never do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPath<'a>(Cow<'a, str>);

impl<'a> RequestPath<'a> {
    /// Reads the path of a request target in origin form; a query (`?` and after) is ignored.
    ///
    /// # Errors
    /// [`PathError`]: answer 400 and forward nothing, not even to a default target.
    pub fn parse(target: &'a str) -> Result<Self, PathError> {
        let raw = target.split_once('?').map_or(target, |(path, _)| path);
        let rest = raw.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        if rest.starts_with('/') {
            return Err(PathError::NetworkPath);
        }
        let mut plain = true;
        for byte in raw.bytes() {
            match byte {
                b'%' => plain = false,
                b'\\' => return Err(PathError::Backslash),
                0..=0x20 | 0x7f => return Err(PathError::Control),
                _ => {}
            }
        }
        if plain {
            return match rest.split('/').any(is_dot) {
                true => Err(PathError::DotSegment),
                false => Ok(RequestPath(Cow::Borrowed(raw))),
            };
        }
        let mut canonical = String::with_capacity(raw.len());
        for segment in rest.split('/') {
            canonical.push('/');
            push_canonical(&mut canonical, segment)?;
        }
        Ok(RequestPath(Cow::Owned(canonical)))
    }

    /// The canonical text: begins with `/`, keeps empty segments and a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the path may be cut for a lookup: the n-th offset ends a prefix of n segments, the first one is the root.
    ///
    /// At most `depth_max + 1` of them, for deeper than the deepest route nothing can match.
    pub(crate) fn boundaries(&self, depth_max: usize) -> Vec<usize> {
        let path: &str = &self.0;
        let slashes = path
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'/')
            .map(|(at, _)| at);
        let end = (!path.ends_with('/')).then_some(path.len());
        slashes.chain(end).take(depth_max + 1).collect()
    }
}

fn push_canonical(out: &mut String, segment: &str) -> Result<(), PathError> {
    let decoded = decode(segment)?;
    if is_dot(&decoded) {
        return Err(PathError::DotSegment);
    }
    for character in decoded.chars() {
        match character {
            '\\' => return Err(PathError::Backslash),
            '\0'..='\x1f' | '\x7f' => return Err(PathError::Control),
            '%' | '/' => {
                let _ = write!(out, "%{:02X}", character as u32);
            }
            _ => out.push(character),
        }
    }
    Ok(())
}

fn decode(segment: &str) -> Result<Cow<'_, str>, PathError> {
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|d| (d as char).to_digit(16))
                .ok_or(PathError::BadEscape)
        };
        let (high, low) = (digit()?, digit()?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| PathError::NotUtf8)
}

fn is_dot(segment: &str) -> bool {
    segment == "." || segment == ".."
}

/// A host name as it is looked up: lower case, without port and without a trailing dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a>(Cow<'a, str>);

impl<'a> Host<'a> {
    /// Reads a `Host` header or an authority: `alice.hub.example.org:8000`, `[::1]:80`.
    ///
    /// # Errors
    /// [`PathError::BadHost`]: answer 400.
    pub fn parse(authority: &'a str) -> Result<Self, PathError> {
        let name = if authority.starts_with('[') {
            let end = authority.find(']').ok_or(PathError::BadHost)?;
            let (address, rest) = authority.split_at(end + 1);
            check_port(rest)?;
            if address.len() == 2
                || !address[1..end]
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
            {
                return Err(PathError::BadHost);
            }
            address
        } else {
            let (name, port) = authority.find(':').map_or((authority, ""), |at| authority.split_at(at));
            check_port(port)?;
            let name = name.strip_suffix('.').unwrap_or(name);
            let bad = |b: u8| !(b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            if name.is_empty() || name.bytes().any(bad) || name.split('.').any(str::is_empty) {
                return Err(PathError::BadHost);
            }
            name
        };
        Ok(Host(match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        }))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_port(port: &str) -> Result<(), PathError> {
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(PathError::BadHost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Result<String, PathError> {
        RequestPath::parse(path).map(|p| p.as_str().to_owned())
    }

    #[test]
    fn a_plain_path_is_itself_and_its_query_is_ignored() {
        assert_eq!(read("/user/alice/lab?token=/../x").unwrap(), "/user/alice/lab");
        assert!(matches!(
            RequestPath::parse("/user/alice/").unwrap().0,
            Cow::Borrowed(_)
        ));
    }

    #[test]
    fn segments_are_split_before_they_are_decoded() {
        assert_eq!(read("/user/%40lice").unwrap(), "/user/@lice");
        assert_eq!(read("/user%2fbob/api").unwrap(), "/user%2Fbob/api");
        assert_eq!(read("/user%252fbob").unwrap(), "/user%252fbob");
        assert_eq!(read("/user/zo%C3%AB/").unwrap(), "/user/zoë/");
        assert_ne!(read("/a%2Fb").unwrap(), read("/a%252Fb").unwrap());
    }

    #[test]
    fn what_another_reader_could_read_otherwise_is_refused() {
        for (path, error) in [
            ("user/alice", PathError::NotAbsolute),
            ("", PathError::NotAbsolute),
            ("//evil/user/bob", PathError::NetworkPath),
            ("/user/alice/../bob", PathError::DotSegment),
            ("/user/alice/%2e%2e/bob", PathError::DotSegment),
            ("/user/alice/.%2E/bob", PathError::DotSegment),
            ("/user/./alice", PathError::DotSegment),
            ("/user/..", PathError::DotSegment),
            ("/user\\bob", PathError::Backslash),
            ("/user%5cbob", PathError::Backslash),
            ("/user/bob%00", PathError::Control),
            ("/user/bob%0a", PathError::Control),
            ("/user/b b", PathError::Control),
            ("/user/\x7f", PathError::Control),
            ("/user/%zz", PathError::BadEscape),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%ff", PathError::NotUtf8),
        ] {
            assert_eq!(read(path), Err(error), "{path:?}");
        }
    }

    #[test]
    fn a_host_is_lower_case_without_port_and_dot() {
        let host = |text: &str| Host::parse(text).map(|h| h.as_str().to_owned());
        assert_eq!(host("Alice.Hub.Example.org:8000").unwrap(), "alice.hub.example.org");
        assert_eq!(host("hub.example.org.").unwrap(), "hub.example.org");
        assert_eq!(host("[::1]:80").unwrap(), "[::1]");
        for bad in [
            "", ":80", "a b", "a/b", "[::1", "[]", "a..b", "a:x", "a@b", "[::1]x", ".",
        ] {
            assert_eq!(host(bad), Err(PathError::BadHost), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn reading_is_idempotent_on_its_own_output(path in "/[a-zA-Z0-9%/@~ü.+:;-]{0,40}") {
            if let Ok(once) = read(&path) {
                // The canonical text is itself a readable path, unless decoding brought a space to light.
                if !once.contains(' ') {
                    proptest::prop_assert_eq!(read(&once), Ok(once.clone()));
                }
            }
        }
    }
}
