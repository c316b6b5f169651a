//! Which replica each live proxy follows, as last heard: the proxies of one that falls silent still serve users.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// How long the proxies of a replica that has fallen silent are expected elsewhere. A proxy needs 3 s to take its stream for
/// dead, and less than 5 s between two tries.
const EXPECTED: Duration = Duration::from_secs(10);

/// What was heard of the members' live proxies.
#[derive(Default)]
pub struct Whereabouts(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// By name.
    proxies: HashMap<String, Sighting>,
    /// By id.
    members: HashMap<u64, Contact>,
}

struct Sighting {
    member: u64,
    run: u64,
    at: Instant,
}

struct Contact {
    answered: bool,
    /// When it answered last; before it does, when it was asked first.
    at: Instant,
}

/// How well a member is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It answered lately.
    Recent,
    /// It has not answered yet, and was first asked lately: nobody here knows its proxies.
    Never,
    /// It has been silent for so long that its proxies are elsewhere.
    Lost,
}

impl Whereabouts {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().expect("nobody panics with it")
    }

    /// Notes that a member is asked.
    pub fn ask(&self, member: u64) -> Touch {
        let mut heard = self.heard();
        let contact = heard.members.entry(member).or_insert(Contact {
            answered: false,
            at: Instant::now(),
        });
        match contact.answered {
            _ if contact.at.elapsed() > EXPECTED => Touch::Lost,
            true => Touch::Recent,
            false => Touch::Never,
        }
    }

    /// Takes in the names of all live proxies of a member; `run` names its process. Who is missing among them has left by
    /// itself, and is not expected anywhere; but a process that has just started knows nothing of whom its predecessor had.
    pub fn hear(&self, member: u64, run: u64, names: impl IntoIterator<Item = String>) {
        let at = Instant::now();
        let mut heard = self.heard();
        heard.members.insert(member, Contact { answered: true, at });
        heard.proxies.retain(|_, sighting| {
            sighting.at.elapsed() <= EXPECTED && (sighting.member, sighting.run) != (member, run)
        });
        let sightings = names.into_iter().map(|name| (name, Sighting { member, run, at }));
        heard.proxies.extend(sightings);
    }

    /// The names of the proxies that were last at none of these members, each with its run, and may still serve users.
    pub fn missing(&self, answered: &[(u64, u64)]) -> Vec<String> {
        let heard = self.heard();
        let mut missing: Vec<_> = heard
            .proxies
            .iter()
            .filter(|(_, sighting)| {
                sighting.at.elapsed() <= EXPECTED && !answered.contains(&(sighting.member, sighting.run))
            })
            .map(|(name, _)| name.clone())
            .collect();
        missing.sort_unstable();
        missing
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_proxies_of_a_silent_replica_are_missing_until_they_are_elsewhere_or_long_gone() {
        let whereabouts = Whereabouts::default();
        whereabouts.hear(1, 10, names(&["a"]));
        whereabouts.hear(2, 20, names(&["b", "c"]));
        let all = [(1, 10), (2, 20)];
        assert!(whereabouts.missing(&all).is_empty());
        assert_eq!(whereabouts.missing(&all[..1]), ["b", "c"]);
        whereabouts.hear(1, 10, names(&["a", "b"]));
        assert_eq!(whereabouts.missing(&all[..1]), ["c"]);
        advance(EXPECTED + Duration::from_millis(1)).await;
        assert!(whereabouts.missing(&all[..1]).is_empty());
        // One that is there for long is missed, too.
        whereabouts.hear(2, 20, names(&["c"]));
        assert_eq!(whereabouts.missing(&all[..1]), ["c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_leaves_a_replica_that_goes_on_is_not_missing() {
        let whereabouts = Whereabouts::default();
        whereabouts.hear(1, 10, names(&["a", "b"]));
        whereabouts.hear(1, 10, names(&["b"]));
        assert_eq!(whereabouts.missing(&[]), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_proxies_of_a_replica_that_was_started_anew_are_missing_until_they_have_come_back() {
        let whereabouts = Whereabouts::default();
        whereabouts.hear(1, 10, names(&["a", "b"]));
        whereabouts.hear(1, 11, names(&["b"]));
        assert_eq!(whereabouts.missing(&[(1, 11)]), ["a"]);
        whereabouts.hear(1, 11, names(&["a", "b"]));
        assert!(whereabouts.missing(&[(1, 11)]).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_lost_once_it_has_been_silent_for_long() {
        let whereabouts = Whereabouts::default();
        assert_eq!(whereabouts.ask(1), Touch::Never);
        whereabouts.hear(2, 20, []);
        advance(EXPECTED).await;
        assert_eq!((whereabouts.ask(1), whereabouts.ask(2)), (Touch::Never, Touch::Recent));
        advance(Duration::from_millis(1)).await;
        assert_eq!((whereabouts.ask(1), whereabouts.ask(2)), (Touch::Lost, Touch::Lost));
        whereabouts.hear(1, 10, []);
        assert_eq!(whereabouts.ask(1), Touch::Recent);
    }
}
