//! Credentials: how replicas are known, and what is shown to them.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holdfast_tls::tokio_rustls::TlsConnector;
use holdfast_tls::tokio_rustls::client::TlsStream;
use holdfast_tls::tokio_rustls::rustls::pki_types::ServerName;
use holdfast_tls::tokio_rustls::rustls::{CertificateError, Error};
use holdfast_tls::{Refresh as _, TargetIdentity, TargetTls, TlsError};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::codegen::Service;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Uri;
use tonic::{Request, Status};

use crate::endpoints::EndpointError;

const PROTOCOLS: &[&[u8]] = &[b"h2"];

/// How replicas are known, and what is shown to them. Files are read again: those of TLS for every connection, the token's
/// for every call.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// `None`: connections are encrypted if the endpoints begin with `https://`, and then as by default.
    pub tls: Option<ReplicaTls>,
    /// A file whose first line is a token of the replicas' list.
    pub token_file: Option<PathBuf>,
}

/// How replicas are known that use TLS. Files are PEM.
#[derive(Clone, Debug, Default)]
pub struct ReplicaTls {
    /// The authorities that vouch for replicas; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The certificate to show to a replica that asks for one, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Which name their certificates are for; `None`: the host of each one's address.
    pub server_name: Option<String>,
}

/// Why nobody can be called with these credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// An endpoint says the contrary.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Mend the file that it names.
    #[error("{}", with_cause(.0))]
    Tls(TlsError),
    /// The file cannot be read, or its first line is no token.
    #[error("{}: {problem}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate cannot be for that name.
    #[error("{0:?} is neither a host name nor an IP address")]
    ServerName(String),
}

fn with_cause(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A file of a few bytes is read by whoever makes a call, so not for every one.
const READ_EVERY: Duration = Duration::from_secs(1);

/// A token from the first line of a file, as it is now; as it last was, while the file cannot be read.
struct TokenFile {
    path: PathBuf,
    last: Mutex<(MetadataValue<Ascii>, Instant)>,
}

impl TokenFile {
    fn open(path: PathBuf) -> Result<Self, CredentialsError> {
        match read_token(&path) {
            Ok(token) => Ok(TokenFile {
                path,
                last: Mutex::new((token, Instant::now())),
            }),
            Err(problem) => Err(CredentialsError::Token { path, problem }),
        }
    }

    fn now(&self) -> MetadataValue<Ascii> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, read) = &mut *last;
        if read.elapsed() >= READ_EVERY {
            *read = Instant::now();
            match read_token(&self.path) {
                Ok(new) => *token = new,
                Err(problem) => tracing::warn!(path = %self.path.display(), "the token stays as it was: {problem}"),
            }
        }
        token.clone()
    }
}

fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    match text.lines().next().unwrap_or_default().trim() {
        "" => Err("has no token in its first line".into()),
        token if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err("has a first line that is no token: it must be of printable ASCII characters without spaces".into())
        }
        token => {
            let value = MetadataValue::<Ascii>::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            Ok(value)
        }
    }
}

/// Shows the token, if there is one, with every call.
#[derive(Clone, Default)]
pub(crate) struct Bearer(Option<Arc<TokenFile>>);

impl Bearer {
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self, CredentialsError> {
        let file = file.map(TokenFile::open).transpose()?;
        Ok(Bearer(file.map(Arc::new)))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(file) = &self.0 {
            request.metadata_mut().insert("authorization", file.now());
        }
        Ok(request)
    }
}

/// Makes connections with TLS.
#[derive(Clone)]
pub(crate) struct Tls {
    identity: Arc<TargetIdentity>,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    /// As the system has it: nothing is read before it is used.
    pub(crate) fn of_the_system() -> Self {
        Tls {
            identity: Arc::new(TargetIdentity::new(TargetTls::default(), PROTOCOLS)),
            server_name: None,
        }
    }

    /// Reads files.
    pub(crate) fn load(tls: ReplicaTls) -> Result<Self, CredentialsError> {
        let server_name = match tls.server_name {
            None => None,
            Some(name) => match ServerName::try_from(name.clone()) {
                Ok(parsed) => Some(parsed),
                Err(_) => return Err(CredentialsError::ServerName(name)),
            },
        };
        let files = TargetTls {
            ca: tls.ca,
            identity: tls.identity,
            insecure: false,
        };
        let identity = TargetIdentity::load(files, PROTOCOLS).map_err(CredentialsError::Tls)?;
        Ok(Tls {
            identity: Arc::new(identity),
            server_name,
        })
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<TlsStream<TcpStream>>, NoTls> {
        let broken = |error: &dyn fmt::Display| NoTls(error.to_string());
        // A URI's host has the brackets of an IPv6 address, and a name has not.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or_default();
        let name = match self.server_name {
            Some(name) => name,
            None => ServerName::try_from(host.clone()).map_err(|error| broken(&error))?,
        };
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(|error| broken(&format_args!("tcp connect error: {error}")))?;
        // A caller would only wait longer for its answer.
        stream.set_nodelay(true).map_err(|error| broken(&error))?;
        let identity = self.identity.clone();
        let refreshed = tokio::task::spawn_blocking(move || identity.refresh()).await;
        if let Ok(Err(error)) = refreshed {
            tracing::warn!(
                "changed files are not taken, what they held before stays: {}",
                with_cause(&error)
            );
        }
        let config = self
            .identity
            .config()
            .await
            .map_err(|error| broken(&with_cause(&error)))?;
        let connected = TlsConnector::from(config).connect(name.clone(), stream).await;
        connected
            .map(TokioIo::new)
            .map_err(|error| NoTls(explain(&error, &name)))
    }
}

/// Why a replica was not reached by TLS, in words that say what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoTls(String);

fn explain(error: &io::Error, name: &ServerName<'_>) -> String {
    let said = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let hint = match said {
        Some(Error::InvalidCertificate(problem)) => match problem {
            // Of one with the same name but another key, too.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of another authority than --endpoints-ssl-ca has".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let name = name.to_str();
                format!("its certificate is not for {name}: --endpoints-server-name says for whom else it may be")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: renew it".to_owned()
            }
            _ => "its certificate is not believed".to_owned(),
        },
        Some(Error::InvalidMessage(_)) => "it does not speak TLS there".to_owned(),
        Some(Error::AlertReceived(alert)) => {
            let refused = refused(&format!("{alert:?}"));
            refused.unwrap_or("it has ended the TLS handshake").to_owned()
        }
        None if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ) =>
        {
            "it closed the connection during the TLS handshake; perhaps it does not speak TLS there".to_owned()
        }
        _ => "the TLS handshake failed".to_owned(),
    };
    format!("{hint} ({error})")
}

/// What a replica says of our certificate by an alert, as rustls names it. It may come after the handshake, with the first
/// answer: then it has not looked at a call.
fn refused(alert: &str) -> Option<&'static str> {
    match alert {
        "CertificateRequired" => Some("it wants a certificate: give --endpoints-ssl-cert and --endpoints-ssl-key"),
        "UnknownCA" | "BadCertificate" | "CertificateUnknown" | "CertificateExpired" | "DecryptError" => {
            Some("it does not believe our certificate, --endpoints-ssl-cert")
        }
        _ => None,
    }
}

/// Why a replica has looked at no call on the connection that it closed, if that is because of TLS. HTTP/2 keeps its text
/// alone.
pub(crate) fn tls_cause(status: &Status) -> Option<&'static str> {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let text = error.to_string();
        if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            return refused(alert);
        }
        if text.contains("this port wants TLS") {
            return Some("this port wants TLS: give --endpoints-ssl-ca");
        }
        source = error.source();
    }
    None
}

impl Service<Uri> for Tls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = NoTls;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NoTls>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoTls>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
