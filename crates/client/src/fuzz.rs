//! What fuzzing and its replay check of what a subscriber takes from a replica.

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

use std::collections::BTreeSet;

use holdfast_table::{Entry, Epoch, Revision, Table};
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{self, Bookmark, RouteList, SnapshotChunk, SubscribeResponse};
use prost::Message as _;
use tokio::time::Instant;

use crate::following::{Following, Held};

/// Takes the input for the frames of one replica after the other, each with its length before it.
///
/// Whatever they say, a table is never lost, changed by a frame that is refused, taken back in time, or emptied by one
/// replica's snapshot alone, and its digest is that of its routes. Checksums and digests that a frame leaves out are
/// filled in, for noise would never guess them.
pub fn frames(mut input: &[u8]) {
    let mut following = Following::new(None);
    let mut arriving = Vec::new();
    // It all happens at once: nobody says anything for long.
    let now = Instant::now();
    let mut replicas = BTreeSet::new();
    following.start("p0", true);
    while let Ok(frame) = SubscribeResponse::decode_length_delimited(&mut input) {
        let Some(mut frame) = frame.frame else { continue };
        let before = following.held().cloned();
        complete(&mut frame, before.as_ref(), &mut arriving);
        if let Frame::Hello(hello) = &frame {
            replicas.insert(hello.replica.clone());
        }
        let is_delta = matches!(frame, Frame::Delta(_));
        let taken = following.take(frame, now);
        check(before.as_ref(), following.held(), taken.is_ok(), is_delta);
        let routes = |held: Option<&Held>| held.map_or(0, |held| held.table.len());
        if routes(before.as_ref()) > 0 && routes(following.held()) == 0 && !is_delta {
            assert!(replicas.len() > 1, "emptied by one replica alone");
        }
        if taken.is_err() {
            let more = Frame::Bookmark(Bookmark::default());
            assert!(following.take(more, now).is_err(), "a stream goes on after a breach");
            following.start("p0", true);
        }
    }
}

fn check(before: Option<&Held>, after: Option<&Held>, taken: bool, is_delta: bool) {
    let Some(after) = after else {
        assert!(before.is_none(), "a table is lost");
        return;
    };
    let table = &after.table;
    assert_eq!(table.digest(), table.recompute_digest());
    let Some(before) = before else { return };
    let (was, is) = (place(&before.table), place(table));
    assert!(was <= is, "back from {was:?} to {is:?}");
    if !taken {
        assert_eq!((was, &before.cluster_id), (is, &after.cluster_id), "moved by a breach");
        assert_eq!(before.table.digest(), table.digest(), "changed by a breach");
    }
    if is_delta && taken {
        assert!(was < is, "a delta leads from {was:?} to {is:?}");
    }
    if before.cluster_id != after.cluster_id {
        assert!(was.0 < is.0, "another cluster without a new epoch");
    }
    if table.is_empty() && !before.table.is_empty() {
        assert!(was < is, "emptied at {is:?}");
    }
}

fn place(table: &Table) -> (Epoch, Revision) {
    (table.epoch(), table.revision())
}

fn complete(frame: &mut Frame, held: Option<&Held>, arriving: &mut Vec<Entry>) {
    match frame {
        Frame::Hello(_) => arriving.clear(),
        Frame::SnapshotChunk(chunk) => complete_chunk(chunk, arriving),
        Frame::Delta(bytes) => {
            if let Ok(mut delta) = proto::Delta::decode(&bytes[..])
                && let Some(held) = held
                && delta.from_revision == 0
            {
                delta.from_revision = held.table.revision().0;
                delta.to_revision = delta.to_revision.saturating_add(delta.from_revision);
                *bytes = delta.encode_to_vec().into();
            }
        }
        Frame::Bookmark(bookmark) => {
            if let Some(held) = held
                && bookmark.digest.is_empty()
            {
                bookmark.digest = held.table.digest().to_bytes().to_vec().into();
            }
        }
        Frame::GoAway(_) => {}
    }
}

fn complete_chunk(chunk: &mut SnapshotChunk, arriving: &mut Vec<Entry>) {
    if chunk.checksum != 0 {
        return;
    }
    if let Ok(list) = RouteList::decode(&chunk.routes[..]) {
        arriving.extend(list.routes.iter().filter_map(|route| Entry::try_from(route).ok()));
    }
    if let Ok(compressed) = zstd::bulk::compress(&chunk.routes, 1) {
        chunk.routes = compressed.into();
        chunk.checksum = crc32fast::hash(&chunk.routes);
    }
    if chunk.last && chunk.digest.is_empty() {
        let table = Table::from_entries(Epoch(0), Revision(0), arriving.iter().cloned());
        chunk.digest = table.digest().to_bytes().to_vec().into();
        chunk.total = table.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: &[&[u8]] = &[
        b"\x08",
        b"\x10",
        b"\x0a",
        b"\x01",
        b"\x00",
        b"\xff\xff\xff\xff\x0f",
        b"/user/a/",
        b"c-1",
    ];

    #[test]
    fn a_table_is_neither_lost_nor_changed_by_what_a_replica_says() {
        replay::replay("frames", TOKENS, 60_000, frames);
    }
}
