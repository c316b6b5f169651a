//! What users of a proxy notice, and what they must not.

mod activity;
mod cache;
mod faults;
mod freshness;
mod prober;
mod restarts;
mod rolling;
mod soak;
