//! The backup file: a cluster's whole state, written from memory and used whole or not at all.
//!
//! Its layout is described in `proto/backup.proto`: magic and format, then a header, the parts of a Raft snapshot and a
//! trailer, each with a length and a checksum, and a BLAKE3 of everything at the end. Every byte is under at least one
//! checksum, and the digest of the routes that were read must be the one that was written.

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::{Digest, Epoch, Lineage, Revision, State};
use holdfast_wire::proto;
use holdfast_wire::proto::backup_frame::Frame;
use prost::Message as _;

use crate::storage::snapshot;

/// What every backup begins with.
pub const MAGIC: &[u8; 8] = b"HFBACKUP";
/// The version of the layout; a reader takes no other.
pub const FORMAT: u32 = 1;

/// No frame is longer: a part is made of about 1 MiB of rows.
const FRAME_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// Whose state a backup holds, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Of the Holdfast that wrote it.
    pub version: String,
    /// The cluster.
    pub cluster_id: String,
    /// The clusters before it.
    pub lineage: Lineage,
    /// Of the table.
    pub epoch: Epoch,
    /// Of the table.
    pub revision: Revision,
    /// Of the table.
    pub digest: Digest,
    /// In the table.
    pub routes: u64,
    /// The log index of the last entry in it.
    pub applied_index: u64,
    /// When, by the clock of the replica: Unix milliseconds.
    pub created_ms: u64,
    /// The replica that wrote it.
    pub replica: String,
    /// True if it holds every write that was acknowledged before it was asked for.
    pub linearizable: bool,
    /// How long ago the replica last knew a quorum behind a leader; `None`: never since it started.
    pub leader_contact_age: Option<Duration>,
}

/// A backup that was read and found sound.
#[derive(Clone, Debug)]
pub struct Backup {
    /// What its header says, and its rows confirm.
    pub description: Description,
    /// The state.
    pub state: State,
    /// How long the file is.
    pub bytes: u64,
}

/// Why a file is no backup that could be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Not the file's fault, perhaps.
    #[error("cannot be read")]
    Io(#[source] io::Error),
    /// Some other file.
    #[error("is no backup of Holdfast: it begins with {found:?}, not with \"HFBACKUP\"")]
    Foreign {
        /// Its first bytes.
        found: String,
    },
    /// Written by another version.
    #[error(
        "has format {found}, and this version reads format {FORMAT} alone; use the version of Holdfast that wrote it"
    )]
    Format {
        /// What it says.
        found: u32,
    },
    /// The end is missing.
    #[error("is cut off: it ends at byte {at}, before the end of its {part}")]
    Truncated {
        /// Its length.
        at: u64,
        /// What should have come.
        part: &'static str,
    },
    /// Something in it is not what was written.
    #[error("is damaged: {part} at byte {at}: {problem}")]
    Damaged {
        /// Where the damaged part begins.
        at: u64,
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Description {
    fn of(message: proto::BackupHeader) -> Result<Self, String> {
        Ok(Description {
            digest: Digest::from_bytes(&message.digest).ok_or("its digest is not 32 bytes long")?,
            version: message.version,
            cluster_id: Some(message.cluster_id)
                .filter(|id| !id.is_empty())
                .ok_or("it names no cluster")?,
            lineage: Lineage::new(message.lineage),
            epoch: Epoch(message.epoch),
            revision: Revision(message.revision),
            routes: message.routes,
            applied_index: message.applied_index,
            created_ms: message.created_ms,
            replica: message.replica,
            linearizable: message.linearizable,
            leader_contact_age: message.leader_contact_age_ms.map(Duration::from_millis),
        })
    }

    fn message(&self) -> proto::BackupHeader {
        proto::BackupHeader {
            version: self.version.clone(),
            cluster_id: self.cluster_id.clone(),
            lineage: self.lineage.to_vec(),
            epoch: self.epoch.0,
            revision: self.revision.0,
            digest: self.digest.to_bytes().to_vec().into(),
            routes: self.routes,
            applied_index: self.applied_index,
            created_ms: self.created_ms,
            replica: self.replica.clone(),
            linearizable: self.linearizable,
            leader_contact_age_ms: self
                .leader_contact_age
                .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// What in the state is not as described; `None` if all is.
    fn contradiction(&self, state: &State) -> Option<String> {
        let table = &state.table;
        let facts = [
            ("epoch", self.epoch.to_string(), table.epoch().to_string()),
            ("revision", self.revision.to_string(), table.revision().to_string()),
            ("digest", self.digest.to_string(), table.digest().to_string()),
            ("routes", self.routes.to_string(), table.len().to_string()),
        ];
        let wrong = facts.into_iter().find(|(_, said, found)| said != found);
        let wrong = wrong.map(|(field, said, found)| format!("says {field} {said}, its parts have {found}"));
        wrong.or_else(|| (self.lineage != state.lineage).then(|| "says another lineage than its parts".into()))
    }
}

/// The bytes of a backup of `state`, a piece at a time, as the iterator is pulled.
pub fn encode(description: &Description, state: &State) -> impl Iterator<Item = io::Result<Bytes>> + Send + use<> {
    Encoding {
        header: Some(description.message()),
        parts: snapshot::encode(state),
        count: 0,
        hasher: blake3::Hasher::new(),
        done: false,
    }
}

struct Encoding<I> {
    header: Option<proto::BackupHeader>,
    parts: I,
    count: u64,
    hasher: blake3::Hasher,
    done: bool,
}

impl<I: Iterator<Item = io::Result<proto::SnapshotPart>>> Iterator for Encoding<I> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let mut bytes = Vec::new();
        if let Some(header) = self.header.take() {
            bytes.extend_from_slice(MAGIC);
            bytes.extend_from_slice(&FORMAT.to_le_bytes());
            write_frame(&mut bytes, Frame::Header(header));
        } else if self.done {
            return None;
        } else {
            match self.parts.next() {
                Some(Ok(part)) => {
                    self.count += 1;
                    write_frame(&mut bytes, Frame::Part(part));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.done = true;
                    let trailer = proto::BackupTrailer {
                        parts: self.count,
                        checksum: self.hasher.finalize().as_bytes().to_vec().into(),
                    };
                    write_frame(&mut bytes, Frame::Trailer(trailer));
                }
            }
        }
        self.hasher.update(&bytes);
        Some(Ok(bytes.into()))
    }
}

fn write_frame(bytes: &mut Vec<u8>, frame: Frame) {
    let message = proto::BackupFrame { frame: Some(frame) }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(length, &message).to_le_bytes());
    bytes.extend_from_slice(&message);
}

fn checksum(length: [u8; 4], message: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(message);
    hasher.finalize()
}

/// Reads a backup to its end and checks everything that can be checked.
///
/// # Errors
/// [`BackupError`]: nothing of it may be used.
pub fn read(from: impl Read) -> Result<Backup, BackupError> {
    let mut from = Reading {
        from,
        at: 0,
        hasher: blake3::Hasher::new(),
    };
    from.begin()?;
    let at = from.at;
    let damaged = |at, part, problem: String| BackupError::Damaged { at, part, problem };
    let (_, Frame::Header(header)) = from.frame("header")? else {
        return Err(damaged(at, "header", "is another frame".into()));
    };
    let description = Description::of(header).map_err(|problem| damaged(at, "header", problem))?;
    let mut decoder = snapshot::Decoder::default();
    let mut parts = 0;
    loop {
        let at = from.at;
        match from.frame("parts")? {
            (_, Frame::Header(_)) => return Err(damaged(at, "parts", "is a second header".into())),
            (_, Frame::Part(part)) => {
                parts += 1;
                decoder
                    .push(&part)
                    .map_err(|error| damaged(at, "parts", error.to_string()))?;
            }
            (before, Frame::Trailer(trailer)) => {
                if trailer.parts != parts {
                    let problem = format!("counts {} parts, there are {parts}", trailer.parts);
                    return Err(damaged(at, "trailer", problem));
                }
                if trailer.checksum != before.as_bytes()[..] {
                    let problem = "its checksum of the whole file does not match".to_owned();
                    return Err(damaged(at, "trailer", problem));
                }
                break;
            }
        }
    }
    from.end()?;
    let state = decoder
        .finish()
        .map_err(|error| damaged(at, "parts", error.to_string()))?;
    match description.contradiction(&state) {
        Some(problem) => Err(damaged(at, "header", problem)),
        None => Ok(Backup {
            description,
            state,
            bytes: from.at,
        }),
    }
}

struct Reading<R> {
    from: R,
    at: u64,
    hasher: blake3::Hasher,
}

impl<R: Read> Reading<R> {
    fn begin(&mut self) -> Result<(), BackupError> {
        let mut magic = Vec::new();
        let length = MAGIC.len() as u64;
        (&mut self.from)
            .take(length)
            .read_to_end(&mut magic)
            .map_err(BackupError::Io)?;
        self.at = magic.len() as u64;
        self.hasher.update(&magic);
        if !MAGIC.starts_with(&magic) {
            let found = magic.escape_ascii().to_string();
            return Err(BackupError::Foreign { found });
        }
        if self.at < length {
            return Err(BackupError::Truncated {
                at: self.at,
                part: "magic",
            });
        }
        match u32::from_le_bytes(self.array("format")?) {
            FORMAT => Ok(()),
            found => Err(BackupError::Format { found }),
        }
    }

    /// The next frame, and the checksum of everything before it.
    fn frame(&mut self, part: &'static str) -> Result<(blake3::Hash, Frame), BackupError> {
        let (at, before) = (self.at, self.hasher.finalize());
        let damaged = |problem: &str| BackupError::Damaged {
            at,
            part,
            problem: problem.to_owned(),
        };
        let length = self.array::<4>(part)?;
        let expected = u32::from_le_bytes(self.array(part)?);
        let bounded = Some(u32::from_le_bytes(length)).filter(|length| *length <= FRAME_BYTES_MAX);
        let bounded = bounded.and_then(|length| usize::try_from(length).ok());
        let mut message = vec![0; bounded.ok_or_else(|| damaged("its length is beyond any bound"))?];
        self.fill(&mut message, part)?;
        if checksum(length, &message) != expected {
            return Err(damaged("its checksum does not match"));
        }
        let frame = proto::BackupFrame::decode(Bytes::from(message)).ok();
        let frame = frame.and_then(|frame| frame.frame);
        Ok((before, frame.ok_or_else(|| damaged("is no frame of this format"))?))
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let mut more = [0];
        match self.from.read(&mut more).map_err(BackupError::Io)? {
            0 => Ok(()),
            _ => Err(BackupError::Damaged {
                at: self.at,
                part: "trailer",
                problem: "something follows it".into(),
            }),
        }
    }

    fn array<const N: usize>(&mut self, part: &'static str) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, part)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], part: &'static str) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.from.read(&mut bytes[filled..]) {
                Ok(0) => return Err(BackupError::Truncated { at: self.at, part }),
                Ok(n) => {
                    self.hasher.update(&bytes[filled..filled + n]);
                    self.at += n as u64;
                    filled += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BackupError::Io(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
