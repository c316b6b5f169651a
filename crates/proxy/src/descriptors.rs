//! Watches how many files the process has open: a WebSocket needs two, and whoever has none left serves nobody new.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use crate::metrics::SharedMetrics;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Warned of at so many of a hundred, and again only after it was less than the second.
const WARNED_AT: u64 = 80;
const CALM_AT: u64 = 70;

/// Looks again and again, for ever. Where the system does not tell, it says so once.
pub(crate) async fn watch(metrics: SharedMetrics) {
    let mut warned = false;
    loop {
        match tokio::task::spawn_blocking(open_and_most).await {
            Ok(Ok((open, most))) => {
                metrics.open_files(open, most);
                let percent = open.saturating_mul(100) / most.max(1);
                if percent >= WARNED_AT && !warned {
                    tracing::warn!(
                        open,
                        most,
                        "few file descriptors are left: raise the hard limit (`ulimit -Hn`, LimitNOFILE=), or lower --max-connections"
                    );
                }
                warned = percent >= WARNED_AT || (warned && percent >= CALM_AT);
            }
            Ok(Err(error)) => {
                tracing::info!(%error, "the system does not tell how many files are open");
                return std::future::pending().await;
            }
            // The runtime is ending.
            Err(_) => return std::future::pending().await,
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How many files are open, and how many may be.
fn open_and_most() -> io::Result<(u64, u64)> {
    // Itself not counted.
    let open = std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let most = limits.lines().find_map(soft_limit).unwrap_or(u64::MAX);
    Ok((open as u64, most))
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
    use super::*;

    #[test]
    fn what_is_open_is_counted() {
        let (before, most) = open_and_most().unwrap();
        let held: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let (after, _) = open_and_most().unwrap();
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
}
