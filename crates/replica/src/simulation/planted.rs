//! Bugs that are put in on purpose, to see that they are found. No build but that of the unit tests has them.

use std::cell::Cell;
use std::path::Path;

use holdfast_table::sessions::{Session, Sessions};
use holdfast_table::{Command, Delta, Digest, Hub, Hubs, State};

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The log says that entries are on disk before they are.
    AcknowledgesBeforeSync,
    /// A vote is not on disk when it is given.
    VoteNotSynced,
    /// A leader answers reads without asking whether it still leads.
    LeaseRead,
    /// A repeated write is applied again.
    DuplicateApplied,
    /// A snapshot counts before its rows are on disk.
    SnapshotWithoutFlip,
    /// What was applied is written apart from how far it was applied.
    PositionApart,
    /// Now and then a subscriber is told that it is further than what it was sent.
    SkipsDelta,
    /// A subscriber that is ahead of its replica is sent an older table.
    BackInTime,
    /// A replica comes back with an empty disk under its old id.
    ReusedNodeId,
    /// A late copy of what an earlier hub asked for takes the namespace from the newest one.
    HubComesBack,
    /// What is held is not on disk.
    HoldNotStored,
    /// One replica does not note when a session was last used. Nothing shows it until a session is forgotten.
    SessionUseNotNoted,
    /// The digest that is kept with every change is not that of the routes.
    DigestMiskept,
}

impl Bug {
    /// Every one.
    pub const ALL: [Bug; 13] = [
        Bug::AcknowledgesBeforeSync,
        Bug::VoteNotSynced,
        Bug::LeaseRead,
        Bug::DuplicateApplied,
        Bug::SnapshotWithoutFlip,
        Bug::PositionApart,
        Bug::SkipsDelta,
        Bug::BackInTime,
        Bug::ReusedNodeId,
        Bug::HubComesBack,
        Bug::HoldNotStored,
        Bug::SessionUseNotNoted,
        Bug::DigestMiskept,
    ];

    /// By its name.
    pub fn parse(name: &str) -> Option<Bug> {
        Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
    }
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug into everything that this thread runs from now on.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// True if the bug is planted in this thread.
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// The command, without the session that would tell that it was applied before.
pub fn as_if_new(state: &State, command: Command) -> Command {
    let repeated = command
        .session
        .is_some_and(|(id, sequence)| state.sessions.get(&id).is_some_and(|last| last.sequence == sequence));
    match planted(Bug::DuplicateApplied) && repeated {
        true => Command {
            session: None,
            ..command
        },
        false => command,
    }
}

/// Forgets who had a namespace before.
pub fn forget_hubs(state: &mut State) {
    if planted(Bug::HubComesBack) {
        let hubs = state.hubs.iter().map(|(namespace, hub)| {
            let hub = Hub {
                predecessors: Vec::new(),
                ..hub.clone()
            };
            (namespace.clone(), hub)
        });
        state.hubs = Hubs::new(hubs);
    }
}

/// Forgets when sessions were last used, on the replica whose directory is called `r1`.
pub fn forget_uses(state: &mut State, directory: &Path) {
    if !planted(Bug::SessionUseNotNoted) || directory != Path::new("r1") {
        return;
    }
    let mut sessions = Sessions::default();
    for (id, session) in state.sessions.iter() {
        let session = Session {
            last_used_index: 0,
            ..session.clone()
        };
        sessions.record(*id, session);
    }
    state.sessions = sessions;
}

/// Another digest than the one that is kept.
pub fn miskept(digest: Digest) -> Digest {
    match planted(Bug::DigestMiskept) {
        true => digest.and(Digest::from_bytes(&[1; 32]).expect("32 bytes")),
        false => digest,
    }
}

/// The delta, now and then without what it puts.
pub fn skipped(delta: &Delta) -> Delta {
    let mut delta = delta.clone();
    if planted(Bug::SkipsDelta) && delta.to.0.is_multiple_of(50) {
        delta.puts.clear();
    }
    delta
}
