//! One upgraded connection from start to end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::metrics::Active;
use crate::signal::Signal;

/// The most bytes on the way in one direction of one tunnel.
const BUFFER_BYTES: usize = 8 * 1024;
/// Reads without a pause, before other tunnels get their turn.
const READS_MAX: usize = 16;
/// How long one side may go on once the other has ended. A WebSocket ends on both, so who goes on has forgotten to end.
const HALF_OPEN_MAX: Duration = Duration::from_secs(60);

thread_local! {
    // A tunnel waits without a buffer of its own: bytes stay in this one between a read and the write right after it,
    // and only what the write did not take is kept with the tunnel.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into_boxed_slice());
}

/// Both ends of an upgraded connection, or of a stream of HTTP/2 used like one; the client's end comes once it is told.
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) target: Upgraded,
    pub(crate) active: Active,
}

impl Tunnel {
    /// Copies both ways until both sides have ended, one has and [`HALF_OPEN_MAX`] is over, one has failed, or `cut` is
    /// raised. Idleness ends nothing: a notebook may be silent for hours.
    pub(crate) async fn run(self, cut: &Signal) {
        let Tunnel { client, target, active } = self;
        // The client may be gone before it got the 101.
        let Some(Ok(client)) = cut.unless_raised(client).await else {
            return;
        };
        let mut client = TokioIo::new(client);
        let mut target = TokioIo::new(target);
        match cut.unless_raised(copy_both(&mut client, &mut target)).await {
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

/// Copies both ways, half-closing each side when the other one has ended.
async fn copy_both<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forth, mut back) = (Direction::default(), Direction::default());
    let mut half_open: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        let there = forth.poll(cx, a, b)?;
        let here = back.poll(cx, b, a)?;
        match (there, here) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
            _ => {
                let limit = half_open.get_or_insert_with(|| Box::pin(sleep(HALF_OPEN_MAX)));
                limit.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    })
    .await
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
        let (copied, ()) = tokio::join!(copy_both(&mut a, &mut b), ends);
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
        let copied = tokio::select! {
            copied = copy_both(&mut a, &mut b) => copied,
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
        let (copied, (), heard) = tokio::join!(copy_both(&mut a, &mut b), write, read);
        copied.unwrap();
        assert!(heard == sent);
    }
}
