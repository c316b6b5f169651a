//! Real processes of the `holdfast` binary, on ports and in directories of their own, gone when the test ends.

pub mod chp;
pub mod cluster;
pub mod ports;
pub mod process;
pub mod seed;
pub mod wait;

pub use cluster::{Cluster, Proxy, Replica};
pub use ports::{free_port, free_ports};
pub use process::{Finished, Process, holdfast, run};
pub use seed::seed;
pub use wait::{stays, until};
