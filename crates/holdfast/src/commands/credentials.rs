//! How the replicas that a command or a proxy calls are known, and what is shown to them.

use clap::Args;
use holdfast_client::{Credentials, CredentialsError, Endpoints, ReplicaTls};

use crate::config::{Settings, parse};

/// What whoever calls replicas takes, beside --endpoints.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "TLS and token of the replicas")]
pub(super) struct CredentialsArgs {
    /// Authorities that vouch for the replicas' API, PEM: connections to them are then encrypted, as with endpoints that
    /// begin with https://. Read again for every connection. [default: the system's, with https://]
    #[arg(long, env = "HOLDFAST_ENDPOINTS_SSL_CA", value_name = "FILE")]
    endpoints_ssl_ca: Option<String>,

    /// A certificate to show to replicas with --api-ssl-ca, PEM. Read again for every connection.
    #[arg(long, env = "HOLDFAST_ENDPOINTS_SSL_CERT", value_name = "FILE")]
    endpoints_ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_ENDPOINTS_SSL_KEY", value_name = "FILE")]
    endpoints_ssl_key: Option<String>,

    /// The name that the replicas' certificates are for, where it is none of their addresses. [default: the host of each
    /// address]
    #[arg(long, env = "HOLDFAST_ENDPOINTS_SERVER_NAME", value_name = "HOST")]
    endpoints_server_name: Option<String>,

    /// A file whose first line is one of the tokens in the replicas' --api-token-file. Read again for every call.
    #[arg(long, env = "HOLDFAST_ENDPOINTS_TOKEN_FILE", value_name = "FILE")]
    endpoints_token_file: Option<String>,
}

impl CredentialsArgs {
    /// Endpoints that were read from the flag of this name, to be called with these credentials.
    pub(super) fn read(&self, settings: &mut Settings, flag: &str, endpoints: Option<Endpoints>) -> Option<Endpoints> {
        let ca = settings.read_optional("endpoints-ssl-ca", self.endpoints_ssl_ca.as_deref(), parse::file);
        let certificate = settings.read_optional("endpoints-ssl-cert", self.endpoints_ssl_cert.as_deref(), parse::file);
        let key = settings.read_optional("endpoints-ssl-key", self.endpoints_ssl_key.as_deref(), parse::file);
        let token = settings.read_optional(
            "endpoints-token-file",
            self.endpoints_token_file.as_deref(),
            parse::file,
        );
        if self.endpoints_ssl_cert.is_some() != self.endpoints_ssl_key.is_some() {
            settings.refuse_as("--endpoints-ssl-cert and --endpoints-ssl-key go together".into());
        }
        let (endpoints, ca, certificate, key) = (endpoints?, ca?, certificate?, key?);
        let server_name = self.endpoints_server_name.clone();
        let uses_tls = ca.is_some() || certificate.is_some() || server_name.is_some() || endpoints.are_encrypted();
        let credentials = Credentials {
            tls: uses_tls.then_some(ReplicaTls {
                ca,
                identity: certificate.zip(key),
                server_name,
            }),
            token_file: token?,
        };
        let error = match endpoints.with(credentials) {
            Ok(endpoints) => return Some(endpoints),
            Err(error) => error,
        };
        match &error {
            CredentialsError::Endpoint(_) => settings.refuse_as(format!("--{flag}: {error}")),
            CredentialsError::Tls(_) => settings.refuse_as(format!("--endpoints-ssl-ca, -cert, -key: {error}")),
            CredentialsError::Token { .. } => settings.refuse_as(format!("--endpoints-token-file {error}")),
            CredentialsError::ServerName(_) => settings.refuse_as(format!("--endpoints-server-name {error}")),
        }
        None
    }
}
