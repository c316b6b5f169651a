//! Reads along with hyper what a client sends over HTTP/1.1, and spoils what must not be let through.
//!
//! hyper resolves some ambiguities where they should end the connection (RFC 9112, sections 2.2, 6.1 and 6.3): it takes
//! a bare line feed for the end of a line, of two framings it takes one without a word, of two equal lengths one, and it cuts a
//! request's target at a '#', which none has, so that a target would get another than was sent. None of that can be seen in the request that it makes. So the bytes are looked at before hyper has them: the end of a line
//! that is refused becomes a byte that no head may have, and the head's end follows at once. hyper answers that with 400.

#[cfg(any(test, fuzzing))]
pub(crate) mod reference;

use prometheus_client::metrics::counter::Counter;

/// As many bytes of a line as are ever needed: the longest name that counts, a colon, and a value that counts.
const LINE_BYTES_MAX: usize = 64;
/// Empty lines before a request.
const EMPTY_LINES_MAX: u8 = 4;

/// Where in its client's bytes a connection is.
pub(crate) struct Watch {
    place: Place,
    /// The begin of a line whose end is not here yet.
    line: [u8; LINE_BYTES_MAX],
    kept: usize,
    /// True if the present line is longer than what is here of it.
    cut: bool,
    /// What the present head says of its body.
    framing: Framing,
    /// How many heads have come to their end.
    heads: u64,
    refused: Counter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between two requests, behind so many empty lines.
    Before(u8),
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    /// What follows is not HTTP, or is hyper's to refuse.
    Beyond,
    /// Behind what was refused, before the end that was made up for it.
    Spoilt,
    /// Behind that.
    Over,
}

#[derive(Clone, Copy, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    websocket: bool,
}

/// True for the value of an `Upgrade` after which a connection carries no further request: granted, it is a tunnel;
/// refused, it is closed, for what follows may have been meant for the tunnel.
pub(crate) fn names_websocket(upgrade: &[u8]) -> bool {
    upgrade.windows(9).any(|nine| nine.eq_ignore_ascii_case(b"websocket"))
}

impl Watch {
    pub(crate) fn new(refused: Counter) -> Self {
        Watch {
            place: Place::Before(0),
            line: [0; LINE_BYTES_MAX],
            kept: 0,
            cut: false,
            framing: Framing::default(),
            heads: 0,
            refused,
        }
    }

    /// True once the connection is a tunnel, or about to end.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.place, Place::Beyond | Place::Spoilt | Place::Over)
    }

    /// True within the head of a request.
    pub(crate) fn is_in_head(&self) -> bool {
        match self.place {
            Place::Before(_) => self.kept > 0,
            Place::Head => true,
            _ => false,
        }
    }

    /// Which head is due, counted from 0: one that has begun, or the connection's first one.
    pub(crate) fn awaits_head(&self) -> Option<u64> {
        let is_first = self.heads == 0 && matches!(self.place, Place::Before(_));
        (is_first || self.is_in_head()).then_some(self.heads)
    }

    /// What is read instead of the client's bytes behind something refused: an end of the head, for hyper looks at a head
    /// that came in parts only when it has its end; then nothing.
    pub(crate) fn end(&mut self) -> Option<&'static [u8]> {
        match self.place {
            Place::Spoilt => {
                self.place = Place::Over;
                Some(b"\r\n\r\n")
            }
            Place::Over => Some(b""),
            _ => None,
        }
    }

    /// Looks at the next bytes, in the order in which they came.
    pub(crate) fn read(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match self.place {
                Place::Beyond | Place::Spoilt | Place::Over => return,
                Place::Body(left) => {
                    let (left, used) = skip(left, bytes.len());
                    self.place = match left {
                        0 => Place::Before(0),
                        left => Place::Body(left),
                    };
                    used
                }
                Place::Chunk(left) => {
                    let (left, used) = skip(left, bytes.len());
                    self.place = match left {
                        0 => Place::ChunkEnd,
                        left => Place::Chunk(left),
                    };
                    used
                }
                _ => {
                    let end = memchr::memchr(b'\n', bytes);
                    let line = &bytes[..end.unwrap_or(bytes.len())];
                    let refused = match self.place {
                        Place::Before(_) => memchr::memchr(b'#', line),
                        _ => None,
                    };
                    match (refused, end) {
                        (Some(at), _) => return self.spoil(&mut bytes[at]),
                        (None, None) => return self.keep(bytes),
                        (None, Some(end)) if !self.line(&bytes[..end]) => return self.spoil(&mut bytes[end]),
                        (None, Some(end)) => end + 1,
                    }
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    fn spoil(&mut self, byte: &mut u8) {
        *byte = 0;
        self.refused.inc();
        self.place = Place::Spoilt;
    }

    /// Takes the rest of a line, without its line feed; false refuses what the line belongs to.
    fn line(&mut self, rest: &[u8]) -> bool {
        if self.kept == 0 {
            self.cut = false;
            return self.whole_line(rest);
        }
        // The last byte tells a bare line feed, so it is kept even of a line that is too long to be kept.
        let mut line = self.line;
        let length = match self.kept + rest.len() {
            all if all <= LINE_BYTES_MAX && !self.cut => {
                line[self.kept..all].copy_from_slice(rest);
                all
            }
            _ => {
                self.cut = true;
                let room = LINE_BYTES_MAX - self.kept;
                line[self.kept..].copy_from_slice(&rest[..room]);
                line[LINE_BYTES_MAX - 1] = rest.last().copied().unwrap_or(line[LINE_BYTES_MAX - 1]);
                LINE_BYTES_MAX
            }
        };
        self.kept = 0;
        self.whole_line(&line[..length])
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.kept;
        let some = bytes.len().min(room);
        self.cut = (self.cut && self.kept > 0) || bytes.len() > room;
        self.line[self.kept..self.kept + some].copy_from_slice(&bytes[..some]);
        self.kept += some;
        if bytes.len() > room
            && let Some(last) = bytes.last()
        {
            self.line[LINE_BYTES_MAX - 1] = *last;
        }
    }

    fn whole_line(&mut self, line: &[u8]) -> bool {
        let Some((b'\r', line)) = line.split_last().map(|(last, line)| (*last, line)) else {
            return self.bare_line_feed();
        };
        match self.place {
            Place::Before(seen) if line.is_empty() => {
                self.place = Place::Before(seen + 1);
                seen < EMPTY_LINES_MAX
            }
            Place::Before(_) => {
                self.framing = Framing::default();
                self.place = Place::Head;
                true
            }
            Place::Head if line.is_empty() => {
                self.heads += 1;
                self.place = match self.framing {
                    Framing { websocket: true, .. } => Place::Beyond,
                    Framing { chunked: true, .. } => Place::ChunkSize,
                    Framing { length: Some(1..), .. } => Place::Body(self.framing.length.unwrap_or(0)),
                    Framing { .. } => Place::Before(0),
                };
                true
            }
            Place::Head => self.header(line),
            // With more digits than are kept, it might be any number.
            Place::ChunkSize if self.cut && line.iter().all(u8::is_ascii_hexdigit) => false,
            Place::ChunkSize => {
                // hyper reads no more of a body whose chunks are wrong, so neither do we.
                self.place = match chunk_size(line) {
                    Some(0) => Place::Trailer,
                    Some(size) => Place::Chunk(size),
                    None => Place::Beyond,
                };
                true
            }
            Place::ChunkEnd => {
                self.place = match line.is_empty() {
                    true => Place::ChunkSize,
                    false => Place::Beyond,
                };
                true
            }
            Place::Trailer => {
                if line.is_empty() {
                    self.place = Place::Before(0);
                }
                true
            }
            Place::Body(_) | Place::Chunk(_) | Place::Beyond | Place::Spoilt | Place::Over => true,
        }
    }

    /// The end of a line that hyper takes for one, or not, depending on where it is.
    fn bare_line_feed(&mut self) -> bool {
        match self.place {
            // There hyper refuses it, and reads no more.
            Place::ChunkSize | Place::ChunkEnd => {
                self.place = Place::Beyond;
                true
            }
            _ => false,
        }
    }

    fn header(&mut self, line: &[u8]) -> bool {
        // One look at the first letter spares most lines the rest.
        let name_is = |name: &[u8]| line.len() >= name.len() && line[..name.len()].eq_ignore_ascii_case(name);
        match line[0].to_ascii_lowercase() {
            // Obsolete folding: what it belongs to reads differently with it and without.
            b' ' | b'\t' => false,
            b'c' if name_is(b"content-length:") => {
                let once = self.framing.length.is_none() && !self.framing.chunked;
                self.framing.length = length(line[15..].trim_ascii());
                once && !self.cut && self.framing.length.is_some()
            }
            b't' if name_is(b"transfer-encoding:") => {
                let once = self.framing.length.is_none() && !self.framing.chunked;
                self.framing.chunked = true;
                once && !self.cut && line[18..].trim_ascii().eq_ignore_ascii_case(b"chunked")
            }
            b'u' if name_is(b"upgrade:") => {
                self.framing.websocket |= names_websocket(line);
                !self.cut
            }
            _ => true,
        }
    }
}

fn skip(left: u64, here: usize) -> (u64, usize) {
    match usize::try_from(left) {
        Ok(left) if left <= here => (0, left),
        _ => (left - here as u64, here),
    }
}

/// Digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(line.len());
    let digits = std::str::from_utf8(&line[..end]).ok()?;
    match line.get(end) {
        None | Some(b';' | b' ' | b'\t') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes as hyper gets them if they come in pieces of so many.
    fn read(bytes: &str, piece: usize) -> (String, Place, u64) {
        let mut bytes = bytes.as_bytes().to_vec();
        let mut watch = Watch::new(Counter::default());
        bytes.chunks_mut(piece).for_each(|piece| watch.read(piece));
        (String::from_utf8(bytes).unwrap(), watch.place, watch.refused.get())
    }

    fn passes(bytes: &str, place: Place) {
        for piece in [1, 2, 3, 7, 1000] {
            let (read, at, refused) = read(bytes, piece);
            assert_eq!(
                (read.as_str(), at, refused),
                (bytes, place, 0),
                "{bytes:?} in pieces of {piece}"
            );
        }
    }

    fn is_spoilt(bytes: &str, at: usize) {
        for piece in [1, 2, 3, 7, 1000] {
            let (read, place, refused) = read(bytes, piece);
            assert_eq!(read.find('\0'), Some(at), "{bytes:?} in pieces of {piece}");
            assert_eq!((place, refused), (Place::Spoilt, 1));
        }
    }

    #[test]
    fn whole_requests_pass_one_after_the_other() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\nCookie: content-length: 5\r\n\r\n";
        let long = format!("GET /{} HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(500), "b".repeat(500));
        let post = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\n\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\na\nb\n\n\r\n0\r\nX: y\r\n\r\n";
        passes(get, Place::Before(0));
        passes(&format!("{get}\r\n{post}{chunked}{long}{get}"), Place::Before(0));
        passes("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Place::Before(0));
        passes("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", Place::Body(6));
        passes(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
            Place::Chunk(252),
        );
    }

    #[test]
    fn what_reads_in_two_ways_is_spoilt_where_it_does() {
        for (before, line) in [
            ("GET / HTTP/1.1\r\nHost: a\r\nX: ", "a\n"),
            ("GET / HTTP/1.1", "\n"),
            ("GET / HTTP/1.1\r\nHost: a\r\n", "\n"),
            ("", "\n"),
            ("P / HTTP/1.1\r\nContent-Length: 3\r\n", "Content-Length: 3\r\n"),
            (
                "P / HTTP/1.1\r\nContent-Length: 3\r\n",
                "Transfer-Encoding: chunked\r\n",
            ),
            (
                "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
                "content-length: 3\r\n",
            ),
            (
                "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\n",
            ),
            ("P / HTTP/1.1\r\n", "Transfer-Encoding: gzip, chunked\r\n"),
            ("P / HTTP/1.1\r\n", "Transfer-Encoding:\r\n"),
            ("P / HTTP/1.1\r\n", "Content-Length: +3\r\n"),
            ("P / HTTP/1.1\r\n", "Content-Length: 3, 3\r\n"),
            ("P / HTTP/1.1\r\n", "Content-Length:\r\n"),
            ("P / HTTP/1.1\r\n", "Content-Length: 99999999999999999999999999\r\n"),
            ("GET / HTTP/1.1\r\nX: a\r\n", " b\r\n"),
            ("\r\n\r\n\r\n\r\n", "\r\n"),
            ("GET /a", "#"),
            ("GET /", "#"),
            ("", "#"),
        ] {
            let head = format!("{before}{line}Host: a\r\n\r\n");
            is_spoilt(&head, before.len() + line.len() - 1);
            // The same behind a request that is in order.
            let first = "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\n";
            is_spoilt(&format!("{first}{head}"), first.len() + before.len() + line.len() - 1);
        }
    }

    /// What did not come in one piece and is too long to be kept is as good as unread.
    #[test]
    fn a_line_that_counts_is_read_whole_or_not_at_all() {
        let zeros = "0".repeat(100);
        let chunked = "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let pad = " ".repeat(100);
        for (head, rest, whole) in [
            (
                format!("P / HTTP/1.1\r\nContent-Length: {zeros}5\r\n"),
                "\r\nabcde",
                Place::Before(0),
            ),
            (format!("{chunked}{zeros}5\r\n"), "\r\n\r\n", Place::Chunk(1)),
            (
                format!("G / HTTP/1.1\r\nUpgrade:{pad}websocket\r\n"),
                "\r\n",
                Place::Beyond,
            ),
        ] {
            let (_, place, refused) = read(&format!("{head}{rest}"), 1000);
            assert_eq!((place, refused), (whole, 0), "{head:?}");
            for piece in [1, 2, 3, 7] {
                let (read, place, refused) = read(&format!("{head}{rest}"), piece);
                assert_eq!(read.find('\0'), Some(head.len() - 1), "{head:?} in pieces of {piece}");
                assert_eq!((place, refused), (Place::Spoilt, 1));
            }
        }
    }

    #[test]
    fn the_first_head_is_due_and_each_that_has_begun() {
        let mut watch = Watch::new(Counter::default());
        for (bytes, is_in_head, awaits_head) in [
            ("", false, Some(0)),
            ("\r\n", false, Some(0)),
            ("PO", true, Some(0)),
            ("ST / HTTP/1.1\r\n", true, Some(0)),
            ("Content-Length: 3\r\n", true, Some(0)),
            ("\r\n", false, None),
            ("abc", false, None),
            ("G", true, Some(1)),
            ("ET / HTTP/1.1\r\n\r\nGET", true, Some(2)),
            (" / HTTP/1.1\r\n\r\n", false, None),
        ] {
            watch.read(&mut bytes.as_bytes().to_vec());
            let found = (watch.is_in_head(), watch.awaits_head());
            assert_eq!(found, (is_in_head, awaits_head), "behind {bytes:?}");
        }
    }

    /// hyper takes it for a part of a trailer, others for its end: the body would end in two places.
    #[test]
    fn a_bare_line_feed_in_trailers_is_spoilt() {
        let body = "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
        for trailers in ["", "X: y", "X: y\r\n", "X: y\r\nZ: z"] {
            let text = format!("{body}{trailers}\n\r\nG / HTTP/1.1\r\nContent-Length: 9\r\n\r\n");
            is_spoilt(&text, body.len() + trailers.len());
        }
    }

    #[test]
    fn nothing_is_spoilt_behind_an_upgrade_or_in_a_broken_body() {
        let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n";
        passes(&format!("{upgrade}\n\n\n"), Place::Beyond);
        passes(
            "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\n\n",
            Place::Beyond,
        );
        let other = "GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n";
        is_spoilt(&format!("{other}\n"), other.len());
    }
}
