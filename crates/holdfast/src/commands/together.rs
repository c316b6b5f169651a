//! Together: parts of one process, of which none goes on alone.

use anyhow::anyhow;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A replica and its proxy in one process, for instance.
pub struct Together {
    parts: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Together {
    /// Of parts that end when `stop` is cancelled.
    pub fn until(stop: &CancellationToken) -> Self {
        Together {
            parts: JoinSet::new(),
            stop: stop.clone(),
        }
    }

    /// Starts a part.
    pub fn start(&mut self, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.parts.spawn(part);
    }

    /// Returns when all have ended, `own` among them, which is a part as the others are: it ends when `stop` is cancelled.
    /// Whichever ends first ends the others. Dropping the future cuts them.
    ///
    /// # Errors
    /// The first one's that failed, or that one ended without having been asked to.
    pub async fn run(mut self, own: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut own = std::pin::pin!(own);
        let (mut result, own_is_left) = tokio::select! {
            Some(ended) = self.parts.join_next() => (flat(ended), true),
            ended = &mut own => (ended, false),
        };
        // Whatever ended first, on request or not: nothing goes on alone.
        let on_request = self.stop.is_cancelled();
        self.stop.cancel();
        if result.is_ok() && !on_request {
            result = Err(anyhow!("a part of Holdfast ended without having been asked to"));
        }
        if own_is_left {
            result = result.and(own.await);
        }
        while let Some(ended) = self.parts.join_next().await {
            result = result.and(flat(ended));
        }
        result
    }
}

fn flat(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.unwrap_or_else(|panic| Err(panic.into()))
}
