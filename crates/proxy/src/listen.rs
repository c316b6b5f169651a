//! Listeners: where users come in.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::connect::keepalive;
use crate::stream::Stream;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;
/// Before operators' connections are accepted again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// An address to listen on.
#[derive(Clone, Debug)]
pub enum Address {
    /// TCP. Port 0 takes any free one.
    Tcp(SocketAddr),
    /// A unix socket at this path. One that nobody listens on any more is replaced.
    Unix(PathBuf),
    /// A socket that listens already, as systemd hands them over.
    Inherited(Arc<OwnedFd>),
}

impl Address {
    /// Parses `127.0.0.1:8000`, `[::]:8000` or `unix:/run/proxy.sock`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(_) => Err("must name a socket by its whole path, like unix:/run/proxy.sock".into()),
            None => text
                .parse()
                .map(Address::Tcp)
                .map_err(|_| "must be an IP address and a port, like 0.0.0.0:8000, or unix:/run/proxy.sock".into()),
        }
    }

    /// The port, where it is known and there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Inherited(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Inherited(_) => f.write_str("an inherited socket"),
        }
    }
}

/// A bound listener.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With the path, if it is this process's to take away.
    Unix(UnixListener, Option<PathBuf>),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, Some(path)) = self {
            // Nobody can be told, and whoever comes next replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    pub(crate) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Listener::Tcp(tcp(*address)?)),
            Address::Unix(path) => {
                remove_stale(path).await?;
                Ok(Listener::Unix(UnixListener::bind(path)?, Some(path.clone())))
            }
            Address::Inherited(fd) => {
                let fd = fd.try_clone()?;
                let is_unix = SockRef::from(&fd).local_addr()?.is_unix();
                match is_unix {
                    true => {
                        let listener = std::os::unix::net::UnixListener::from(fd);
                        listener.set_nonblocking(true)?;
                        Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
                    }
                    false => {
                        let listener = std::net::TcpListener::from(fd);
                        listener.set_nonblocking(true)?;
                        SockRef::from(&listener).set_tcp_keepalive(&keepalive())?;
                        Ok(Listener::Tcp(TcpListener::from_std(listener)?))
                    }
                }
            }
        }
    }

    /// Where it listens; `None` for a unix socket.
    pub(crate) fn address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(Some),
            Listener::Unix(..) => Ok(None),
        }
    }

    /// The next connection, and its client's address unless it came by a unix socket.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Option<SocketAddr>)>> {
        match self {
            Listener::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, address)| {
                // Small frames of a WebSocket must not wait for an acknowledgement.
                let _ = stream.set_nodelay(true);
                (Stream::Tcp(stream), Some(address))
            }),
            Listener::Unix(listener, _) => listener
                .poll_accept(cx)
                .map_ok(|(stream, _)| (Stream::Unix(stream), None)),
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = ();

    async fn accept(&mut self) -> (Stream, ()) {
        loop {
            match std::future::poll_fn(|cx| self.poll_accept(cx)).await {
                Ok((stream, _)) => return (stream, ()),
                Err(error) => {
                    // Mostly there are too many open files, and others have to be closed first.
                    tracing::warn!(%error, "an operator's connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Binds a listener whose connections notice a peer that is gone: they inherit its settings.
pub(crate) fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&keepalive())?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Removes a socket that was left behind, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match tokio::net::UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// How many connections each address has open, if that is limited.
pub(crate) struct PerAddress {
    most: Option<usize>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl PerAddress {
    pub(crate) fn new(most: Option<usize>) -> Arc<Self> {
        Arc::new(PerAddress {
            most,
            open: Mutex::default(),
        })
    }

    /// `None` if the address has as many open as it may.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admission> {
        let Some(most) = self.most else {
            return Some(Admission(None));
        };
        let site = site(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(site).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Admission(Some((self.clone(), site))))
    }
}

/// One connection's place among those of its address, free again when it is dropped.
pub(crate) struct Admission(Option<(Arc<PerAddress>, IpAddr)>);

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some((all, site)) = &self.0 {
            let mut open = all.open.lock().unwrap_or_else(PoisonError::into_inner);
            match open.get_mut(site) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(open.remove(site)),
            }
        }
    }
}

/// Who has one IPv6 address mostly has all with the same first half.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_tcp_or_unix() {
        assert!(matches!(Address::parse("[::1]:80"), Ok(Address::Tcp(_))));
        assert_eq!(
            Address::parse("unix:/run/x.sock").unwrap().to_string(),
            "unix:/run/x.sock"
        );
        for wrong in ["", "8000", "localhost:80", "unix:x.sock", "/run/x.sock"] {
            assert!(Address::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_address_has_so_many_connections_and_gets_back_what_it_closes() {
        let limited = PerAddress::new(Some(2));
        let admit = |address: &str| limited.admit(address.parse().unwrap());
        let (first, second) = (admit("10.0.0.1"), admit("::ffff:10.0.0.1"));
        assert!(first.is_some() && second.is_some() && admit("10.0.0.1").is_none());
        assert!(admit("10.0.0.2").is_some(), "another address is not concerned");
        drop(first);
        let third = admit("10.0.0.1");
        assert!(third.is_some() && admit("10.0.0.1").is_none());
        drop((second, third));
        assert!(limited.open.lock().unwrap().is_empty());

        let (one, two) = (admit("fd00::1"), admit("fd00::2"));
        assert!(one.is_some() && two.is_some() && admit("fd00::3").is_none(), "one site");
        assert!(admit("fd00:0:0:1::1").is_some());
    }
}
