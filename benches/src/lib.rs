//! What the benchmarks share.
//!
//! - [`run`]: how a benchmark is called, what it prints, and on which machine it ran
//! - [`figures`]: numbers out of many measurements
//! - [`usage`]: CPU and memory of processes
//! - [`programs`]: processes of others, which end with us
//! - [`comparison`]: the table that sets one beside the other
//!
//! For the store:
//! - [`stores`]: etcd, Holdfast and a bare gRPC server behind one client program
//! - [`payload`]: what is written to them
//! - [`load`]: who writes it
//!
//! For the proxy:
//! - [`proxies`]: Holdfast's proxy and its peers, each told the same routes
//! - [`targets`]: where they lead
//! - [`client`]: one request at a time
//! - [`open_loop`]: requests that come when they come, however slow the answers are
//! - [`wrk`]: as many requests as can be

pub mod client;
pub mod comparison;
pub mod figures;
pub mod load;
pub mod open_loop;
pub mod payload;
pub mod programs;
pub mod proxies;
pub mod run;
pub mod stores;
pub mod targets;
pub mod usage;
pub mod wrk;

pub use figures::{Latencies, median};
pub use run::Run;
