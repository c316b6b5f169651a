//! A subscriber of its own making, which holds every frame to the contract in `routes.proto`.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use holdfast_table::{Digest, Entry};
use holdfast_wire::proto;
use holdfast_wire::proto::routes_client::RoutesClient;
use holdfast_wire::proto::subscribe_response::Frame;
use prost::Message as _;
use rand::RngExt as _;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::{Calls, PATIENCE};
use crate::simulation::cluster::World;
use crate::simulation::history::{Content, Sight, route, value};

/// Follows streams frame by frame, goes to any replica, and holds each to the contract in `routes.proto`.
pub async fn watch(world: Rc<World>, number: usize) -> turmoil::Result {
    let who = format!("s{number}");
    let mut calls = Calls::new(&world, &who);
    let mut held = Held::default();
    loop {
        calls.favourite = calls.rng.random_range(0..calls.channels.len());
        let mut client = RoutesClient::new(calls.channels[calls.favourite].clone());
        // Sometimes it comes as somebody who has nothing.
        let resumes = held.table.is_some() && calls.rng.random_range(0..8) > 0;
        let start = proto::Start {
            has_table: resumes,
            cluster_id: if resumes {
                held.cluster_id.clone()
            } else {
                String::new()
            },
            epoch: 0,
            revision: if resumes { held.revision } else { 0 },
            name: who.clone(),
            proxy: false,
        };
        let frames = proto::subscribe_request::Frame::Start(start);
        let requests =
            tokio_stream::once(proto::SubscribeRequest { frame: Some(frames) }).chain(tokio_stream::pending());
        let wish = calls.rng.random_range(500..6000);
        let visit = async {
            if let Ok(response) = timeout(PATIENCE, client.subscribe(requests))
                .await
                .map_err(drop)?
                .map_err(drop)
            {
                let mut stream = Stream {
                    world: &world,
                    who: &who,
                    held: &mut held,
                    resumed: resumes,
                    arriving: None,
                    live: false,
                };
                let mut frames = response.into_inner();
                while let Ok(Ok(Some(frame))) = timeout(Duration::from_secs(4), frames.message()).await {
                    stream
                        .take(frame.frame)
                        .map_err(|problem| world.violation(format!("{who}: {problem}")))?;
                }
            }
            Ok::<(), ()>(())
        };
        // However it ends, another one comes.
        let _ = timeout(Duration::from_millis(wish), visit).await;
        calls.pause(300).await;
    }
}

/// What a watcher has, in plain words.
#[derive(Default)]
struct Held {
    cluster_id: String,
    revision: u64,
    table: Option<Content>,
}

struct Stream<'a> {
    world: &'a World,
    who: &'a str,
    held: &'a mut Held,
    resumed: bool,
    arriving: Option<(u64, Vec<proto::Route>)>,
    live: bool,
}

impl Stream<'_> {
    fn take(&mut self, frame: Option<Frame>) -> Result<(), String> {
        self.world.history.borrow_mut().frames += 1;
        match frame {
            Some(Frame::Hello(hello)) => self.hello(&hello),
            Some(Frame::SnapshotChunk(chunk)) => self.chunk(&chunk),
            Some(Frame::Delta(bytes)) => {
                let delta = proto::Delta::decode(bytes).map_err(|error| error.to_string())?;
                self.delta(&delta)
            }
            Some(Frame::Bookmark(bookmark)) => self.bookmark(&bookmark),
            Some(Frame::GoAway(_)) => Ok(()),
            None => Err("an empty frame".into()),
        }
    }

    fn hello(&mut self, hello: &proto::Hello) -> Result<(), String> {
        if !self.held.cluster_id.is_empty() && self.held.cluster_id != hello.cluster_id {
            return Err(format!("another cluster: {hello:?}"));
        }
        self.held.cluster_id.clone_from(&hello.cluster_id);
        match hello.mode() {
            proto::hello::Mode::Resume if self.resumed && hello.revision == self.held.revision => self.live = true,
            // Whoever says what it holds is never sent less.
            proto::hello::Mode::Snapshot if !self.resumed || hello.revision >= self.held.revision => {
                self.arriving = Some((hello.revision, Vec::new()));
            }
            _ => return Err(format!("holding revision {} it was told {hello:?}", self.held.revision)),
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &proto::SnapshotChunk) -> Result<(), String> {
        let (revision, routes) = self.arriving.as_mut().ok_or("a chunk of nothing")?;
        if crc32fast::hash(&chunk.routes) != chunk.checksum {
            return Err("a chunk's checksum".into());
        }
        let bytes = zstd::stream::decode_all(&chunk.routes[..]).map_err(|error| error.to_string())?;
        let list = proto::RouteList::decode(&bytes[..]).map_err(|error| error.to_string())?;
        routes.extend(list.routes);
        if !chunk.last {
            return Ok(());
        }
        if routes.len() as u64 != chunk.total {
            return Err(format!("{} routes of {}", routes.len(), chunk.total));
        }
        let digest = Digest::from_bytes(&chunk.digest).ok_or("no digest")?;
        let content = routes
            .iter()
            .map(|route| (route.routespec.clone(), (value(&route.data), route.mod_revision)));
        let (revision, content) = (*revision, content.collect::<Content>());
        self.arriving = None;
        self.live = true;
        self.holds(revision, content, digest);
        Ok(())
    }

    fn delta(&mut self, delta: &proto::Delta) -> Result<(), String> {
        let Some(table) = self.held.table.as_ref().filter(|_| self.live) else {
            return Err("a delta to nothing".into());
        };
        if delta.from_revision != self.held.revision || delta.to_revision <= delta.from_revision {
            return Err(format!(
                "a gap: {} to {} at {}",
                delta.from_revision, delta.to_revision, self.held.revision
            ));
        }
        let mut content = table.clone();
        let keys: Vec<&String> = delta
            .deletes
            .iter()
            .chain(delta.puts.iter().map(|put| &put.routespec))
            .collect();
        if keys.iter().collect::<BTreeSet<_>>().len() != keys.len() {
            return Err(format!("one route twice in a delta: {keys:?}"));
        }
        for spec in &delta.deletes {
            content.remove(spec);
        }
        for put in &delta.puts {
            if put.mod_revision <= delta.from_revision || put.mod_revision > delta.to_revision {
                return Err(format!("a put of revision {} in {delta:?}", put.mod_revision));
            }
            content.insert(put.routespec.clone(), (value(&put.data), put.mod_revision));
        }
        let digest = digest(&content);
        self.holds(delta.to_revision, content, digest);
        Ok(())
    }

    fn bookmark(&mut self, bookmark: &proto::Bookmark) -> Result<(), String> {
        if self.arriving.is_some() {
            return Ok(());
        }
        let Some(table) = self.held.table.as_ref().filter(|_| self.live) else {
            return Err("a bookmark of nothing".into());
        };
        if bookmark.revision != self.held.revision {
            return Err(format!(
                "a bookmark of revision {} at {}",
                bookmark.revision, self.held.revision
            ));
        }
        if Digest::from_bytes(&bookmark.digest) != Some(digest(table)) {
            return Err(format!(
                "a digest at revision {} that is not the table's",
                bookmark.revision
            ));
        }
        Ok(())
    }

    fn holds(&mut self, revision: u64, content: Content, digest: Digest) {
        // Somebody who came with nothing may be given older state; he who holds a table may not, which is seen above.
        self.held.revision = revision;
        self.held.table = Some(content.clone());
        self.world.history.borrow_mut().saw(Sight {
            who: self.who.to_owned(),
            revision,
            content,
            digest,
        });
    }
}

fn digest(content: &Content) -> Digest {
    let entries = content.iter().filter_map(|(key, (value, modified))| {
        Some(Entry {
            route: route(key, value)?,
            modified: holdfast_table::Revision(*modified),
        })
    });
    holdfast_table::Table::from_entries(Default::default(), Default::default(), entries).digest()
}
