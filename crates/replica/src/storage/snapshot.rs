//! The whole state as a stream of checked, compressed chunks, and back.

use std::io;

use holdfast_table::history::History;
use holdfast_table::sessions::{Session, SessionId, Sessions};
use holdfast_table::{
    Digest, Entry, Epoch, Hub, HubEpoch, HubId, Hubs, Lineage, Namespace, Rejection, Revision, RouteSpec, State, Table,
    Written,
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
    }
}

/// Encodes a state chunk by chunk, as the iterator is pulled.
pub fn encode(state: &State) -> impl Iterator<Item = io::Result<proto::SnapshotPart>> + Send + use<> {
    let header = header(state);
    let state = state.clone();
    let routes: Vec<_> = state.table.iter().cloned().collect();
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
        .map(|entry| Row::Route(entry.as_ref().into()))
        .chain(tombstones.into_iter().map(Row::Tombstone))
        .chain(sessions.into_iter().map(Row::Session));
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
    pub entries: Vec<Entry>,
    pub tombstones: Vec<(RouteSpec, Revision)>,
    pub sessions: Vec<(SessionId, Session)>,
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
            self.rows
                .entries
                .push(route.try_into().map_err(|error| corrupt(format!("{error}")))?);
        }
        for tombstone in chunk.tombstones {
            self.rows.tombstones.push(tombstone_in(&tombstone)?);
        }
        for session in chunk.sessions {
            self.rows.sessions.push(session_in(session)?);
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
    let horizon = Revision(header.horizon);
    let history = History::new(&table, rows.tombstones, horizon);
    let mut sessions = Sessions::default();
    for (id, session) in rows.sessions {
        sessions.record(id, session);
    }
    let hubs = header.hubs.iter().map(hub_in).collect::<io::Result<Vec<_>>>()?;
    Ok(State {
        table,
        history,
        sessions,
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
            outcome,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::{Batch, Command, Route};

    fn state(routes: usize) -> State {
        let mut state = State::default();
        state.open_hub(&Namespace::default(), [7; 16]).unwrap();
        state.open_hub(&Namespace::default(), [8; 16]).unwrap();
        for n in 0..routes {
            let route = Route::parse(&format!("/user/{n}/"), "http://10.0.0.1:1", r#"{"user":"x"}"#, "").unwrap();
            let session = Some(([(n % 7) as u8; 16], n as u64 / 7 + 1));
            state.apply(
                n as u64,
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
                &Command {
                    batch: Batch::delete(Namespace::default(), spec),
                    session: None,
                },
            );
        }
        state
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
