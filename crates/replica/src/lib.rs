//! One member of the cluster: keeps the table in a replicated log and hands it to those who follow it.

mod activity;
mod admission;
pub mod backup;
mod chunks;
pub mod config;
mod consensus;
mod feed;
pub mod listen;
mod metrics;
pub mod recover;
mod replica;
pub mod restore;
mod scrub;
mod servers;
mod services;
#[cfg(test)]
mod simulation;
mod storage;

pub use config::{ApiAccess, ClusterConfig, ConfigError, PeerAddress, ReplicaConfig};
pub use listen::Address;
pub use replica::{BuildError, Replica, RunError};
pub use services::chp_api::{ChpApiConfig, form as chp_form};
pub use storage::offline::BuildingError;
pub use storage::{EXIT_DISK_FAILED, OpenError};
