//! What was found for each store, round by round, and the table that compares them.

use std::collections::BTreeMap;

use crate::figures::median;
use crate::stores::System;

/// One figure that all stores are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// What Holdfast must reach.
    pub target: Target,
}

/// What Holdfast's median must be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Said for understanding only.
    None,
    /// At most so many times etcd's.
    RatioAtMost(f64),
    /// At least so many times etcd's.
    RatioAtLeast(f64),
    /// At most so much, whatever etcd's is.
    AtMost(f64),
}

/// Rows and what was found for them.
pub struct Comparison {
    rows: &'static [Row],
    found: BTreeMap<(usize, System), Vec<f64>>,
}

const HEADER: [&str; 7] = ["", "etcd", "holdfast", "ratio", "target", "met", "no store"];

impl Comparison {
    /// Nothing found yet.
    pub fn of(rows: &'static [Row]) -> Self {
        Comparison {
            rows,
            found: BTreeMap::new(),
        }
    }

    /// Adds what one round found.
    ///
    /// # Panics
    /// There is no such row.
    pub fn add(&mut self, row: &str, system: System, value: f64) {
        let at = self.rows.iter().position(|known| known.name == row);
        let at = at.unwrap_or_else(|| panic!("no row is called {row:?}"));
        self.found.entry((at, system)).or_default().push(value);
    }

    /// Medians beside each other, one line per row for which something was found.
    pub fn table(&self) -> Vec<String> {
        let mut lines = vec![HEADER.map(str::to_owned)];
        for (at, row) in self.rows.iter().enumerate() {
            let [etcd, holdfast, bare] =
                [System::Etcd, System::Holdfast, System::Bare].map(|system| self.median(at, system));
            if etcd.or(holdfast).or(bare).is_none() {
                continue;
            }
            let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), told);
            let ratio = etcd.zip(holdfast).map(|(etcd, holdfast)| holdfast / etcd);
            lines.push([
                format!("{}, {}", row.name, row.unit),
                figure(etcd),
                figure(holdfast),
                ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2} x")),
                row.target.to_string(),
                met(row.target, holdfast, ratio).to_owned(),
                figure(bare),
            ]);
        }
        align(&lines)
    }

    /// Every value behind the medians.
    pub fn rounds(&self) -> Vec<String> {
        let each = self.found.iter().map(|((at, system), values)| {
            let row = &self.rows[*at];
            let values: Vec<_> = values.iter().map(|value| told(*value)).collect();
            format!("{}, {} ({}): {}", row.name, row.unit, system.name(), values.join(" "))
        });
        each.collect()
    }

    fn median(&self, row: usize, system: System) -> Option<f64> {
        self.found.get(&(row, system)).map(|values| median(values))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::None => f.write_str("-"),
            Target::RatioAtMost(ratio) => write!(f, "<= {ratio} x"),
            Target::RatioAtLeast(ratio) => write!(f, ">= {ratio} x"),
            Target::AtMost(value) => write!(f, "<= {value}"),
        }
    }
}

fn met(target: Target, holdfast: Option<f64>, ratio: Option<f64>) -> &'static str {
    let is_met = match target {
        Target::None => None,
        Target::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
        Target::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
        Target::AtMost(most) => holdfast.map(|value| value <= most),
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
fn align<const N: usize>(lines: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
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

    const ROWS: &[Row] = &[
        Row {
            name: "rate",
            unit: "1/s",
            target: Target::RatioAtLeast(2.5),
        },
        Row {
            name: "wait",
            unit: "ms",
            target: Target::AtMost(30.0),
        },
        Row {
            name: "other",
            unit: "ms",
            target: Target::RatioAtMost(0.5),
        },
    ];

    #[test]
    fn the_table_judges_medians() {
        let mut comparison = Comparison::of(ROWS);
        for (etcd, holdfast) in [(10.0, 29.0), (1000.0, 1.0), (9.0, 30.0)] {
            comparison.add("rate", System::Etcd, etcd);
            comparison.add("rate", System::Holdfast, holdfast);
        }
        comparison.add("wait", System::Holdfast, 31.0);
        let table = comparison.table();
        assert_eq!(table.len(), 3, "{table:?}");
        let words = |line: usize| table[line].split_whitespace().collect::<Vec<_>>();
        assert_eq!(
            words(1),
            [
                "rate,", "1/s", "10.0", "29.0", "2.90", "x", ">=", "2.5", "x", "yes", "-"
            ]
        );
        assert_eq!(words(2), ["wait,", "ms", "-", "31.0", "-", "<=", "30", "NO", "-"]);
    }

    #[test]
    fn without_etcd_no_ratio_is_met() {
        let mut comparison = Comparison::of(ROWS);
        comparison.add("other", System::Holdfast, 0.0);
        assert!(!comparison.table()[1].contains("yes"));
    }
}
