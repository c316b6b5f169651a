//! How targets are known, and what is shown to them; replicas as well, by those who call them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::follow::Refresh;
use crate::pem::{authorities, certificates, private_key, read_all};
use crate::{TlsError, provider};

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

/// What connections to targets are encrypted with at present.
pub struct TargetIdentity {
    tls: TargetTls,
    protocols: &'static [&'static [u8]],
    seen: Mutex<Vec<Vec<u8>>>,
    config: ArcSwapOption<ClientConfig>,
}

impl TargetIdentity {
    /// Reads nothing before it is used. `protocols` are ALPN's names of what is spoken, the first one preferred.
    pub fn new(tls: TargetTls, protocols: &'static [&'static [u8]]) -> Self {
        TargetIdentity {
            tls,
            protocols,
            seen: Mutex::default(),
            config: ArcSwapOption::empty(),
        }
    }

    /// Likewise, but reads files, if there are any, so that mistakes show: not for a thread that others wait for.
    ///
    /// # Errors
    /// [`TlsError`]: mend the file that it names.
    pub fn load(tls: TargetTls, protocols: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        let identity = TargetIdentity::new(tls, protocols);
        if !identity.tls.files().is_empty() || identity.tls.insecure {
            identity.reload()?;
        }
        Ok(identity)
    }

    /// For the next connection.
    ///
    /// # Errors
    /// [`TlsError`]: the system knows no authorities, or the runtime is ending.
    pub async fn config(self: &Arc<Self>) -> Result<Arc<ClientConfig>, TlsError> {
        if let Some(config) = self.config.load_full() {
            return Ok(config);
        }
        // The system's authorities take a while to read, and most proxies never need them.
        let identity = self.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            identity.reload()?;
            identity.config.load_full().ok_or(TlsError::NoAuthorities)
        });
        loaded.await.map_err(|_| TlsError::Cancelled)?
    }

    fn reload(&self) -> Result<bool, TlsError> {
        let read = read_all(&self.tls.files())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == read && self.config.load().is_some() {
            return Ok(false);
        }
        self.config
            .store(Some(Arc::new(self.tls.config(&read, self.protocols)?)));
        *seen = read;
        Ok(true)
    }
}

impl Refresh for TargetIdentity {
    fn refresh(&self) -> Result<bool, TlsError> {
        // Without files there is nothing to follow; the system's authorities are read once.
        match self.tls.files().is_empty() {
            true => Ok(false),
            false => self.reload(),
        }
    }
}

impl TargetTls {
    fn files(&self) -> Vec<&Path> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        identity.chain(&self.ca).map(PathBuf::as_path).collect()
    }

    fn config(&self, contents: &[Vec<u8>], protocols: &[&[u8]]) -> Result<ClientConfig, TlsError> {
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
                builder.with_client_auth_cert(certificates(certificate, chain)?, private_key(key, secret, None)?)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
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
