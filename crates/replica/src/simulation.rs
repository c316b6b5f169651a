//! The whole cluster in one thread and in simulated time: the real log, state machine, consensus, services and
//! subscribers, on disks that forget and a network that breaks, all of it decided by one seed.
//!
//! What is checked, and how to run a seed again: `docs/testing.md`.

mod clients;
mod cluster;
mod disk;
mod history;
mod nemesis;
pub mod network;
pub mod planted;
mod seeds;
