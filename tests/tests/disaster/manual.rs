//! The commands of docs/operating.md, as operators would type them: so what is written there is what is tested.

use anyhow::{Context, Result, ensure};

const MANUAL: &str = include_str!("../../../docs/operating.md");

/// The peers of the manual's examples.
pub const PEERS: &str = "r0=10.0.0.1:7012,r1=10.0.0.2:7012,r2=10.0.0.3:7012";
/// Their endpoints.
pub const ENDPOINTS: &str = "10.0.0.1:7011,10.0.0.2:7011,10.0.0.3:7011";
/// A backup there.
pub const BACKUP: &str = "/backups/holdfast-2026-11-22.backup";
/// A replica's data directory there.
pub const DATA_DIR: &str = "/var/lib/holdfast";

/// The arguments of the first command under the heading `section` that has all of `words`, with `values` in place of the
/// manual's examples.
///
/// # Errors
/// The manual has no such command there, or an example is not in it.
pub fn command(section: &str, words: &[&str], values: &[(&str, &str)]) -> Result<Vec<String>> {
    let text = under(section)?;
    let mut found = commands(text).find(|command| words.iter().all(|word| command.iter().any(|given| given == word)));
    let mut command = found
        .take()
        .with_context(|| format!("no command with {words:?} under {section:?}"))?;
    for (example, value) in values {
        let mut places = command.iter_mut().filter(|given| given == example).peekable();
        ensure!(
            places.peek().is_some(),
            "{example} is not in the manual's command with {words:?}"
        );
        places.for_each(|given| (*value).clone_into(given));
    }
    Ok(command)
}

/// What stands under a heading, up to the next one of its kind.
fn under(section: &str) -> Result<&'static str> {
    let heading = format!("\n## {section}\n");
    let (_, text) = MANUAL
        .split_once(&heading)
        .with_context(|| format!("docs/operating.md has no section {section:?}"))?;
    Ok(text.split_once("\n## ").map_or(text, |(text, _)| text))
}

/// The words after `holdfast` of every command in a block of code.
fn commands(text: &str) -> impl Iterator<Item = Vec<String>> {
    // Every second part is between two fences.
    let blocks = text.split("```").skip(1).step_by(2);
    blocks.flat_map(|block| {
        // As a shell would have it, on the day of the manual's other examples.
        let whole = block.replace("\\\n", " ").replace("$(date +%F)", "2026-11-22");
        let lines: Vec<_> = whole.lines().map(str::to_owned).collect();
        lines.into_iter().filter_map(|line| {
            let line = line.split_once(" #").map_or(line.as_str(), |(command, _)| command);
            let words = line.trim().strip_prefix("holdfast ")?;
            Some(words.split_whitespace().map(str::to_owned).collect())
        })
    })
}

#[test]
fn a_command_is_read_with_its_continuation_and_without_its_comment() {
    let look = command("Quorum lost for good", &["recover"], &[(DATA_DIR, "/here")]).unwrap();
    assert_eq!(look, ["recover", "--data-dir", "/here"]);
    let force = command("Quorum lost for good", &["--force-new-cluster"], &[(PEERS, "r0=a:1")]).unwrap();
    assert_eq!(force.last().map(String::as_str), Some("r0=a:1"));
    assert!(command("Quorum lost for good", &["--no-such-flag"], &[]).is_err());
    assert!(command("Quorum lost for good", &["recover"], &[("/nowhere", "/here")]).is_err());
}
