//! `holdfast up`.

use std::time::Duration;

use anyhow::{Result, ensure};
use holdfast_tests::fixture::{Process, free_port, holdfast, until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// As its parts do when they run alone, with children and without.
#[tokio::test]
async fn a_hangup_reads_the_log_level_and_ends_nothing() -> Result<()> {
    for proxies in [1, 2] {
        let folder = TempDir::new()?;
        let config = folder.path().join("up.toml");
        std::fs::write(&config, "log-level = \"info\"\n")?;
        let (base, public, admin) = (ports_in_a_row::<3>(), ports_in_a_row::<2>(), ports_in_a_row::<2>());
        let mut up = Process::new("up", holdfast()?, folder.path())
            .args(["up", "--ip=127.0.0.1", "--data-dir=data"])
            .args([
                format!("--config={}", config.display()),
                format!("--proxies={proxies}"),
                format!("--base-port={base}"),
                format!("--port={public}"),
                format!("--proxy-admin-base={admin}"),
            ]);
        up.start()?;
        let said = async |up: &mut Process, what: &str| {
            until(what, SOON, async || {
                ensure!(up.is_running(), "it has ended: {}", up.log_tail(20));
                ensure!(up.log().contains(what), "{}", up.log_tail(20));
                Ok(())
            })
            .await
        };
        said(&mut up, "holdfast is up").await?;
        for (level, sign) in [
            ("\"debug\"", "the log level is read again"),
            ("\"loud\"", "the log level stays"),
        ] {
            std::fs::write(&config, format!("log-level = {level}\n"))?;
            up.signal(Signal::SIGHUP);
            said(&mut up, sign).await?;
        }
        let ended = up.terminate(SOON).await?;
        ensure!(ended.code() == Some(0), "{ended}: {}", up.log_tail(20));
    }
    Ok(())
}

/// The first of so many.
fn ports_in_a_row<const COUNT: usize>() -> u16 {
    loop {
        let ports: [u16; COUNT] = std::array::from_fn(|_| free_port());
        if ports.windows(2).all(|two| two[0] + 1 == two[1]) {
            return ports[0];
        }
    }
}
