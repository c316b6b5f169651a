//! The tape: what changed lately, encoded once for all who follow.
//!
//! One task writes it, as entries are applied. A frame leads from the one before it to the next, so a subscriber at the
//! end of any frame on the tape goes on with bytes that are there already; any other is brought to the tape's end by a
//! delta of its own, and is on the tape from then on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use holdfast_table::{Delta, Revision, State};
use holdfast_wire::proto;
use prost::Message as _;
use tokio::sync::{Notify, watch};

use crate::storage::state_machine::{Position, Published};

/// Between two frames, at least: what is applied meanwhile is one frame. The first after a pause waits for nothing.
const COALESCE: Duration = Duration::from_millis(2);
/// A change of more routes is not put on the tape: snapshots are made for that.
const ROUTES_MAX: usize = 20_000;
/// What is kept for subscribers that are a little late.
const FRAMES_MAX: usize = 256;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The newest frames, and the state at their end; neither while nobody follows.
#[derive(Default)]
pub struct Tape {
    frames: Mutex<Frames>,
    end: watch::Sender<Option<Arc<Position>>>,
    followed: Notify,
}

/// One delta on the tape.
#[derive(Clone)]
pub struct Recorded {
    from: Revision,
    /// Where it leads.
    pub to: Revision,
    /// An encoded `Delta`.
    pub bytes: Bytes,
}

#[derive(Default)]
struct Frames {
    frames: VecDeque<Recorded>,
    bytes: usize,
}

impl Tape {
    /// Writes the tape for as long as the state machine lives.
    pub async fn record(&self, published: Published) {
        let mut applied = published.applied();
        loop {
            if self.end.receiver_count() == 0 {
                // Where a state changes that is held here, it is copied.
                self.forget();
                self.followed.notified().await;
            }
            applied.mark_unchanged();
            self.advance(published.load());
            tokio::time::sleep(COALESCE).await;
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    /// The state at the tape's end; `None` before there is one. Changes when it moves.
    pub fn end(&self) -> watch::Receiver<Option<Arc<Position>>> {
        let end = self.end.subscribe();
        self.followed.notify_one();
        end
    }

    fn forget(&self) {
        *self.frames.lock().expect("nobody panics with it") = Frames::default();
        self.end.send_replace(None);
    }

    /// The frame that goes on from `cursor`, if it is on the tape.
    pub fn after(&self, cursor: Revision) -> Option<Recorded> {
        let frames = self.frames.lock().expect("nobody panics with it");
        let at = frames.frames.binary_search_by_key(&cursor, |frame| frame.from).ok()?;
        frames.frames.get(at).cloned()
    }

    fn advance(&self, position: Arc<Position>) {
        let before = self.end.borrow().clone();
        if let Some(before) = &before {
            let (then, now) = (&before.state.table, &position.state.table);
            if then.revision() == now.revision() && then.epoch() == now.epoch() {
                return;
            }
            let mut frames = self.frames.lock().expect("nobody panics with it");
            // With nobody at the end, nobody will need the way from there.
            let followed = self.end.receiver_count() > 0 && then.epoch() == now.epoch();
            let delta = followed.then(|| delta(&position.state, then.revision(), ROUTES_MAX));
            match delta.flatten() {
                Some(delta) => frames.push(Recorded {
                    from: delta.from,
                    to: delta.to,
                    bytes: encode(&delta),
                }),
                None => *frames = Frames::default(),
            }
        }
        // After the frame: whoever is woken by the end finds it.
        self.end.send_replace(Some(position));
    }
}

impl Frames {
    fn push(&mut self, frame: Recorded) {
        self.bytes += frame.bytes.len();
        self.frames.push_back(frame);
        while (self.bytes > BYTES_MAX || self.frames.len() > FRAMES_MAX)
            && let Some(oldest) = self.frames.pop_front()
        {
            self.bytes -= oldest.bytes.len();
        }
    }
}

/// What leads from `from` to the present of `state`, if that is known and no more than `routes_max` routes.
pub fn delta(state: &State, from: Revision, routes_max: usize) -> Option<Delta> {
    let (history, table) = (&state.history, &state.table);
    history.changed_since(from, table, routes_max)?;
    history.since(from, table)
}

/// As it goes into a frame.
pub fn encode(delta: &Delta) -> Bytes {
    #[cfg(test)]
    let delta = &crate::simulation::planted::skipped(delta);
    proto::Delta::from(delta).encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::{Batch, Command, Route, Stamp, Table};

    fn position(state: &State) -> Arc<Position> {
        Arc::new(Position {
            state: state.clone(),
            ..Position::default()
        })
    }

    fn write(state: &mut State, spec: &str, port: usize) {
        let route = Route::parse(spec, &format!("http://10.0.0.1:{port}"), "", "").unwrap();
        let command = Command {
            batch: Batch::put(route),
            session: None,
        };
        state.apply(1, &Stamp::default(), &command).result.unwrap();
    }

    #[test]
    fn whoever_is_on_the_tape_is_led_to_its_end_and_nobody_else_is() {
        let (tape, mut state) = (Tape::default(), State::default());
        let _follower = tape.end();
        tape.advance(position(&state));
        let mut follower = Table::default();
        let mut stale = Vec::new();
        for n in 1..=3 * FRAMES_MAX {
            write(&mut state, &format!("/user/{}/", n % 7), n);
            // Now and then two revisions are one frame.
            if n % 5 != 0 {
                tape.advance(position(&state));
            }
            while let Some(frame) = tape.after(follower.revision()) {
                let delta = proto::Delta::decode(frame.bytes).unwrap();
                follower.apply_delta(&Delta::try_from(&delta).unwrap()).unwrap();
                assert_eq!(follower.revision(), frame.to);
            }
            stale.push(follower.revision());
        }
        let end = tape.end().borrow().clone().unwrap();
        assert_eq!(follower.digest(), end.state.table.digest());
        assert!(
            tape.after(follower.revision()).is_none(),
            "nothing leads beyond the end"
        );
        assert!(tape.after(stale[0]).is_none(), "what is long past is not kept");
    }

    #[test]
    fn a_change_too_large_for_the_tape_breaks_it() {
        let (tape, mut state) = (Tape::default(), State::default());
        let follower = tape.end();
        write(&mut state, "/first/", 1);
        tape.advance(position(&state));
        for n in 0..=ROUTES_MAX {
            write(&mut state, &format!("/{n}/"), 1);
        }
        tape.advance(position(&state));
        assert!(tape.after(Revision(1)).is_none());
        write(&mut state, "/last/", 1);
        tape.advance(position(&state));
        let end = state.table.revision();
        assert_eq!(tape.after(Revision(end.0 - 1)).map(|frame| frame.to), Some(end));
        drop(follower);
        write(&mut state, "/nobody/", 1);
        tape.advance(position(&state));
        assert!(tape.after(end).is_none(), "nobody follows");
    }
}
