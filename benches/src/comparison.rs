//! What was found for each system, round by round, and the table that compares them.

use std::collections::BTreeMap;

use crate::figures::median;

/// Holdfast's own name, wherever systems are named.
pub const HOLDFAST: &str = "holdfast";

/// One figure that all systems are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is. Two rows of one name judge the same values.
    pub name: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// What Holdfast must reach.
    pub target: Target,
    /// Whom Holdfast is set beside.
    pub beside: Beside,
}

/// What Holdfast's median must be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Said for understanding only.
    None,
    /// At most so many times the peer's.
    RatioAtMost(f64),
    /// At least so many times the peer's.
    RatioAtLeast(f64),
    /// At most so much, whatever the peers' is.
    AtMost(f64),
    /// At least so much, whatever the peers' is.
    AtLeast(f64),
}

/// The peer of a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Beside {
    /// The best of all, by what the target asks for. Without a target: the only one.
    Best,
    /// This one.
    One(&'static str),
}

/// Rows and what was found for them.
pub struct Comparison {
    rows: &'static [Row],
    peers: &'static [&'static str],
    floor: &'static str,
    found: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Comparison {
    /// Nothing found yet; for Holdfast, these peers, and the floor, which is the same load with nothing in between.
    pub fn of(rows: &'static [Row], peers: &'static [&'static str], floor: &'static str) -> Self {
        Comparison {
            rows,
            peers,
            floor,
            found: BTreeMap::new(),
        }
    }

    /// Adds what one round found.
    ///
    /// # Panics
    /// There is no such row.
    pub fn add(&mut self, row: &str, system: impl Into<&'static str>, value: f64) {
        let known = self.rows.iter().find(|known| known.name == row);
        let known = known.unwrap_or_else(|| panic!("no row is called {row:?}"));
        self.found.entry((known.name, system.into())).or_default().push(value);
    }

    /// Medians beside each other, one line per row for which something was found, one column per system that has any.
    pub fn table(&self) -> Vec<String> {
        let is_found = |system: &&'static str| self.found.keys().any(|(_, of)| of == system);
        let peers: Vec<_> = self.peers.iter().copied().filter(is_found).collect();
        let floor = Some(self.floor).filter(is_found);
        let mut header = vec![""];
        header.extend(&peers);
        header.extend([HOLDFAST, "ratio", "target", "met"]);
        header.extend(floor);
        let mut lines = vec![header.into_iter().map(str::to_owned).collect()];
        for row in self.rows {
            if !self.found.keys().any(|(name, _)| *name == row.name) {
                continue;
            }
            let figure = |system| self.median(row, system).map_or_else(|| "-".to_owned(), told);
            let holdfast = self.median(row, HOLDFAST);
            let peer = self.peer(row, &peers);
            let ratio = peer.zip(holdfast).map(|((_, peer), holdfast)| holdfast / peer);
            let said = match (ratio, peer) {
                (Some(ratio), Some((name, _))) if self.peers.len() > 1 => format!("{ratio:.2} x {name}"),
                (Some(ratio), _) => format!("{ratio:.2} x"),
                (None, _) => "-".to_owned(),
            };
            let mut line = vec![format!("{}, {}", row.name, row.unit)];
            line.extend(peers.iter().map(|peer| figure(peer)));
            line.push(figure(HOLDFAST));
            line.extend([
                said,
                row.target.to_string(),
                met(row.target, holdfast, ratio).to_owned(),
            ]);
            line.extend(floor.map(figure));
            lines.push(line);
        }
        align(&lines)
    }

    /// Every value behind the medians.
    pub fn rounds(&self) -> Vec<String> {
        let each = self.found.iter().map(|((name, system), values)| {
            let values: Vec<_> = values.iter().map(|value| told(*value)).collect();
            let unit = self
                .rows
                .iter()
                .find(|row| row.name == *name)
                .map_or("", |row| row.unit);
            format!("{name}, {unit} ({system}): {}", values.join(" "))
        });
        each.collect()
    }

    fn median(&self, row: &Row, system: &'static str) -> Option<f64> {
        self.found.get(&(row.name, system)).map(|values| median(values))
    }

    fn peer(&self, row: &Row, peers: &[&'static str]) -> Option<(&'static str, f64)> {
        let found = |peer: &&'static str| Some((*peer, self.median(row, peer)?));
        let all = peers.iter().filter_map(found);
        let lower = |a: &(&str, f64), b: &(&str, f64)| a.1.total_cmp(&b.1);
        match (row.beside, row.target) {
            (Beside::One(peer), _) => found(&peer),
            (Beside::Best, Target::RatioAtLeast(_)) => all.max_by(lower),
            (Beside::Best, Target::RatioAtMost(_)) => all.min_by(lower),
            (Beside::Best, _) if self.peers.len() == 1 => all.min_by(lower),
            (Beside::Best, _) => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::None => f.write_str("-"),
            Target::RatioAtMost(ratio) => write!(f, "<= {ratio} x"),
            Target::RatioAtLeast(ratio) => write!(f, ">= {ratio} x"),
            Target::AtMost(value) => write!(f, "<= {value}"),
            Target::AtLeast(value) => write!(f, ">= {value}"),
        }
    }
}

fn met(target: Target, holdfast: Option<f64>, ratio: Option<f64>) -> &'static str {
    let is_met = match target {
        Target::None => None,
        Target::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
        Target::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
        Target::AtMost(most) => holdfast.map(|value| value <= most),
        Target::AtLeast(least) => holdfast.map(|value| value >= least),
    };
    match is_met {
        None => "-",
        Some(true) => "yes",
        Some(false) => "NO",
    }
}

/// With as many digits as are worth reading.
fn told(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The first column to the left, numbers to the right.
fn align(lines: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let told = lines.iter().map(|line| {
        let cells = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn row(name: &'static str, unit: &'static str, target: Target, beside: Beside) -> Row {
        Row {
            name,
            unit,
            target,
            beside,
        }
    }

    const ROWS: &[Row] = &[
        row("rate", "1/s", Target::RatioAtLeast(2.5), Beside::Best),
        row("rate", "1/s", Target::RatioAtLeast(3.0), Beside::One("b")),
        row("wait", "ms", Target::AtMost(30.0), Beside::Best),
        row("other", "ms", Target::RatioAtMost(0.5), Beside::Best),
    ];

    fn words(table: &[String], line: usize) -> Vec<&str> {
        table[line].split_whitespace().collect()
    }

    #[test]
    fn the_table_judges_medians() {
        let mut comparison = Comparison::of(ROWS, &["a"], "none");
        for (peer, holdfast) in [(10.0, 29.0), (1000.0, 1.0), (9.0, 30.0)] {
            comparison.add("rate", "a", peer);
            comparison.add("rate", HOLDFAST, holdfast);
        }
        comparison.add("wait", HOLDFAST, 31.0);
        let table = comparison.table();
        assert_eq!(table.len(), 4, "{table:?}");
        assert_eq!(words(&table, 0), ["a", "holdfast", "ratio", "target", "met"]);
        assert_eq!(
            words(&table, 1),
            ["rate,", "1/s", "10.0", "29.0", "2.90", "x", ">=", "2.5", "x", "yes"]
        );
        assert_eq!(words(&table, 3), ["wait,", "ms", "-", "31.0", "-", "<=", "30", "NO"]);
    }

    #[test]
    fn the_best_peer_is_the_one_that_the_target_is_hardest_against() {
        let mut comparison = Comparison::of(ROWS, &["a", "b", "absent"], "none");
        for row in ["rate", "other"] {
            for (system, value) in [("a", 10.0), ("b", 5.0), (HOLDFAST, 20.0), ("none", 7.0)] {
                comparison.add(row, system, value);
            }
        }
        let table = comparison.table();
        assert_eq!(
            words(&table, 1)[2..],
            ["10.0", "5.00", "20.0", "2.00", "x", "a", ">=", "2.5", "x", "NO", "7.00"]
        );
        assert_eq!(words(&table, 2)[5..], ["4.00", "x", "b", ">=", "3", "x", "yes", "7.00"]);
        assert_eq!(
            words(&table, 3)[5..],
            ["4.00", "x", "b", "<=", "0.5", "x", "NO", "7.00"]
        );
    }

    #[test]
    fn without_a_peer_no_ratio_is_met() {
        let mut comparison = Comparison::of(ROWS, &["a"], "none");
        comparison.add("other", HOLDFAST, 0.0);
        assert!(!comparison.table()[1].contains("yes"));
    }
}
