//! What goes to standard output, as a table for people or as JSON for programs.
//!
//! `holdfast routes list | head -1` closes the pipe while we write: that is an end, not an error and not a panic.

use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::time::{Duration, Instant};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use holdfast_table::{Entry, Route};
use holdfast_wire::timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Columns for people; not to be parsed.
    Table,
    /// JSON for programs.
    Json,
}

impl Format {
    /// Reads the value of `--output`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            _ => Err("must be table or json".into()),
        }
    }
}

/// Prints one line, flushed: a reader of `watch` sees it at once.
///
/// # Errors
/// Standard output is gone; see [`is_broken_pipe`].
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Prints a value as JSON, over several lines.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Prints rows under their headers, aligned by spaces alone; the columns in `right` are numbers.
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().map(|name| name.to_uppercase()).collect::<Vec<_>>())
        .add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    line(&table.trim_fmt())
}

/// Names and values, one below the other, the values aligned.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = facts.iter().map(|(name, value)| format!("{name:width$}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// `1 route`, `2 routes`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Says something on standard error. If that is closed, nobody is left to be told.
pub fn complain(text: &str) {
    let _ = writeln!(stderr().lock(), "{text}");
}

/// How far something long is: one line on standard error that is written over and over, if that is a terminal.
#[derive(Default)]
pub struct Progress {
    said: Option<Instant>,
}

impl Progress {
    const EVERY: Duration = Duration::from_millis(200);

    /// Says it, unless it has just said something.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.said.is_none_or(|at| at.elapsed() >= Self::EVERY) && stderr().is_terminal() {
            self.said = Some(Instant::now());
            // Nobody is left to be told if it is closed.
            let _ = write!(stderr().lock(), "\r{}\x1b[K", text());
        }
    }

    /// Takes the line away.
    pub fn end(&mut self) {
        if self.said.take().is_some() {
            let _ = write!(stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// True if the reader of our output has gone away.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

/// A route in JSON: `data` as the object that the hub wrote, byte for byte.
#[derive(Serialize)]
pub struct RouteJson {
    /// In the hub's own spelling.
    pub routespec: String,
    /// A URL.
    pub target: String,
    data: Box<RawValue>,
    namespace: String,
    mod_revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_activity: Option<String>,
}

impl RouteJson {
    fn new(route: &Route, mod_revision: u64) -> Self {
        // A raw line break in JSON is white space, never part of a string; without them one route is one line.
        let data = route.data.as_str().replace(['\n', '\r'], " ");
        RouteJson {
            routespec: route.spec.as_str().to_owned(),
            target: route.target.as_str().to_owned(),
            data: RawValue::from_string(data).unwrap_or_else(|_| RawValue::NULL.to_owned()),
            namespace: route.namespace.as_str().to_owned(),
            mod_revision,
            last_activity: None,
        }
    }

    /// Says when it was last active; 0: nobody knows.
    pub fn active_at(mut self, unix_ms: u64) -> Self {
        self.last_activity = (unix_ms != 0).then(|| timestamp::to_text(unix_ms));
        self
    }
}

impl From<&Entry> for RouteJson {
    fn from(entry: &Entry) -> Self {
        RouteJson::new(&entry.route, entry.modified.0)
    }
}

/// The first 12 of a digest's 64 digits: enough to compare by eye.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_table::Revision;

    #[test]
    fn data_stays_as_the_hub_wrote_it_but_on_one_line() {
        let data = "{\"n\": 1.000000000000000000001,\n \"a\": \"x\\n\"}";
        let entry = Entry {
            route: Route::parse("/user/a/", "http://10.0.0.1:1", data, "").unwrap(),
            modified: Revision(3),
        };
        assert_eq!(
            serde_json::to_string(&RouteJson::from(&entry)).unwrap(),
            r#"{"routespec":"/user/a/","target":"http://10.0.0.1:1","data":{"n": 1.000000000000000000001,  "a": "x\n"},"namespace":"default","mod_revision":3}"#
        );
        let json = serde_json::to_value(RouteJson::from(&entry).active_at(1)).unwrap();
        assert_eq!(json["last_activity"], "1970-01-01T00:00:00.001Z");
    }
}
