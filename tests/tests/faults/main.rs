//! Replicas are killed, wiped and kept from each other; subscribers do not read.

mod divergence;
mod formation;
mod leader_kills;
mod restarts;
mod stalled;
