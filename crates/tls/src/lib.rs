//! TLS from files in PEM, and tokens from files, all of which are read again when they change: for proxies, replicas and
//! those who call replicas.
//!
//! `server` is what is shown to whoever comes, `target` what is asked of whom we go to, `pem` what both read, `ciphers` how
//! operators name versions and ciphers, `tokens` what a caller has to know, `follow` what looks at the files again.

pub mod ciphers;
mod follow;
mod pem;
pub mod server;
pub mod target;
pub mod tokens;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub use ciphers::{TlsCiphers, TlsVersions};
pub use follow::{Refresh, follow};
pub use pem::Passphrase;
pub use server::{ClientCertificates, ServerIdentity, ServerTls};
pub use target::{TargetIdentity, TargetTls};
pub use tokens::Tokens;
pub use tokio_rustls;

/// Why there is no TLS. Mend the file that it names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file is missing, or not for us to read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{}: holds no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The file is of tokens, one a line, and has no line.
    #[error("{}: has no token in it: write one a line", path.display())]
    NoToken {
        /// The file.
        path: PathBuf,
    },
    /// The file is of tokens, one a line, and this line can be none.
    #[error("{}: line {line} is no token: one is of printable ASCII characters without spaces, and begins with no #", path.display())]
    NotAToken {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// The key is encrypted, and nobody said with which passphrase.
    #[error(
        "{}: is encrypted, and there is no passphrase: `umask 077; openssl pkey -in {} -out plain.key` decrypts it",
        path.display(),
        path.display()
    )]
    Encrypted {
        /// The file.
        path: PathBuf,
    },
    /// The key is encrypted with another passphrase.
    #[error("{}: the passphrase does not decrypt it", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
    /// The key is encrypted in a way that is not known here.
    #[error(
        "{}: is encrypted in an old way: `openssl pkcs8 -topk8 -v2 aes256 -in {} -out new.key` encrypts it in today's",
        path.display(),
        path.display()
    )]
    OldEncryption {
        /// The file.
        path: PathBuf,
    },
    /// The certificates and the key are not fit for use, or not for each other.
    #[error("the certificates or the key cannot be used: {0}")]
    Unfit(String),
    /// The system has no list of authorities: install one (Debian: ca-certificates), or give one's own.
    #[error("this system knows no certificate authorities")]
    NoAuthorities,
    /// The runtime is ending.
    #[error("cancelled")]
    Cancelled,
}

impl From<tokio_rustls::rustls::Error> for TlsError {
    fn from(error: tokio_rustls::rustls::Error) -> Self {
        TlsError::Unfit(error.to_string())
    }
}

/// One implementation of cryptography, named here, so that another one in the same process cannot get in its way.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
