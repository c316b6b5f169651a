//! What the benchmarks share: how they are called, what they print, and on which machine they ran.

pub mod figures;
pub mod run;

pub use figures::{Latencies, median};
pub use run::Run;
