//! What fuzzing and its replay check of heads: the bytes of one request are one request, to hyper as to a plain reader.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use super::{First, Io, Limits, http1};
use crate::head::Watch;
use crate::head::reference::{Asked, End, requests};
use crate::stream::Stream;

/// Sends the input in pieces, as long as its first byte says, and compares the requests that come out with those that a plain and
/// strict reader finds: none more and none other.
pub fn head(input: &[u8]) {
    let Some((piece, bytes)) = input.split_first() else {
        return;
    };
    let piece = match piece % 8 {
        0 => bytes.len().max(1),
        some => usize::from(some) * 5 - 4,
    };
    let heard = hear(bytes, piece);
    let (expected, end) = requests(bytes);
    for (at, heard) in heard.iter().enumerate() {
        let told = || {
            format!(
                "in pieces of {piece}: {heard:?} instead of {:?}, {end:?}",
                expected.get(at)
            )
        };
        let Some(expected) = expected.get(at) else {
            panic!("{}", told());
        };
        if !expected.whole && end == End::Doubt {
            // What comes from here on cannot be foretold.
            return;
        }
        let is_same = (&heard.method, &heard.target) == (&expected.method, &expected.target);
        assert!(is_same, "{}", told());
        assert!(
            expected.whole || !heard.whole,
            "a part is taken for the whole: {}",
            told()
        );
        match heard.whole {
            true => assert!(heard.body == expected.body, "{}", told()),
            false => assert!(expected.body.starts_with(&heard.body), "{}", told()),
        }
    }
}

/// What hyper makes of the bytes once [`Watch`] has seen them.
fn hear(bytes: &[u8], piece: usize) -> Vec<Asked> {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = heard.clone();
    let served = async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut io = Io::new(Stream::Unix(ours), First::default());
        io.watch = Some(Watch::new(Counter::default()));
        let limits = Limits {
            header_timeout: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(10),
            client_timeout: None,
        };
        let service = service_fn(move |request| listen(request, hearing.clone()));
        let connection = http1(limits).serve_connection(TokioIo::new(io), service);
        let sent = async {
            for piece in bytes.chunks(piece) {
                // It does not listen any more once it has refused something.
                if theirs.write_all(piece).await.is_err() {
                    break;
                }
                yield_now().await;
            }
            // As above.
            let _ = theirs.shutdown().await;
        };
        // However it ends.
        let (_, ()) = tokio::join!(connection, sent);
    };
    RUNTIME.with(|runtime| runtime.block_on(served));
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut heard)
}

async fn listen(
    request: Request<Incoming>,
    heard: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let target = request.uri().path_and_query().map_or("", |path| path.as_str());
    let mut asked = Asked {
        method: request.method().as_str().into(),
        target: target.into(),
        ..Asked::default()
    };
    let mut body = request.into_body();
    asked.whole = loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => asked.body.extend(data),
                Err(_) => asked.trailers = true,
            },
            Some(Err(_)) => break false,
            None => break true,
        }
    };
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    Ok(Response::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay;

    /// Where two readers of a head may differ.
    pub(crate) const TOKENS: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"\x0b",
        b"#",
        b"?",
        b"/../",
        b"%2e",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"content-length:+3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:gzip\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Connection: close\r\n",
        b"Upgrade: websocket\r\n",
        b"0\r\n\r\n",
        b"3\r\nabc\r\n",
        b"3;x=y\r\nabc\r\n",
        b"0x3\r\n",
        b"ffffffffffffffff\r\n",
        b"00000000000000000003\r\n",
        b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        b" HTTP/1.0",
        b"HTTP/1.1\r\n",
        b"Host: b\r\n",
        b"X: y\r\n z\r\n",
    ];

    #[test]
    fn requests_in_order_are_all_heard() {
        let clean = replay::seeds("head").into_iter().map(|seed| seed[1..].to_vec());
        let clean: Vec<_> = clean.filter(|bytes| requests(bytes).1 == End::Clean).collect();
        assert!(clean.len() > 4, "{}", clean.len());
        for bytes in clean {
            let (expected, _) = requests(&bytes);
            // hyper keeps no connection behind trailers.
            let trailers = expected.iter().position(|asked| asked.trailers);
            let kept = trailers.map_or(expected.len(), |at| at + 1);
            assert_eq!(hear(&bytes, bytes.len()), expected[..kept]);
        }
    }

    #[test]
    fn the_bytes_of_one_request_are_one_request() {
        replay::replay("head", TOKENS, 40_000, head);
    }
}
