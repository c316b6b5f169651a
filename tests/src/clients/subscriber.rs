//! One who follows the table from replica to replica, and keeps every frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_wire::proto;
use prost::Message as _;
use proto::subscribe_response::Frame;
use rand::RngExt as _;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::{Caller, PATIENCE, version};
use crate::history::Content;
use crate::history::stream::Event;

/// A stream that is silent for so long is dead.
const SILENCE: Duration = Duration::from_secs(3);
/// A stream is left after so many frames at most, so that another one begins.
const FRAMES_MAX: u32 = 600;

/// What the next stream starts from.
#[derive(Default)]
struct Held {
    cluster_id: String,
    revision: u64,
    has_table: bool,
}

/// Follows until it is dropped; `revision` is the one it has.
pub(super) async fn follow(mut caller: Caller, revision: Arc<AtomicU64>) {
    let mut held = Held::default();
    loop {
        caller.favourite = caller.random.random_range(0..caller.channels.len());
        // Now and then as one who has nothing.
        let resumes = held.has_table && !caller.chance(8);
        let start = proto::Start {
            has_table: resumes,
            cluster_id: held.cluster_id.clone(),
            revision: if resumes { held.revision } else { 0 },
            name: caller.who.clone(),
            ..Default::default()
        };
        let start = match resumes {
            true => start,
            false => proto::Start {
                cluster_id: String::new(),
                ..start
            },
        };
        let event = Event::Start(resumes.then_some(held.revision));
        caller.history.streamed(&caller.who, event);
        let frames = caller.random.random_range(1..=FRAMES_MAX);
        visit(&caller, start, &mut held, &revision, frames).await;
        caller.pause().await;
    }
}

/// One stream, for so many frames.
async fn visit(caller: &Caller, start: proto::Start, held: &mut Held, revision: &AtomicU64, frames: u32) {
    let start = proto::SubscribeRequest {
        frame: Some(proto::subscribe_request::Frame::Start(start)),
    };
    let requests = tokio_stream::once(start).chain(tokio_stream::pending());
    let mut client = caller.client(caller.favourite);
    let Ok(Ok(response)) = timeout(PATIENCE, client.subscribe(requests)).await else {
        return;
    };
    let mut stream = response.into_inner();
    let mut arriving = Arriving::default();
    for _ in 0..frames {
        let Ok(Ok(Some(frame))) = timeout(SILENCE, stream.message()).await else {
            return;
        };
        let Some(frame) = frame.frame else {
            let event = Event::Unreadable("an empty frame".into());
            return caller.history.streamed(&caller.who, event);
        };
        if matches!(frame, Frame::GoAway(_)) {
            return;
        }
        let event = arriving
            .read(frame)
            .unwrap_or_else(|problem| Some(Event::Unreadable(problem)));
        let Some(event) = event else { continue };
        match &event {
            Event::Resumed { cluster_id, .. } | Event::Snapshot { cluster_id, .. } => {
                held.cluster_id.clone_from(cluster_id);
            }
            Event::Whole { .. } => (held.revision, held.has_table) = (arriving.revision, true),
            Event::Delta { to, .. } => held.revision = *to,
            _ => {}
        }
        let is_over = matches!(event, Event::Unreadable(_));
        caller.history.streamed(&caller.who, event);
        // After it is written down: whoever waits for the revision looks at what is written next.
        revision.store(held.revision, Ordering::Relaxed);
        if is_over {
            return;
        }
    }
}

/// A snapshot on its way.
#[derive(Default)]
struct Arriving {
    revision: u64,
    content: Content,
}

impl Arriving {
    /// What a frame says; `None` if it is only a part of something.
    fn read(&mut self, frame: Frame) -> Result<Option<Event>, String> {
        Ok(Some(match frame {
            Frame::Hello(hello) => {
                let (revision, cluster_id) = (hello.revision, hello.cluster_id.clone());
                match hello.mode() {
                    proto::hello::Mode::Resume => Event::Resumed { revision, cluster_id },
                    proto::hello::Mode::Snapshot => {
                        *self = Arriving {
                            revision,
                            content: Content::new(),
                        };
                        Event::Snapshot { revision, cluster_id }
                    }
                    proto::hello::Mode::Unspecified => return Err(format!("{hello:?}")),
                }
            }
            Frame::SnapshotChunk(chunk) => return self.chunk(&chunk),
            Frame::Delta(bytes) => {
                let delta = proto::Delta::decode(bytes).map_err(|error| error.to_string())?;
                Event::Delta {
                    from: delta.from_revision,
                    to: delta.to_revision,
                    puts: delta
                        .puts
                        .iter()
                        .map(|put| (put.routespec.clone(), version(put)))
                        .collect(),
                    deletes: delta.deletes,
                }
            }
            Frame::Bookmark(bookmark) => Event::Bookmark {
                revision: bookmark.revision,
                digest: bookmark.digest.to_vec(),
            },
            Frame::GoAway(_) => return Ok(None),
        }))
    }

    fn chunk(&mut self, chunk: &proto::SnapshotChunk) -> Result<Option<Event>, String> {
        if crc32fast::hash(&chunk.routes) != chunk.checksum {
            return Err("a chunk whose checksum does not match".into());
        }
        let bytes = zstd::stream::decode_all(&chunk.routes[..]).map_err(|error| error.to_string())?;
        let list = proto::RouteList::decode(&bytes[..]).map_err(|error| error.to_string())?;
        for route in &list.routes {
            if self.content.insert(route.routespec.clone(), version(route)).is_some() {
                return Err(format!("{} twice in a snapshot", route.routespec));
            }
        }
        if !chunk.last {
            return Ok(None);
        }
        if self.content.len() as u64 != chunk.total {
            return Err(format!(
                "a snapshot of {} routes, not {}",
                self.content.len(),
                chunk.total
            ));
        }
        Ok(Some(Event::Whole {
            content: std::mem::take(&mut self.content),
            digest: chunk.digest.to_vec(),
        }))
    }
}
