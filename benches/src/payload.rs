//! What is written to every store: routes of JupyterHub's size, each with the number of the write that made it.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;

/// The target of every route.
const TARGET: &str = "http://10.1.2.3:8888";
/// What stands between target and data where a store knows one value only. In neither of the two.
const SEPARATOR: u8 = b'\n';
const DIGITS: usize = 10;
/// What follows the number in a route's data.
const TAIL: &str = "\"}";

/// One route to be written: a key of about 30 bytes and about 150 bytes of value.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// Which route.
    pub route: u64,
    /// Which write of all, so that none changes nothing, and so that a stream's receiver knows it.
    pub write: u64,
}

impl Payload {
    /// The key.
    pub fn routespec(self) -> String {
        format!("/user/student-{:0DIGITS$}-lab/", self.route)
    }

    /// Where the route leads.
    pub fn target(self) -> String {
        TARGET.to_owned()
    }

    /// The route's data.
    pub fn data(self) -> String {
        format!(
            r#"{{"user":"student-{route:0DIGITS$}","server_name":"lab","hub":"main","pod":"jupyter-student-{route:0DIGITS$}--lab","write":"{write:0DIGITS$}{TAIL}"#,
            route = self.route,
            write = self.write
        )
    }

    /// Target and data as one value.
    pub fn value(self) -> Bytes {
        let mut value = self.target().into_bytes();
        value.push(SEPARATOR);
        value.extend_from_slice(self.data().as_bytes());
        value.into()
    }
}

/// The number of the write that a data or value came from.
///
/// # Errors
/// It is none of ours.
pub fn write_of(data: &[u8]) -> Result<u64> {
    let digits = data
        .strip_suffix(TAIL.as_bytes())
        .and_then(|head| head.get(head.len().checked_sub(DIGITS)?..));
    let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    number.with_context(|| format!("no value of ours: {:?}", String::from_utf8_lossy(data)))
}

/// Target and data of a value.
///
/// # Errors
/// It is none of ours.
pub fn parts(value: &[u8]) -> Result<(&str, &str)> {
    std::str::from_utf8(value)?
        .split_once(char::from(SEPARATOR))
        .context("a value without a separator")
}

/// Deals out what is written next: the same routes again and again, as a hub does, each time with another value.
#[derive(Debug)]
pub struct Payloads {
    routes: u64,
    next: AtomicU64,
}

impl Payloads {
    /// Over so many routes, from the first one on.
    pub fn over(routes: u64) -> Self {
        Payloads {
            routes,
            next: AtomicU64::new(0),
        }
    }

    /// The next `count`, which are different routes if there are so many.
    pub fn take(&self, count: u64) -> Vec<Payload> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let payload = |write| Payload {
            route: write % self.routes,
            write,
        };
        (first..first + count).map(payload).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_are_those_promised() {
        let payload = Payload { route: 7, write: 1234 };
        assert_eq!(payload.routespec().len(), 29);
        assert_eq!(payload.value().len(), 144);
    }

    #[test]
    fn a_value_tells_its_write_and_its_parts() {
        let payload = Payload { route: 7, write: 1234 };
        assert_eq!(write_of(&payload.value()).unwrap(), 1234);
        assert_eq!(write_of(payload.data().as_bytes()).unwrap(), 1234);
        assert_eq!(parts(&payload.value()).unwrap(), (TARGET, payload.data().as_str()));
        assert!(write_of(b"7").is_err());
        assert!(parts(b"7").is_err());
    }

    #[test]
    fn routes_repeat_and_writes_do_not() {
        let payloads = Payloads::over(2);
        let taken: Vec<_> = payloads
            .take(3)
            .iter()
            .map(|payload| (payload.route, payload.write))
            .collect();
        assert_eq!(taken, [(0, 0), (1, 1), (0, 2)]);
        assert_eq!(payloads.take(1)[0].write, 3);
    }
}
