//! Users' servers that cost next to nothing: one thread answers for very many of them, each on an address of its own.

use std::io::{self, BufRead as _, Read as _};
use std::net::{self, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
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
    /// What answers; ends when it is dropped.
    _served: Served,
}

enum Served {
    Here { _thread: Thread },
    Apart { _parts: Vec<Part> },
}

impl Targets {
    /// Starts so many, on addresses of 127.1.0.0/16 and one port.
    ///
    /// # Errors
    /// One cannot listen.
    pub fn start(count: usize) -> Result<Self> {
        let listeners = listen(0, count)?;
        let addresses = listeners
            .iter()
            .map(net::TcpListener::local_addr)
            .collect::<Result<_, _>>()?;
        Ok(Targets {
            addresses,
            _served: Served::Here {
                _thread: Thread::start(0, listeners)?,
            },
        })
    }

    /// Starts so many in processes of this program, at most `each` in one: a process may have only so many files open.
    /// The program has to ask [`serves_part`] first of all.
    ///
    /// # Errors
    /// A process cannot be started, or one of its targets cannot listen.
    pub fn spread(count: usize, each: usize) -> Result<Self> {
        let firsts = (0..count).step_by(each);
        let parts = firsts.map(|first| Part::start(first, each.min(count - first)));
        let parts: Vec<Part> = parts.collect::<Result<_>>()?;
        Ok(Targets {
            addresses: parts.iter().flat_map(Part::addresses).collect::<Result<_>>()?,
            _served: Served::Apart { _parts: parts },
        })
    }

    /// Where each of them listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// A thread that answers for some targets until this is dropped.
struct Thread {
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    fn start(first: usize, listeners: Vec<net::TcpListener>) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let served = serve(first, listeners, stop.clone());
        let thread = thread::Builder::new().name("targets".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(served) {
                eprintln!("the targets do not answer: {error:#}");
            }
        })?;
        Ok(Thread {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Fails only if it panicked, which it has said itself.
            let _ = thread.join();
        }
    }
}

/// The first argument of a process that is a part of some [`Targets`].
const PART: &str = "--serve-targets";

/// A process that answers for some of the targets; it ends when this is dropped, or whoever has started it has ended.
struct Part {
    process: Child,
    first: usize,
    count: usize,
    port: u16,
}

impl Part {
    fn start(first: usize, count: usize) -> Result<Self> {
        let process = Command::new(std::env::current_exe()?)
            .args([PART, &first.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("a process for targets cannot be started")?;
        let mut part = Part {
            process,
            first,
            count,
            port: 0,
        };
        let mut told = String::new();
        let stdout = part.process.stdout.take().context("no standard output")?;
        io::BufReader::new(stdout).read_line(&mut told)?;
        let port = told.trim().parse();
        part.port = port.with_context(|| format!("a process for targets has told no port but {told:?}"))?;
        Ok(part)
    }

    fn addresses(&self) -> impl Iterator<Item = Result<SocketAddr>> + use<> {
        let port = self.port;
        (self.first..self.first + self.count).map(move |number| address(number, port))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// If this process was started to be a part of some [`Targets`], is it, until whoever has started it ends; then true.
///
/// # Errors
/// One of its targets cannot listen.
pub fn serves_part() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [PART, first, count] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return Ok(false);
    };
    let (first, count) = (first.parse()?, count.parse()?);
    let listeners = listen(first, count)?;
    let port = listeners.first().context("no targets")?.local_addr()?.port();
    let _thread = Thread::start(first, listeners)?;
    println!("{port}");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(true)
}

/// The 13 bytes that the target of this number answers, so that a wrong one is known.
pub fn answer_of(target: usize) -> String {
    format!("target {target:05}\n")
}

/// The address of the target of this number.
fn address(number: usize, port: u16) -> Result<SocketAddr> {
    let (block, host) = (u8::try_from(number / PER_BLOCK)?, u8::try_from(number % PER_BLOCK)? + 1);
    Ok(SocketAddr::from((Ipv4Addr::new(127, 1, block, host), port)))
}

/// Listens for targets from the `first` one on, at one port.
fn listen(first: usize, count: usize) -> Result<Vec<net::TcpListener>> {
    let mut listeners: Vec<net::TcpListener> = Vec::with_capacity(count);
    let mut port = 0;
    for number in first..first + count {
        let address = address(number, port)?;
        let listener = net::TcpListener::bind(address);
        let listener = listener.with_context(|| format!("a target cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

async fn serve(first: usize, listeners: Vec<net::TcpListener>, stop: CancellationToken) -> Result<()> {
    let mut tasks = JoinSet::new();
    for (number, listener) in (first..).zip(listeners) {
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
