//! Certificates and tokens that follow their files.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::TlsError;

/// Something made of files.
pub trait Refresh: Send + Sync {
    /// Reads the files again; true if they have changed. On an error what there is stays.
    ///
    /// # Errors
    /// [`TlsError`]: mend the file that it names.
    fn refresh(&self) -> Result<bool, TlsError>;
}

/// Looks at the files of each, which has a name for the log, again and again, until the token is cancelled.
pub async fn follow(identities: Vec<(&'static str, Arc<dyn Refresh>)>, interval: Duration, end: CancellationToken) {
    let identities: Arc<[_]> = identities.into();
    while end.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let identities = identities.clone();
        let refreshed = tokio::task::spawn_blocking(move || {
            for (whose, identity) in &*identities {
                report(whose, identity.refresh());
            }
        });
        if refreshed.await.is_err() {
            return;
        }
    }
}

fn report(whose: &'static str, refreshed: Result<bool, TlsError>) {
    match refreshed {
        Ok(true) => tracing::info!(
            whose,
            "files have changed: what begins from now on goes by the new ones"
        ),
        Ok(false) => {}
        Err(error) => {
            let cause = std::error::Error::source(&error).map(tracing::field::display);
            tracing::warn!(
                whose,
                cause,
                "changed files are not taken, what they held before stays: {error}"
            );
        }
    }
}
