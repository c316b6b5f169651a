//! Replicas are killed, wiped and kept from each other.

mod formation;
mod restarts;
