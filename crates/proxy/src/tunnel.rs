//! One upgraded connection from start to end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy, sink};
use tokio::time::{Sleep, sleep, timeout};

use crate::access_log::Record;
use crate::activity::TunnelUse;
use crate::connection::Signals;
use crate::frames::{Frames, GOODBYE, GOODBYE_MASKED};
use crate::metrics::Active;

/// The most bytes on the way in one direction of one tunnel.
const BUFFER_BYTES: usize = 8 * 1024;
/// Reads without a pause, before other tunnels get their turn.
const READS_MAX: usize = 16;
/// How long one side may go on once the other has ended. A WebSocket ends on both, so who goes on has forgotten to end.
const HALF_OPEN_MAX: Duration = Duration::from_secs(60);
/// How long both sides may take to read what they were told last: whoever closes on unread bytes takes back its own.
const LINGER_MAX: Duration = Duration::from_secs(2);

thread_local! {
    // A tunnel waits without a buffer of its own: bytes stay in this one between a read and the write right after it,
    // and only what the write did not take is kept with the tunnel.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// Both ends of an upgraded connection, or of a stream of HTTP/2 used like one; the client's end comes once it is told.
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) target: Upgraded,
    pub(crate) used: TunnelUse,
    pub(crate) record: Option<Box<Record>>,
    pub(crate) active: Active,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, one has and [`HALF_OPEN_MAX`] is over, one has failed, or a drain ends
    /// it. Idleness ends nothing: a notebook may be silent for hours.
    pub(crate) async fn run(self, signals: &Signals) {
        let Tunnel {
            client,
            target,
            used,
            mut record,
            active,
        } = self;
        // The client may be gone before it got the 101.
        let Some(Ok(client)) = signals.cut.unless_raised(client).await else {
            return;
        };
        let mut client = TokioIo::new(client);
        let mut target = TokioIo::new(target);
        let mut exchange = Exchange {
            used: Some(used),
            ..Exchange::default()
        };
        let copied = signals.cut.unless_raised(async {
            match signals.part.unless_raised(exchange.run(&mut client, &mut target)).await {
                Some(ended) => ended,
                // Boxed, so that tunnels do not carry the size of their end all the time.
                None => Box::pin(exchange.part(&mut client, &mut target, signals.spread)).await,
            }
        });
        let copied = copied.await;
        if let Some(record) = &mut record {
            record.note(|facts| {
                (facts.bytes_in, facts.bytes_out) = (exchange.forth.passed, exchange.back.passed);
                match &copied {
                    Some(Ok(())) if exchange.parted => facts.failed("drain", None),
                    Some(Ok(())) => {}
                    Some(Err(error)) => facts.failed("tunnel", Some(error.to_string())),
                    None => facts.failed("drain", None),
                }
            });
        }
        match copied {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "a tunnel ended"),
            None => {
                // Whether they hear it or not, both connections are closed after this.
                poll_fn(|cx| {
                    let _ = Pin::new(&mut client).poll_shutdown(cx);
                    let _ = Pin::new(&mut target).poll_shutdown(cx);
                    Poll::Ready(())
                })
                .await;
            }
        }
        drop(active);
    }
}

/// Both directions, from the client (`a`) to the target (`b`) and back.
#[derive(Default)]
struct Exchange {
    forth: Direction,
    back: Direction,
    half_open: Option<Pin<Box<Sleep>>>,
    /// Told of what the client sends.
    used: Option<TunnelUse>,
    /// Both sides were told that it goes away.
    parted: bool,
}

impl Exchange {
    /// Copies both ways, half-closing each side when the other one has ended. Dropped, it may be run again: nothing is lost.
    async fn run<A, B>(&mut self, a: &mut A, b: &mut B) -> io::Result<()>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        poll_fn(|cx| {
            let before = self.forth.passed;
            let there = self.forth.poll(cx, a, b);
            if let Some(used) = &mut self.used
                && self.forth.passed > before
            {
                used.client_sent(std::mem::take(&mut self.forth.data));
            }
            let there = there?;
            let here = self.back.poll(cx, b, a)?;
            match (there, here) {
                (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                _ => {
                    let limit = self.half_open.get_or_insert_with(|| Box::pin(sleep(HALF_OPEN_MAX)));
                    limit.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
                }
            }
        })
        .await
    }

    /// Goes on for a random part of `spread`, then tells both sides, each at the end of a frame, that it goes away: ten
    /// thousand that are told at once come back at once.
    async fn part<A, B>(&mut self, a: &mut A, b: &mut B, spread: Duration) -> io::Result<()>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        if let Ok(ended) = timeout(spread.mul_f64(rand::random()), self.run(a, b)).await {
            return ended;
        }
        self.parted = true;
        self.forth.goodbye = Some(GOODBYE_MASKED);
        self.back.goodbye = Some(GOODBYE);
        self.run(a, b).await?;
        let (mut nowhere, mut nowhere_either) = (sink(), sink());
        let heard = async { tokio::join!(copy(a, &mut nowhere), copy(b, &mut nowhere_either)) };
        // They have been told; what they still say, and whether they end, is theirs.
        let _ = timeout(LINGER_MAX, heard).await;
        Ok(())
    }
}

/// One direction of a tunnel.
#[derive(Default)]
struct Direction {
    /// Read, but not written yet; at most [`BUFFER_BYTES`].
    rest: Vec<u8>,
    written: usize,
    ended: bool,
    unflushed: bool,
    closed: bool,
    frames: Frames,
    /// How many bytes were read and passed on, or kept.
    passed: u64,
    /// Among them were some of a frame that is no control frame.
    data: bool,
    /// To be said as soon as no frame is in the middle; nothing follows it.
    goodbye: Option<&'static [u8]>,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_MAX {
            while self.written < self.rest.len() {
                self.written += accepted(ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.written..])))?;
            }
            self.rest = Vec::new();
            self.written = 0;
            if !self.ended && self.goodbye.is_some() && self.frames.is_between() {
                self.ended = true;
                let goodbye = self.goodbye.take().filter(|_| !self.frames.is_closed());
                self.rest = goodbye.unwrap_or_default().to_vec();
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            match self.poll_read(cx, from, to)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes what `to` takes at once; keeps the rest.
    fn poll_read<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
            let mut bytes = buffer.filled();
            self.ended = bytes.is_empty();
            let end = self.frames.pass(bytes);
            if let (Some(_), Some(end)) = (self.goodbye, end) {
                // What begins behind it is not begun.
                bytes = &bytes[..end];
                self.frames.rewind();
            }
            self.passed += bytes.len() as u64;
            self.data |= self.frames.is_data();
            while !bytes.is_empty() {
                self.unflushed = true;
                match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(result) => bytes = &bytes[accepted(result)?..],
                    Poll::Pending => {
                        self.rest = bytes.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// A writer that takes nothing, and does not say why, never will.
fn accepted(result: io::Result<usize>) -> io::Result<usize> {
    match result? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_each_side_ends_alone() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut target) = duplex(64);
        let ends = async {
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let mut heard = Vec::new();
            target.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"ping");
            // The client has ended its side, and still hears the target.
            target.write_all(b"pong").await.unwrap();
            target.shutdown().await.unwrap();
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.unwrap();
            assert_eq!(answered, b"pong");
        };
        let mut exchange = Exchange::default();
        let (copied, ()) = tokio::join!(exchange.run(&mut a, &mut b), ends);
        copied.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_end_after_the_other_is_not_waited_for_for_ever() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut target) = duplex(64);
        let ends = async {
            client.shutdown().await.unwrap();
            assert_eq!(target.read(&mut [0; 8]).await.unwrap(), 0);
            // Says something now and then, and never goodbye.
            for _ in 0..1_000 {
                target.write_all(b"x").await.unwrap();
                client.read_exact(&mut [0]).await.unwrap();
                sleep(Duration::from_secs(1)).await;
            }
        };
        let mut exchange = Exchange::default();
        let copied = tokio::select! {
            copied = exchange.run(&mut a, &mut b) => copied,
            () = ends => panic!("it was waited for"),
        };
        assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer_and_loses_nothing() {
        let (mut client, mut a) = duplex(1024);
        let (mut b, mut target) = duplex(1024);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let write = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut Vec::new()).await.unwrap();
        };
        let read = async {
            let mut heard = Vec::new();
            let mut chunk = [0; 700];
            loop {
                let n = target.read(&mut chunk).await.unwrap();
                if n == 0 {
                    break;
                }
                heard.extend_from_slice(&chunk[..n]);
                tokio::task::yield_now().await;
            }
            target.shutdown().await.unwrap();
            heard
        };
        let mut exchange = Exchange::default();
        let (copied, (), heard) = tokio::join!(exchange.run(&mut a, &mut b), write, read);
        copied.unwrap();
        assert!(heard == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_goodbye_waits_for_the_end_of_a_frame_and_is_heard_before_the_end() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut target) = duplex(64);
        let mut exchange = Exchange::default();
        let begins = async {
            // The target is in the middle of a frame of five bytes, and has begun another one when that ends.
            target.write_all(&[0x82, 5, 1, 2]).await.unwrap();
            client.read_exact(&mut [0; 4]).await.unwrap();
        };
        tokio::select! {
            _ = exchange.run(&mut a, &mut b) => panic!("it ended"),
            () = begins => {}
        }
        let ends = async {
            assert_eq!(target.read(&mut [0; 64]).await.unwrap(), GOODBYE_MASKED.len());
            assert_eq!(target.read(&mut [0; 64]).await.unwrap(), 0);
            target.write_all(&[3, 4, 5, 0x82, 5, 1]).await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, [&[3, 4, 5], GOODBYE].concat());
        };
        let (parted, ()) = tokio::join!(exchange.part(&mut a, &mut b, Duration::ZERO), ends);
        parted.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_said_goodbye_already_is_not_told_again() {
        let (mut client, mut a) = duplex(64);
        let (mut b, mut target) = duplex(64);
        let ends = async {
            target.write_all(GOODBYE).await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, GOODBYE);
        };
        let mut exchange = Exchange::default();
        let spread = Duration::from_secs(10);
        let (parted, ()) = tokio::join!(exchange.part(&mut a, &mut b, spread), ends);
        parted.unwrap();
    }
}
