//! Certificates and keys, from PEM.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use pkcs8::der::pem::PemLabel;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::TlsError;

/// What decrypts a private key. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(String);

impl Passphrase {
    /// Takes it as it is.
    pub fn new(text: String) -> Self {
        Passphrase(text)
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a passphrase")
    }
}

pub(crate) fn read_all(paths: &[&Path]) -> Result<Vec<Vec<u8>>, TlsError> {
    let read = |path: &&Path| {
        fs::read(path).map_err(|source| TlsError::Read {
            path: path.to_path_buf(),
            source,
        })
    };
    paths.iter().map(read).collect()
}

pub(crate) fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let path = path.to_path_buf();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Pem {
            path,
            what: "certificate",
        }),
    }
}

pub(crate) fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// The key of a file. The passphrase of one that is not encrypted is of no use and does no harm.
pub(crate) fn private_key(
    path: &Path,
    pem: &[u8],
    passphrase: Option<&Passphrase>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).or_else(|_| {
        let path = path.to_path_buf();
        match passphrase {
            _ if !is_encrypted(pem) => Err(TlsError::Pem {
                path,
                what: "private key",
            }),
            None => Err(TlsError::Encrypted { path }),
            Some(passphrase) => decrypt(path, pem, passphrase),
        }
    })
}

/// True for a key in PEM that needs a passphrase: `ENCRYPTED PRIVATE KEY`, or `Proc-Type: 4,ENCRYPTED` in older ones.
fn is_encrypted(pem: &[u8]) -> bool {
    memchr::memmem::find(pem, b"ENCRYPTED").is_some()
}

fn decrypt(path: PathBuf, pem: &[u8], passphrase: &Passphrase) -> Result<PrivateKeyDer<'static>, TlsError> {
    let Some(document) = encrypted_section(pem) else {
        return Err(TlsError::OldEncryption { path });
    };
    let Ok(info) = EncryptedPrivateKeyInfo::try_from(document.as_bytes()) else {
        return Err(TlsError::OldEncryption { path });
    };
    match info.decrypt(&passphrase.0) {
        Ok(key) => Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into()),
        Err(_) => Err(TlsError::Passphrase { path }),
    }
}

/// The first `ENCRYPTED PRIVATE KEY` among what else the file holds.
fn encrypted_section(pem: &[u8]) -> Option<SecretDocument> {
    let label = EncryptedPrivateKeyInfo::PEM_LABEL;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let from = memchr::memmem::find(pem, begin.as_bytes())?;
    let length = memchr::memmem::find(&pem[from..], end.as_bytes())? + end.len();
    let section = std::str::from_utf8(&pem[from..from + length]).ok()?;
    SecretDocument::from_pem(section).ok().map(|(_, document)| document)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -pass pass:swordfish`
    const ENCRYPTED: &str = include_str!("../tests/encrypted.key");
    /// The same, by `openssl ec -aes256` of old.
    const OLD: &str = include_str!("../tests/old.key");

    fn read(pem: &str, passphrase: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
        let passphrase = passphrase.map(|text| Passphrase::new(text.to_owned()));
        private_key(Path::new("a.key"), pem.as_bytes(), passphrase.as_ref())
    }

    #[test]
    fn an_encrypted_key_needs_its_passphrase() {
        assert!(matches!(
            read(ENCRYPTED, Some("swordfish")),
            Ok(PrivateKeyDer::Pkcs8(_))
        ));
        assert!(matches!(
            read(ENCRYPTED, Some("Swordfish")),
            Err(TlsError::Passphrase { .. })
        ));
        assert!(matches!(read(ENCRYPTED, None), Err(TlsError::Encrypted { .. })));
        let among = format!("a comment\n{}\nanother\n", ENCRYPTED.trim());
        assert!(read(&among, Some("swordfish")).is_ok());
    }

    #[test]
    fn what_cannot_be_decrypted_says_what_to_do() {
        let said = read(OLD, Some("swordfish")).unwrap_err().to_string();
        assert!(said.contains("openssl pkcs8 -topk8 -v2 aes256 -in a.key"), "{said}");
        assert!(matches!(read("nothing", Some("swordfish")), Err(TlsError::Pem { .. })));
        assert_eq!(format!("{:?}", Passphrase::new("swordfish".into())), "a passphrase");
    }

    #[test]
    fn a_passphrase_does_no_harm_to_a_plain_key() {
        let plain = read(ENCRYPTED, Some("swordfish")).unwrap();
        let text = pkcs8::der::pem::encode_string("PRIVATE KEY", pkcs8::LineEnding::LF, plain.secret_der()).unwrap();
        assert_eq!(read(&text, Some("x")).unwrap().secret_der(), plain.secret_der());
    }
}
