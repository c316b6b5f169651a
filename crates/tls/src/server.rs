//! What is shown to whoever comes, and whom it lets in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use crate::TlsError;
use crate::ciphers::{TlsCiphers, TlsVersions};
use crate::follow::Refresh;
use crate::pem::{Passphrase, authorities, certificates, private_key, read_all};

/// What a server's TLS is made of. Files are PEM, and read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// The certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// What the key is encrypted with, if it is.
    pub passphrase: Option<Passphrase>,
    /// Whether clients show certificates of their own; `None`: they are not asked.
    pub clients: Option<ClientCertificates>,
    /// The versions of TLS that are spoken.
    pub versions: TlsVersions,
    /// The ciphers that are used, of which one at least must belong to one of the versions.
    pub ciphers: TlsCiphers,
}

/// Whose certificates clients may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities that vouch for clients, in PEM.
    pub ca: PathBuf,
    /// Whether who shows none is let in. A wrong one is never let in.
    pub required: bool,
}

/// What connections of clients are encrypted with at present.
pub struct ServerIdentity {
    tls: ServerTls,
    protocols: &'static [&'static [u8]],
    seen: Mutex<Vec<Vec<u8>>>,
    config: ArcSwap<ServerConfig>,
}

impl ServerIdentity {
    /// Reads files: not for a thread that others wait for. `protocols` are ALPN's names of what is spoken, the first one
    /// preferred.
    ///
    /// # Errors
    /// [`TlsError`]: mend the file that it names.
    pub fn load(tls: ServerTls, protocols: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        let seen = read_all(&tls.files())?;
        let config = tls.config(&seen, protocols)?;
        Ok(ServerIdentity {
            config: ArcSwap::from_pointee(config),
            seen: Mutex::new(seen),
            protocols,
            tls,
        })
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

impl Refresh for ServerIdentity {
    fn refresh(&self) -> Result<bool, TlsError> {
        let read = read_all(&self.tls.files())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == read {
            return Ok(false);
        }
        self.config.store(Arc::new(self.tls.config(&read, self.protocols)?));
        *seen = read;
        Ok(true)
    }
}

impl ServerTls {
    /// Shows this certificate to whoever comes, by whatever version and cipher.
    pub fn new(certificate: PathBuf, key: PathBuf) -> Self {
        ServerTls {
            certificate,
            key,
            passphrase: None,
            clients: None,
            versions: TlsVersions::default(),
            ciphers: TlsCiphers::default(),
        }
    }

    fn files(&self) -> Vec<&Path> {
        let own = [self.certificate.as_path(), self.key.as_path()];
        own.into_iter()
            .chain(self.clients.as_ref().map(|clients| clients.ca.as_path()))
            .collect()
    }

    fn config(&self, contents: &[Vec<u8>], protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.certificate, &contents[0])?;
        let key = private_key(&self.key, &contents[1], self.passphrase.as_ref())?;
        let mut provider = ring::default_provider();
        self.ciphers.restrict(&mut provider);
        let provider = Arc::new(provider);
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&self.versions.selected())?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let roots = Arc::new(authorities(&clients.ca, &contents[2])?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = match clients.required {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| TlsError::Unfit(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}
