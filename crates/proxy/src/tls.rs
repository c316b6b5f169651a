//! TLS: what this proxy shows to users, and what it asks of targets. Both follow their files without a restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_util::sync::CancellationToken;

use crate::ciphers::{TlsCiphers, TlsVersions};

/// What users' TLS is made of. Files are PEM, and read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserTls {
    /// The certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
    /// Whether users show certificates of their own; `None`: they are not asked.
    pub users: Option<UserCertificates>,
    /// The versions of TLS that are spoken.
    pub versions: TlsVersions,
    /// The ciphers that are used, of which one at least must belong to one of the versions.
    pub ciphers: TlsCiphers,
}

/// Whose certificates users may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserCertificates {
    /// The authorities that vouch for users, in PEM.
    pub ca: PathBuf,
    /// Whether who shows none is let in. A wrong one is never let in.
    pub required: bool,
}

/// How targets with the scheme `https` are known, and what is shown to them. Files are PEM, and read again when they
/// change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetTls {
    /// The authorities that vouch for targets; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The certificate to show to a target that asks for one, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Believes every target's certificate, whoever made it and for whomever.
    pub insecure: bool,
}

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
    /// The key is encrypted.
    #[error(
        "{}: is encrypted, and a proxy takes no passphrase: `umask 077; openssl pkey -in {} -out plain.key` decrypts it",
        path.display(),
        path.display()
    )]
    Encrypted {
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

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        TlsError::Unfit(error.to_string())
    }
}

/// What connections of users are encrypted with at present.
pub(crate) struct UserIdentity {
    tls: UserTls,
    seen: Mutex<Vec<Vec<u8>>>,
    config: ArcSwap<ServerConfig>,
}

impl UserIdentity {
    /// Reads files: not for a thread that others wait for.
    pub(crate) fn load(tls: UserTls) -> Result<Self, TlsError> {
        let seen = read_all(&tls.files())?;
        let config = tls.config(&seen)?;
        Ok(UserIdentity {
            config: ArcSwap::from_pointee(config),
            seen: Mutex::new(seen),
            tls,
        })
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Looks at the files again; true if they have changed. On an error the present identity stays.
    fn refresh(&self) -> Result<bool, TlsError> {
        let read = read_all(&self.tls.files())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == read {
            return Ok(false);
        }
        self.config.store(Arc::new(self.tls.config(&read)?));
        *seen = read;
        Ok(true)
    }
}

impl UserTls {
    /// Shows this certificate to whoever comes, by whatever version and cipher.
    pub fn new(certificate: PathBuf, key: PathBuf) -> Self {
        UserTls {
            certificate,
            key,
            users: None,
            versions: TlsVersions::default(),
            ciphers: TlsCiphers::default(),
        }
    }

    fn files(&self) -> Vec<&Path> {
        let own = [self.certificate.as_path(), self.key.as_path()];
        own.into_iter()
            .chain(self.users.as_ref().map(|users| users.ca.as_path()))
            .collect()
    }

    fn config(&self, contents: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.certificate, &contents[0])?;
        let key = private_key(&self.key, &contents[1])?;
        let mut provider = ring::default_provider();
        self.ciphers.restrict(&mut provider);
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&self.versions.selected())?;
        let builder = match &self.users {
            None => builder.with_no_client_auth(),
            Some(users) => {
                let roots = Arc::new(authorities(&users.ca, &contents[2])?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match users.required {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| TlsError::Unfit(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// What connections to targets are encrypted with at present.
pub(crate) struct TargetIdentity {
    tls: TargetTls,
    seen: Mutex<Vec<Vec<u8>>>,
    config: ArcSwapOption<ClientConfig>,
}

impl TargetIdentity {
    /// Reads files, if there are any: not for a thread that others wait for.
    pub(crate) fn load(tls: TargetTls) -> Result<Self, TlsError> {
        let identity = TargetIdentity {
            tls,
            seen: Mutex::default(),
            config: ArcSwapOption::empty(),
        };
        if !identity.tls.files().is_empty() || identity.tls.insecure {
            identity.refresh()?;
        }
        Ok(identity)
    }

    pub(crate) async fn config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(config) = self.config.load_full() {
            return Ok(config);
        }
        // The system's authorities take a while to read, and most proxies never need them.
        let identity = self.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            identity.refresh()?;
            identity.config.load_full().ok_or(TlsError::NoAuthorities)
        });
        loaded.await.map_err(|_| TlsError::Cancelled)?
    }

    fn refresh(&self) -> Result<bool, TlsError> {
        let read = read_all(&self.tls.files())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == read && self.config.load().is_some() {
            return Ok(false);
        }
        self.config.store(Some(Arc::new(self.tls.config(&read)?)));
        *seen = read;
        Ok(true)
    }
}

impl TargetTls {
    fn files(&self) -> Vec<&Path> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        identity.chain(&self.ca).map(PathBuf::as_path).collect()
    }

    fn config(&self, contents: &[Vec<u8>]) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match (&self.ca, contents.last()) {
            _ if self.insecure => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(BelievesAll(provider()))),
            (Some(ca), Some(content)) => builder.with_root_certificates(authorities(ca, content)?),
            _ => builder.with_root_certificates(system_authorities()?),
        };
        let mut config = match (&self.identity, contents) {
            (Some((certificate, key)), [chain, secret, ..]) => {
                builder.with_client_auth_cert(certificates(certificate, chain)?, private_key(key, secret)?)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Looks at the files again and again, until the token is cancelled.
pub(crate) async fn follow_files(
    users: Option<Arc<UserIdentity>>,
    targets: Arc<TargetIdentity>,
    interval: Duration,
    end: CancellationToken,
) {
    while end.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let (users, targets) = (users.clone(), targets.clone());
        let refreshed = tokio::task::spawn_blocking(move || {
            if let Some(users) = users {
                report("users", users.refresh());
            }
            // Without files there is nothing to follow; the system's authorities are read once.
            if !targets.tls.files().is_empty() {
                report("targets", targets.refresh());
            }
        });
        if refreshed.await.is_err() {
            return;
        }
    }
}

fn report(whose: &'static str, refreshed: Result<bool, TlsError>) {
    match refreshed {
        Ok(true) => tracing::info!(whose, "certificates have changed: new connections have the new ones"),
        Ok(false) => {}
        Err(error) => {
            let cause = std::error::Error::source(&error).map(tracing::field::display);
            tracing::warn!(
                whose,
                cause,
                "new certificates are not taken, the old ones stay: {error}"
            );
        }
    }
}

/// One implementation of cryptography, named here, so that another one in the same process cannot get in its way.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read_all(paths: &[&Path]) -> Result<Vec<Vec<u8>>, TlsError> {
    let read = |path: &&Path| {
        fs::read(path).map_err(|source| TlsError::Read {
            path: path.to_path_buf(),
            source,
        })
    };
    paths.iter().map(read).collect()
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let path = path.to_path_buf();
        match is_encrypted(pem) {
            true => TlsError::Encrypted { path },
            false => TlsError::Pem {
                path,
                what: "private key",
            },
        }
    })
}

/// True for a key in PEM that needs a passphrase: `ENCRYPTED PRIVATE KEY`, or `Proc-Type: 4,ENCRYPTED` in older ones.
fn is_encrypted(pem: &[u8]) -> bool {
    memchr::memmem::find(pem, b"ENCRYPTED").is_some()
}

fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err(TlsError::NoAuthorities),
        false => Ok(roots),
    }
}

/// For `insecure`. That the target holds the key of the certificate which it shows is still checked.
#[derive(Debug)]
struct BelievesAll(Arc<CryptoProvider>);

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
