//! Activity: a proxy sees which routes are used, and the replica that it follows hears of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_wire::convert::RouteActivity;
use holdfast_wire::proto;
use holdfast_wire::proto::routes_client::RoutesClient;
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request};

use crate::attempts::in_words;
use crate::endpoints::Replica;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);
/// Until the same is said again.
const SAME_NEWS: Duration = Duration::from_secs(30);
/// How much one call says at most.
const ROUTES_MAX: usize = 10_000;
const BYTES_MAX: usize = 1024 * 1024;

/// Who knows when routes were last active.
pub trait ActivitySource: Send + Sync {
    /// What has changed since this was last asked; with `all`, everything that is known.
    fn report(&self, all: bool) -> Vec<RouteActivity>;
}

/// Who tells a replica, and how often.
#[derive(Clone)]
pub struct Reports {
    /// Who knows.
    pub source: Arc<dyn ActivitySource>,
    /// From one report to the next, on average.
    pub interval: Duration,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").field("interval", &self.interval).finish()
    }
}

/// Reports to one replica after the other, and loses nothing between them.
#[derive(Debug)]
pub(crate) struct Reporter {
    reports: Reports,
    /// Set while the replica that is followed may lack what was reported already.
    owes_all: AtomicBool,
    /// When it was last said that reports fail.
    told: Mutex<Option<Instant>>,
}

impl Reporter {
    pub(crate) fn new(reports: Reports) -> Self {
        Reporter {
            reports,
            owes_all: AtomicBool::new(true),
            told: Mutex::default(),
        }
    }

    /// Reports to a replica that is new to us, for as long as this is polled.
    pub(crate) async fn run<T>(&self, replica: &Replica) -> T {
        self.owes_all.store(true, Ordering::Relaxed);
        loop {
            // Proxies that come together do not report together.
            sleep(self.reports.interval.mul_f64(rand::random_range(0.5..1.5))).await;
            self.report(replica).await;
        }
    }

    /// Reports once.
    pub(crate) async fn report(&self, replica: &Replica) {
        // Set meanwhile: whoever drops this future has lost what it was about to say.
        let all = self.owes_all.swap(true, Ordering::Relaxed);
        let asked = Instant::now();
        let mut routes = self.reports.source.report(all).into_iter().peekable();
        while routes.peek().is_some() {
            let mut request = proto::ReportActivityRequest::default();
            let mut bytes = 0;
            while request.routes.len() < ROUTES_MAX
                && bytes < BYTES_MAX
                && let Some(mut activity) = routes.next()
            {
                // Of many pages the last one goes long after it was asked.
                activity.age += asked.elapsed();
                let activity = proto::RouteActivity::from(&activity);
                bytes += activity.encoded_len();
                request.routes.push(activity);
            }
            let mut request = Request::new(request);
            request.set_timeout(CALL);
            let mut client = RoutesClient::new(replica.channel());
            match timeout(CALL, client.report_activity(request)).await {
                Ok(Ok(_)) => {}
                // Of an older version, and followed all the same.
                Ok(Err(status)) if status.code() == Code::Unimplemented => return,
                Ok(Err(status)) => return self.failed(replica, &in_words(&status)),
                Err(_) => return self.failed(replica, "no answer in time"),
            }
        }
        self.owes_all.store(false, Ordering::Relaxed);
    }

    /// Routes that stay inactive may cost users their servers, so it is said, though not each time.
    fn failed(&self, replica: &Replica, problem: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= SAME_NEWS) {
            *told = Some(Instant::now());
            tracing::warn!(%replica, "it was not told which routes are active, and is told again: {problem}");
        }
    }
}
