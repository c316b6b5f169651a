//! Watches how many files the process has open: a WebSocket needs two, and whoever has none left serves nobody new.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use crate::metrics::SharedMetrics;
use crate::workers;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Warned of at so many of a hundred, and again only after it was less than the second.
const WARNED_AT: u64 = 80;
const CALM_AT: u64 = 70;

/// What else is open: listeners, the stream from a replica, the table's copy, logs; and a replica's files in the same
/// process.
const OTHERS: u64 = 256;

/// As many connections of clients as there are descriptors for, if each needs one more to a target; `wanted` at most.
///
/// More would let strangers who only connect take away the descriptors by which users reach their servers.
pub(crate) fn connections_max(wanted: usize) -> usize {
    // Where the system does not tell, `watch` says so.
    let Ok(most) = most() else { return wanted };
    let room = room(most, OTHERS + workers::DESCRIPTORS * workers::count() as u64);
    if room >= wanted {
        return wanted;
    }
    tracing::warn!(
        wanted,
        connections_max = room,
        open_files_max = most,
        "fewer connections of users than --max-connections: there are no file descriptors for more; raise the hard \
         limit (`ulimit -Hn`, LimitNOFILE=), or lower --max-connections"
    );
    room
}

fn room(most: u64, others: u64) -> usize {
    let others = others.min(most / 2);
    usize::try_from((most - others) / 2).unwrap_or(usize::MAX).max(1)
}

/// Looks again and again, for ever. Where the system does not tell, it says so once.
pub(crate) async fn watch(metrics: SharedMetrics) {
    watch_by(metrics, || Ok((open()?, most()?))).await;
}

async fn watch_by(metrics: SharedMetrics, look: fn() -> io::Result<(u64, u64)>) {
    let mut warned = false;
    let mut known = None;
    loop {
        // Fails only when the runtime is ending.
        let Ok(looked) = tokio::task::spawn_blocking(look).await else {
            return std::future::pending().await;
        };
        let (open, most) = match (looked, known) {
            (Ok(looked), _) => looked,
            // To look takes a descriptor, too.
            (Err(_), Some(most)) => (most, most),
            (Err(error), None) => {
                tracing::info!(%error, "the system does not tell how many files are open");
                return std::future::pending().await;
            }
        };
        known = Some(most);
        metrics.open_files(open, most);
        let percent = open.saturating_mul(100) / most.max(1);
        if percent >= WARNED_AT && !warned {
            tracing::warn!(
                open,
                most,
                "few file descriptors are left: raise the hard limit (`ulimit -Hn`, LimitNOFILE=), or lower \
                 --max-connections"
            );
        }
        warned = percent >= WARNED_AT || (warned && percent >= CALM_AT);
        sleep(LOOK_EVERY).await;
    }
}

/// How many files are open.
fn open() -> io::Result<u64> {
    // Itself not counted.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64)
}

/// How many may be.
fn most() -> io::Result<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    Ok(limits.lines().find_map(soft_limit).unwrap_or(u64::MAX))
}

/// `Max open files            1024                 1048576              files`
fn soft_limit(line: &str) -> Option<u64> {
    line.strip_prefix("Max open files")?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_is_open_is_counted() {
        let (before, most) = (open().unwrap(), most().unwrap());
        let held: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let after = open().unwrap();
        assert!(
            before > 0 && after >= before + 40 && after <= most,
            "{before}, {after}, {most}"
        );
        drop(held);
        assert_eq!(
            soft_limit("Max open files            1024                 1048576              files"),
            Some(1024)
        );
        assert_eq!(
            soft_limit("Max open files            unlimited            unlimited            files"),
            None
        );
    }

    #[test]
    fn each_client_has_room_for_a_target() {
        for (most, connections) in [
            (20_000, 9_872),
            (1024, 384),
            (512, 128),
            (100, 25),
            (1, 1),
            (u64::MAX, usize::MAX / 2 - 128),
        ] {
            assert_eq!(room(most, 256), connections, "{most}");
        }
        assert_eq!(connections_max(1), 1);
        assert!(connections_max(usize::MAX) < usize::MAX);
    }

    /// When none is left there is none to look with.
    #[tokio::test(start_paused = true)]
    async fn the_watch_outlives_the_last_descriptor() {
        static LOOKS: AtomicU64 = AtomicU64::new(0);
        let metrics = Arc::new(Metrics::new());
        let looks = || match LOOKS.fetch_add(1, Ordering::SeqCst) {
            0 => Ok((10, 100)),
            1 => Err(io::ErrorKind::Other.into()),
            _ => Ok((20, 100)),
        };
        let mut found = Vec::new();
        let seen = async {
            loop {
                sleep(LOOK_EVERY / 5).await;
                let open = metrics.open_files.get();
                if found.last() != Some(&open) {
                    found.push(open);
                }
                if LOOKS.load(Ordering::SeqCst) > 3 {
                    return;
                }
            }
        };
        tokio::select! {
            () = watch_by(metrics.clone(), looks) => {}
            () = seen => {}
        }
        assert_eq!(found, [10, 100, 20]);
    }
}
