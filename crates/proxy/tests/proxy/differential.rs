//! What is looked up is what a target gets, whatever path or stream of requests a client sends: a real proxy beside plain readers.

#[path = "../../src/head/reference.rs"]
mod heads;
#[path = "../../../table/src/path/reference.rs"]
mod paths;
#[path = "../../../../fuzz/replay.rs"]
mod replay;

use std::collections::HashSet;
use std::mem::take;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use self::heads::{Asked, End};
use crate::fixture::{Conversation, Setup, Target, until};

/// Connections at once.
const CLIENTS: usize = 8;
/// Paths from one look at the targets to the next.
const BATCH: usize = 1024;
/// Routes without a host, then those of [`HOST`].
const PLAIN: [&str; 10] = [
    "/",
    "/user/alice/",
    "/user/bob/",
    "/user/%40lice/",
    "/user/zo%C3%AB/",
    "/a/",
    "/a/b/",
    "/a/b/c/",
    "/hub/%2F/",
    "/%25/",
];
const HOSTED: [&str; 3] = ["/user/alice/", "/a/b/", "/x/"];
const HOST: &str = "hub.example.org";
/// Where two readers of a path may differ.
const PATH_TOKENS: &[&[u8]] = &[
    b"/",
    b"//",
    b"..",
    b"/../",
    b"/./",
    b".",
    b"%2e",
    b"%2E.",
    b"%2f",
    b"%2F",
    b"%5c",
    b"\\",
    b"%",
    b"%2",
    b"%25",
    b"%252e",
    b"%00",
    b"%0a",
    b"%7f",
    b"%c3%ab",
    b"\xc3\xab",
    b"\xff",
    b"%ff",
    b"?",
    b"#",
    b";",
    b"/user/",
    b"alice",
    b"/user/alice/",
    b"/user/bob",
    b"/a/b",
    b" ",
    b"\t",
    b"\r",
    b"\0",
    b"\x7f",
    b"@",
    b"%40",
    b":",
    b"*",
    b"+",
    b"\"",
    b"<",
    b"|",
    b"http://hub.example.org/",
    b" HTTP/1.1",
];
/// Where two readers of a head may differ.
const HEAD_TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"#",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"content-length:+3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:gzip\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
    b"0\r\n\r\n",
    b"3\r\nabc\r\n",
    b"3;x=y\r\nabc\r\n",
    b"0x3\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b" HTTP/1.0",
    b"X: y\r\n z\r\n",
    b"Connection: content-length\r\n",
    b"Connection: transfer-encoding\r\n",
];

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// `make fuzz-paths` does the same with a million.
#[test]
fn p4_the_path_that_was_matched_is_the_path_that_the_target_gets() {
    let runtime = runtime();
    let asked = Arc::new(AtomicU64::new(0));
    let mut scene = runtime.block_on(Paths::start(asked));
    let seeds = replay::seeds("path");
    let seeds: HashSet<&[u8]> = seeds
        .iter()
        .flat_map(|seed| seed.split(|byte| *byte == b'\n'))
        .collect();
    let mut seeds: Vec<Vec<u8>> = seeds.into_iter().map(<[u8]>::to_vec).collect();
    seeds.sort();
    let mut batch = Vec::new();
    replay::vary(&seeds, PATH_TOKENS, 20_000, |path| {
        batch.push(path.iter().copied().filter(|byte| *byte != b'\n').collect());
        if batch.len() == BATCH {
            runtime.block_on(scene.ask(take(&mut batch)));
        }
    });
    runtime.block_on(scene.ask(batch));
    println!(
        "{} paths, {} of them different: {} went to the route of the plain reader, byte for byte, {} had none, {} were refused; \
         0 went elsewhere or arrived changed",
        scene.count.iter().sum::<u64>(),
        scene.seen.len(),
        scene.count[0],
        scene.count[1],
        scene.count[2],
    );
    assert!(scene.count.iter().all(|count| *count > 100), "{:?}", scene.count);
}

struct Paths {
    setup: Setup,
    _targets: Vec<Target>,
    /// Requests that the targets got.
    asked: Arc<AtomicU64>,
    /// Answered by a target, without a route, refused.
    count: [u64; 3],
    seen: HashSet<Vec<u8>>,
}

impl Paths {
    async fn start(asked: Arc<AtomicU64>) -> Self {
        let mut targets = Vec::new();
        for name in 0..PLAIN.len() + HOSTED.len() {
            let asked = asked.clone();
            targets.push(Target::start(move |connection| tell(connection, name, asked.clone())).await);
        }
        let hosted = HOSTED.map(|path| format!("{HOST}{path}"));
        let specs = PLAIN.into_iter().chain(hosted.iter().map(String::as_str)).skip(1);
        // Without "/", so that a path without a route shows as such.
        let routes: Vec<(&str, &str)> = specs
            .zip(targets.iter().skip(1).map(|target| target.url.as_str()))
            .collect();
        Paths {
            setup: Setup::new(&routes).await,
            _targets: targets,
            asked,
            count: [0; 3],
            seen: HashSet::new(),
        }
    }

    async fn ask(&mut self, paths: Vec<Vec<u8>>) {
        let before = self.asked.load(Ordering::SeqCst);
        let mut clients = JoinSet::new();
        self.seen.extend(paths.iter().cloned());
        for share in paths.chunks(paths.len().div_ceil(CLIENTS).max(1)) {
            clients.spawn(ask_all(self.setup.proxy.public, share.to_vec()));
        }
        let mut answered = 0;
        while let Some(counts) = clients.join_next().await {
            let counts = counts.unwrap();
            answered += counts[0];
            self.count.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        let asked = self.asked.load(Ordering::SeqCst) - before;
        assert_eq!(asked, answered, "a target was asked for what a client was refused");
    }
}

/// Answers with the request's target as it came.
async fn tell(mut connection: Conversation, name: usize, asked: Arc<AtomicU64>) {
    loop {
        let end = match connection.unread.windows(4).position(|four| four == b"\r\n\r\n") {
            Some(end) => end + 4,
            None => match connection.read_more().await {
                Ok(1..) => continue,
                _ => return,
            },
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let head: Vec<u8> = connection.unread.drain(..end).collect();
        let line = head.split(|byte| *byte == b'\r').next().unwrap();
        let target = line.strip_prefix(b"GET ").unwrap().strip_suffix(b" HTTP/1.1").unwrap();
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nx-target: {name}\r\ncontent-length: {}\r\n\r\n",
            target.len()
        )
        .into_bytes();
        answer.extend_from_slice(target);
        connection.send(answer).await;
    }
}

async fn ask_all(proxy: SocketAddr, paths: Vec<Vec<u8>>) -> [u64; 3] {
    let plain = PLAIN.map(route);
    let hosted = HOSTED.map(route);
    let mut counts = [0; 3];
    let mut client = Conversation::connect(proxy).await;
    for (at, path) in paths.into_iter().enumerate() {
        let on_host = at % 3 == 0;
        let host = if on_host {
            "Hub.Example.Org.:8000"
        } else {
            "other.example"
        };
        let mut request = [b"GET ", &path[..], b" HTTP/1.1\r\nHost: "].concat();
        request.extend_from_slice(host.as_bytes());
        request.extend_from_slice(b"\r\n\r\n");
        client.send(request).await;
        assert!(
            client.rest_or_more().await,
            "no answer to {:?}",
            path.escape_ascii().to_string()
        );
        let answer = client.answer().await;
        let told = || {
            format!(
                "{:?}: {} {:?}",
                path.escape_ascii().to_string(),
                answer.head,
                answer.body.escape_ascii().to_string()
            )
        };
        let expected = paths::segments(&path).filter(|_| !path.contains(&b'#'));
        let expected = expected.map(|segments| {
            let of_host = paths::longest(&hosted, &segments).filter(|_| on_host);
            let of_host = of_host.map(|at| at + PLAIN.len());
            of_host.or_else(|| paths::longest(&plain, &segments).filter(|at| *at > 0))
        });
        match (answer.status(), expected) {
            (200, Some(Some(route))) => {
                assert_eq!(
                    answer.header("x-target"),
                    Some(route.to_string().as_str()),
                    "{}",
                    told()
                );
                assert_eq!(answer.body, path, "{}", told());
                counts[0] += 1;
            }
            (404, Some(None)) => counts[1] += 1,
            // Nobody has to take a URI with bytes that it must not have.
            (400, None) => counts[2] += 1,
            (400, Some(_)) if !path.iter().all(is_of_a_path) => counts[2] += 1,
            (_, expected) => panic!("{}, expected {expected:?}", told()),
        }
        if answer.status() == 400 {
            client = Conversation::connect(proxy).await;
        }
    }
    counts
}

fn route(path: &str) -> Vec<String> {
    let mut segments = paths::segments(path.as_bytes()).unwrap();
    segments.pop();
    segments
}

fn is_of_a_path(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/?".contains(byte)
}

#[test]
fn p4_the_bytes_of_one_request_are_at_most_one_request_at_the_target() {
    let runtime = runtime();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = heard.clone();
    let target = runtime.block_on(Target::start(move |connection| hear(connection, hearing.clone())));
    let setup = runtime.block_on(Setup::new(&[("/", &target.url)]));
    let (mut sent, mut arrived) = (0, 0);
    replay::replay("head", HEAD_TOKENS, 1_500, |input| {
        let Some((piece, bytes)) = input.split_first() else {
            return;
        };
        let piece = if piece % 2 == 0 {
            bytes.len().max(1)
        } else {
            usize::from(*piece)
        };
        runtime.block_on(async {
            let mut client = Conversation::connect(setup.proxy.public).await;
            for piece in bytes.chunks(piece) {
                client.send(piece).await;
            }
            // It may have hung up already.
            let _ = client.stream.shutdown().await;
            client.rest().await;
            until(async || setup.proxy.status().await["active_requests"] == 0).await;
        });
        let (expected, end) = heads::requests(bytes);
        let whole = expected.iter().filter(|asked| asked.whole).count();
        let heard = take(&mut *heard.lock().unwrap());
        (sent, arrived) = (sent + whole, arrived + heard.len());
        for (at, heard) in heard.iter().enumerate() {
            match expected.get(at) {
                // What comes from here on cannot be foretold.
                Some(expected) if !expected.whole && end == End::Doubt => return,
                // Trailers that were not announced are not passed on.
                expected => assert_eq!(
                    Some(&Asked {
                        trailers: false,
                        ..heard.clone()
                    }),
                    expected
                        .map(|asked| Asked {
                            trailers: false,
                            ..asked.clone()
                        })
                        .as_ref(),
                    "{end:?}"
                ),
            }
        }
    });
    println!("{sent} requests were sent whole, {arrived} arrived, each once and none else");
    assert!(arrived * 4 > sent, "hardly one came through");
}

/// Keeps every request that is whole, and answers it.
async fn hear(mut connection: Conversation, heard: Arc<Mutex<Vec<Asked>>>) {
    let mut answered = 0;
    while let Ok(1..) = connection.read_more().await {
        let (requests, end) = heads::requests(&connection.unread);
        for request in requests.into_iter().skip(answered).filter(|request| request.whole) {
            answered += 1;
            heard.lock().unwrap().push(request);
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
        if matches!(end, End::Doubt | End::Refused) {
            return;
        }
    }
}
