//! Following: what a subscriber holds, and what it takes from a replica.
//!
//! No I/O and no clock here: frames come in, each with its moment, and either the table moves on or the frame is a
//! breach that ends the stream. A breach never changes the table.

use std::io::Read as _;
use std::time::Duration;

use holdfast_table::{Delta, DeltaError, Digest, Entry, Epoch, FieldError, Revision, Table};
use holdfast_wire::proto::subscribe_response::Frame;
use holdfast_wire::proto::{self, Bookmark, Hello, RouteList, SnapshotChunk, Start, go_away, hello};
use prost::Message as _;
use tokio::time::Instant;

use crate::read_ahead::read_ahead;

/// The largest chunk once decompressed. A chunk is made to be about 1 MiB compressed.
const CHUNK_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Routes of a chunk that are put into the table while the next ones are read.
const ROUTES_AT_ONCE: usize = 1_000;
/// The most routes in a snapshot that is not refused as absurd.
const ROUTES_MAX: usize = 10_000_000;
/// How long one replica alone has to say that every route is gone: longer than replicas take to find which of them is
/// wrong.
const EMPTY_AFTER: Duration = Duration::from_secs(10);

/// What a subscriber holds, and where its stream is.
#[derive(Debug, Default)]
pub(crate) struct Following {
    held: Option<Held>,
    // A replica's digest disagreed with ours: the table is served on, but only a whole new one will do.
    doubted: bool,
    emptied: Option<Emptied>,
    stream: Stream,
}

/// A replica's word that every route is gone, while some are held. Forgotten when there is something to follow.
#[derive(Debug)]
struct Emptied {
    replica: String,
    since: Instant,
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) cluster_id: String,
    pub(crate) table: Table,
}

#[derive(Debug, Default)]
enum Stream {
    /// Nothing may come before a Hello.
    #[default]
    Opening,
    /// Chunks.
    Snapshot(Arriving),
    /// Deltas and bookmarks.
    Live,
    /// Over; whatever comes is not taken.
    Ended,
}

/// A snapshot that is not whole yet.
#[derive(Debug)]
struct Arriving {
    replica: String,
    cluster_id: String,
    // So far.
    table: Table,
    // That came: more than are in the table, if some have the same key.
    routes: usize,
}

/// What a frame led to.
#[derive(Debug)]
pub(crate) enum Step {
    /// The replica has begun; nothing to serve yet.
    Hello { replica: String },
    /// Part of something that is not whole yet.
    Partial,
    /// The replica goes on from the table we hold.
    Resumed { replica: String },
    /// There is a new table to serve.
    Moved,
    /// The table is the replica's.
    Agreed {
        /// How long ago the replica last knew a quorum behind a leader.
        leader_contact_age: Duration,
        /// Whether it knows who leads.
        leader_known: bool,
    },
    /// The replica asks to be left, and names a wait.
    GoAway {
        reason: go_away::Reason,
        retry_after: Duration,
    },
}

/// A frame that is not taken. The table stays; the stream is over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("cluster {theirs}, but the table held is of cluster {ours}, which is none of its ancestors")]
    OtherCluster { ours: String, theirs: String },
    #[error(
        "cluster {theirs}, which comes after cluster {ours} of the table held, offers epoch {theirs_epoch}; \
         only one above {ours_epoch} would do"
    )]
    NotAhead {
        ours: String,
        ours_epoch: Epoch,
        theirs: String,
        theirs_epoch: Epoch,
    },
    #[error(
        "offers epoch {theirs_epoch} revision {theirs}, older than epoch {ours_epoch} revision {ours} that is held"
    )]
    Older {
        ours_epoch: Epoch,
        ours: Revision,
        theirs_epoch: Epoch,
        theirs: Revision,
    },
    #[error("resumes from epoch {epoch} revision {revision}, which is not what is held")]
    ResumesElsewhere { epoch: Epoch, revision: Revision },
    #[error("a gap: {0}")]
    Gap(#[from] DeltaError),
    #[error("digest {theirs} at revision {at}, but the table held has {ours}")]
    Digest { at: Revision, ours: Digest, theirs: Digest },
    #[error("a damaged snapshot: {0}")]
    Damaged(String),
    #[error("an empty snapshot at the revision of the {routes} routes that are held")]
    Emptied { routes: usize },
    #[error(
        "a snapshot without any of the {routes} routes that are held; it is taken once another replica says so too, \
         or this one still does after {} s", EMPTY_AFTER.as_secs()
    )]
    Unconfirmed { routes: usize },
    #[error("an unreadable route: {0}")]
    Unreadable(#[from] FieldError),
    #[error("{0}")]
    Protocol(&'static str),
}

impl Breach {
    /// True for what should never happen in a cluster that is well, and an operator ought to see.
    pub(crate) fn is_alarming(&self) -> bool {
        !matches!(
            self,
            Breach::Older { .. } | Breach::Gap(_) | Breach::ResumesElsewhere { .. }
        )
    }
}

impl Following {
    pub(crate) fn new(held: Option<Held>) -> Self {
        Following {
            held,
            ..Following::default()
        }
    }

    pub(crate) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Begins a new stream.
    pub(crate) fn start(&mut self, name: &str, proxy: bool) -> Start {
        self.stream = Stream::Opening;
        let start = Start {
            name: name.to_owned(),
            proxy,
            ..Start::default()
        };
        match &self.held {
            Some(held) => Start {
                has_table: !self.doubted,
                cluster_id: held.cluster_id.clone(),
                epoch: held.table.epoch().0,
                revision: held.table.revision().0,
                ..start
            },
            None => start,
        }
    }

    /// Takes one frame.
    ///
    /// # Errors
    /// [`Breach`]: the table is as before, and the stream is to be ended.
    pub(crate) fn take(&mut self, frame: Frame, now: Instant) -> Result<Step, Breach> {
        match (std::mem::replace(&mut self.stream, Stream::Ended), frame) {
            (Stream::Opening, Frame::Hello(hello)) => self.hello(hello),
            // So much has changed at once that a snapshot is smaller than a delta.
            (Stream::Live, Frame::Hello(hello)) if hello.mode() == hello::Mode::Snapshot => self.hello(hello),
            (Stream::Snapshot(arriving), Frame::SnapshotChunk(chunk)) => self.chunk(arriving, &chunk, now),
            (Stream::Live, Frame::Delta(bytes)) => {
                let delta = proto::Delta::decode(bytes).map_err(|_| Breach::Protocol("a delta that is none"))?;
                let step = self.delta(&Delta::try_from(&delta)?)?;
                self.stream = Stream::Live;
                Ok(step)
            }
            (Stream::Live, Frame::Bookmark(bookmark)) => {
                let step = self.bookmark(&bookmark)?;
                self.stream = Stream::Live;
                Ok(step)
            }
            // A bookmark during a snapshot speaks of nothing we hold; it only shows that the replica is there.
            (Stream::Snapshot(arriving), Frame::Bookmark(_)) => {
                self.stream = Stream::Snapshot(arriving);
                Ok(Step::Partial)
            }
            (_, Frame::GoAway(go_away)) => Ok(Step::GoAway {
                reason: go_away.reason(),
                retry_after: Duration::from_millis(go_away.retry_after_ms.into()),
            }),
            (Stream::Opening, _) => Err(Breach::Protocol("a frame before the Hello")),
            _ => Err(Breach::Protocol("a frame out of place")),
        }
    }

    fn hello(&mut self, hello: Hello) -> Result<Step, Breach> {
        let (mode, epoch, revision) = (hello.mode(), Epoch(hello.epoch), Revision(hello.revision));
        if hello.cluster_id.is_empty() {
            return Err(Breach::Protocol("a Hello without a cluster"));
        }
        if let Some(held) = &self.held {
            let (ours_epoch, ours) = (held.table.epoch(), held.table.revision());
            if held.cluster_id != hello.cluster_id {
                follows(held, &hello)?;
                // Said once: the snapshot that comes next makes the new cluster ours, for good.
                tracing::warn!(
                    old_cluster = held.cluster_id,
                    cluster = hello.cluster_id,
                    %epoch,
                    "an operator has restored or recovered the cluster; following the new one"
                );
            }
            if (epoch, revision) < (ours_epoch, ours) {
                return Err(Breach::Older {
                    ours_epoch,
                    ours,
                    theirs_epoch: epoch,
                    theirs: revision,
                });
            }
        }
        match (mode, &self.held) {
            (hello::Mode::Resume, Some(held))
                if !self.doubted && (epoch, revision) == (held.table.epoch(), held.table.revision()) =>
            {
                self.stream = Stream::Live;
                self.emptied = None;
                Ok(Step::Resumed { replica: hello.replica })
            }
            (hello::Mode::Resume, _) => Err(Breach::ResumesElsewhere { epoch, revision }),
            (hello::Mode::Snapshot, _) => {
                self.stream = Stream::Snapshot(Arriving {
                    replica: hello.replica.clone(),
                    cluster_id: hello.cluster_id,
                    table: Table::from_entries(epoch, revision, []),
                    routes: 0,
                });
                Ok(Step::Hello { replica: hello.replica })
            }
            (hello::Mode::Unspecified, _) => Err(Breach::Protocol("a Hello of an unknown mode")),
        }
    }

    fn chunk(&mut self, mut arriving: Arriving, chunk: &SnapshotChunk, now: Instant) -> Result<Step, Breach> {
        arriving.add(chunk)?;
        if !chunk.last {
            self.stream = Stream::Snapshot(arriving);
            return Ok(Step::Partial);
        }
        let expected = digest(&chunk.digest)?;
        if arriving.routes as u64 != chunk.total {
            return Err(damaged(format!("{} of {} routes", arriving.routes, chunk.total)));
        }
        let table = arriving.table;
        if table.len() as u64 != chunk.total {
            return Err(damaged(format!(
                "{} routes, but {} of them differ",
                chunk.total,
                table.len()
            )));
        }
        if table.digest() != expected {
            return Err(damaged(format!(
                "its digest is {expected}, its routes' is {}",
                table.digest()
            )));
        }
        if let Some(held) = &self.held
            && table.is_empty()
            && !held.table.is_empty()
        {
            let (epoch, revision, routes) = (table.epoch(), table.revision(), held.table.len());
            if (epoch, revision) <= (held.table.epoch(), held.table.revision()) {
                return Err(Breach::Emptied { routes });
            }
            // A deletion of every route is no breach, but a replica may be wrong by itself.
            if !self.is_confirmed(arriving.replica, now) {
                return Err(Breach::Unconfirmed { routes });
            }
            tracing::error!(%epoch, %revision, routes, "the cluster's table is empty now: every route held is dropped");
        }
        self.held = Some(Held {
            cluster_id: arriving.cluster_id,
            table,
        });
        self.doubted = false;
        self.emptied = None;
        self.stream = Stream::Live;
        Ok(Step::Moved)
    }

    /// Whether more than one word of one replica says that every route is gone.
    fn is_confirmed(&mut self, replica: String, now: Instant) -> bool {
        match &self.emptied {
            Some(said) => said.replica != replica || now.saturating_duration_since(said.since) >= EMPTY_AFTER,
            None => {
                self.emptied = Some(Emptied { replica, since: now });
                false
            }
        }
    }

    fn delta(&mut self, delta: &Delta) -> Result<Step, Breach> {
        let held = self.held.as_mut().ok_or(Breach::Protocol("a delta to no table"))?;
        // A delta that leads nowhere would change routes under an unchanged revision.
        if delta.to == delta.from {
            return Err(Breach::Protocol("a delta that leads to where it starts"));
        }
        held.table.apply_delta(delta)?;
        Ok(Step::Moved)
    }

    fn bookmark(&mut self, bookmark: &Bookmark) -> Result<Step, Breach> {
        let held = self.held.as_ref().ok_or(Breach::Protocol("a bookmark of no table"))?;
        let (at, theirs) = (held.table.revision(), digest(&bookmark.digest)?);
        if bookmark.revision > at.0 {
            return Err(DeltaError::Gap {
                from: Revision(bookmark.revision),
                to: Revision(bookmark.revision),
                at,
            }
            .into());
        }
        let ours = held.table.digest();
        if bookmark.revision == at.0 && theirs != ours {
            self.doubted = true;
            return Err(Breach::Digest { at, ours, theirs });
        }
        Ok(Step::Agreed {
            leader_contact_age: Duration::from_millis(bookmark.leader_contact_age_ms),
            leader_known: bookmark.leader_known,
        })
    }
}

/// A cluster other than the one held is taken only if it comes after it: it says so, and its epoch does.
fn follows(held: &Held, hello: &Hello) -> Result<(), Breach> {
    let (ours, theirs) = (held.cluster_id.clone(), hello.cluster_id.clone());
    if !hello.lineage.contains(&held.cluster_id) {
        return Err(Breach::OtherCluster { ours, theirs });
    }
    let (ours_epoch, theirs_epoch) = (held.table.epoch(), Epoch(hello.epoch));
    match theirs_epoch > ours_epoch {
        true => Ok(()),
        false => Err(Breach::NotAhead {
            ours,
            ours_epoch,
            theirs,
            theirs_epoch,
        }),
    }
}

impl Arriving {
    fn add(&mut self, chunk: &SnapshotChunk) -> Result<(), Breach> {
        if crc32fast::hash(&chunk.routes) != chunk.checksum {
            return Err(damaged("a chunk's checksum does not match".into()));
        }
        let mut bytes = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(&chunk.routes[..]);
        let read = decoder.and_then(|decoder| decoder.take(CHUNK_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|error| damaged(format!("a chunk does not decompress: {error}")))?;
        if bytes.len() as u64 > CHUNK_BYTES_MAX {
            return Err(damaged(format!("a chunk has more than {CHUNK_BYTES_MAX} bytes")));
        }
        let list = RouteList::decode(&bytes[..]).map_err(|error| damaged(format!("a chunk is no list: {error}")))?;
        self.routes += list.routes.len();
        if self.routes > ROUTES_MAX {
            return Err(damaged(format!("more than {ROUTES_MAX} routes")));
        }
        read_ahead(&mut self.table, |hand_on| {
            let mut lists = list.routes.chunks(ROUTES_AT_ONCE);
            lists.try_for_each(|routes| {
                hand_on(routes.iter().map(Entry::try_from).collect::<Result<_, _>>()?);
                Ok(())
            })
        })
    }
}

fn damaged(problem: String) -> Breach {
    Breach::Damaged(problem)
}

fn digest(bytes: &[u8]) -> Result<Digest, Breach> {
    Digest::from_bytes(bytes).ok_or(Breach::Protocol("a digest that is not 32 bytes long"))
}

#[cfg(test)]
mod tests;
