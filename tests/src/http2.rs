//! HTTP/2 as a client: requests beside each other on one connection, WebSockets among them, and what is taken back.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest, handshake};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::http::{ANSWER_WITHIN, Answer};

/// A connection. Dropping it closes it, whatever is under way.
pub struct Connection {
    sender: SendRequest<Bytes>,
    driver: JoinSet<()>,
}

impl Connection {
    /// Connects to `address`, `host:port`, without TLS or negotiation: by prior knowledge.
    ///
    /// # Errors
    /// Nobody listens there, or speaks HTTP/2.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = timeout(ANSWER_WITHIN, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Connection::over(stream).await
    }

    /// On a connection that is there.
    ///
    /// # Errors
    /// The other side does not speak HTTP/2.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = timeout(ANSWER_WITHIN, handshake(stream)).await??;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // The requests that it carried report the error.
            let _ = connection.await;
        });
        Ok(Connection { sender, driver })
    }

    /// Begins a request; what is not its whole is sent by the caller.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn begin(&self, request: Request<()>, is_whole: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut sender = timeout(ANSWER_WITHIN, self.sender.clone().ready()).await??;
        Ok(sender.send_request(request, is_whole)?)
    }

    /// `GET path`, to the end of the answer.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        let (answer, _) = self.begin(request(Method::GET, path)?, true).await?;
        let whole = async {
            let (head, mut rest) = answer.await?.into_parts();
            let mut body = Vec::new();
            while let Some(data) = rest.data().await {
                let data = data?;
                rest.flow_control().release_capacity(data.len())?;
                body.extend_from_slice(&data);
            }
            anyhow::Ok(Answer {
                status: head.status.as_u16(),
                headers: head.headers,
                body: body.into(),
            })
        };
        timeout(ANSWER_WITHIN, whole).await?.with_context(|| path.to_owned())
    }

    /// Opens a WebSocket, by extended CONNECT (RFC 8441).
    ///
    /// # Errors
    /// The other side takes none, or not this one.
    pub async fn websocket(&self, path: &str) -> Result<Websocket> {
        let told = async {
            // The other side says it together with its limits.
            while !self.sender.is_extended_connect_protocol_enabled() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(ANSWER_WITHIN, told).await.context("no WebSockets are taken")?;
        let mut asked = request(Method::CONNECT, path)?;
        asked.extensions_mut().insert(Protocol::from_static("websocket"));
        asked
            .headers_mut()
            .insert("sec-websocket-version", HeaderValue::from_static("13"));
        let (answer, up) = self.begin(asked, false).await?;
        let answer = timeout(ANSWER_WITHIN, answer).await??;
        ensure!(answer.status() == 200, "no WebSocket at {path}: {}", answer.status());
        Ok(Websocket {
            up,
            down: answer.into_body(),
            unread: Vec::new(),
        })
    }

    /// Waits for the other side to end the connection.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn ended(mut self) -> Result<()> {
        let ended = timeout(ANSWER_WITHIN, self.driver.join_next()).await;
        ended.context("the connection goes on")?;
        Ok(())
    }
}

/// A WebSocket that is one stream of a connection, in bytes: frames are the caller's.
pub struct Websocket {
    up: SendStream<Bytes>,
    down: RecvStream,
    unread: Vec<u8>,
}

impl Websocket {
    /// Sends.
    ///
    /// # Errors
    /// It has ended.
    pub fn send(&mut self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.up.send_data(bytes.into(), false)?)
    }

    /// Receives exactly so many bytes.
    ///
    /// # Errors
    /// It ends before, or nothing comes.
    pub async fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.unread.len() < count {
            let Some(data) = timeout(ANSWER_WITHIN, self.down.data()).await? else {
                bail!("it ends after {} of {count} bytes", self.unread.len());
            };
            let data = data?;
            self.down.flow_control().release_capacity(data.len())?;
            self.unread.extend_from_slice(&data);
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Ends it on this side, and waits until it has ended on the other.
    ///
    /// # Errors
    /// It goes on.
    pub async fn finish(mut self) -> Result<()> {
        self.up.send_data(Bytes::new(), true)?;
        let ended = timeout(ANSWER_WITHIN, self.down.data()).await?;
        ensure!(
            ended.is_none_or(|data| data.is_ok_and(|data| data.is_empty())),
            "it goes on"
        );
        Ok(())
    }

    /// Takes it back.
    pub fn reset(mut self) {
        self.up.send_reset(Reason::CANCEL);
    }
}

/// A request for `path`, of whatever host it is asked.
///
/// # Errors
/// `path` is none.
pub fn request(method: Method, path: &str) -> Result<Request<()>> {
    let request = Request::builder().method(method).version(Version::HTTP_2);
    Ok(request.uri(format!("http://localhost{path}")).body(())?)
}
