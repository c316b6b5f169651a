//! HTTP/1.1 as a client: one request, or a connection that is kept.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::http::request::Builder;
use hyper::{HeaderMap, Method, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a whole answer may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// A header's text; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none; the text quotes it.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }
}

/// A connection that is kept from request to request.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    // Ends with the connection's owner.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects to `address`, `host:port`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = timeout(ANSWER_WITHIN, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Connection::over(stream).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // The request that it carried reports the error.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            _driver: driver,
        })
    }

    /// True while another request may be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// The connection broke, or the answer took longer than [`ANSWER_WITHIN`]; open another connection.
    pub async fn ask(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            anyhow::Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: body.collect().await?.to_bytes(),
            })
        };
        timeout(ANSWER_WITHIN, exchange).await?
    }
}

/// A request for `path` at `address`, to be given headers and a body.
pub fn request(method: Method, address: &str, path: &str) -> Builder {
    Request::builder().method(method).uri(path).header("host", address)
}

/// `GET path` on a connection of its own.
///
/// # Errors
/// No answer.
pub async fn get(address: &str, path: &str) -> Result<Answer> {
    send(address, request(Method::GET, address, path), Bytes::new()).await
}

/// One request on a connection that is there, over whatever it goes.
///
/// # Errors
/// No answer, or no valid request.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Builder,
    body: Bytes,
) -> Result<Answer> {
    Connection::over(stream)
        .await?
        .ask(request.body(Full::new(body))?)
        .await
}

/// One request on a connection of its own.
///
/// # Errors
/// No answer, or no valid request.
pub async fn send(address: &str, request: Builder, body: Bytes) -> Result<Answer> {
    let request = request.body(Full::new(body))?;
    let mut connection = Connection::open(address).await.with_context(|| address.to_owned())?;
    connection.ask(request).await.with_context(|| address.to_owned())
}
