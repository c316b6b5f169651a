//! The token that opens the API: `up`'s own proxies show it, and so does whoever else calls.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::parse;
use crate::file;

/// In the data directory, unless --api-token-file names another one.
const OWN: &str = "api-token";

/// Reads the name of a file of tokens: each line opens the API, and the first one is shown to it.
pub(super) fn parse(path: &str) -> Result<PathBuf, String> {
    parse::tokens(path)?;
    parse::token(path)?;
    absolute(Path::new(path))
}

/// The file of a data directory; it need not be there yet.
///
/// # Errors
/// It is there, and has no token in it.
pub(super) fn of(data_dir: &Path) -> Result<PathBuf, String> {
    let path = data_dir.join(OWN);
    let problem = match path.exists() {
        true => parse(&path.to_string_lossy()).err(),
        false => None,
    };
    match problem {
        None => absolute(&path),
        Some(problem) => Err(format!(
            "{}: {problem}. Mend it, or remove it, and another token is made",
            path.display()
        )),
    }
}

/// Makes the file, for its owner alone, with a token that nobody guesses; one that is there stays.
///
/// # Errors
/// It cannot be written.
pub(super) fn make(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    let written = file::write(path, false, |mut file| {
        writeln!(file, "{token}")?;
        Ok(((), file))
    });
    written.context("the token that opens the API cannot be kept")
}

/// For whoever is told of it and works elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = of(folder.path()).unwrap();
        assert!(!path.exists());
        make(&path).unwrap();
        let token = fs::read_to_string(&path).unwrap();
        assert!(token.trim().len() == 64 && token.trim().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(of(folder.path()), Ok(path.clone()));
        make(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), token);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
        make(&path).unwrap();
        assert_ne!(fs::read_to_string(&path).unwrap(), token);
    }

    #[test]
    fn a_file_needs_tokens_alone_and_one_in_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OWN);
        for (content, problem) in [
            ("", "no token in it"),
            ("\none\n", "no token in its first line"),
            ("one\ntwo words\n", "line 2 is no token"),
        ] {
            fs::write(&path, content).unwrap();
            for said in [parse(path.to_str().unwrap()), of(folder.path())] {
                assert!(said.as_ref().unwrap_err().contains(problem), "{content:?}: {said:?}");
            }
        }
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(parse(path.to_str().unwrap()), Ok(path));
        assert!(parse("/nonexistent").unwrap_err().contains("cannot be read"));
    }
}
