//! Each replica on a network of its own: cut off, cut in one direction, bridged, lossy, killed and paused.

mod cuts;
mod nemesis;
mod random;
