//! Each replica on a network of its own: cut off, cut in one direction, bridged.

mod cuts;
