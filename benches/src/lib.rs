//! What the benchmarks share.
//!
//! - [`run`]: how a benchmark is called, what it prints, and on which machine it ran
//! - [`figures`]: numbers out of many measurements
//! - [`usage`]: CPU and memory of processes
//! - [`stores`]: etcd, Holdfast and a bare gRPC server behind one client program
//! - [`payload`]: what is written to them
//! - [`load`]: who writes it
//! - [`comparison`]: the table that sets one beside the other

pub mod comparison;
pub mod figures;
pub mod load;
pub mod payload;
pub mod run;
pub mod stores;
pub mod usage;

pub use figures::{Latencies, median};
pub use run::Run;
