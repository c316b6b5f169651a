//! Tokens that open a door, from a file that is read again when it changes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::TlsError;
use crate::follow::Refresh;

/// The tokens that open a door; without any it is open to everybody. Only their hashes are kept.
///
/// Clones are the same tokens, and change together.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Shared>);

#[derive(Default)]
struct Shared {
    // Without one they stay as they are.
    file: Option<PathBuf>,
    admitted: ArcSwap<Vec<blake3::Hash>>,
}

impl Tokens {
    /// These, for ever. Empty ones are left out.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Self {
        Tokens(Arc::new(Shared {
            file: None,
            admitted: ArcSwap::from_pointee(hashes(tokens)),
        }))
    }

    /// Those in a file, one a line. Reads it: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`TlsError::Read`], [`TlsError::NoToken`] and [`TlsError::NotAToken`]: mend the file.
    pub fn read(file: PathBuf) -> Result<Self, TlsError> {
        let admitted = ArcSwap::from_pointee(read(&file)?);
        Ok(Tokens(Arc::new(Shared {
            file: Some(file),
            admitted,
        })))
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.admitted.load().is_empty()
    }

    /// Whether the door opens for who has shown this, or nothing.
    pub fn admit(&self, given: Option<&str>) -> bool {
        let admitted = self.0.admitted.load();
        let Some(given) = given else {
            return admitted.is_empty();
        };
        // Hashes are compared in constant time, and every one of them.
        let given = blake3::hash(given.as_bytes());
        let matching = admitted.iter().filter(|token| **token == given).count();
        matching > 0 || admitted.is_empty()
    }
}

impl Refresh for Tokens {
    fn refresh(&self) -> Result<bool, TlsError> {
        let Some(file) = &self.0.file else {
            return Ok(false);
        };
        let read = read(file)?;
        let changed = **self.0.admitted.load() != read;
        if changed {
            self.0.admitted.store(Arc::new(read));
        }
        Ok(changed)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.admitted.load().len())
    }
}

/// A file that has lost all its tokens is a mistake, and opens nothing.
fn read(file: &Path) -> Result<Vec<blake3::Hash>, TlsError> {
    let text = fs::read_to_string(file).map_err(|source| TlsError::Read {
        path: file.to_owned(),
        source,
    })?;
    let lines = text.lines().map(str::trim);
    // A remark, or half of something else, would open the door too.
    let is_token = |line: &str| line.bytes().all(|byte| byte.is_ascii_graphic()) && !line.starts_with('#');
    if let Some((at, _)) = lines.clone().enumerate().find(|(_, line)| !is_token(line)) {
        return Err(TlsError::NotAToken {
            path: file.to_owned(),
            line: at + 1,
        });
    }
    let tokens = hashes(lines);
    match tokens.is_empty() {
        true => Err(TlsError::NoToken { path: file.to_owned() }),
        false => Ok(tokens),
    }
}

fn hashes<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Vec<blake3::Hash> {
    let tokens = tokens.into_iter().filter(|token| !token.is_empty());
    tokens.map(|token| blake3::hash(token.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tokens_everybody_is_admitted_and_else_who_has_one() {
        for open in [Tokens::default(), Tokens::new([""])] {
            assert!(open.is_empty() && open.admit(None) && open.admit(Some("any")));
        }
        let tokens = Tokens::new(["old", "new"]);
        assert!(tokens.admit(Some("old")) && tokens.admit(Some("new")));
        for wrong in [None, Some(""), Some("ne"), Some("newer"), Some("NEW")] {
            assert!(!tokens.admit(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn a_file_is_followed_and_never_opens_the_door_by_being_empty() {
        let folder = std::env::temp_dir().join(format!("holdfast-tokens-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("tokens");
        fs::write(&file, "\n one \r\ntwo").unwrap();
        let tokens = Tokens::read(file.clone()).unwrap();
        let clone = tokens.clone();
        assert!(clone.admit(Some("one")) && clone.admit(Some("two")) && !clone.admit(None));
        assert!(!tokens.refresh().unwrap());
        fs::write(&file, "two\nthree\n").unwrap();
        assert!(tokens.refresh().unwrap());
        assert!(!clone.admit(Some("one")) && clone.admit(Some("two")) && clone.admit(Some("three")));
        for wrong in ["one\n# until Friday\n", "one\ntwo words", "umläut"] {
            fs::write(&file, wrong).unwrap();
            assert!(matches!(tokens.refresh(), Err(TlsError::NotAToken { .. })), "{wrong}");
        }
        fs::write(&file, " \n").unwrap();
        assert!(matches!(tokens.refresh(), Err(TlsError::NoToken { .. })));
        fs::remove_dir_all(&folder).unwrap();
        assert!(matches!(tokens.refresh(), Err(TlsError::Read { .. })));
        assert!(clone.admit(Some("three")) && !clone.admit(None));
    }
}
