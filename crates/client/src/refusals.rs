//! Refusals: a proxy finds that nobody listens at a target, and the replicas hear of it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_table::{Entry, Revision, RouteKey};
use holdfast_wire::proto::RouteRevision;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};

/// The same version of a route is told of once in so much time.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// And so many versions at most; of any other the next request tells.
const VERSIONS_MAX: usize = 1_024;

/// Where a proxy says so. Cheap to clone. What is said while no replica is followed is lost: whoever asks again says it
/// again.
#[derive(Clone, Debug)]
pub struct Refusals {
    recent: Arc<Mutex<Recent>>,
    told: broadcast::Sender<RouteRevision>,
}

#[derive(Debug)]
struct Recent {
    since: Instant,
    versions: HashSet<(RouteKey, Revision)>,
}

impl Refusals {
    pub(crate) fn new() -> Self {
        let recent = Recent {
            since: Instant::now(),
            versions: HashSet::new(),
        };
        Refusals {
            recent: Arc::new(Mutex::new(recent)),
            told: broadcast::Sender::new(VERSIONS_MAX),
        }
    }

    /// The target of this version of a route has refused a connection.
    pub fn report(&self, entry: &Entry) {
        let news = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.since.elapsed() >= AGAIN_AFTER {
                recent.since = Instant::now();
                recent.versions.clear();
            }
            let version = (entry.route.spec.key().clone(), entry.modified);
            recent.versions.len() < VERSIONS_MAX && recent.versions.insert(version)
        };
        if news {
            // Nobody listens while no replica is followed.
            let _ = self.told.send(RouteRevision {
                routespec: entry.route.spec.as_str().to_owned(),
                mod_revision: entry.modified.0,
            });
        }
    }

    /// What is told from now on.
    pub(crate) fn stream(&self) -> impl Stream<Item = RouteRevision> + use<> {
        BroadcastStream::new(self.told.subscribe()).filter_map(Result::ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::Route;

    fn entry(n: usize, modified: u64) -> Entry {
        Entry {
            route: Route::parse(&format!("/{n}/"), "http://10.0.0.1:1", "", "").unwrap(),
            modified: Revision(modified),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_is_told_of_once_in_a_while_and_only_to_who_listens() {
        let refusals = Refusals::new();
        refusals.report(&entry(1, 7));
        let mut told = std::pin::pin!(refusals.stream());
        refusals.report(&entry(1, 7));
        refusals.report(&entry(1, 8));
        let next = told.next().await.unwrap();
        assert_eq!(
            (next.routespec.as_str(), next.mod_revision),
            ("/1/", 8),
            "the first was told already"
        );
        tokio::time::advance(AGAIN_AFTER).await;
        refusals.report(&entry(1, 7));
        assert_eq!(told.next().await.unwrap().mod_revision, 7);
        for n in 0..2 * VERSIONS_MAX {
            refusals.report(&entry(n, 9));
        }
        drop(refusals);
        assert_eq!(told.fold(0, |count, _| count + 1).await, VERSIONS_MAX - 1);
    }
}
