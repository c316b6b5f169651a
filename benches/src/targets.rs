//! Users' servers that cost next to nothing: one thread answers for all of them, each on an address of its own.

use std::net::{self, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use holdfast_tests::websocket::ACCEPT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// In a path: 10 KiB are answered.
pub const LARGE: &str = "/files/large.bin";
/// In a path: a WebSocket that answers with what it is told.
pub const ECHO: &str = "/api/kernels/echo";
/// The longest payload of one frame that is echoed.
pub const ECHO_BYTES_MAX: usize = 125;

const LARGE_BYTES: usize = 10 * 1024;
/// Each address has one, so that the number of a target is told from its address.
const PER_BLOCK: usize = 250;
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Servers that answer until this is dropped.
pub struct Targets {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Targets {
    /// Starts so many, on addresses of 127.1.0.0/16 and one port.
    ///
    /// # Errors
    /// One cannot listen.
    pub fn start(count: usize) -> Result<Self> {
        let listeners = listen(count)?;
        let addresses = listeners
            .iter()
            .map(net::TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let served = serve(listeners, stop.clone());
        let thread = thread::Builder::new().name("targets".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(served) {
                eprintln!("the targets do not answer: {error:#}");
            }
        })?;
        Ok(Targets {
            addresses,
            stop,
            thread: Some(thread),
        })
    }

    /// Where each of them listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Fails only if it panicked, which it has said itself.
            let _ = thread.join();
        }
    }
}

/// The 13 bytes that the target of this number answers, so that a wrong one is known.
pub fn answer_of(target: usize) -> String {
    format!("target {target:05}\n")
}

fn listen(count: usize) -> Result<Vec<net::TcpListener>> {
    let mut listeners: Vec<net::TcpListener> = Vec::with_capacity(count);
    let mut port = 0;
    for number in 0..count {
        let (block, host) = (u8::try_from(number / PER_BLOCK)?, u8::try_from(number % PER_BLOCK)? + 1);
        let address = SocketAddr::from((Ipv4Addr::new(127, 1, block, host), port));
        let listener = net::TcpListener::bind(address);
        let listener = listener.with_context(|| format!("a target cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

async fn serve(listeners: Vec<net::TcpListener>, stop: CancellationToken) -> Result<()> {
    let mut tasks = JoinSet::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        tasks.spawn(accept(TcpListener::from_std(listener)?, Arc::new(Answers::of(number))));
    }
    stop.cancelled().await;
    Ok(())
}

/// Never returns.
async fn accept(listener: TcpListener, answers: Arc<Answers>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                // A proxy that breaks a connection reports that itself.
                connections.spawn(serve_one(stream, answers.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
}

impl Answers {
    fn of(target: usize) -> Self {
        let large = answer_of(target).repeat(LARGE_BYTES);
        Answers {
            small: whole(answer_of(target).as_bytes()),
            large: whole(&large.as_bytes()[..LARGE_BYTES]),
        }
    }
}

fn whole(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Requests without a body, one at a time.
async fn serve_one(mut stream: TcpStream, answers: Arc<Answers>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            read => filled += read,
        }
        let head = &buffer[..filled];
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let mut lines = head.split(|byte| *byte == b'\n');
        let request = String::from_utf8_lossy(lines.next().unwrap_or_default());
        if request.contains(ECHO) {
            return echo(stream).await;
        }
        let closes = lines.any(|line| line.eq_ignore_ascii_case(b"connection: close\r"));
        let is_large = request.contains(LARGE);
        stream
            .write_all(if is_large { &answers.large } else { &answers.small })
            .await?;
        if closes {
            return Ok(());
        }
        filled = 0;
    }
}

/// Switches protocols, then sends each small frame back.
async fn echo(mut stream: TcpStream) -> Result<()> {
    const HEAD: usize = 6;
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(switch.as_bytes()).await?;
    let mut buffer = Vec::new();
    let mut answer = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        let mut rest = buffer.as_slice();
        while let [first, second, mask @ ..] = rest {
            let length = usize::from(second & 0x7f);
            if second & 0x80 == 0 || length > ECHO_BYTES_MAX {
                bail!("not a small frame of a client");
            }
            let Some((mask, after)) = mask.split_at_checked(HEAD - 2) else {
                break;
            };
            let Some((payload, after)) = after.split_at_checked(length) else {
                break;
            };
            answer.extend([*first, second & 0x7f]);
            answer.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            rest = after;
        }
        let used = buffer.len() - rest.len();
        buffer.drain(..used);
        stream.write_all(&answer).await?;
        answer.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_tests::websocket::{self, TEXT};

    use super::*;
    use crate::client::Client;

    #[tokio::test]
    async fn each_target_answers_as_itself() {
        let targets = Targets::start(252).unwrap();
        for (number, path) in [(0, "/"), (251, "/"), (251, LARGE)] {
            let address = targets.addresses()[number].to_string();
            let answer = tokio::task::spawn_blocking(move || Client::open(&address)?.ask(path));
            let answer = answer.await.unwrap().unwrap();
            assert_eq!(answer.status, 200);
            let expected = answer_of(number);
            match path {
                LARGE => assert_eq!(answer.body.len(), LARGE_BYTES),
                _ => assert_eq!(answer.body, expected.as_bytes()),
            }
            assert!(answer.body.starts_with(expected.as_bytes()));
        }
    }

    #[tokio::test]
    async fn frames_come_back() {
        let targets = Targets::start(1).unwrap();
        let address = targets.addresses()[0].to_string();
        let mut stream = websocket::open(&address, ECHO).await.unwrap();
        for text in ["one", "", "another"] {
            websocket::write(&mut stream, TEXT, text.as_bytes(), true)
                .await
                .unwrap();
            let read = tokio::time::timeout(Duration::from_secs(10), websocket::read(&mut stream));
            assert_eq!(read.await.unwrap().unwrap().payload, text.as_bytes());
        }
    }
}
