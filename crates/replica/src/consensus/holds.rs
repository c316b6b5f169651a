//! Holds end in time: the leader says when.

use std::convert::Infallible;
use std::time::Duration;

use holdfast_wire::proto;
use holdfast_wire::proto::command::Command as Content;
use tokio::time::Instant;

use super::{Consensus, now_ms};

/// Between two looks at what is held.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What it may take to decide; the next look tries again.
const PATIENCE: Duration = Duration::from_secs(5);

impl Consensus {
    /// Tells operators what is held, and lets go of what has been held for its time, for as long as the replica runs and
    /// whenever it leads.
    pub async fn look_after_holds(&self) -> Infallible {
        let mut told = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if !self.is_leader() {
                told = 0;
                continue;
            }
            let holds = self.published.load().state.holds.clone();
            let (held, first_end_ms) = (holds.len(), holds.first_end_ms());
            if held > told {
                tracing::warn!(
                    held,
                    "so many routes were deleted at once that it may be an accident; they are held, and served on. \
                     `holdfast held` lists them, and confirms or rejects"
                );
            }
            told = held;
            if first_end_ms.is_some_and(|end_ms| end_ms <= now_ms()) {
                let entry = self.stamped(Content::ExpireHeld(proto::ExpireHeld {}));
                match self.end_holds(&entry, Instant::now() + PATIENCE).await {
                    Ok((ended, revision)) => {
                        tracing::warn!(ended, %revision, "nobody has decided in time; what was held is deleted");
                    }
                    Err(error) => tracing::debug!(%error, "holds that are over were not ended; the next try follows"),
                }
            }
        }
    }
}
