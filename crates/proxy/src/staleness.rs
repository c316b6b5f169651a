//! How old the table may be, and who is told how old it is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_client::{Freshness, LiveTable};
use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::headers::{Origin, X_FORWARDED_FOR};
use crate::metrics::source_word;

const REVISION: HeaderName = HeaderName::from_static("x-holdfast-revision");
const SOURCE: HeaderName = HeaderName::from_static("x-holdfast-source");
const STALENESS: HeaderName = HeaderName::from_static("x-holdfast-staleness-ms");

/// What is known of the age of the table.
pub(crate) struct Staleness {
    table: LiveTable,
    freshness: watch::Receiver<Freshness>,
    /// `None`: it may be of any age.
    most: Option<Duration>,
    exceeded: AtomicBool,
}

impl Staleness {
    pub(crate) fn new(table: LiveTable, freshness: watch::Receiver<Freshness>, most: Option<Duration>) -> Self {
        let exceeded = most.is_some_and(|most| freshness.borrow().age() > Some(most));
        Staleness {
            table,
            freshness,
            most,
            exceeded: AtomicBool::new(exceeded),
        }
    }

    /// True while the table is older than it may be.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// True if there is an age that is too old.
    pub(crate) fn is_limited(&self) -> bool {
        self.most.is_some()
    }

    /// Watches the age, for ever.
    pub(crate) async fn watch(&self) {
        let Some(most) = self.most else {
            return std::future::pending().await;
        };
        let started = Instant::now();
        let mut told = false;
        let mut freshness = self.freshness.clone();
        loop {
            // A table that nobody has ever vouched for is as old as the process, at least.
            let age = freshness.borrow_and_update().age();
            let age = age.unwrap_or_else(|| started.elapsed());
            let exceeded = age > most;
            self.exceeded.store(exceeded, Ordering::Relaxed);
            if std::mem::replace(&mut told, exceeded) != exceeded {
                match exceeded {
                    true => tracing::error!(
                        ?most,
                        "no replica has vouched for the table for too long: answering 503"
                    ),
                    false => tracing::info!("a replica has vouched for the table again"),
                }
            }
            let changed = async {
                if freshness.changed().await.is_err() {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = changed => {}
                // One more millisecond, for it has to be exceeded.
                () = sleep(most.saturating_sub(age) + Duration::from_millis(1)), if !exceeded => {}
            }
        }
    }

    /// True for a trusted caller that asks for itself, and not for a user behind it.
    pub(crate) fn is_told_to(origin: &Origin, headers: &HeaderMap) -> bool {
        origin.trusted && !headers.contains_key(X_FORWARDED_FOR) && !headers.contains_key(FORWARDED)
    }

    /// Says in an answer by which table it was made.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let revision = self.table.current().as_ref().map(|table| table.revision().0);
        let freshness = self.freshness.borrow();
        let age = freshness.age().map(|age| age.as_millis());
        headers.insert(SOURCE, HeaderValue::from_static(source_word(freshness.source)));
        let age = age.and_then(|age| u64::try_from(age).ok());
        for (name, value) in [(REVISION, revision), (STALENESS, age)] {
            match value {
                Some(value) => headers.insert(name, HeaderValue::from(value)),
                None => headers.remove(name),
            };
        }
    }
}
