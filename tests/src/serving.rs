//! What the tests' own servers have in common.

use std::io;
use std::pin::pin;

use futures_util::{Stream, StreamExt as _};
use tokio::task::JoinSet;

/// Serves each connection beside the others. Dropping the future ends them all.
pub(crate) async fn serve<S, F>(incoming: impl Stream<Item = io::Result<S>>, connection: impl Fn(S) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut incoming = pin!(incoming);
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            Some(Ok(stream)) = incoming.next() => drop(served.spawn(connection(stream))),
            Some(_) = served.join_next() => {}
        }
    }
}
