//! Client: one connection of a client, as its requests need it.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::headers::Origin;
use crate::tunnel::Tunnel;

/// As many more requests may be taken back than are answered: browsers do it when a page is left, attackers without end.
const UNANSWERED_MAX: i32 = 200;

/// One connection of a client, as its requests need it.
pub(crate) struct Client {
    pub(crate) origin: Origin,
    /// Where it is sent instead, whatever it asks for: the same host at this port, with TLS.
    pub(crate) redirect: Option<u16>,
    tunnels: Mutex<Vec<Tunnel>>,
    requests: AtomicU64,
    /// How many requests may still be taken back.
    left: AtomicI32,
    abuse: Notify,
}

impl Client {
    pub(crate) fn new(origin: Origin, redirect: Option<u16>) -> Self {
        Client {
            origin,
            redirect,
            tunnels: Mutex::default(),
            requests: AtomicU64::new(0),
            left: AtomicI32::new(UNANSWERED_MAX),
            abuse: Notify::new(),
        }
    }

    /// Leaves what is to be run once the 101, or HTTP/2's 200, is sent.
    pub(crate) fn add_tunnel(&self, tunnel: Tunnel) {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).push(tunnel);
    }

    pub(crate) fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Counts a request of HTTP/2, where taking one back costs a client less than it costs us.
    pub(crate) fn unanswered(self: &Arc<Self>) -> Unanswered {
        self.requests.fetch_add(1, Ordering::Relaxed);
        Unanswered {
            client: self.clone(),
            answered: false,
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns when too many requests were taken back.
    pub(crate) async fn abuses(&self) {
        self.abuse.notified().await;
    }
}

/// A request without an answer; dropped so, it was taken back.
pub(crate) struct Unanswered {
    client: Arc<Client>,
    answered: bool,
}

impl Unanswered {
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let left = &self.client.left;
        match self.answered {
            true if left.load(Ordering::Relaxed) < UNANSWERED_MAX => drop(left.fetch_add(1, Ordering::Relaxed)),
            true => {}
            false if left.fetch_sub(1, Ordering::Relaxed) <= 0 => self.client.abuse.notify_one(),
            false => {}
        }
    }
}
