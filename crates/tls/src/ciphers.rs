//! Versions and ciphers of TLS, by the names that operators know them by.

use std::fmt;

use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::crypto::ring::ALL_CIPHER_SUITES;
use tokio_rustls::rustls::{
    ALL_VERSIONS, CipherSuite, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion,
};

/// What OpenSSL calls the ciphers that rustls has. Those of TLS 1.3 it calls as their standard does.
const OPENSSL: [(CipherSuite, &str); 9] = [
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_CHACHA20_POLY1305_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-AES256-GCM-SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-CHACHA20-POLY1305",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-AES256-GCM-SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-AES128-GCM-SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-CHACHA20-POLY1305",
    ),
];

/// Versions of TLS. The default is all that rustls has: 1.2 and 1.3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsVersions(Vec<ProtocolVersion>);

impl TlsVersions {
    /// Parses `TLSv1_2`, `TLSv1_3` or both with a comma, as configurable-http-proxy spells them; `TLS` is both.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut versions = Vec::new();
        for name in text.split(',').map(str::trim) {
            match name.replace('.', "_").as_str() {
                "TLSv1_2" => versions.push(ProtocolVersion::TLSv1_2),
                "TLSv1_3" => versions.push(ProtocolVersion::TLSv1_3),
                "TLS" => versions.extend([ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3]),
                _ => return Err("must be TLSv1_2, TLSv1_3 or TLSv1_2,TLSv1_3: what came before is not spoken".into()),
            }
        }
        Ok(TlsVersions(versions))
    }

    pub(crate) fn selected(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = ALL_VERSIONS.iter().copied();
        all.filter(|version| self.0.is_empty() || self.0.contains(&version.version))
            .collect()
    }
}

/// Ciphers of TLS. The default is all that rustls has, none of which is weak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsCiphers(Vec<CipherSuite>);

impl TlsCiphers {
    /// Parses names with colons or commas between them: OpenSSL's, like `ECDHE-RSA-AES128-GCM-SHA256`, or rustls's own.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names = text.split([':', ',']).map(str::trim);
        let found = names.map(|name| named(name).ok_or_else(|| no_cipher(name)));
        found.collect::<Result<_, _>>().map(TlsCiphers)
    }

    /// True if one of these ciphers belongs to one of these versions.
    pub fn fit(&self, versions: &TlsVersions) -> bool {
        let versions = versions.selected();
        let mut ciphers = ALL_CIPHER_SUITES.iter().filter(|cipher| self.has(cipher));
        ciphers.any(|cipher| versions.contains(&cipher.version()))
    }

    /// Takes the other ciphers from what a connection may use.
    pub(crate) fn restrict(&self, provider: &mut CryptoProvider) {
        provider.cipher_suites.retain(|cipher| self.has(cipher));
    }

    fn has(&self, cipher: &SupportedCipherSuite) -> bool {
        self.0.is_empty() || self.0.contains(&cipher.suite())
    }
}

impl fmt::Display for TlsCiphers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().filter_map(CipherSuite::as_str).collect();
        f.write_str(&names.join(":"))
    }
}

fn named(name: &str) -> Option<CipherSuite> {
    let mut known = OPENSSL.iter();
    let found = known.find(|(cipher, openssl)| *openssl == name || cipher.as_str() == Some(name));
    found.map(|(cipher, _)| *cipher)
}

fn no_cipher(name: &str) -> String {
    let known: Vec<&str> = OPENSSL.iter().map(|(_, openssl)| *openssl).collect();
    format!("{name:?} is none of the ciphers that there are: {}", known.join(":"))
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::crypto::ring::default_provider;

    use super::*;

    #[test]
    fn versions_are_named_as_elsewhere() {
        let selected = |text| {
            let versions = TlsVersions::parse(text).unwrap().selected();
            versions.iter().map(|version| version.version).collect::<Vec<_>>()
        };
        assert_eq!(selected("TLSv1_2"), [ProtocolVersion::TLSv1_2]);
        assert_eq!(selected("TLSv1.3"), [ProtocolVersion::TLSv1_3]);
        assert_eq!(selected("TLSv1_2, TLSv1_3").len(), 2);
        assert_eq!(selected("TLS").len(), 2);
        assert_eq!(TlsVersions::default().selected().len(), 2);
        for wrong in ["", "SSLv3", "TLSv1", "TLSv1_1", "TLSv1_2,", "tls"] {
            assert!(TlsVersions::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_cipher_has_both_names() {
        assert_eq!(ALL_CIPHER_SUITES.len(), OPENSSL.len());
        for cipher in ALL_CIPHER_SUITES.iter().map(SupportedCipherSuite::suite) {
            let (_, openssl) = OPENSSL.iter().find(|(known, _)| *known == cipher).unwrap();
            assert_eq!(named(openssl), Some(cipher));
            assert_eq!(named(cipher.as_str().unwrap()), Some(cipher));
        }
    }

    #[test]
    fn only_the_named_ciphers_are_used() {
        let used = |ciphers: TlsCiphers| {
            let mut provider = default_provider();
            ciphers.restrict(&mut provider);
            provider.cipher_suites.len()
        };
        let both = "ECDHE-RSA-AES128-GCM-SHA256:TLS13_AES_128_GCM_SHA256";
        assert_eq!(used(TlsCiphers::parse(both).unwrap()), 2);
        assert_eq!(used(TlsCiphers::default()), OPENSSL.len());
        for wrong in [
            "",
            "HIGH:!aNULL",
            "ECDHE-RSA-AES128-SHA",
            "ECDHE-RSA-AES128-GCM-SHA256:",
        ] {
            let problem = TlsCiphers::parse(wrong).unwrap_err();
            assert!(problem.contains("ECDHE-RSA-CHACHA20-POLY1305"), "{wrong:?}: {problem}");
        }
    }

    #[test]
    fn ciphers_belong_to_a_version() {
        let old = TlsCiphers::parse("ECDHE-RSA-AES128-GCM-SHA256").unwrap();
        let versions = |text| TlsVersions::parse(text).unwrap();
        assert!(old.fit(&versions("TLSv1_2")) && old.fit(&versions("TLS")));
        assert!(!old.fit(&versions("TLSv1_3")));
        assert!(TlsCiphers::default().fit(&versions("TLSv1_3")));
    }
}
