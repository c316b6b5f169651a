//! When to stop: signals, and the end of the process that started us.

use std::io::{IsTerminal, stdin};
use std::os::fd::AsFd;

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Two requests to stop, the first polite.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Finish what is under way, then end with exit code 0.
    pub gracefully: CancellationToken,
    /// End now; what is under way is lost.
    pub now: CancellationToken,
}

impl Stop {
    /// Stops gracefully at the first SIGINT or SIGTERM, and at once at the second.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn on_signals(tasks: &mut JoinSet<()>) -> anyhow::Result<Self> {
        let stop = Stop::default();
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
        let stopping = stop.clone();
        tasks.spawn(async move {
            let name = first(&mut interrupt, &mut terminate).await;
            tracing::info!("{name}: stopping; a second one ends the process at once");
            // Cancelled already if the process that started us has ended: then this is the second request.
            if stopping.gracefully.is_cancelled() {
                stopping.now.cancel();
            }
            stopping.gracefully.cancel();
            first(&mut interrupt, &mut terminate).await;
            stopping.now.cancel();
        });
        Ok(stop)
    }

    /// Stops gracefully when standard input ends: its other end is held open by the process that started us, so it ends
    /// with that process, whatever that one died of.
    ///
    /// # Errors
    /// Standard input is not a pipe.
    pub fn with_parent(&self, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
        let pipe = (!stdin().is_terminal())
            .then(|| stdin().as_fd().try_clone_to_owned())
            .transpose()?
            .and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok());
        let mut pipe = pipe.context("--exit-with-parent: standard input must be a pipe that the parent holds open")?;
        let gracefully = self.gracefully.clone();
        tasks.spawn(async move {
            let mut ignored = [0; 64];
            while pipe.read(&mut ignored).await.is_ok_and(|bytes| bytes > 0) {}
            if !gracefully.is_cancelled() {
                tracing::info!("the process that started this one has asked for it, or has ended: stopping");
            }
            gracefully.cancel();
        });
        Ok(())
    }

    /// Runs a role to its end, or drops it when it shall end now.
    ///
    /// # Errors
    /// The role's own, or that it was not allowed to finish.
    pub async fn run<E>(&self, role: impl Future<Output = Result<(), E>>) -> anyhow::Result<()>
    where
        anyhow::Error: From<E>,
    {
        tokio::select! {
            result = role => Ok(result?),
            () = self.now.cancelled() => {
                tracing::warn!("second signal: ended at once");
                // Not by returning: the runtime would wait for work that blocks.
                std::process::exit(i32::from(crate::FAILED));
            }
        }
    }
}

async fn first(interrupt: &mut Signal, terminate: &mut Signal) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}
