//! Replicas are killed, wiped, kept from each other, and asked for more than they take; subscribers do not read.

mod divergence;
mod formation;
mod leader_kills;
mod overload;
mod restarts;
mod stalled;
