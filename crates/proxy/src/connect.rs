//! Opens connections to targets, where that is allowed.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_table::{Allowed, Denied, Scheme, Target};
use holdfast_tls::{TargetIdentity, TlsError};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::stream::Stream;

/// Names that are looked up at once. Each takes a thread until the system has an answer, whether it is still waited for or
/// not.
const LOOKUPS_MAX: usize = 64;

/// Why there is no connection; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("its name has no address")]
    NoAddress,
    #[error("its name cannot be resolved")]
    Resolve(#[source] io::Error),
    #[error("not connected")]
    Io(#[from] io::Error),
    #[error("not connected within {0:?}")]
    TimedOut(Duration),
    #[error("no TLS with it")]
    Handshake(#[source] io::Error),
    #[error("no TLS with anybody")]
    Tls(#[from] TlsError),
    #[error("its name cannot be in a certificate")]
    Name,
}

/// Opens connections, over TCP or to a unix socket, within the time that they may take.
pub(crate) struct Connector {
    allowed: Allowed,
    tls: Arc<TargetIdentity>,
    timeout: Duration,
    lookups: Arc<Semaphore>,
}

impl Connector {
    /// The timeout is for name resolution, TCP and TLS together.
    pub(crate) fn new(allowed: Allowed, tls: Arc<TargetIdentity>, timeout: Duration) -> Self {
        Connector {
            allowed,
            tls,
            timeout,
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        }
    }

    pub(crate) async fn connect(&self, target: &Target) -> Result<Stream, ConnectError> {
        match timeout(self.timeout, self.open(target)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::TimedOut(self.timeout)),
        }
    }

    async fn open(&self, target: &Target) -> Result<Stream, ConnectError> {
        let (host, port) = match (target.scheme(), target.host(), target.port()) {
            (Scheme::HttpUnix, ..) => {
                let path = target.socket_path().unwrap_or_default();
                let path = Path::new(&path);
                self.allowed.socket(path)?;
                return Ok(Stream::Unix(UnixStream::connect(path).await?));
            }
            (_, Some(host), Some(port)) => (host.trim_start_matches('[').trim_end_matches(']'), port),
            _ => return Err(ConnectError::NoAddress),
        };
        self.allowed.target(target)?;
        let tcp = Stream::Tcp(self.tcp(target.scheme(), host, port).await?);
        if target.scheme() != Scheme::Https {
            return Ok(tcp);
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name)?;
        let connector = TlsConnector::from(self.tls.config().await?);
        let stream = connector.connect(name, tcp).await.map_err(ConnectError::Handshake)?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    async fn tcp(&self, scheme: Scheme, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        if let Ok(ip) = host.parse() {
            return self.tcp_to(scheme, SocketAddr::new(ip, port)).await;
        }
        let started = Instant::now();
        let addresses = self
            .look_up(host.to_owned(), port)
            .await
            .map_err(ConnectError::Resolve)?;
        // Each address gets an equal share of what is left, so that one which does not answer leaves time for the next.
        let mut failure = ConnectError::NoAddress;
        for (at, address) in addresses.iter().enumerate() {
            let left = self.timeout.saturating_sub(started.elapsed());
            let share = Instant::now() + left / u32::try_from(addresses.len() - at).unwrap_or(1);
            let error = match timeout_at(share, self.tcp_to(scheme, *address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => ConnectError::TimedOut(self.timeout),
            };
            // That a name leads where it must not is what an operator wants to hear of it.
            if !matches!(failure, ConnectError::Denied(_)) {
                failure = error;
            }
        }
        Err(failure)
    }

    async fn look_up(&self, host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let turn = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let found = tokio::task::spawn_blocking(move || {
            let found = (host.as_str(), port).to_socket_addrs();
            drop(turn);
            found.map(Iterator::collect)
        });
        found.await.map_err(io::Error::other)?
    }

    async fn tcp_to(&self, scheme: Scheme, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        self.allowed.address(scheme, address)?;
        let stream = TcpStream::connect(address).await?;
        self.allowed.connected(stream.local_addr()?, address)?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
        Ok(stream)
    }
}

/// Who has vanished is noticed after two minutes: a tunnel may be silent for hours.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}
