//! Settings: a flag wins over the environment, that over the configuration file, that over the default.
//!
//! Every long flag `--some-thing` is also `HOLDFAST_SOME_THING` and the key `some-thing` of the TOML file given by
//! `--config`. The file's values become clap's defaults and the command line is read once more, so that there is one
//! rule of precedence, and it is clap's. Clap sees only text; each value is parsed here, so that all mistakes are
//! reported at once, each with the name under which it was given.

pub mod parse;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};

/// What is wrong with the settings: everything, one line each. Ends the process with exit code 2.
#[derive(Debug)]
pub struct Mistakes {
    command: String,
    lines: Vec<String>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = match self.lines.len() {
            1 => "1 mistake".to_owned(),
            count => format!("{count} mistakes"),
        };
        write!(f, "{}: {count}, nothing was done:", self.command)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        write!(f, "\n`{} --help` describes every setting.", self.command)
    }
}

impl std::error::Error for Mistakes {}

/// The settings of one command: where each came from, and what is wrong with them.
#[derive(Debug)]
pub struct Settings {
    command: String,
    file: Option<PathBuf>,
    sources: BTreeMap<String, Source>,
    /// What each flag was given, or has by default, by its id.
    values: BTreeMap<String, Vec<OsString>>,
    mistakes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Default,
    File,
    Environment,
    CommandLine,
}

/// Reads command line, environment and configuration file.
///
/// A mistake in the file is kept in the [`Settings`], to be reported with all others.
///
/// # Errors
/// Clap's own: an unknown flag or subcommand, or `--help`.
pub fn load(command: impl Fn() -> Command, line: &[OsString]) -> Result<(ArgMatches, Settings), clap::Error> {
    let mut parsed = command();
    let matches = parsed.try_get_matches_from_mut(line)?;
    let (path, leaf_matches) = descend(&matches);
    let mut settings = Settings {
        command: std::iter::once(parsed.get_name())
            .chain(path.iter().copied())
            .collect::<Vec<_>>()
            .join(" "),
        file: leaf_matches.try_get_one::<PathBuf>("config").ok().flatten().cloned(),
        sources: BTreeMap::new(),
        values: BTreeMap::new(),
        mistakes: Vec::new(),
    };
    let values = match &settings.file {
        Some(file) => read_file(file, leaf(&command(), &path), &mut settings.mistakes),
        None => BTreeMap::new(),
    };
    let leaf = leaf(&parsed, &path);
    for arg in leaf.get_arguments() {
        let source = match leaf_matches.value_source(arg.get_id().as_str()) {
            Some(ValueSource::CommandLine) => Source::CommandLine,
            Some(ValueSource::EnvVariable) => Source::Environment,
            _ if values.contains_key(arg.get_id().as_str()) => Source::File,
            _ => Source::Default,
        };
        settings.sources.insert(arg.get_id().to_string(), source);
    }
    let matches = match values.is_empty() {
        true => matches,
        false => with_defaults(command(), &path, values).try_get_matches_from(line)?,
    };
    let (_, leaf_matches) = descend(&matches);
    let given = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let values = leaf_matches.try_get_raw(id).ok().flatten()?;
        Some((id.to_owned(), values.map(OsString::from).collect::<Vec<_>>()))
    };
    settings.values = leaf.get_arguments().filter_map(given).collect();
    Ok((matches, settings))
}

fn leaf<'a>(command: &'a Command, path: &[&str]) -> &'a Command {
    let leaf = path
        .iter()
        .try_fold(command, |command, name| command.find_subcommand(name));
    leaf.unwrap_or(command)
}

/// What `--some-thing` is called in the environment.
pub fn variable(flag: &str) -> String {
    match flag {
        "log-level" => "HOLDFAST_LOG".to_owned(),
        _ => format!("HOLDFAST_{}", flag.to_uppercase().replace('-', "_")),
    }
}

impl Settings {
    /// Parses one value; `None` if it is wrong, which is noted.
    ///
    /// `flag` is the flag's name without dashes, or a positional argument's in capitals.
    pub fn read<T>(&mut self, flag: &str, value: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(value).map_err(|problem| self.refuse(flag, value, &problem)).ok()
    }

    /// Parses a value that may be left out: the outer `None` says that it is wrong, the inner one that there is none.
    pub fn read_optional<T>(
        &mut self,
        flag: &str,
        value: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match value {
            Some(value) => self.read(flag, value, parse).map(Some),
            None => Some(None),
        }
    }

    /// Parses a value that has no default; `hint` says what to give.
    pub fn read_required<T>(
        &mut self,
        flag: &str,
        value: Option<&str>,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match value {
            Some(value) => self.read(flag, value, parse),
            None => {
                self.mistakes.push(format!("--{flag} is missing: {hint}"));
                None
            }
        }
    }

    /// Parses a value that may be left out, and puts it in its place, where its default is; one that is wrong is noted.
    pub fn set<T>(
        &mut self,
        place: &mut T,
        flag: &str,
        value: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) {
        if let Some(Some(value)) = self.read_optional(flag, value, parse) {
            *place = value;
        }
    }

    /// The flags of `A` as a command line has them, but for those that are as they are by default.
    pub fn flags<A: Args>(&self) -> Vec<OsString> {
        let flag = |arg: &Arg| {
            let (name, values) = (arg.get_long()?, self.values.get(arg.get_id().as_str())?);
            let is_default = arg.get_default_values().iter().eq(values);
            let given = values.iter().filter(|_| !is_default).map(|value| {
                let mut flag = OsString::from(format!("--{name}="));
                flag.push(value);
                flag
            });
            Some(given.collect::<Vec<_>>())
        };
        let command = A::augment_args(Command::new("flags"));
        command.get_arguments().filter_map(flag).flatten().collect()
    }

    /// Notes that `flag` cannot have `value`, under the name by which it was given.
    pub fn refuse(&mut self, flag: &str, value: &str, problem: &str) {
        let name = match self.sources.get(&flag.replace('-', "_")) {
            Some(Source::File) => {
                let file = self.file.as_deref().unwrap_or(Path::new(""));
                format!("{flag} in {}", file.display())
            }
            Some(Source::Environment) => variable(flag),
            _ if flag.chars().all(|c| c.is_ascii_uppercase()) => flag.to_owned(),
            _ => format!("--{flag}"),
        };
        self.mistakes.push(format!("{name} {value:?}: {problem}"));
    }

    /// Notes a mistake whose text names field and value itself.
    pub fn refuse_as(&mut self, text: String) {
        self.mistakes.push(text);
    }

    /// True if a mistake was noted.
    pub fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Ends the reading with what it led to, `None` if a part of that is wrong.
    ///
    /// # Errors
    /// Every mistake that was noted.
    pub fn finish<T>(&mut self, complete: Option<T>) -> Result<T, Mistakes> {
        match complete {
            Some(complete) if self.mistakes.is_empty() => Ok(complete),
            _ => Err(Mistakes {
                command: self.command.clone(),
                lines: std::mem::take(&mut self.mistakes),
            }),
        }
    }
}

fn descend(matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let (mut path, mut leaf) = (Vec::new(), matches);
    while let Some((name, deeper)) = leaf.subcommand() {
        path.push(name);
        leaf = deeper;
    }
    (path, leaf)
}

fn with_defaults(command: Command, path: &[&str], values: BTreeMap<String, String>) -> Command {
    match path {
        [] => values.into_iter().fold(command, |command, (id, value)| {
            command.mut_arg(id, |arg| arg.default_value(value))
        }),
        [name, rest @ ..] => command.mut_subcommand(name, |deeper| with_defaults(deeper, rest, values)),
    }
}

/// The file's values by argument id.
fn read_file(path: &Path, command: &Command, mistakes: &mut Vec<String>) -> BTreeMap<String, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            mistakes.push(format!("--config {path:?}: cannot be read: {error}"));
            return BTreeMap::new();
        }
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let problem = error.to_string().trim_end().replace('\n', "\n    ");
            mistakes.push(format!("--config {path:?}: is not TOML: {problem}"));
            return BTreeMap::new();
        }
    };
    let known: BTreeMap<&str, &Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && arg.get_action().takes_values() && arg.get_id() != "config")
        .filter_map(|arg| Some((arg.get_long()?, arg)))
        .collect();
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let Some(arg) = known.get(key.as_str()) else {
            let near = known.keys().find(|name| is_near(name, &key));
            let hint = match near {
                Some(name) => format!("did you mean {name}?"),
                None => format!("the keys are {}", known.keys().copied().collect::<Vec<_>>().join(", ")),
            };
            mistakes.push(format!("{key} in {}: there is no such setting; {hint}", path.display()));
            continue;
        };
        match as_text(&value, arg.get_value_delimiter().unwrap_or(',')) {
            Some(text) => drop(values.insert(arg.get_id().to_string(), text)),
            None => {
                let problem = "must be a string, a number, true or false, or a list of strings";
                mistakes.push(format!(
                    "{key} in {} {:?}: {problem}",
                    path.display(),
                    value.to_string()
                ));
            }
        }
    }
    values
}

fn as_text(value: &toml::Value, delimiter: char) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(value) => Some(value.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(toml::Value::as_str).collect();
            items.map(|items| items.join(&delimiter.to_string()))
        }
        _ => None,
    }
}

/// Spelt with underscores or capitals, with a character too many, too few or wrong, or with two of them swapped.
fn is_near(name: &str, key: &str) -> bool {
    let key = key.to_lowercase().replace('_', "-");
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let prefix = common(name, &key);
    let reversed = |text: &str| text.chars().rev().collect::<String>();
    let suffix = common(&reversed(name), &reversed(&key));
    let longer = name.len().max(key.len());
    longer >= 4 && key.len().abs_diff(name.len()) <= 1 && prefix + suffix + 2 >= longer
}

#[cfg(test)]
mod tests;
