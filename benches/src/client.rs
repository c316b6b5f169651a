//! One request at a time, on a connection that is kept, in a thread that waits: nothing is faster for a single answer.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// What one answer may take at most: longer means that something is broken.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 16 * 1024;

/// A connection.
pub struct Client {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, with the lengths of its chunks if it came in chunks.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Client {
            stream,
            address: address.to_owned(),
            buffer: Vec::new(),
        })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// No answer, or one that this client does not understand.
    pub fn ask(&mut self, path: &str) -> Result<Answer> {
        let address = &self.address;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n");
        self.exchange(request.as_bytes())
    }

    /// `POST path` with JSON.
    ///
    /// # Errors
    /// No answer that could be read.
    pub fn post(&mut self, path: &str, json: &str) -> Result<Answer> {
        let (address, length) = (&self.address, json.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{json}"
        );
        self.exchange(request.as_bytes())
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        loop {
            let filled = self.buffer.len();
            self.buffer.resize(filled + READ_BYTES, 0);
            let read = self.stream.read(&mut self.buffer[filled..])?;
            self.buffer.truncate(filled + read);
            if let Some(answer) = parse(&self.buffer)? {
                return Ok(answer);
            }
            ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }
}

/// Asks again and again, on a new connection each time, until the right server answers; returns when that was.
///
/// # Errors
/// It does not, `within` so long; the text says what was seen last.
pub fn first_right(address: &str, path: &str, body: &str, every: Duration, within: Duration) -> Result<Instant> {
    let deadline = Instant::now() + within;
    loop {
        let seen = Client::open(address).and_then(|mut client| client.ask(path));
        match seen {
            Ok(answer) if answer.is_right(body) => return Ok(Instant::now()),
            seen if Instant::now() >= deadline => {
                bail!("not the right answer for {path} within {within:?}; last seen: {seen:?}")
            }
            _ => thread::sleep(every),
        }
    }
}

impl Answer {
    /// True if it is 200 and this, or begins with it where it is larger.
    pub fn is_right(&self, body: &str) -> bool {
        self.status == 200 && self.body.starts_with(body.as_bytes())
    }
}

/// The answer, once it is whole.
fn parse(bytes: &[u8]) -> Result<Option<Answer>> {
    const END: &[u8] = b"\r\n\r\n";
    const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
    let Some(end) = bytes.windows(END.len()).position(|window| window == END) else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("no answer of HTTP: {head:?}"))?;
    let header = |wanted: &str| {
        let mut headers = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        let found = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim())
    };
    let rest = &bytes[end + END.len()..];
    let body = match header("content-length") {
        Some(length) => rest.get(..length.parse()?),
        // Only a control API's answer, in which nobody looks.
        None if header("transfer-encoding").is_some() => Some(rest).filter(|rest| rest.ends_with(LAST_CHUNK)),
        None => bail!("an answer without a length: {head:?}"),
    };
    Ok(body.map(|body| Answer {
        status,
        body: body.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 3\r\n\r\nabc";
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]).unwrap(), None, "{length}");
        }
        let answer = parse(whole).unwrap().unwrap();
        assert!(answer.is_right("abc") && !answer.is_right("b"));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        let chunked = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(parse(&chunked[..chunked.len() - 1]).unwrap(), None);
        assert_eq!(parse(chunked).unwrap().unwrap().status, 201);
    }
}
