//! Targets: one exchange with a user's server, on a connection that is fit for it.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_table::Target;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Progress, Upload, answered};
use crate::connect::{ConnectError, Connector};
use crate::metrics::TargetFailure;
use crate::pool::{Connection, Pool};

/// The most bytes in the head of an answer; hyper takes at most 100 headers.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most bytes that are read from a target before a client takes them.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// How long a kept connection may take to be ready. Its exchange is over, so that is at its next turn, unless its target
/// has answered and does not read what is still on the way.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections to user servers: pooled ones for requests, one of its own for each upgrade.
pub(crate) struct Targets {
    connector: Connector,
    pool: Arc<Pool>,
    http: http1::Builder,
    /// How long a target may be silent before its answer, and within it.
    pub(crate) patience: Option<Duration>,
    idle_timeout: Duration,
    /// Owns the tasks that drive the connections.
    tasks: TaskTracker,
}

/// The connection that an answer comes from.
pub(crate) struct Lease {
    connection: Connection,
    /// That of the request, unless it was at its end before it began.
    upload: Option<Arc<Progress>>,
    target: Target,
    pool: Arc<Pool>,
}

impl Lease {
    /// To be called once the answer is read to its end. A target that answered before it had the whole request keeps it
    /// to itself: nobody knows what it will take the rest for.
    pub(crate) fn give_back(self) {
        if self.upload.is_none_or(|upload| upload.has_ended()) {
            self.pool.put(self.target.origin(), self.connection);
        }
    }
}

/// Why a target gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// Nothing was sent.
    #[error("no connection to {target}")]
    Connect { target: Target, source: ConnectError },
    /// Perhaps something was sent, and acted upon.
    #[error("no answer from {target}")]
    Response {
        target: Target,
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Something was sent, and perhaps acted upon.
    #[error("no answer from {target} within {waited:?}")]
    Silent { target: Target, waited: Duration },
    /// It is the client's failure.
    #[error("the request to {target} broke off")]
    Upload { target: Target },
    /// That, too.
    #[error("the request to {target} came too slowly")]
    Slow { target: Target },
}

impl TargetError {
    /// How the target failed, if it did.
    pub(crate) fn failure(&self) -> Option<TargetFailure> {
        match self {
            TargetError::Connect {
                source: ConnectError::Denied(_),
                ..
            } => Some(TargetFailure::Denied),
            TargetError::Connect { .. } => Some(TargetFailure::Connect),
            TargetError::Response { .. } => Some(TargetFailure::Response),
            TargetError::Silent { .. } => Some(TargetFailure::Silent),
            TargetError::Upload { .. } | TargetError::Slow { .. } => None,
        }
    }

    /// True if nobody listens there: neither a server that is slow, nor a network that is cut, says so.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, TargetError::Connect { source: ConnectError::Io(error), .. }
            if error.kind() == io::ErrorKind::ConnectionRefused)
    }
}

impl Targets {
    pub(crate) fn new(connector: Connector, idle_timeout: Duration, patience: Option<Duration>) -> Self {
        let mut http = http1::Builder::new();
        http.max_header_size(HEAD_BYTES_MAX).max_buf_size(BUFFER_BYTES_MAX);
        Targets {
            connector,
            pool: Arc::new(Pool::new(idle_timeout)),
            http,
            patience,
            idle_timeout,
            tasks: TaskTracker::new(),
        }
    }

    /// Sends one request, whose URI is in origin form, and returns the head of the answer.
    ///
    /// A request goes out again only where hyper gives it back, which it does if no byte of it was written.
    pub(crate) async fn send(
        &self,
        target: &Target,
        request: Request<Upload>,
        upload: Option<Arc<Progress>>,
    ) -> Result<(Response<Incoming>, Lease), TargetError> {
        let sent = self.exchange(target, request);
        match answered(sent, self.patience, upload.as_ref()).await {
            Some(Ok((response, connection))) => {
                if let Some(upload) = &upload {
                    upload.answered();
                }
                let lease = Lease {
                    connection,
                    upload,
                    target: target.clone(),
                    pool: self.pool.clone(),
                };
                Ok((response, lease))
            }
            Some(Err(_)) if upload.as_ref().is_some_and(|upload| upload.was_slow()) => {
                Err(TargetError::Slow { target: target.clone() })
            }
            Some(Err(_)) if upload.as_ref().is_some_and(|upload| upload.has_failed()) => {
                Err(TargetError::Upload { target: target.clone() })
            }
            Some(Err(error)) => Err(error),
            None => Err(self.silent(target)),
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        mut request: Request<Upload>,
    ) -> Result<(Response<Incoming>, Connection), TargetError> {
        while let Some(mut connection) = self.pool.take(target.origin()) {
            match timeout(READY_TIMEOUT, connection.sender.ready()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => continue,
                Err(_) => break,
            }
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(no_answer(target, failed.into_error())),
                },
            }
        }
        let mut connection = self.open(target, false).await?;
        match connection.sender.send_request(request).await {
            Ok(response) => Ok((response, connection)),
            Err(error) => Err(no_answer(target, error)),
        }
    }

    /// Asks for an upgrade on a connection that carries nothing before it and, unless refused, nothing after it.
    pub(crate) async fn upgrade(
        &self,
        target: &Target,
        request: Request<Upload>,
    ) -> Result<(Response<Incoming>, Lease), TargetError> {
        let asked = async {
            let mut connection = self.open(target, true).await?;
            match connection.sender.send_request(request).await {
                Ok(response) => Ok((response, connection)),
                Err(error) => Err(no_answer(target, error)),
            }
        };
        let (response, connection) = match answered(asked, self.patience, None).await {
            Some(answer) => answer?,
            None => return Err(self.silent(target)),
        };
        let lease = Lease {
            connection,
            // Never at its end: a connection on which an upgrade was asked for is not used for anything else.
            upload: Some(Arc::new(Progress::default())),
            target: target.clone(),
            pool: self.pool.clone(),
        };
        Ok((response, lease))
    }

    async fn open(&self, target: &Target, upgradable: bool) -> Result<Connection, TargetError> {
        let connected = self.connector.connect(target).await;
        let stream = connected.map_err(|source| TargetError::Connect {
            target: target.clone(),
            source,
        })?;
        let opened = self.http.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| no_answer(target, error))?;
        let report = |ended: hyper::Result<()>| {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a target ended");
            }
        };
        match upgradable {
            true => self
                .tasks
                .spawn(async move { report(connection.with_upgrades().await) }),
            false => self.tasks.spawn(async move { report(connection.await) }),
        };
        Ok(Connection::new(sender))
    }

    fn silent(&self, target: &Target) -> TargetError {
        TargetError::Silent {
            target: target.clone(),
            waited: self.patience.unwrap_or_default(),
        }
    }

    /// What closes connections that have been idle for too long, until the token is cancelled.
    pub(crate) fn sweeper(&self, end: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let (pool, interval) = (self.pool.clone(), self.idle_timeout.max(Duration::from_millis(100)));
        async move {
            while end.run_until_cancelled(sleep(interval)).await.is_some() {
                pool.sweep();
            }
        }
    }

    /// Closes idle connections and waits until the others, whose requests must have ended, are closed too.
    pub(crate) async fn close(self) {
        self.pool.clear();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn no_answer(target: &Target, error: hyper::Error) -> TargetError {
    TargetError::Response {
        target: target.clone(),
        source: error.into(),
    }
}
