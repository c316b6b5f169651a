//! Backup: the bytes of a backup file, piece by piece from one replica.

use std::time::Duration;

use bytes::Bytes;
use holdfast_wire::proto::cluster_client::ClusterClient;
use holdfast_wire::proto::{BackupChunk, BackupRequest};
use tokio_stream::StreamExt as _;
use tonic::{Request, Streaming};

use crate::attempts::{Attempts, Verdict, within};
use crate::endpoints::{Endpoints, MESSAGE_BYTES_MAX};
use crate::reader::{ReadError, rejected};

/// How long to wait for each piece.
const PIECE: Duration = Duration::from_secs(10);

/// A backup under way. Dropped, it ends.
#[derive(Debug)]
pub struct BackupStream {
    pieces: Streaming<BackupChunk>,
    replica: String,
}

impl BackupStream {
    /// Asks one replica after the other, for `timeout`, until one begins to answer.
    ///
    /// The backup holds every write that was acknowledged before, unless `stale_ok` is set and no leader is found in a
    /// second; then it holds what the replica has, and says so in its header.
    ///
    /// # Errors
    /// [`ReadError`]: no replica has begun.
    pub async fn open(endpoints: &Endpoints, stale_ok: bool, timeout: Duration) -> Result<Self, ReadError> {
        let mut attempts = Attempts::new(endpoints, timeout);
        while let Some(attempt) = attempts.next(Duration::ZERO).await {
            let replica = &attempt.replica;
            let mut request = Request::new(BackupRequest { stale_ok });
            request.set_timeout(attempt.timeout);
            let mut client = ClusterClient::new(replica.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let status = match within(attempt.timeout, client.backup(request)).await {
                Ok(response) => {
                    attempts.answered(replica, response.metadata());
                    return Ok(BackupStream {
                        pieces: response.into_inner(),
                        replica: replica.address().to_owned(),
                    });
                }
                Err(status) => status,
            };
            if let Verdict::Final(reason) = attempts.failed(replica, &status) {
                return Err(rejected(reason, &status));
            }
        }
        Err(ReadError::Unavailable {
            tried: attempts.summary(),
        })
    }

    /// The next piece; `None` at the end. Whether the end is the backup's end, only its trailer can say.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]: the stream broke; what came so far is no backup.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        let next = within(PIECE, async { self.pieces.next().await.transpose() }).await;
        match next {
            Ok(piece) => Ok(piece.map(|piece| piece.data)),
            Err(status) => Err(ReadError::Unavailable {
                tried: format!("{}: {:?}: {}", self.replica, status.code(), status.message()),
            }),
        }
    }
}
