//! Where a replica is reached: TCP or a unix socket, and over either TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use holdfast_tls::ServerIdentity;
use holdfast_tls::tokio_rustls::TlsAcceptor;
use holdfast_tls::tokio_rustls::server::TlsStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy, sink};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::either::Either;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::Metrics;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who is refused is listened to for so long, for its place is another's.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_BYTES_MAX: u64 = 64 * 1024;
/// TLS handshakes under way at once; more wait in the kernel.
const HANDSHAKES_MAX: usize = 256;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP. Port 0 takes any free one.
    Tcp(SocketAddr),
    /// A unix socket at this path. One that nobody listens on any more is replaced.
    Unix(PathBuf),
}

impl Address {
    /// True if nobody on another machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().is_loopback(),
            Address::Unix(_) => true,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Tcp(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound listener.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, Socket),
}

/// A socket's file, taken away with it.
pub(crate) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Nobody can be told, and whoever comes next replaces it.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(crate) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => {
                remove_stale(path).await?;
                Ok(Listener::Unix(UnixListener::bind(path)?, Socket(path.clone())))
            }
        }
    }

    /// Where it listens, its port included.
    pub(crate) fn address(&self) -> io::Result<Address> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Listener::Unix(_, Socket(path)) => Ok(Address::Unix(path.clone())),
        }
    }
}

/// Removes a socket that was left behind, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

impl axum::serve::Listener for Listener {
    type Io = Either<TcpStream, UnixStream>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        use axum::serve::Listener as Accept;
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = Accept::accept(listener).await;
                // A caller would only wait longer for its answer.
                let _ = stream.set_nodelay(true);
                (Either::Left(stream), ())
            }
            Listener::Unix(listener, _) => (Either::Right(Accept::accept(listener).await.0), ()),
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The same with TLS. Handshakes go on beside each other: a slow one holds up nobody.
pub(crate) struct TlsListener {
    listener: Listener,
    identity: Arc<ServerIdentity>,
    /// What those are told who speak HTTP/2 without TLS.
    http2_refusal: Option<Arc<[u8]>>,
    metrics: Arc<Metrics>,
    handshakes: JoinSet<io::Result<TlsStream<Either<TcpStream, UnixStream>>>>,
}

impl TlsListener {
    pub(crate) fn new(listener: Listener, identity: Arc<ServerIdentity>, metrics: Arc<Metrics>) -> Self {
        TlsListener {
            listener,
            identity,
            http2_refusal: None,
            metrics,
            handshakes: JoinSet::new(),
        }
    }

    /// Its connections, for gRPC.
    pub(crate) fn grpc(mut self) -> impl Stream<Item = io::Result<TlsIo>> + Send {
        self.http2_refusal = Some(go_away("this port wants TLS: say which authority its certificate is of").into());
        stream::unfold(self, |mut listener| async move {
            let (stream, ()) = axum::serve::Listener::accept(&mut listener).await;
            Some((Ok(TlsIo(stream)), listener))
        })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<Either<TcpStream, UnixStream>>;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            tokio::select! {
                (stream, ()) = self.listener.accept(), if self.handshakes.len() < HANDSHAKES_MAX => {
                    let acceptor = TlsAcceptor::from(self.identity.config());
                    let handshake = handshake(stream, acceptor, self.http2_refusal.clone());
                    self.handshakes.spawn(async move { timeout(HANDSHAKE_TIMEOUT, handshake).await? });
                }
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(stream)) => return (stream, ()),
                    // Who only looks whether somebody listens, as probes do.
                    Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                    Ok(Err(error)) => {
                        if self.metrics.api_call_refused("tls") {
                            tracing::warn!(%error, "no TLS with a caller; others like it in the next seconds are only counted");
                        }
                    }
                    Err(panic) => tracing::error!(%panic, "a TLS handshake failed"),
                },
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

async fn handshake(
    stream: Either<TcpStream, UnixStream>,
    acceptor: TlsAcceptor,
    http2_refusal: Option<Arc<[u8]>>,
) -> io::Result<TlsStream<Either<TcpStream, UnixStream>>> {
    // The first byte of HTTP/2's preface, which no TLS record begins with.
    let mut first = [0];
    match (stream, http2_refusal) {
        (Either::Left(mut stream), Some(refusal)) if stream.peek(&mut first).await? == 1 && first == *b"P" => {
            stream.write_all(&refusal).await?;
            // Closed with something unread, it would be reset, and the refusal lost.
            let _ = timeout(DRAIN_TIMEOUT, drain(&mut stream)).await;
            Err(io::Error::other("it came without TLS"))
        }
        (stream, _) => match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => Ok(stream),
            Err((error, mut stream)) => {
                // The alert that says why would be lost the same way.
                let _ = timeout(DRAIN_TIMEOUT, drain(&mut stream)).await;
                Err(error)
            }
        },
    }
}

/// Reads what the other side has sent until it closes, or has sent more than a caller would.
async fn drain(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.shutdown().await?;
    copy(&mut stream.take(DRAIN_BYTES_MAX), &mut sink()).await?;
    Ok(())
}

/// What an HTTP/2 server says that goes away at once (RFC 9113, 6.5 and 6.8), because of `INADEQUATE_SECURITY`.
fn go_away(reason: &str) -> Vec<u8> {
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let length = u8::try_from(8 + reason.len()).expect("a short reason");
    frames.extend([0, 0, length, 7, 0, 0, 0, 0, 0]);
    frames.extend([0, 0, 0, 0, 0, 0, 0, 0xc]);
    frames.extend(reason.as_bytes());
    frames
}

/// A connection with TLS, as gRPC takes one.
pub(crate) struct TlsIo(TlsStream<Either<TcpStream, UnixStream>>);

impl Connected for TlsIo {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self.0.get_ref().0 {
            Either::Left(stream) => stream.connect_info(),
            Either::Right(_) => TcpConnectInfo {
                local_addr: None,
                remote_addr: None,
            },
        }
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(task, buf)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(task, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(task, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_replaced_and_no_other_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("socket"));
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap());
        let listener = Listener::bind(&address).await.unwrap();
        assert_eq!(listener.address().unwrap(), address);
        assert!(Listener::bind(&address).await.is_err(), "somebody listens");
        drop(listener);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(folder.path().join("socket"), "mine").unwrap();
        assert!(Listener::bind(&address).await.is_err());
        assert_eq!(std::fs::read(folder.path().join("socket")).unwrap(), b"mine");
    }
}
