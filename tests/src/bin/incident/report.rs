//! What is said while it happens, and the table at the end.

use std::time::{Duration, Instant};

use holdfast_tests::prober::Seen;

const EXAMPLES_SHOWN: usize = 5;

/// The steps so far.
pub struct Report {
    began: Instant,
    rows: Vec<Row>,
}

struct Row {
    step: String,
    seen: Seen,
    gap: Option<Duration>,
    took: Duration,
}

impl Report {
    /// Begins now.
    pub fn new() -> Self {
        Report {
            began: Instant::now(),
            rows: Vec::new(),
        }
    }

    /// Says what happens, as it happens.
    pub fn say(&self, text: impl AsRef<str>) {
        println!("[{:6.1} s] {}", self.began.elapsed().as_secs_f64(), text.as_ref());
    }

    /// Ends a step. `gap`: the longest time without an acknowledged write in it.
    pub fn step(&mut self, step: &str, seen: Seen, gap: Option<Duration>) {
        for example in seen.examples.iter().take(EXAMPLES_SHOWN) {
            self.say(format!("          at {example}"));
        }
        let before: Duration = self.rows.iter().map(|row| row.took).sum();
        self.rows.push(Row {
            step: step.to_owned(),
            seen,
            gap,
            took: self.began.elapsed().saturating_sub(before),
        });
    }

    /// The closing table.
    pub fn print(&self) {
        let heads = [
            "step",
            "requests",
            "wrong answers",
            "no-route answers",
            "failed on live proxies",
            "dropped WebSockets",
            "first right answer",
            "write gap",
        ];
        let rows = self.rows.iter().map(|row| {
            let seen = &row.seen;
            let first = seen
                .first_right
                .iter()
                .map(|(proxy, after)| format!("{proxy} {}", time(*after)));
            [
                row.step.clone(),
                seen.requests.to_string(),
                seen.wrong.to_string(),
                seen.no_route.to_string(),
                seen.failed.to_string(),
                seen.dropped.to_string(),
                dash(first.collect::<Vec<_>>().join(", ")),
                row.gap.map_or_else(|| "-".into(), time),
            ]
        });
        let rows: Vec<_> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
        let widths: [usize; 8] =
            std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
        println!();
        for (number, row) in rows.iter().enumerate() {
            let cells: Vec<_> = row
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(at, (cell, width))| match at {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            println!("{}", cells.join("  ").trim_end());
            if number == 0 {
                println!("{}", widths.map(|width| "-".repeat(width)).join("  "));
            }
        }
        let sum = |of: fn(&Seen) -> u64| self.rows.iter().map(|row| of(&row.seen)).sum::<u64>();
        println!(
            "\n{} requests in {}: {} wrong answers, {} no-route answers, {} failed on live proxies, {} dropped WebSockets \
             of {} echoes;\n{} were under way when their proxy was stopped, {} came to a proxy that was still starting.",
            sum(|seen| seen.requests),
            time(self.began.elapsed()),
            sum(|seen| seen.wrong),
            sum(|seen| seen.no_route),
            sum(|seen| seen.failed),
            sum(|seen| seen.dropped),
            sum(|seen| seen.echoes),
            sum(|seen| seen.cut),
            sum(|seen| seen.not_yet),
        );
    }

    /// True if no step showed anything that a user of a live proxy would have noticed.
    pub fn is_flawless(&self) -> bool {
        self.rows.iter().all(|row| row.seen.flawless().is_ok())
    }
}

/// `312 ms` or `10.1 s`.
pub fn time(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
