//! `holdfast chp`: configurable-http-proxy's command line, served by one replica and one proxy in this process.

mod flags;
mod folder;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use holdfast_client::{Endpoints, RouteReader, RouteWriter, WriteError, WriterOptions};
use holdfast_proxy::{Address, BuildError, ConfigError, Proxy, ProxyConfig};
use holdfast_replica::{ApiAccess, ChpApiConfig, ClusterConfig, PeerAddress, ReplicaConfig, chp_form};
use holdfast_table::{Batch, Change, HoldPolicy, Namespace, Precondition, Revision, Route, RouteSpec};
use holdfast_tls::{ClientCertificates, Passphrase, ServerTls, TlsCiphers, TlsVersions, Tokens};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use self::flags::ChpArgs;
use self::folder::Folder;
use super::block_on_threads;
use super::pid_file::PidFile;
use super::proxy::ServingArgs;
use super::proxy::forwarding::ForwardingArgs;
use super::proxy::seen::SeenArgs;
use super::proxy::users::UserArgs;
use super::together::Together;
use crate::config::{Mistakes, Settings, parse};
use crate::logging::{self, LogFormat, LogLevel};
use crate::shutdown::Stop;
use crate::{limits, output};

/// Whose command line this is.
const NAME: &str = "configurable-http-proxy";
const VERSION: &str = "5.3.0";
const PORT: u16 = 8000;
/// Proxies on one directory that drain at the same time.
const COPIES_MAX: usize = 8;
const STEP: Duration = Duration::from_millis(20);
/// For one question to the replica of this process.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// True if the program was called by the other's name.
pub fn is_called_by_name(line: &[OsString]) -> bool {
    let program = line.first().and_then(|program| Path::new(program).file_name());
    program.is_some_and(|name| name == OsStr::new(NAME))
}

/// Runs the command.
pub fn run(args: ChpArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    if args.version {
        output::line(&format!("{VERSION} (holdfast {})", env!("CARGO_PKG_VERSION")))?;
        return Ok(ExitCode::SUCCESS);
    }
    let told = match read(&args, &Secrets::of_environment(), &mut settings) {
        Ok(told) => told,
        Err(mistakes) => {
            output::complain(&mistakes.to_string());
            return Ok(ExitCode::from(crate::FAILED));
        }
    };
    logging::start(LogFormat::ConfigProxy, &told.level);
    limits::raise_open_files();
    told.notes.iter().for_each(|note| tracing::warn!("{note}"));
    block_on_threads(async {
        let mut tasks = JoinSet::new();
        let stop = Stop::on_signals(&mut tasks)?;
        super::hangups_change_nothing(&mut tasks)?;
        stop.run(serve(told, stop.gracefully.clone())).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the environment alone may hold.
#[derive(Default)]
struct Secrets {
    token: Option<String>,
    token_file: Option<String>,
    passphrase: Option<Passphrase>,
    api_passphrase: Option<Passphrase>,
}

impl Secrets {
    fn of_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Secrets {
            token: variable("CONFIGPROXY_AUTH_TOKEN"),
            token_file: variable("CONFIGPROXY_AUTH_TOKEN_FILE"),
            passphrase: variable("CONFIGPROXY_SSL_KEY_PASSPHRASE").map(Passphrase::new),
            api_passphrase: variable("CONFIGPROXY_API_SSL_KEY_PASSPHRASE").map(Passphrase::new),
        }
    }
}

/// What the command line says. The proxy's directory and replica are still to be said.
#[derive(Debug)]
struct Told {
    proxy: ProxyConfig,
    api: ChpApiConfig,
    default: Option<Route>,
    data_dir: Option<PathBuf>,
    pid_file: Option<String>,
    level: LogLevel,
    notes: Vec<String>,
}

fn read(args: &ChpArgs, secrets: &Secrets, settings: &mut Settings) -> Result<Told, Mistakes> {
    let mut notes = Vec::new();
    if args.ip.as_deref() == Some("*") {
        notes.push("--ip '*' is every address, as an empty one is".to_owned());
    }
    refuse_what_is_not_there(args, settings);

    let ip = settings.read("ip", args.ip.as_deref().unwrap_or_default(), parse::ip);
    let port = settings.read_optional("port", args.port.as_deref(), port);
    let socket = settings.read_optional("socket", args.socket.as_deref(), socket);
    let listen = (|| {
        let tcp = || Some(Address::Tcp(SocketAddr::new(ip?, port?.flatten().unwrap_or(PORT))));
        socket.clone()?.map_or_else(tcp, |path| Some(Address::Unix(path)))
    })();
    let users_port = listen.as_ref().map(Address::port);

    let mut serving = read_serving(args, settings);
    if let (Some(serving), Some(users_port)) = (&mut serving, users_port) {
        if serving.redirect.is_some() && matches!(users_port, None | Some(80)) {
            serving.redirect = None;
            notes.push("--redirect-port: nothing is sent to where it is, for users come by port 80 or a socket".into());
        }
        if let Some(tls) = &mut serving.tls {
            tls.passphrase.clone_from(&secrets.passphrase);
        }
    }
    let api = read_api(args, secrets, settings, users_port.flatten());
    let metrics = read_metrics(args, settings);
    let mut time = |flag, text: &Option<String>| {
        let given = settings.read_optional(flag, text.as_deref(), milliseconds);
        given.flatten().flatten()
    };
    let timeout = time("timeout", &args.timeout);
    let proxy_timeout = time("proxy-timeout", &args.proxy_timeout);
    let keep_alive_timeout = time("keep-alive-timeout", &args.keep_alive_timeout);
    if let Some(serving) = &mut serving {
        serving.client_timeout = timeout;
        serving.target_timeout = proxy_timeout;
        serving.keep_alive_timeout = keep_alive_timeout.unwrap_or(serving.keep_alive_timeout);
    }
    let default = settings.read_optional("default-target", args.default_target.as_deref(), |target| {
        let spec = RouteSpec::parse("/").map_err(|error| error.problem)?;
        let data = chp_form::data(chp_form::Object::new(), &spec).map_err(|error| error.to_string())?;
        Route::parse(spec.as_str(), target, &data, Namespace::default().as_str()).map_err(|error| error.problem)
    });
    let data_dir = settings.read_optional("data-dir", args.data_dir.as_deref(), parse::directory);
    let drain_timeout = settings.read("drain-timeout", &args.drain_timeout, parse::duration);
    let level = settings.read("log-level", &args.log_level, level);

    let told = (|| {
        let (api, metrics) = (api?, metrics?);
        let api_port = match api.listen {
            holdfast_replica::Address::Tcp(address) => Some(address),
            holdfast_replica::Address::Unix(_) => None,
        };
        let metrics_port = match metrics {
            Some(Address::Tcp(address)) => Some(address),
            _ => None,
        };
        let proxy = ProxyConfig {
            listen: vec![listen?],
            listen_metrics: metrics,
            control_ports: api_port.into_iter().chain(metrics_port).collect(),
            drain_delay: Duration::ZERO,
            drain_timeout: drain_timeout?,
            ..serving?
        };
        Some(Told {
            proxy,
            api,
            default: default?,
            data_dir: data_dir?,
            pid_file: args.pid_file.clone(),
            level: level?,
            notes,
        })
    })();
    if let Some(told) = &told
        && !settings.has_mistakes()
    {
        refuse_unfit(told, settings);
    }
    settings.finish(told)
}

/// Flags whose mechanism there is none of here: whoever relies on them must know.
fn refuse_what_is_not_there(args: &ChpArgs, settings: &mut Settings) {
    if args.ssl_allow_rc4 {
        settings.refuse_as("--ssl-allow-rc4: RC4 is broken and not spoken here: leave it out".into());
    }
    if args.ssl_dhparam.is_some() {
        let problem =
            "--ssl-dhparam: every key exchange here is by elliptic curves, which have no parameters: leave it out";
        settings.refuse_as(problem.into());
    }
    if args.storage_backend.is_some() {
        let problem = "--storage-backend: there are no other storages here: leave it out and the routes are in memory, or \
                       give --data-dir instead and they are on disk";
        settings.refuse_as(problem.into());
    }
}

/// How users are received and where requests go, in the flags that `holdfast proxy` has for it.
fn read_serving(args: &ChpArgs, settings: &mut Settings) -> Option<ProxyConfig> {
    let boolean = |value: bool| value.to_string();
    let has_certificate = args.ssl_cert.is_some() || args.ssl_key.is_some();
    let serving = ServingArgs {
        users: UserArgs {
            ssl_cert: args.ssl_cert.clone(),
            ssl_key: args.ssl_key.clone(),
            ssl_ca: args.ssl_ca.clone(),
            ssl_request_cert: boolean(args.ssl_request_cert),
            // Node lets nobody in whose certificate it has asked for in vain.
            ssl_reject_unauthorized: boolean(args.ssl_request_cert),
            ssl_protocol: args.ssl_protocol.clone().filter(|_| has_certificate),
            ssl_ciphers: args.ssl_ciphers.clone().filter(|_| has_certificate),
            redirect_port: args.redirect_port.clone(),
            redirect_to: args.redirect_to.clone(),
            max_connections: "100000".into(),
            max_connections_per_address: None,
            header_timeout: "10s".into(),
            body_timeout: "60s".into(),
            keep_alive_timeout: "30s".into(),
            client_timeout: None,
        },
        forwarding: ForwardingArgs {
            // It is a route here.
            default_target: None,
            error_target: args.error_target.clone(),
            error_path: args.error_path.clone(),
            allow_targets: args.allow_targets.clone(),
            trusted_proxies: args.trusted_proxies.clone(),
            no_x_forward: boolean(args.no_x_forward),
            no_prepend_path: boolean(args.no_prepend_path),
            no_include_prefix: boolean(args.no_include_prefix),
            change_origin: boolean(args.change_origin),
            auto_rewrite: boolean(args.auto_rewrite),
            protocol_rewrite: args.protocol_rewrite.clone(),
            custom_header: args.custom_header.clone(),
            proxy_timeout: None,
            client_ssl_ca: args.client_ssl_ca.clone(),
            client_ssl_cert: args.client_ssl_cert.clone(),
            client_ssl_key: args.client_ssl_key.clone(),
            insecure: boolean(args.insecure),
        },
        seen: SeenArgs {
            access_log: None,
            ws_activity: "client-data".into(),
            activity_interval: "5s".into(),
        },
    };
    serving.read(settings, parse::every_address())
}

fn read_api(
    args: &ChpArgs,
    secrets: &Secrets,
    settings: &mut Settings,
    users_port: Option<u16>,
) -> Option<ChpApiConfig> {
    let ip = settings.read("api-ip", &args.api_ip, parse::ip);
    let given = settings.read_optional("api-port", args.api_port.as_deref(), port);
    let socket = settings.read_optional("api-socket", args.api_socket.as_deref(), socket);
    let tls = read_api_tls(args, secrets, settings);
    let listen = match socket? {
        Some(path) => holdfast_replica::Address::Unix(path),
        None => {
            let next = users_port.unwrap_or(PORT).checked_add(1);
            let Some(port) = given?.flatten().or(next) else {
                settings.refuse_as("--api-port is missing: there is no port after --port 65535".into());
                return None;
            };
            SocketAddr::new(ip?, port).into()
        }
    };
    let tokens = read_tokens(secrets, settings)?;
    if tokens.is_empty() && !listen.is_local() {
        let problem = "without a token everybody who reaches it could change routes: set CONFIGPROXY_AUTH_TOKEN or \
                       CONFIGPROXY_AUTH_TOKEN_FILE, as the hub has it, or give a loopback address";
        settings.refuse("api-ip", &args.api_ip, problem);
    }
    Some(ChpApiConfig {
        listen,
        tls: tls?,
        tokens,
        namespace: Namespace::default(),
        host_routing: args.host_routing,
    })
}

fn read_tokens(secrets: &Secrets, settings: &mut Settings) -> Option<Tokens> {
    let Some(file) = &secrets.token_file else {
        return Some(Tokens::new(secrets.token.as_deref()));
    };
    if secrets.token.is_some() {
        settings.refuse_as("CONFIGPROXY_AUTH_TOKEN and CONFIGPROXY_AUTH_TOKEN_FILE exclude each other".into());
        return None;
    }
    let refuse = |problem: String| settings.refuse_as(format!("CONFIGPROXY_AUTH_TOKEN_FILE {file:?}: {problem}"));
    parse::tokens(file).map_err(refuse).ok()
}

/// The outer `None`: something about it is wrong.
fn read_api_tls(args: &ChpArgs, secrets: &Secrets, settings: &mut Settings) -> Option<Option<ServerTls>> {
    let certificate = settings.read_optional("api-ssl-cert", args.api_ssl_cert.as_deref(), parse::file);
    let key = settings.read_optional("api-ssl-key", args.api_ssl_key.as_deref(), parse::file);
    let ca = settings.read_optional("api-ssl-ca", args.api_ssl_ca.as_deref(), parse::file);
    let (mut versions, mut ciphers) = (TlsVersions::default(), TlsCiphers::default());
    let named = args.ssl_protocol.as_deref();
    settings.set(&mut versions, "ssl-protocol", named, TlsVersions::parse);
    let named = args.ssl_ciphers.as_deref();
    settings.set(&mut ciphers, "ssl-ciphers", named, TlsCiphers::parse);
    if args.api_ssl_cert.is_some() != args.api_ssl_key.is_some() {
        settings.refuse_as("--api-ssl-cert and --api-ssl-key go together".into());
    }
    // Without a certificate there is no TLS, and who asks for a part of it must not be left without all of it.
    if args.api_ssl_cert.is_none() && (args.api_ssl_ca.is_some() || args.api_ssl_request_cert) {
        settings.refuse_as("--api-ssl-ca and --api-ssl-request-cert need --api-ssl-cert and --api-ssl-key".into());
    }
    if args.api_ssl_request_cert && args.api_ssl_ca.is_none() {
        settings.refuse_as("--api-ssl-request-cert needs --api-ssl-ca: who vouches?".into());
    }
    let (Some(certificate), Some(key)) = (certificate?, key?) else {
        return Some(None);
    };
    let ca = ca?.filter(|_| args.api_ssl_request_cert);
    Some(Some(ServerTls {
        passphrase: secrets.api_passphrase.clone(),
        clients: ca.map(|ca| ClientCertificates { ca, required: true }),
        versions,
        ciphers,
        ..ServerTls::new(certificate, key)
    }))
}

/// The outer `None`: something about it is wrong.
fn read_metrics(args: &ChpArgs, settings: &mut Settings) -> Option<Option<Address>> {
    let ip = settings.read("metrics-ip", &args.metrics_ip, parse::ip);
    let port = settings.read_optional("metrics-port", args.metrics_port.as_deref(), port);
    let socket = settings.read_optional("metrics-socket", args.metrics_socket.as_deref(), socket);
    match (socket?, port?.flatten()) {
        (Some(path), _) => Some(Some(Address::Unix(path))),
        (None, Some(port)) => Some(Some(Address::Tcp(SocketAddr::new(ip?, port)))),
        (None, None) => Some(None),
    }
}

/// What only shows when all of it is known.
fn refuse_unfit(told: &Told, settings: &mut Settings) {
    let users = told.proxy.listen.iter().filter_map(Address::port);
    let redirect = told.proxy.redirect.map(|redirect| redirect.listen.port());
    let mut taken: Vec<u16> = users.chain(redirect).collect();
    for port in told.proxy.control_ports.iter().map(SocketAddr::port) {
        if taken.contains(&port) {
            settings.refuse_as(format!("port {port} is asked for twice: give each of --port, --redirect-port, --api-port and --metrics-port its own"));
        }
        taken.push(port);
    }
    let complete = ProxyConfig {
        name: "p0".into(),
        data_dir: "p0".into(),
        ..told.proxy.clone()
    };
    if let Err(ConfigError(mistakes)) = complete.validate() {
        let mistakes = mistakes.iter().map(ToString::to_string);
        mistakes.for_each(|mistake| settings.refuse_as(mistake));
    }
}

/// A port; 0 is as none, which is the other program's reading.
fn port(text: &str) -> Result<Option<u16>, String> {
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err("must be a port from 1 to 65535".into()),
    }
}

/// A unix socket's path, from here if it is not a whole one.
fn socket(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("must name a file".into()),
        _ => std::path::absolute(text).map_err(|error| error.to_string()),
    }
}

/// A time; 0 is as none.
fn milliseconds(text: &str) -> Result<Option<Duration>, String> {
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(ms) => Ok(Some(Duration::from_millis(ms))),
        Err(_) => Err("must be a whole number of milliseconds, like 5000".into()),
    }
}

fn level(text: &str) -> Result<LogLevel, String> {
    match text.to_lowercase().as_str() {
        level @ ("debug" | "info" | "warn" | "error") => LogLevel::parse(level),
        _ => Err("must be debug, info, warn or error".into()),
    }
}

/// Serves until `stop`.
async fn serve(told: Told, stop: CancellationToken) -> anyhow::Result<()> {
    let folder = Folder::open(told.data_dir.as_deref())?;
    let endpoints = Endpoints::parse(&[folder.endpoint()?])?;
    let claim = tokio::select! {
        claim = folder.claim() => claim?,
        () = stop.cancelled() => return folder.close(),
    };
    let replica = replica(&told, &folder).build().await.context("cannot start")?;
    let api_metrics = replica.api_metrics();
    let copies = (0..COPIES_MAX).map(|number| folder.proxy(number)).collect();
    let mut roles = Together::until(&stop);
    let stopping = stop.clone();
    roles.start(async move {
        let ended = replica.run(stopping).await.context("the replica ended");
        // The proxy has no more need of it, and the next process may begin while this one drains.
        drop(claim);
        ended
    });
    let serving = async {
        let first = first_route(endpoints.clone(), told.default.clone());
        match stop.run_until_cancelled(first).await {
            Some(first) => first?,
            None => return Ok(()),
        }
        let config = ProxyConfig {
            name: "p0".into(),
            endpoints,
            ..told.proxy.clone()
        };
        let proxy = proxy(config, copies)
            .await
            .context("cannot start")?
            .showing(api_metrics);
        announce(&told);
        let _pid_file = told.pid_file.as_deref().map(PidFile::write).transpose()?;
        proxy.run(stop.clone()).await.context("the proxy ended")
    };
    let ended = roles.run(serving).await;
    ended.and(folder.close())
}

fn replica(told: &Told, folder: &Folder) -> ReplicaConfig {
    ReplicaConfig {
        cluster: ClusterConfig {
            // Where `holdfast up` would have it; here nobody listens there.
            peers: vec![PeerAddress {
                name: "r0".into(),
                address: "127.0.0.1:7012".into(),
            }],
            heartbeat: ClusterConfig::HEARTBEAT,
            election_timeout: None,
            auto_replace: true,
            hold: Some(HoldPolicy::DEFAULT),
        },
        name: "r0".into(),
        data_dir: folder.replica(),
        listen_client: holdfast_replica::Address::Unix(folder.socket()),
        api: ApiAccess::default(),
        allow_targets: told.proxy.allow_targets.clone(),
        listen_peer: None,
        listen_admin: None,
        chp_api: Some(told.api.clone()),
        advertise_client: None,
    }
}

/// The proxy, with the first of these places for its copy of the table that no other one has: one that drains still does.
async fn proxy(config: ProxyConfig, copies: Vec<PathBuf>) -> Result<Proxy, BuildError> {
    let mut copies = copies.into_iter().peekable();
    loop {
        let config = ProxyConfig {
            data_dir: copies.next().unwrap_or_default(),
            ..config.clone()
        };
        match config.build().await {
            Err(BuildError::Locked { .. }) if copies.peek().is_some() => {}
            built => return built,
        }
    }
}

/// Returns when the replica answers, and has the route of `--default-target` or another one in its place.
async fn first_route(endpoints: Endpoints, default: Option<Route>) -> anyhow::Result<()> {
    let reader = RouteReader::new(endpoints.clone(), ANSWER_TIMEOUT);
    let root = RouteSpec::parse("/")?;
    let present = loop {
        match reader.get(&root).await {
            Ok(present) => break present,
            Err(error) => tracing::debug!("the replica does not answer yet: {error}"),
        }
        sleep(STEP).await;
    };
    let (Some(route), None) = (default, present) else {
        return Ok(());
    };
    // The REST API is open already: a hub that was quicker keeps what it wrote.
    let absent = Precondition::RouteRevision(root, Revision(0));
    let batch = Batch::new(route.namespace.clone(), vec![Change::Put(route.clone())], vec![absent])?;
    let writer = RouteWriter::new(endpoints, WriterOptions::default());
    match writer.write(batch).await {
        Ok(_) => tracing::info!("Route added / -> {}", route.target),
        Err(WriteError::Rejected { .. }) => {}
        Err(error) => return Err(error).context("--default-target cannot be written"),
    }
    Ok(())
}

/// What the other program says once it listens.
fn announce(told: &Told) {
    let proxy = &told.proxy;
    let scheme = |tls: bool| if tls { "https" } else { "http" };
    let default = told
        .default
        .as_ref()
        .map_or("(no default)", |route| route.target.as_str());
    for listen in &proxy.listen {
        tracing::info!("Proxying {}://{listen} to {default}", scheme(proxy.tls.is_some()));
    }
    let api = &told.api;
    tracing::info!("Proxy API at {}://{}/api/routes", scheme(api.tls.is_some()), api.listen);
    if api.tokens.is_empty() {
        tracing::warn!("REST API is not authenticated.");
    }
    if let Some(metrics) = &proxy.listen_metrics {
        tracing::info!("Serve metrics at http://{metrics}/metrics");
    }
    if let Some(redirect) = proxy.redirect {
        let own = proxy.listen.iter().find_map(Address::port).unwrap_or(PORT);
        let (from, to) = (redirect.listen.port(), redirect.to.unwrap_or(own));
        tracing::info!("Added HTTP to HTTPS redirection from {from} to {to}");
    }
    if let Some(file) = &told.pid_file {
        tracing::info!("Writing pid {} to {file}", std::process::id());
    }
}

#[cfg(test)]
mod tests;
