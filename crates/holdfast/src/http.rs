//! Single requests to the HTTP APIs of others: a hub's, configurable-http-proxy's, a proxy's.

use std::io;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use holdfast_table::{Scheme, Target};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

/// The largest answer that is taken: a hundred thousand routes.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Reads the URL of an API.
pub fn url(text: &str) -> Result<Target, String> {
    let url = Target::parse(text).map_err(|error| error.problem)?;
    match url.scheme() {
        _ if url.query().is_some() => Err("must have no query".into()),
        Scheme::Https => Err("https is not available here: give the address inside, http:// or http+unix://".into()),
        _ => Ok(url),
    }
}

/// A connection over TCP or to a unix socket. Given up by dropping it; there is no other limit to its time.
pub async fn connect(target: &Target) -> io::Result<Box<dyn Connection>> {
    match target.socket_path() {
        Some(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        None => {
            let host = target.host().unwrap_or_default();
            let host = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
                .unwrap_or(host);
            Ok(Box::new(TcpStream::connect((host, target.port().unwrap_or(0))).await?))
        }
    }
}

/// Bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Somebody's API, and how we show ourselves there.
#[derive(Clone)]
pub struct Api {
    url: Target,
    token: Option<String>,
    accept: &'static str,
    timeout: Duration,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: StatusCode,
    body: Bytes,
}

impl Api {
    /// Connects to nobody yet. An answer must be whole within `timeout`.
    pub fn new(url: Target, token: Option<String>, timeout: Duration) -> Self {
        Api {
            url,
            token,
            accept: "application/json",
            timeout,
        }
    }

    /// The same API, asked for another kind of answer.
    #[must_use]
    pub fn accepting(self, accept: &'static str) -> Self {
        Api { accept, ..self }
    }

    /// Asks for `path`, which goes after the URL's own. Any status is an answer.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn ask(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let asked = || format!("{method} {}{path}", self.url.as_str().trim_end_matches('/'));
        let answer = tokio::time::timeout(self.timeout, self.exchange(method.clone(), path)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {:?}", self.timeout)));
        answer.with_context(asked)
    }

    async fn exchange(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path()))
            .header(HOST, self.url.host().map_or("localhost", |_| self.url.authority()))
            .header(ACCEPT, self.accept);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("token {token}"));
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let (mut sender, connection) = handshake(TokioIo::new(connect(&self.url).await?)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // The request that it carries reports the error.
            let _ = connection.await;
        });
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        Ok(Answer {
            status: head.status,
            body: body.map_err(|error| anyhow!(error))?.to_bytes(),
        })
    }
}

impl Answer {
    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none, or not of this form; the text quotes its beginning.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("the answer cannot be read: {}", self.beginning()))
    }

    /// The first words of the body, for an error's text.
    pub fn beginning(&self) -> String {
        const SHOWN: usize = 200;
        let text = String::from_utf8_lossy(&self.body);
        format!("{:?}", text.chars().take(SHOWN).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_is_an_url_that_can_be_asked() {
        for good in [
            "http://127.0.0.1:8081",
            "http://hub:8081/jupyter/",
            "http+unix://%2Frun%2Fhub.sock",
        ] {
            assert_eq!(url(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("hub:8081", "must be an http://"),
            ("https://hub:8081", "https is not available"),
            ("http://hub:8081/?x", "no query"),
        ] {
            assert!(url(bad).unwrap_err().contains(why), "{bad}");
        }
    }
}
