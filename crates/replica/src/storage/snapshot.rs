//! The whole state as a stream of checked, compressed chunks, and back.

use std::io;

use holdfast_table::history::History;
use holdfast_table::sessions::{Session, SessionId, Sessions};
use holdfast_table::{
    Digest, Entry, Epoch, Hold, Holds, Hub, HubEpoch, HubId, Hubs, Lineage, Loss, Namespace, Rejection, Revision,
    RouteKey, RouteSpec, State, Table, Written,
};
use holdfast_wire::errors::Reason;
use holdfast_wire::proto;
use prost::Message as _;

use super::corrupt;

/// Uncompressed bytes of one chunk, about: a chunk ends with the row that reaches it.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What one chunk may decompress to; the largest row beyond `CHUNK_BYTES` is far smaller than this.
const CHUNK_BYTES_MAX: usize = 4 * CHUNK_BYTES;

const ZSTD_LEVEL: i32 = 1;

/// Says how far a state is and what must come out of its rows.
pub fn header(state: &State) -> proto::StateHeader {
    let table = &state.table;
    proto::StateHeader {
        epoch: table.epoch().0,
        revision: table.revision().0,
        horizon: state.history.horizon().0,
        digest: table.digest().to_bytes().to_vec().into(),
        routes: table.len() as u64,
        hubs: state.hubs.iter().map(hub_out).collect(),
        lineage: state.lineage.to_vec(),
        node_id_max: state.node_id_max,
        holds_digest: state.holds.digest().to_bytes().to_vec().into(),
        sessions_forgotten_ms: state.sessions.forgotten_ms(),
    }
}

/// Encodes a state chunk by chunk, as the iterator is pulled.
pub fn encode(state: &State) -> impl Iterator<Item = io::Result<proto::SnapshotPart>> + Send + use<> {
    let header = header(state);
    let state = state.clone();
    let routes: Vec<_> = state.table.iter().cloned().collect();
    let holds = state.holds.clone();
    let losses: Vec<_> = state.holds.losses().iter().map(loss_out).collect();
    let tombstones: Vec<_> = state
        .history
        .tombstones()
        .map(|(spec, revision)| tombstone_out(spec.as_str(), revision))
        .collect();
    let sessions: Vec<_> = state
        .sessions
        .iter()
        .map(|(id, session)| session_out(id, session))
        .collect();
    let rows = routes
        .into_iter()
        .map(move |entry| Row::Route(route_out(&entry, &holds)))
        .chain(tombstones.into_iter().map(Row::Tombstone))
        .chain(sessions.into_iter().map(Row::Session))
        .chain(losses.into_iter().map(Row::Loss));
    Chunks {
        rows: rows.peekable(),
        header: Some(header),
        done: false,
    }
}

enum Row {
    Route(proto::Route),
    Tombstone(proto::Tombstone),
    Session(proto::Session),
    Loss(proto::Loss),
}

struct Chunks<I: Iterator<Item = Row>> {
    rows: std::iter::Peekable<I>,
    header: Option<proto::StateHeader>,
    done: bool,
}

impl<I: Iterator<Item = Row>> Iterator for Chunks<I> {
    type Item = io::Result<proto::SnapshotPart>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut chunk = proto::StateChunk {
            header: self.header.take(),
            ..Default::default()
        };
        let mut bytes = 0;
        while bytes < CHUNK_BYTES
            && let Some(row) = self.rows.next()
        {
            match row {
                Row::Route(route) => {
                    bytes += route.encoded_len();
                    chunk.routes.push(route);
                }
                Row::Tombstone(tombstone) => {
                    bytes += tombstone.encoded_len();
                    chunk.tombstones.push(tombstone);
                }
                Row::Session(session) => {
                    bytes += session.encoded_len();
                    chunk.sessions.push(session);
                }
                Row::Loss(loss) => {
                    bytes += loss.encoded_len();
                    chunk.losses.push(loss);
                }
            }
        }
        self.done = self.rows.peek().is_none();
        Some(
            zstd::bulk::compress(&chunk.encode_to_vec(), ZSTD_LEVEL).map(|state| proto::SnapshotPart {
                checksum: crc32fast::hash(&state),
                state: state.into(),
                last: self.done,
            }),
        )
    }
}

/// Puts a state together again.
#[derive(Default)]
pub struct Decoder {
    header: Option<proto::StateHeader>,
    rows: Rows,
    complete: bool,
}

/// What a state is made of.
#[derive(Default)]
pub struct Rows {
    entries: Vec<Entry>,
    holds: Vec<(RouteKey, Hold)>,
    pub tombstones: Vec<(RouteSpec, Revision)>,
    pub sessions: Vec<(SessionId, Session)>,
    pub losses: Vec<Loss>,
}

impl Rows {
    /// Takes in a route, with its hold if it is held.
    pub fn push_route(&mut self, route: &proto::Route) -> io::Result<()> {
        let entry = Entry::try_from(route).map_err(|error| corrupt(error.to_string()))?;
        let hold = route.hold.map(|hold| (entry.route.spec.key().clone(), hold.into()));
        self.holds.extend(hold);
        self.entries.push(entry);
        Ok(())
    }
}

impl Decoder {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// A chunk that was damaged on the way, or does not belong here. The decoder is of no use after it.
    pub fn push(&mut self, part: &proto::SnapshotPart) -> io::Result<()> {
        if self.complete {
            return Err(corrupt("a snapshot chunk after the last one"));
        }
        if crc32fast::hash(&part.state) != part.checksum {
            return Err(corrupt("a snapshot chunk's checksum does not match"));
        }
        let bytes = zstd::bulk::decompress(&part.state, CHUNK_BYTES_MAX)?;
        let chunk = proto::StateChunk::decode(&bytes[..]).map_err(|error| corrupt(error.to_string()))?;
        match (&self.header, chunk.header) {
            (None, Some(header)) => self.header = Some(header),
            (Some(_), None) => {}
            _ => return Err(corrupt("a snapshot without its first chunk, or with two")),
        }
        for route in &chunk.routes {
            self.rows.push_route(route)?;
        }
        for tombstone in chunk.tombstones {
            self.rows.tombstones.push(tombstone_in(&tombstone)?);
        }
        for session in chunk.sessions {
            self.rows.sessions.push(session_in(session)?);
        }
        for loss in &chunk.losses {
            self.rows.losses.push(loss_in(loss)?);
        }
        self.complete = part.last;
        Ok(())
    }

    /// The state, if it is whole and what its header says.
    ///
    /// # Errors
    /// Missing chunks, or another count or digest than the header's: the state must not be used.
    pub fn finish(self) -> io::Result<State> {
        let header = self
            .header
            .filter(|_| self.complete)
            .ok_or_else(|| corrupt("an incomplete snapshot"))?;
        assemble(&header, self.rows)
    }
}

/// A state of its rows, checked against its header.
///
/// # Errors
/// Another count or digest than the header's.
pub fn assemble(header: &proto::StateHeader, rows: Rows) -> io::Result<State> {
    let table = Table::from_entries(Epoch(header.epoch), Revision(header.revision), rows.entries);
    if table.len() as u64 != header.routes || Digest::from_bytes(&header.digest) != Some(table.digest()) {
        return Err(corrupt(format!(
            "{} routes with digest {} where the header says {} with another",
            table.len(),
            table.digest(),
            header.routes
        )));
    }
    let holds = Holds::new(&table, rows.holds, rows.losses);
    let held = Digest::from_bytes(&header.holds_digest).unwrap_or_default();
    if holds.digest() != held {
        return Err(corrupt(format!(
            "{} holds with digest {} where the header says {held}",
            holds.len(),
            holds.digest()
        )));
    }
    let horizon = Revision(header.horizon);
    let history = History::new(&table, rows.tombstones, horizon);
    let hubs = header.hubs.iter().map(hub_in).collect::<io::Result<Vec<_>>>()?;
    Ok(State {
        table,
        holds,
        history,
        sessions: Sessions::new(rows.sessions, header.sessions_forgotten_ms),
        hubs: Hubs::new(hubs),
        lineage: Lineage::new(header.lineage.iter().cloned()),
        node_id_max: header.node_id_max,
    })
}

fn hub_out((namespace, hub): (&Namespace, &Hub)) -> proto::Hub {
    proto::Hub {
        namespace: namespace.as_str().to_owned(),
        hub_epoch: hub.epoch.0,
        id: hub.id.to_vec().into(),
        predecessors: hub.predecessors.iter().map(|id| id.to_vec().into()).collect(),
    }
}

fn hub_in(hub: &proto::Hub) -> io::Result<(Namespace, Hub)> {
    let namespace = Namespace::parse(&hub.namespace).map_err(|error| corrupt(error.to_string()))?;
    let id_in = |id: &[u8]| HubId::try_from(id).map_err(|_| corrupt("a hub id that is not 16 bytes"));
    let hub = Hub {
        epoch: HubEpoch(hub.hub_epoch),
        id: id_in(&hub.id)?,
        predecessors: hub.predecessors.iter().map(|id| id_in(id)).collect::<Result<_, _>>()?,
    };
    Ok((namespace, hub))
}

pub fn route_out(entry: &Entry, holds: &Holds) -> proto::Route {
    proto::Route {
        hold: holds.get(entry.route.spec.key()).map(|hold| (*hold).into()),
        ..entry.into()
    }
}

pub fn loss_out(loss: &Loss) -> proto::Loss {
    proto::Loss {
        routespec: loss.spec.as_str().to_owned(),
        namespace: loss.namespace.as_str().to_owned(),
        time_ms: loss.time_ms,
    }
}

pub fn loss_in(loss: &proto::Loss) -> io::Result<Loss> {
    let spec = RouteSpec::parse(&loss.routespec);
    let namespace = Namespace::parse(&loss.namespace);
    Ok(Loss {
        spec: spec.map_err(|error| corrupt(error.to_string()))?,
        namespace: namespace.map_err(|error| corrupt(error.to_string()))?,
        time_ms: loss.time_ms,
    })
}

pub fn tombstone_out(routespec: &str, revision: Revision) -> proto::Tombstone {
    proto::Tombstone {
        routespec: routespec.to_owned(),
        revision: revision.0,
    }
}

pub fn tombstone_in(tombstone: &proto::Tombstone) -> io::Result<(RouteSpec, Revision)> {
    let spec = RouteSpec::parse(&tombstone.routespec).map_err(|error| corrupt(error.to_string()))?;
    Ok((spec, Revision(tombstone.revision)))
}

pub fn session_out(id: &SessionId, session: &Session) -> proto::Session {
    let outcome = match &session.outcome {
        Ok(written) => proto::SessionOutcome {
            revision: written.revision.0,
            changed: written.changed,
            held: u32::try_from(written.held).unwrap_or(u32::MAX),
            ..Default::default()
        },
        Err(rejection) => proto::SessionOutcome {
            rejected_reason: Reason::of(rejection).as_str().to_owned(),
            rejected_message: rejection.to_string(),
            ..Default::default()
        },
    };
    proto::Session {
        id: id.to_vec().into(),
        sequence: session.sequence,
        last_used_index: session.last_used_index,
        last_used_ms: session.last_used_ms,
        outcome: Some(outcome),
    }
}

pub fn session_in(session: proto::Session) -> io::Result<(SessionId, Session)> {
    let id = SessionId::try_from(&session.id[..]).map_err(|_| corrupt("a session id that is not 16 bytes"))?;
    let outcome = session.outcome.ok_or_else(|| corrupt("a session without outcome"))?;
    let outcome = match outcome.rejected_reason.as_str() {
        "" => Ok(Written {
            revision: Revision(outcome.revision),
            changed: outcome.changed,
            held: usize::try_from(outcome.held).unwrap_or(usize::MAX),
        }),
        reason => Err(Rejection::Remembered {
            reason: reason.to_owned(),
            message: outcome.rejected_message,
        }),
    };
    Ok((
        id,
        Session {
            sequence: session.sequence,
            last_used_index: session.last_used_index,
            last_used_ms: session.last_used_ms,
            outcome,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::{Batch, Change, Command, HoldPolicy, Route, Stamp};

    fn state(routes: usize) -> State {
        let mut state = State::default();
        state.open_hub(&Namespace::default(), [7; 16]).unwrap();
        state.open_hub(&Namespace::default(), [8; 16]).unwrap();
        for n in 0..routes {
            let route = Route::parse(&format!("/user/{n}/"), "http://10.0.0.1:1", r#"{"user":"x"}"#, "").unwrap();
            let session = Some(([(n % 7) as u8; 16], n as u64 / 7 + 1));
            state.apply(
                n as u64,
                &Stamp::default(),
                &Command {
                    batch: Batch::put(route),
                    session,
                },
            );
        }
        for n in 0..routes / 10 {
            let spec = RouteSpec::parse(&format!("/user/{n}/")).unwrap();
            state.apply(
                10_000,
                &Stamp::default(),
                &Command {
                    batch: Batch::delete(Namespace::default(), spec),
                    session: None,
                },
            );
        }
        state
    }

    /// Every third route of `routes` is deleted again, which is held.
    fn with_holds(routes: usize) -> State {
        let mut state = state(0);
        let stamp = Stamp {
            time_ms: 1_000,
            policy: Some(HoldPolicy::DEFAULT),
        };
        let mut write = |changes: Vec<Change>| {
            let batch = Batch::new(Namespace::default(), changes, vec![]).unwrap();
            let command = Command { batch, session: None };
            state.apply(20_000, &stamp, &command).result.unwrap()
        };
        let route = |n: usize| {
            let target = format!("http://10.0.{}.{}:8888", n / 250, n % 250);
            Route::parse(&format!("/held/{n}%2F/"), &target, "", "").unwrap()
        };
        write((0..routes).map(|n| Change::Put(route(n))).collect());
        let deletes = (0..routes).step_by(3).map(|n| Change::Delete(route(n).spec));
        assert_eq!(write(deletes.collect()).held, routes.div_ceil(3));
        state
    }

    fn over_the_wire(state: &State) -> State {
        let mut decoder = Decoder::default();
        for part in encode(state) {
            decoder.push(&part.unwrap()).unwrap();
        }
        decoder.finish().unwrap()
    }

    #[test]
    fn holds_and_losses_survive_a_snapshot_and_a_missing_hold_is_found() {
        let state = with_holds(300);
        let copy = over_the_wire(&state);
        assert_eq!((copy.digest(), copy.holds.len()), (state.digest(), 100));
        let losses = |state: &State| state.holds.losses().iter().cloned().collect::<Vec<_>>();
        assert_eq!(losses(&copy).len(), 100);
        assert!(losses(&state).iter().all(|loss| losses(&copy).contains(loss)));

        for missing in [0, 1] {
            let mut rows = Rows::default();
            for entry in state.table.iter() {
                rows.push_route(&route_out(entry, &state.holds)).unwrap();
            }
            rows.holds.drain(..missing);
            assert_eq!(assemble(&header(&state), rows).is_ok(), missing == 0);
        }
    }

    #[test]
    fn a_state_survives_its_snapshot_with_history_and_sessions() {
        for routes in [0, 20, 30_000] {
            let state = state(routes);
            let mut decoder = Decoder::default();
            let parts: Vec<_> = encode(&state).collect::<Result<_, _>>().unwrap();
            assert!(routes < 30_000 || parts.len() > 1);
            parts.iter().for_each(|part| decoder.push(part).unwrap());
            let copy = decoder.finish().unwrap();
            assert_eq!(copy.table.digest(), state.table.digest());
            assert_eq!(copy.sessions.len(), state.sessions.len());
            assert_eq!(copy.hubs, state.hubs);
            assert_eq!(copy.rest_digest(), state.rest_digest());
            let from = Revision(state.table.revision().0 / 2);
            let sorted = |state: &State| {
                let mut delta = state.history.since(from, &state.table).unwrap();
                delta
                    .puts
                    .sort_by(|a, b| a.route.spec.as_str().cmp(b.route.spec.as_str()));
                delta.deletes.sort_by(|a, b| a.as_str().cmp(b.as_str()));
                delta
            };
            assert_eq!(sorted(&copy), sorted(&state));
        }
    }

    #[test]
    fn a_damaged_or_incomplete_snapshot_is_refused() {
        let parts: Vec<_> = encode(&state(30_000)).collect::<Result<_, _>>().unwrap();
        let decode = |parts: &[proto::SnapshotPart]| -> io::Result<State> {
            let mut decoder = Decoder::default();
            parts.iter().try_for_each(|part| decoder.push(part))?;
            decoder.finish()
        };
        assert!(decode(&parts).is_ok());
        assert!(decode(&parts[..parts.len() - 1]).is_err());
        assert!(decode(&parts[1..]).is_err());
        assert!(decode(&[]).is_err());
        let mut flipped = parts.clone();
        let mut bytes = flipped[0].state.to_vec();
        bytes[100] ^= 1;
        flipped[0].state = bytes.into();
        assert!(decode(&flipped).is_err());
        let mut reordered = parts.clone();
        reordered.swap(0, 1);
        assert!(decode(&reordered).is_err());
        // A chunk that went missing is found by the digest, whatever the checksums say.
        let mut short = parts;
        short.remove(1);
        assert!(short.len() < 2 || decode(&short).is_err());
    }
}
