//! Read ahead: a snapshot is put into a table while the rest of it is read.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

use holdfast_table::{Entry, Table};

/// Lists of routes that are read and not in the table yet.
const AHEAD: usize = 4;

/// Adds what `source` hands on of the table's own snapshot. The source runs on a thread of its own: to read a route takes
/// about as long as to put it where it is found.
///
/// # Errors
/// The source's own; the table has a part of the snapshot then.
pub fn read_ahead<E: Send>(
    table: &mut Table,
    mut source: impl FnMut(&mut dyn FnMut(Vec<Entry>)) -> Result<(), E> + Send,
) -> Result<(), E> {
    let reader = &mut source;
    let read = thread::scope(|scope| {
        let (hand_on, handed_on) = sync_channel(AHEAD);
        // Nobody takes them only while a panic goes its way.
        let read = move || reader(&mut |entries| drop(hand_on.send(entries)));
        let reading = thread::Builder::new().spawn_scoped(scope, read).ok()?;
        handed_on
            .into_iter()
            .for_each(|entries: Vec<Entry>| table.extend(entries));
        Some(reading.join().unwrap_or_else(|panicked| resume_unwind(panicked)))
    });
    // Where there can be no more threads, on this one.
    read.unwrap_or_else(|| source(&mut |entries| table.extend(entries)))
}

#[cfg(test)]
mod tests {
    use holdfast_table::{Epoch, Revision, Route};

    use super::*;

    fn entry(number: u64) -> Entry {
        Entry {
            route: Route::parse(&format!("/user/{number}/"), "http://10.0.0.1:80", "", "").unwrap(),
            modified: Revision(number),
        }
    }

    #[test]
    fn what_is_read_is_in_the_table_and_so_is_why_it_stopped() {
        let whole = Table::from_entries(Epoch(1), Revision(100), (0..100).map(entry));
        let mut table = Table::from_entries(Epoch(1), Revision(100), []);
        let lists: Vec<Vec<Entry>> = (0..25)
            .map(|list| (4 * list..4 * list + 4).map(entry).collect())
            .collect();
        let done: Result<(), &str> = read_ahead(&mut table, |hand_on| {
            lists.iter().cloned().for_each(hand_on);
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!((table.len(), table.digest()), (whole.len(), whole.digest()));
        let stopped = read_ahead(&mut table, |hand_on| {
            hand_on(vec![entry(100)]);
            Err("damaged")
        });
        assert_eq!((stopped, table.len()), (Err("damaged"), 101));
    }

    #[test]
    #[should_panic(expected = "a fault of the source")]
    fn a_panic_is_passed_on() {
        let mut table = Table::default();
        let _: Result<(), ()> = read_ahead(&mut table, |_| panic!("a fault of the source"));
    }
}
