//! Certificates for tests, and TLS made of them by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proxy::ServerTls;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// An authority, and the files of whom it vouches for.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub directory: TempDir,
    pub ca: PathBuf,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = TempDir::new().unwrap();
        let ca = directory.path().join("ca.pem");
        fs::write(&ca, certificate.pem()).unwrap();
        Authority {
            issuer: Issuer::new(params, key),
            directory,
            ca,
        }
    }

    /// Vouches for whoever is at one of these names.
    pub fn vouch_for(&self, file: &str, names: &[&str]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap();
        let certificate = certificate.signed_by(&key, &self.issuer).unwrap();
        let at = |suffix: &str| self.directory.path().join(format!("{file}.{suffix}"));
        let identity = Identity {
            certificate: at("pem"),
            key: at("key"),
        };
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
        roots
    }

    /// A server that shows `identity`, and asks for certificates of this authority if that is wished.
    pub fn server(&self, identity: &Identity, asks: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let roots = Arc::new(self.roots());
        let builder = match asks {
            true => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .unwrap(),
            ),
            false => builder.with_no_client_auth(),
        };
        let (chain, key) = identity.read();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    /// A client that believes this authority, and shows `identity` if it is asked.
    pub fn client(&self, identity: Option<&Identity>, protocols: &[&str]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity.map(Identity::read) {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Identity {
    /// What a proxy is told that shows it to users.
    pub fn shown(&self) -> ServerTls {
        ServerTls::new(self.certificate.clone(), self.key.clone())
    }

    fn read(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let read = |path: &Path| fs::read(path).unwrap();
        let chain = CertificateDer::pem_slice_iter(&read(&self.certificate))
            .collect::<Result<_, _>>()
            .unwrap();
        (chain, PrivateKeyDer::from_pem_slice(&read(&self.key)).unwrap())
    }

    /// Puts another identity into the same files.
    pub fn become_like(&self, other: &Identity) {
        fs::copy(&other.certificate, &self.certificate).unwrap();
        fs::copy(&other.key, &self.key).unwrap();
    }
}
