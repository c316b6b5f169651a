//! Limits of the process that a role needs raised.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows as many open files as the system lets us have: a proxy needs two per WebSocket, and the usual soft limit
/// is 1024.
pub fn raise_open_files() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(soft, hard, %error, "the limit of open files stays low: raise it with `ulimit -n` or LimitNOFILE=");
    }
}
