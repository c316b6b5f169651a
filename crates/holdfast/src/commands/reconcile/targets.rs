//! Which targets accept connections, as seen from here.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::time::Duration;

use holdfast_table::Target;
use tokio::task::JoinSet;

use crate::http::connect;
use crate::output::Progress;

/// Connections that are being made at once.
const CONNECTING_MAX: usize = 64;

/// How an attempt to connect ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Somebody is there.
    Accepts,
    /// Nobody is there, for certain: whoever is asked about the address says so. In the system's words.
    Refuses(String),
    /// Nothing came back. Either nobody is there, or we cannot get there.
    Silent(String),
}

/// Where a target is, in one spelling.
pub(super) fn address(target: &Target) -> String {
    match (target.socket_path(), target.host()) {
        (Some(path), _) => format!("unix:{path}"),
        (None, host) => format!(
            "{}:{}",
            host.unwrap_or_default().to_ascii_lowercase(),
            target.port().unwrap_or(0)
        ),
    }
}

/// Tries each address once.
pub(super) async fn reach<'a>(
    targets: impl Iterator<Item = &'a Target>,
    timeout: Duration,
    progress: &mut Progress,
) -> HashMap<String, Reach> {
    let mut waiting: BTreeMap<String, Target> = targets.map(|target| (address(target), target.clone())).collect();
    let total = waiting.len();
    let mut trying = JoinSet::new();
    let mut reached = HashMap::with_capacity(total);
    loop {
        while trying.len() < CONNECTING_MAX
            && let Some((address, target)) = waiting.pop_first()
        {
            trying.spawn(async move { (address, attempt(&target, timeout).await) });
        }
        match trying.join_next().await {
            // A task that panicked has told so itself; its target counts as not looked at.
            Some(Err(_)) => {}
            Some(Ok((address, reach))) => drop(reached.insert(address, reach)),
            None => return reached,
        }
        progress.say(|| format!("targets: {} of {total}", reached.len()));
    }
}

async fn attempt(target: &Target, timeout: Duration) -> Reach {
    match tokio::time::timeout(timeout, connect(target)).await {
        Ok(Ok(_)) => Reach::Accepts,
        Ok(Err(error)) => judge(&error),
        Err(_) => Reach::Silent(format!("no connection within {timeout:?}")),
    }
}

fn judge(error: &io::Error) -> Reach {
    match error.kind() {
        ErrorKind::ConnectionRefused => Reach::Refuses("connection refused".to_owned()),
        // Of a unix socket: it may be another machine's.
        ErrorKind::NotFound => Reach::Silent("no such socket on this machine".to_owned()),
        // It is there, and not for us.
        ErrorKind::PermissionDenied => Reach::Accepts,
        _ => Reach::Silent(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_has_one_spelling() {
        for (target, expected) in [
            ("http://10.0.0.1:8888", "10.0.0.1:8888"),
            ("http://Pod.Example/x", "pod.example:80"),
            ("https://pod.example", "pod.example:443"),
            ("http://[::1]:8888", "[::1]:8888"),
            ("http+unix://%2Frun%2Fa.sock/x", "unix:/run/a.sock"),
        ] {
            assert_eq!(address(&Target::parse(target).unwrap()), expected);
        }
    }

    #[tokio::test]
    async fn who_listens_accepts_and_who_is_gone_does_not() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let gone = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let urls = [&listener, &gone].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
        drop(gone);
        let path = std::env::temp_dir().join(format!("holdfast-reach-{}", std::process::id()));
        let socket = tokio::net::UnixListener::bind(&path).unwrap();
        let encoded = path.to_str().unwrap().replace('/', "%2F");
        let targets = [
            urls[0].clone(),
            urls[1].clone(),
            format!("http+unix://{encoded}"),
            format!("http+unix://{encoded}-gone"),
        ];
        let targets = targets.map(|target| Target::parse(&target).unwrap());
        let reached = reach(targets.iter(), Duration::from_secs(5), &mut Progress::default()).await;
        std::fs::remove_file(&path).unwrap();
        drop((listener, socket));
        let found: Vec<&Reach> = targets.iter().map(|target| &reached[&address(target)]).collect();
        assert_eq!(*found[0], Reach::Accepts);
        assert_eq!(*found[1], Reach::Refuses("connection refused".into()));
        assert_eq!(*found[2], Reach::Accepts);
        assert_eq!(*found[3], Reach::Silent("no such socket on this machine".into()));
    }
}
