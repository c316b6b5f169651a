//! A user's server for every synthetic route: one small process-wide server that says which of them was reached.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use holdfast_table::{FieldError, Route};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

use crate::serving::serve;
use crate::websocket::{self, CLOSE, PING, PONG, TEXT, accept};

/// The header in which every server of the tests says who it is.
pub const IDENTITY: &str = "x-holdfast-server";
/// Who answers where no identity is in the path: the stand-in for a hub's default route.
pub const DEFAULT_TARGET: &str = "the-default-target";

const UPGRADES_WAITING_MAX: usize = 1024;

/// A running echo server; it ends when this is dropped.
pub struct Echo {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Echo {
    /// Listens on a free port.
    ///
    /// # Errors
    /// It cannot.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let incoming = TcpListenerStream::new(listener).inspect_ok(|stream| {
            // A test that is slow because of this would still be right.
            let _ = stream.set_nodelay(true);
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(incoming, connection));
        Ok(Echo { address, tasks })
    }

    /// Listens on a unix socket too, and returns the target at which the server called `identity` answers there.
    ///
    /// # Errors
    /// It cannot.
    pub fn listen_at(&mut self, socket: &Path, identity: &str) -> Result<String> {
        let incoming = UnixListenerStream::new(UnixListener::bind(socket)?);
        self.tasks.spawn(serve(incoming, connection));
        Ok(format!("{}/t/{identity}", unix_target(socket)))
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The target at which the server called `identity` answers.
    pub fn target(&self, identity: &str) -> String {
        format!("http://{}/t/{identity}", self.address)
    }

    /// A target that answers as [`DEFAULT_TARGET`], whatever the path.
    pub fn default_target(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The route `/user/<identity>/` to the server called `identity`.
    ///
    /// # Errors
    /// `identity` or `namespace` does not fit a route.
    pub fn route(&self, identity: &str, namespace: &str) -> Result<Route, FieldError> {
        Route::parse(&format!("/user/{identity}/"), &self.target(identity), "{}", namespace)
    }
}

/// The target of a server that listens on this socket.
pub fn unix_target(socket: &Path) -> String {
    format!("http+unix://{}", socket.display().to_string().replace('/', "%2F"))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let (upgrades, mut upgraded) = mpsc::channel(UPGRADES_WAITING_MAX);
    let service = service_fn(move |request| {
        let upgrades = upgrades.clone();
        async move { Ok::<_, Infallible>(answer(request, &upgrades)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    // A proxy that was killed leaves broken connections behind: nothing to report.
    if served.is_err() {
        return;
    }
    while let Some((upgrade, identity)) = upgraded.recv().await {
        let upgrade: hyper::upgrade::OnUpgrade = upgrade;
        if let Ok(stream) = upgrade.await {
            let _ = echo(TokioIo::new(stream), identity).await;
        }
    }
}

type Upgrade = (hyper::upgrade::OnUpgrade, String);

fn answer(mut request: Request<Incoming>, upgrades: &mpsc::Sender<Upgrade>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let identity = path
        .strip_prefix("/t/")
        .and_then(|rest| rest.split('/').next())
        .unwrap_or(DEFAULT_TARGET)
        .to_owned();
    let response = Response::builder().header(IDENTITY, &identity);
    let key = request.headers().get(SEC_WEBSOCKET_KEY);
    let key = key.and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
    let response = if request.headers().contains_key(UPGRADE) {
        match upgrades.try_send((hyper::upgrade::on(&mut request), identity)) {
            Ok(()) => response
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(UPGRADE, "websocket")
                .header(CONNECTION, "Upgrade")
                .header(SEC_WEBSOCKET_ACCEPT, accept(&key))
                .body(Full::default()),
            Err(_) => response.status(StatusCode::INTERNAL_SERVER_ERROR).body(Full::default()),
        }
    } else {
        response.body(Full::from(format!("{identity}\n{path}\n")))
    };
    response.unwrap_or_else(|_| Response::default())
}

/// Answers every text with `<identity> <text>`.
async fn echo(mut stream: TokioIo<hyper::upgrade::Upgraded>, identity: String) -> Result<()> {
    loop {
        let frame = websocket::read(&mut stream).await?;
        match frame.opcode {
            TEXT => {
                let text = [identity.as_bytes(), b" ", &frame.payload].concat();
                websocket::write(&mut stream, TEXT, &text, false).await?;
            }
            PING => websocket::write(&mut stream, PONG, &frame.payload, false).await?,
            CLOSE => return websocket::write(&mut stream, CLOSE, &frame.payload, false).await,
            _ => {}
        }
    }
}
