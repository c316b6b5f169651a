//! `holdfast chp`: what configurable-http-proxy does, by its command line, and what it does not do.

mod doors;
mod lifecycle;
mod mirror;
mod side_by_side;
mod subject;
