//! The incident of 23 February 2017, replayed against a real JupyterHub and its users' servers.
//!
//! `incident [--pause] [--chp]`. Without flags: three replicas, two proxies, everything killed in turn, and a table of
//! what users noticed; exits 0 only if they noticed nothing. `--pause` leaves it all running until Ctrl-C. `--chp`: the
//! same client against configurable-http-proxy.

mod chp;
mod hub;
mod replay;
mod report;

use std::process::ExitCode;

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// What was asked for on the command line.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    pause: bool,
    chp: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match flags() {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("incident: {error}");
            return ExitCode::from(2);
        }
    };
    // Whatever ends the replay drops it, and dropping it ends every process that it has started.
    let replayed = tokio::select! {
        replayed = replay(flags) => replayed,
        name = interrupted() => Err(anyhow::anyhow!("ended by {name}")),
    };
    match replayed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("incident: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn replay(flags: Flags) -> Result<()> {
    if flags.chp {
        chp::replay(flags).await
    } else {
        replay::replay(flags).await
    }
}

fn flags() -> Result<Flags> {
    let mut flags = Flags::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--pause" => flags.pause = true,
            "--chp" => flags.chp = true,
            other => bail!("{other:?} is no flag of mine: --pause, --chp"),
        }
    }
    Ok(flags)
}

/// Returns the name of the first signal that asks us to end.
async fn interrupted() -> &'static str {
    let listen = |kind| signal(kind).expect("signals can be listened to");
    let (mut terminate, mut hangup) = (listen(SignalKind::terminate()), listen(SignalKind::hangup()));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
        _ = hangup.recv() => "SIGHUP",
    }
}

/// Ends only by a signal, which drops it.
async fn pause(addresses: &str) {
    println!("\n{addresses}\nCtrl-C ends it all.");
    std::future::pending::<()>().await;
}
