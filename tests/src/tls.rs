//! Certificates, and connections that believe them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Vouches for whoever is called localhost.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    /// Its own certificate, in PEM.
    pub ca: PathBuf,
}

/// A certificate and its key, in PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// An authority whose files are in `folder`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes whoever is called as his authority is for an authority himself.
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        let ca = folder.join("ca.pem");
        fs::write(&ca, params.self_signed(&key)?.pem())?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
            folder: folder.to_owned(),
            ca,
        })
    }

    /// Makes a certificate in files that are called so.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn vouch_for(&self, file: &str) -> Result<Identity> {
        self.vouch(file, CertificateParams::new(vec!["localhost".to_owned()])?)
    }

    /// Likewise, a certificate that was good once.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn vouched_for(&self, file: &str) -> Result<Identity> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.not_after = rcgen::date_time_ymd(2017, 2, 23);
        self.vouch(file, params)
    }

    fn vouch(&self, file: &str, params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
        };
        fs::write(&identity.certificate, certificate.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }

    /// Connects to localhost at `address`, believes this authority, and shows `identity` if it is asked.
    ///
    /// # Errors
    /// Nobody listens there, or shows another authority's certificate, or wants one.
    pub async fn connect(&self, address: &str, identity: Option<&Identity>) -> Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.client(identity)?));
        connect(&connector, address).await
    }

    /// What connects to whoever is vouched for by this authority, and speaks one of these protocols.
    ///
    /// # Errors
    /// Its certificate cannot be read any more.
    pub fn connector(&self, protocols: &[&str]) -> Result<TlsConnector> {
        let mut config = self.client(None)?;
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn client(&self, identity: Option<&Identity>) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca)?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_file(certificate)?];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
        })
    }
}

/// Connects to localhost at `address`.
///
/// # Errors
/// Nobody listens there, or not somebody whom the connector believes.
pub async fn connect(connector: &TlsConnector, address: &str) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    Ok(connector.connect(ServerName::try_from("localhost")?, stream).await?)
}
