//! Replicas are killed, wiped and kept from each other.

mod divergence;
mod formation;
mod leader_kills;
mod restarts;
