//! Single requests to the HTTP APIs of others: a hub's, configurable-http-proxy's, a proxy's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::Args;
use holdfast_table::{Scheme, Target};
use holdfast_tls::tokio_rustls::TlsConnector;
use holdfast_tls::tokio_rustls::rustls::pki_types::ServerName;
use holdfast_tls::{TargetIdentity, TargetTls};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::config::{Settings, parse};

/// The largest answer that is taken: a hundred thousand routes.
const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;
const PROTOCOLS: &[&[u8]] = &[b"http/1.1"];

/// Reads the URL of an API.
pub fn url(text: &str) -> Result<Target, String> {
    let url = Target::parse(text).map_err(|error| error.problem)?;
    match url.scheme() {
        _ if url.query().is_some() => Err("must have no query".into()),
        _ => Ok(url),
    }
}

/// How an API is known whose URL begins with https://.
#[derive(Debug, Default, Args)]
pub struct TlsArgs {
    /// Authorities that vouch for the URL that is asked, PEM, if it begins with https://. [default: the system's]
    #[arg(long, env = "HOLDFAST_URL_SSL_CA", value_name = "FILE")]
    url_ssl_ca: Option<String>,

    /// A certificate to show there, PEM.
    #[arg(long, env = "HOLDFAST_URL_SSL_CERT", value_name = "FILE")]
    url_ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_URL_SSL_KEY", value_name = "FILE")]
    url_ssl_key: Option<String>,
}

impl TlsArgs {
    /// Reads the settings and their files.
    pub fn read(&self, settings: &mut Settings) -> Option<Arc<TargetIdentity>> {
        let ca = settings.read_optional("url-ssl-ca", self.url_ssl_ca.as_deref(), parse::file);
        let certificate = settings.read_optional("url-ssl-cert", self.url_ssl_cert.as_deref(), parse::file);
        let key = settings.read_optional("url-ssl-key", self.url_ssl_key.as_deref(), parse::file);
        if self.url_ssl_cert.is_some() != self.url_ssl_key.is_some() {
            settings.refuse_as("--url-ssl-cert and --url-ssl-key go together".into());
        }
        let tls = TargetTls {
            ca: ca?,
            identity: certificate?.zip(key?),
            insecure: false,
        };
        match TargetIdentity::load(tls, PROTOCOLS) {
            Ok(identity) => Some(Arc::new(identity)),
            Err(error) => {
                settings.refuse_as(format!("--url-ssl-ca, -cert, -key: {error}"));
                None
            }
        }
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
    identity: Arc<TargetIdentity>,
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
            identity: Arc::new(TargetIdentity::new(TargetTls::default(), PROTOCOLS)),
        }
    }

    /// The same API, known in this way if its URL begins with https://.
    #[must_use]
    pub fn with(self, identity: Arc<TargetIdentity>) -> Self {
        Api { identity, ..self }
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
        let (mut sender, connection) = handshake(TokioIo::new(self.connect().await?)).await?;
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

impl Api {
    async fn connect(&self) -> anyhow::Result<Box<dyn Connection>> {
        let stream = connect(&self.url).await?;
        if self.url.scheme() != Scheme::Https {
            return Ok(stream);
        }
        let host = self.url.host().unwrap_or_default();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        let connector = TlsConnector::from(self.identity.config().await?);
        let stream = connector.connect(name, stream).await;
        Ok(Box::new(stream.context(
            "no TLS: see --url-ssl-ca, --url-ssl-cert and --url-ssl-key",
        )?))
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
            "https://[::1]:8081",
            "http+unix://%2Frun%2Fhub.sock",
        ] {
            assert_eq!(url(good).unwrap().as_str(), good);
        }
        for (bad, why) in [("hub:8081", "must be an http://"), ("http://hub:8081/?x", "no query")] {
            assert!(url(bad).unwrap_err().contains(why), "{bad}");
        }
    }
}
