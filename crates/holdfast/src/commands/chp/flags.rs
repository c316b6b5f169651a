//! The command line of configurable-http-proxy 5.3.0: its names, its values, its defaults.

use clap::Args;

/// Runs what configurable-http-proxy runs, by its command line: a proxy, and the REST API that a hub writes routes by.
///
/// One process, which a hub starts and stops as it does the other: give JupyterHub `ConfigurableHTTPProxy.command =
/// ["holdfast", "chp"]`, or call this program by the name configurable-http-proxy. Routes are kept in memory, so to say:
/// in a temporary directory that goes with the process; with --data-dir they are there again after a restart, and after
/// a crash.
///
/// The environment variable CONFIGPROXY_AUTH_TOKEN holds the token that opens the REST API, or
/// CONFIGPROXY_AUTH_TOKEN_FILE names a file with it, which is read again when it changes;
/// CONFIGPROXY_SSL_KEY_PASSPHRASE and CONFIGPROXY_API_SSL_KEY_PASSPHRASE decrypt the keys. Logs go to standard output,
/// in that program's form. SIGTERM and SIGINT stop it in good order, with exit code 0; SIGHUP changes nothing. Exit
/// code 1: a mistake in the settings, or it failed.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct ChpArgs {
    /// Prints the version of configurable-http-proxy whose command line this is, and its own.
    #[arg(short = 'V', long)]
    pub(super) version: bool,

    /// Serves users on this address; empty or *: on every address. [default: every address]
    #[arg(long, value_name = "IP")]
    pub(super) ip: Option<String>,

    /// Serves users on this port. [default: 8000]
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<String>,

    /// Serves users on this unix socket instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ip", "port"])]
    pub(super) socket: Option<String>,

    /// Private key of the certificate for users, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) ssl_key: Option<String>,

    /// Certificate for users, PEM, with those that lead to its authority. Users then come by TLS alone.
    #[arg(long, value_name = "FILE")]
    pub(super) ssl_cert: Option<String>,

    /// Authorities that vouch for users' own certificates, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) ssl_ca: Option<String>,

    /// Lets in only users who show a certificate of --ssl-ca's.
    #[arg(long)]
    pub(super) ssl_request_cert: bool,

    /// As --ssl-request-cert does without it.
    #[arg(long)]
    pub(super) ssl_reject_unauthorized: bool,

    /// Versions of TLS that are spoken with users and the REST API's callers: TLSv1_2, TLSv1_3, or both with a comma.
    /// [default: both]
    #[arg(long, value_name = "VERSION")]
    pub(super) ssl_protocol: Option<String>,

    /// Ciphers for users and the REST API's callers, by OpenSSL's names, with colons between them. [default: all that
    /// rustls has]
    #[arg(long, value_name = "CIPHER:...")]
    pub(super) ssl_ciphers: Option<String>,

    /// Refused: RC4 is not spoken here.
    #[arg(long)]
    pub(super) ssl_allow_rc4: bool,

    /// Refused: no key exchange here has parameters.
    #[arg(long, value_name = "FILE")]
    pub(super) ssl_dhparam: Option<String>,

    /// Answers the REST API on this address. Without CONFIGPROXY_AUTH_TOKEN it must be a loopback address.
    #[arg(long, value_name = "IP", default_value = "localhost")]
    pub(super) api_ip: String,

    /// Answers the REST API on this port. [default: --port + 1]
    #[arg(long, value_name = "PORT")]
    pub(super) api_port: Option<String>,

    /// Answers the REST API on this unix socket instead.
    #[arg(long, value_name = "FILE")]
    pub(super) api_socket: Option<String>,

    /// Private key of the REST API's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) api_ssl_key: Option<String>,

    /// Certificate of the REST API, PEM. It is then answered by TLS alone.
    #[arg(long, value_name = "FILE")]
    pub(super) api_ssl_cert: Option<String>,

    /// Authorities that vouch for its callers' certificates, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) api_ssl_ca: Option<String>,

    /// Lets in only callers who show a certificate of --api-ssl-ca's.
    #[arg(long)]
    pub(super) api_ssl_request_cert: bool,

    /// As --api-ssl-request-cert does without it.
    #[arg(long)]
    pub(super) api_ssl_reject_unauthorized: bool,

    /// Private key of the certificate to show to targets with https, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) client_ssl_key: Option<String>,

    /// Certificate to show to them, PEM.
    #[arg(long, value_name = "FILE")]
    pub(super) client_ssl_cert: Option<String>,

    /// Authorities that vouch for them, PEM. [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub(super) client_ssl_ca: Option<String>,

    /// Changes nothing: targets always show a certificate.
    #[arg(long)]
    pub(super) client_ssl_request_cert: bool,

    /// Changes nothing: a wrong one is never believed, but with --insecure.
    #[arg(long)]
    pub(super) client_ssl_reject_unauthorized: bool,

    /// Adds the route / to this URL, unless there is one.
    #[arg(long, value_name = "URL")]
    pub(super) default_target: Option<String>,

    /// Asks this URL for error pages: GET URL/STATUS?url=ASKED-FOR.
    #[arg(long, value_name = "URL")]
    pub(super) error_target: Option<String>,

    /// Shows STATUS.html, for example 503.html, or else error.html, of this directory.
    #[arg(long, value_name = "DIR")]
    pub(super) error_path: Option<String>,

    /// Sends users who come to this port without TLS to where it is.
    #[arg(long, value_name = "PORT")]
    pub(super) redirect_port: Option<String>,

    /// The port that they are sent to. [default: --port]
    #[arg(long, value_name = "PORT")]
    pub(super) redirect_to: Option<String>,

    /// Writes the process id into this file, and removes it at the end.
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<String>,

    /// Tells targets nothing of users: no X-Forwarded-For and its like.
    #[arg(long)]
    pub(super) no_x_forward: bool,

    /// Leaves out the path of the target's URL.
    #[arg(long)]
    pub(super) no_prepend_path: bool,

    /// Leaves out the routespec of a request's path.
    #[arg(long)]
    pub(super) no_include_prefix: bool,

    /// In a target's redirects to itself, writes the host that the user asked.
    #[arg(long)]
    pub(super) auto_rewrite: bool,

    /// Replaces Host by the target's own.
    #[arg(long)]
    pub(super) change_origin: bool,

    /// In a target's redirects to itself, writes this protocol: http or https.
    #[arg(long, value_name = "PROTOCOL")]
    pub(super) protocol_rewrite: Option<String>,

    /// Sets a header in every request, as in "X-Here: yes". May be given again.
    #[arg(long, value_name = "NAME: VALUE")]
    pub(super) custom_header: Vec<String>,

    /// Believes every target's certificate, whoever made it and for whomever.
    #[arg(long)]
    pub(super) insecure: bool,

    /// Takes the first segment of a route's path for a host.
    #[arg(long)]
    pub(super) host_routing: bool,

    /// Serves metrics on this address; empty: on every address.
    #[arg(long, value_name = "IP", default_value = "")]
    pub(super) metrics_ip: String,

    /// Serves metrics on this port: HTTP /metrics. [default: nowhere]
    #[arg(long, value_name = "PORT")]
    pub(super) metrics_port: Option<String>,

    /// Serves metrics on this unix socket instead.
    #[arg(long, value_name = "FILE")]
    pub(super) metrics_socket: Option<String>,

    /// What is logged: debug, info, warn or error.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(super) log_level: String,

    /// Closes a user's connection of HTTP/1.1 when no byte has passed for so many milliseconds, and ends such a request
    /// of HTTP/2; WebSockets aside. [default: never]
    #[arg(long, value_name = "MILLISECONDS")]
    pub(super) timeout: Option<String>,

    /// Gives up when a target is silent for so many milliseconds; WebSockets aside. [default: never]
    #[arg(long, value_name = "MILLISECONDS")]
    pub(super) proxy_timeout: Option<String>,

    /// Refused: routes are kept in memory, or with --data-dir on disk.
    #[arg(long, value_name = "CLASS")]
    pub(super) storage_backend: Option<String>,

    /// How long a user's connection may be idle between two requests. [default: 30000]
    #[arg(long, value_name = "MILLISECONDS")]
    pub(super) keep_alive_timeout: Option<String>,

    /// Keeps the routes in this directory. It is made if it is missing. `holdfast up` goes on with it, and the socket
    /// r0/client.sock in it answers commands while this runs (`--endpoints unix:DIR/r0/client.sock`).
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR", help_heading = OWN)]
    pub(super) data_dir: Option<String>,

    /// When stopping: how long requests and WebSockets may take to end by themselves. Nothing new is let in meanwhile.
    #[arg(long, env = "HOLDFAST_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "5s", help_heading = OWN)]
    pub(super) drain_timeout: String,

    /// Believes what reverse proxies at these addresses say of their users (X-Forwarded-For and its like), and adds to
    /// it: comma-separated ranges, or unix for who comes by --socket. What others say is overwritten, so whatever ends
    /// TLS before this must be named here, or the hub sees http.
    #[arg(long, env = "HOLDFAST_TRUSTED_PROXIES", value_name = "RANGE,...", help_heading = OWN)]
    pub(super) trusted_proxies: Option<String>,

    /// Lets routes lead to these targets alone, the hub's own among them: comma-separated ranges, if need be with
    /// scheme and ports, like 10.0.0.0/8:8888. [default: to all but link-local and metadata addresses, and its own
    /// ports]
    #[arg(long, env = "HOLDFAST_ALLOW_TARGETS", value_name = "TARGETS", help_heading = OWN)]
    pub(super) allow_targets: Option<String>,
}

const OWN: &str = "Holdfast's own";
