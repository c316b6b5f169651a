//! `holdfast`, the one binary: the roles of a cluster and the commands that ask it.

mod commands;
mod config;
mod file;
mod http;
mod limits;
mod logging;
mod output;
mod shutdown;
mod supervise;

use std::process::ExitCode;

use holdfast_replica::{BuildError, EXIT_DISK_FAILED, RunError};

use crate::config::Mistakes;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What was asked for could not be done.
const FAILED: u8 = 1;
/// The command line, the environment or the configuration file is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match commands::run() {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Mistakes>() {
            Some(mistakes) => {
                output::complain(&mistakes.to_string());
                ExitCode::from(USAGE)
            }
            None => {
                output::complain(&format!("holdfast: {error:#}"));
                let of_disk = error.downcast_ref().is_some_and(BuildError::is_of_disk)
                    || error.downcast_ref().is_some_and(RunError::is_of_disk);
                ExitCode::from(if of_disk { EXIT_DISK_FAILED } else { FAILED })
            }
        },
    }
}
