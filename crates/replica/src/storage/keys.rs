//! What is stored under which key.

use holdfast_table::RouteKey;
use holdfast_table::sessions::SessionId;

// In `meta`.
pub const IDENTITY: &[u8] = b"identity";
pub const VOTE: &[u8] = b"vote";
pub const COMMITTED: &[u8] = b"committed";
pub const PURGED: &[u8] = b"purged";
pub const APPLIED: &[u8] = b"applied";

/// In `log`: the index, in an order that is the log's.
pub fn entry(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// The index of a key in `log`.
pub fn entry_index(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// What a row in `table` is; the second part of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Route,
    Tombstone,
    Session,
    Loss,
}

impl Row {
    fn word(self) -> &'static str {
        match self {
            Row::Route => "route",
            Row::Tombstone => "tombstone",
            Row::Session => "session",
            Row::Loss => "loss",
        }
    }

    fn tag(self) -> u8 {
        match self {
            Row::Route => b'r',
            Row::Tombstone => b't',
            Row::Session => b's',
            Row::Loss => b'l',
        }
    }

    /// Reads the key of a row: its generation and kind.
    pub fn parse(key: &[u8]) -> Option<(u32, Row)> {
        let (generation, rest) = key.split_first_chunk::<4>()?;
        let row = [Row::Route, Row::Tombstone, Row::Session, Row::Loss]
            .into_iter()
            .find(|row| rest.first() == Some(&row.tag()))?;
        Some((u32::from_be_bytes(*generation), row))
    }
}

/// What an error calls the row with this key.
pub fn name(row: Row, key: &[u8]) -> String {
    format!("{} \"{}\"", row.word(), key.get(5..).unwrap_or_default().escape_ascii())
}

fn row(generation: u32, row: Row, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(5 + rest.len());
    key.extend_from_slice(&generation.to_be_bytes());
    key.push(row.tag());
    key.extend_from_slice(rest);
    key
}

pub fn route(generation: u32, key: &RouteKey) -> Vec<u8> {
    row(generation, Row::Route, key.as_str().as_bytes())
}

pub fn tombstone(generation: u32, key: &RouteKey) -> Vec<u8> {
    row(generation, Row::Tombstone, key.as_str().as_bytes())
}

pub fn session(generation: u32, id: &SessionId) -> Vec<u8> {
    row(generation, Row::Session, id)
}

pub fn loss(generation: u32, key: &RouteKey) -> Vec<u8> {
    row(generation, Row::Loss, key.as_str().as_bytes())
}
