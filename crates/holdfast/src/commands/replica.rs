//! `holdfast replica`: one member of the cluster.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use holdfast_replica::{ApiAccess, ChpApiConfig, ClusterConfig, ConfigError, ReplicaConfig};
use holdfast_tls::{ClientCertificates, ServerTls};
use tokio::task::JoinSet;

use super::{Common, CommonArgs, block_on_threads, one_namespace};
use crate::config::{Mistakes, Settings, parse};
use crate::limits;
use crate::shutdown::Stop;

/// Runs one replica: it keeps the routes on disk together with its peers, and answers hubs, proxies and operators.
///
/// The same --peers, --heartbeat and --election-timeout on all. The first start waits until all peers answer and all
/// are empty; then the cluster forms by itself, once. SIGTERM hands leadership over, sends the proxies to the others
/// and ends; a second one ends at once.
#[derive(Debug, Args)]
pub struct ReplicaArgs {
    /// This replica's name; one of those in --peers.
    #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Where it keeps its identity, its log and its table. It is made if it is missing; it belongs to one replica of
    /// one cluster for ever.
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,

    /// Every replica's name and peer address, this one included: the same list on all. One entry makes a cluster of
    /// one.
    #[arg(long, env = "HOLDFAST_PEERS", value_name = "NAME=HOST:PORT,...")]
    peers: Option<String>,

    /// Where hubs, proxies and commands are answered: gRPC (Routes, Cluster, health, reflection). Whoever reaches it can
    /// change every route, unless --api-token-file or --api-ssl-ca says who may.
    #[arg(
        long,
        env = "HOLDFAST_LISTEN_CLIENT",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7011"
    )]
    listen_client: String,

    /// A file with the tokens that open that API, one a line: every call must show one of them, but for health checks.
    /// Read again when it changes, within 10 s. A second token while they change: first here, then at the callers.
    #[arg(long, env = "HOLDFAST_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<String>,

    /// Certificate of that API, PEM, with those that lead to its authority, for the host of --advertise-client. It is then
    /// answered by TLS alone. Read again when it changes.
    #[arg(long, env = "HOLDFAST_API_SSL_CERT", value_name = "FILE")]
    api_ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_API_SSL_KEY", value_name = "FILE")]
    api_ssl_key: Option<String>,

    /// Authorities that vouch for its callers, PEM. Only who shows a certificate of theirs is let in, and needs a token
    /// all the same if there are tokens.
    #[arg(long, env = "HOLDFAST_API_SSL_CA", value_name = "FILE")]
    api_ssl_ca: Option<String>,

    /// Which targets routes may have, as `holdfast proxy --allow-targets` has it; what is not allowed is refused when it is
    /// written. Of a name only proxies know where it leads. [default: all but link-local and metadata addresses and the
    /// ports of replicas]
    #[arg(long, env = "HOLDFAST_ALLOW_TARGETS", value_name = "TARGETS")]
    allow_targets: Option<String>,

    /// Where the other replicas are answered: gRPC (Raft). Without TLS and without authentication: nobody else may reach it.
    /// Empty: nowhere, if there are no others.
    #[arg(
        long,
        env = "HOLDFAST_LISTEN_PEER",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7012"
    )]
    listen_peer: String,

    /// Where probes and monitoring are answered: HTTP /livez, /readyz, /metrics. Empty: nowhere.
    #[arg(
        long,
        env = "HOLDFAST_LISTEN_ADMIN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7013"
    )]
    listen_admin: String,

    /// Where configurable-http-proxy's REST API is answered: HTTP /api/routes, for a hub whose
    /// ConfigurableHTTPProxy.api_url leads here. Empty: nowhere.
    #[arg(long, env = "HOLDFAST_LISTEN_CHP_API", value_name = "IP:PORT", default_value = "")]
    listen_chp_api: String,

    /// A file with the tokens that open that API, one a line: the hub's CONFIGPROXY_AUTH_TOKEN, and a second one while
    /// it changes; read again when it changes. Without it the API is open, and only a loopback address will do.
    #[arg(long, env = "HOLDFAST_CHP_API_TOKEN_FILE", value_name = "FILE")]
    chp_api_token_file: Option<String>,

    /// Certificate of that API, PEM, with those that lead to its authority. It is then answered by TLS alone. Read again
    /// when it changes.
    #[arg(long, env = "HOLDFAST_CHP_API_SSL_CERT", value_name = "FILE")]
    chp_api_ssl_cert: Option<String>,

    /// Its private key, PEM, not encrypted.
    #[arg(long, env = "HOLDFAST_CHP_API_SSL_KEY", value_name = "FILE")]
    chp_api_ssl_key: Option<String>,

    /// Authorities that vouch for its callers, PEM. Only who shows a certificate of theirs is let in, and needs a token
    /// all the same.
    #[arg(long, env = "HOLDFAST_CHP_API_SSL_CA", value_name = "FILE")]
    chp_api_ssl_ca: Option<String>,

    /// Whose routes that API shows and writes.
    #[arg(
        long,
        env = "HOLDFAST_CHP_API_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    chp_api_namespace: String,

    /// Whether the first segment of a path of that API is a host (configurable-http-proxy's --host-routing): true or
    /// false.
    #[arg(
        long,
        env = "HOLDFAST_CHP_API_HOST_ROUTING",
        value_name = "BOOL",
        default_value = "false"
    )]
    chp_api_host_routing: String,

    /// The client address that hubs and proxies are told, where it is another than --listen-client.
    /// [default: --listen-client]
    #[arg(long, env = "HOLDFAST_ADVERTISE_CLIENT", value_name = "HOST:PORT")]
    advertise_client: Option<String>,

    /// Time between two heartbeats of the leader. The same on all replicas; at most half of the shortest election
    /// timeout.
    #[arg(long, env = "HOLDFAST_HEARTBEAT", value_name = "DURATION", default_value = "50ms")]
    heartbeat: String,

    /// How long a replica hears nothing from a leader before it asks for an election: a random time in this range, so
    /// that not all ask at once. The same on all replicas.
    /// [default: 120ms..200ms; 1s..1500ms for a replica whose disk takes 20ms or more to sync when it starts]
    #[arg(long, env = "HOLDFAST_ELECTION_TIMEOUT", value_name = "FROM..TO")]
    election_timeout: Option<String>,

    /// Whether this replica, when it leads, by itself replaces a replica that lost its disk, and adds those of --peers
    /// that are no members: true or false. The same on all replicas. With false it is `holdfast members` that does it.
    #[arg(long, env = "HOLDFAST_AUTO_REPLACE", value_name = "BOOL", default_value = "true")]
    auto_replace: String,

    /// How long routes are served on that were deleted in numbers that look like an accident: more than 10, and more than a
    /// quarter of what the hub had, within a minute. Until then `holdfast held` shows them and an operator decides. 0s: no
    /// deletion is held. The leader's setting counts.
    #[arg(
        long,
        env = "HOLDFAST_HOLD_DELETES_FOR",
        value_name = "DURATION",
        default_value = "10m"
    )]
    hold_deletes_for: String,

    /// Ends in good order when standard input ends. `holdfast up` holds the other end of it.
    #[arg(long, hide = true)]
    exit_with_parent: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the command.
pub fn run(args: ReplicaArgs, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let (config, common) = read(&args, &mut settings)?;
    common.start_logging();
    limits::raise_open_files();
    block_on_threads(async {
        let mut tasks = JoinSet::new();
        let stop = Stop::on_signals(&mut tasks)?;
        super::log_level_follows_its_file(&mut tasks)?;
        if args.exit_with_parent {
            stop.with_parent(&mut tasks)?;
        }
        let replica = async {
            let replica = config.build().await?;
            replica.run(stop.gracefully.clone()).await?;
            anyhow::Ok(())
        };
        stop.run(replica).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the TLS of the API with these flags is made of, if it has any; what is wrong with it is noted.
fn read_tls(settings: &mut Settings, [certificate, key, ca]: [(&str, &Option<String>); 3]) -> Option<ServerTls> {
    let [read_certificate, read_key, read_ca] =
        [certificate, key, ca].map(|(flag, given)| settings.read_optional(flag, given.as_deref(), parse::file));
    if certificate.1.is_some() != key.1.is_some() {
        settings.refuse_as(format!("--{} and --{} go together", certificate.0, key.0));
    }
    if ca.1.is_some() && certificate.1.is_none() {
        let problem = format!(
            "--{} needs a certificate: give --{} and --{}",
            ca.0, certificate.0, key.0
        );
        settings.refuse_as(problem);
    }
    let mut tls = ServerTls::new(read_certificate??, read_key??);
    tls.clients = read_ca?.map(|ca| ClientCertificates { ca, required: true });
    Some(tls)
}

fn read(args: &ReplicaArgs, settings: &mut Settings) -> Result<(ReplicaConfig, Common), Mistakes> {
    let name = settings.read_required(
        "name",
        args.name.as_deref(),
        "give this replica's name, like r0",
        parse::name,
    );
    let data_dir = args.data_dir.as_deref();
    let data_dir = settings.read_required(
        "data-dir",
        data_dir,
        "give a directory of this replica alone",
        parse::directory,
    );
    let hint = "list every replica's name and peer address, like r0=10.0.0.1:7012,r1=10.0.0.2:7012,r2=10.0.0.3:7012";
    let peers = settings.read_required("peers", args.peers.as_deref(), hint, parse::peers);
    if let (Some(name), Some(peers)) = (&name, &peers)
        && !peers.iter().any(|peer| peer.name == *name)
    {
        let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        let problem = format!(
            "--peers does not name this replica, only {}: spell both alike",
            names.join(", ")
        );
        settings.refuse("name", name, &problem);
    }

    let listen_client = settings.read("listen-client", &args.listen_client, parse::listen_address);
    let listen_peer = match args.listen_peer.as_str() {
        "" => Some(None),
        address => settings.read("listen-peer", address, parse::listen_address).map(Some),
    };
    let listen_admin = match args.listen_admin.as_str() {
        "" => Some(None),
        address => settings.read("listen-admin", address, parse::listen_address).map(Some),
    };
    let listen_chp_api = match args.listen_chp_api.as_str() {
        "" => Some(None),
        address => settings
            .read("listen-chp-api", address, parse::listen_address)
            .map(Some),
    };
    let api_tls = [
        ("api-ssl-cert", &args.api_ssl_cert),
        ("api-ssl-key", &args.api_ssl_key),
        ("api-ssl-ca", &args.api_ssl_ca),
    ];
    let api_tls = read_tls(settings, api_tls);
    let api_tokens = settings.read_optional("api-token-file", args.api_token_file.as_deref(), parse::tokens);
    let chp_api_tls = [
        ("chp-api-ssl-cert", &args.chp_api_ssl_cert),
        ("chp-api-ssl-key", &args.chp_api_ssl_key),
        ("chp-api-ssl-ca", &args.chp_api_ssl_ca),
    ];
    let chp_api_tls = read_tls(settings, chp_api_tls);
    let tokens = settings.read_optional("chp-api-token-file", args.chp_api_token_file.as_deref(), parse::tokens);
    let namespace = settings.read("chp-api-namespace", &args.chp_api_namespace, one_namespace);
    let host_routing = settings.read("chp-api-host-routing", &args.chp_api_host_routing, parse::boolean);
    for (flag, text, address, before) in [
        (
            "listen-peer",
            &args.listen_peer,
            listen_peer.flatten(),
            vec![("listen-client", listen_client)],
        ),
        (
            "listen-admin",
            &args.listen_admin,
            listen_admin.flatten(),
            vec![("listen-client", listen_client), ("listen-peer", listen_peer.flatten())],
        ),
        (
            "listen-chp-api",
            &args.listen_chp_api,
            listen_chp_api.flatten(),
            vec![
                ("listen-client", listen_client),
                ("listen-peer", listen_peer.flatten()),
                ("listen-admin", listen_admin.flatten()),
            ],
        ),
    ] {
        let taken = before
            .iter()
            .find(|(_, other)| address.is_some_and(|address| address.port() != 0) && *other == address);
        if let Some((other, _)) = taken {
            settings.refuse(
                flag,
                text,
                &format!("--{other} has the same address: give each listener its own"),
            );
        }
    }

    let advertise_client =
        settings.read_optional("advertise-client", args.advertise_client.as_deref(), parse::host_port);
    if let (Some(None), Some(listen), Some(peers)) = (&advertise_client, listen_client, &peers)
        && listen.ip().is_unspecified()
        && peers.len() > 1
    {
        let problem = "nobody can connect to this address: say with --advertise-client what others are to use";
        settings.refuse("listen-client", &args.listen_client, problem);
    }

    let allow_targets = settings.read_optional("allow-targets", args.allow_targets.as_deref(), parse::target_rules);
    let heartbeat = settings.read("heartbeat", &args.heartbeat, parse::positive_duration);
    let given = args.election_timeout.as_deref();
    let election_timeout = settings.read_optional("election-timeout", given, parse::duration_range);
    let shortest = |given: &Option<Range<Duration>>| {
        let timeout = given.as_ref().unwrap_or(&ClusterConfig::ELECTION_TIMEOUT);
        timeout.start
    };
    if let (Some(heartbeat), Some(shortest)) = (heartbeat, election_timeout.as_ref().map(shortest))
        && heartbeat * 2 > shortest
    {
        let problem = format!(
            "--heartbeat is {}: one lost heartbeat would mean an election. Give at least twice that",
            args.heartbeat
        );
        settings.refuse("election-timeout", given.unwrap_or("120ms..200ms"), &problem);
    }

    let auto_replace = settings.read("auto-replace", &args.auto_replace, parse::boolean);
    let hold = settings.read("hold-deletes-for", &args.hold_deletes_for, parse::hold_policy);
    let common = args.common.read(settings, "info");
    let config = (|| {
        let (tokens, namespace, host_routing) = (tokens?.unwrap_or_default(), namespace?, host_routing?);
        let chp_api = listen_chp_api?.map(|listen| ChpApiConfig {
            listen: listen.into(),
            tls: chp_api_tls,
            tokens,
            namespace,
            host_routing,
        });
        let config = ReplicaConfig {
            cluster: ClusterConfig {
                peers: peers?,
                heartbeat: heartbeat?,
                election_timeout: election_timeout?,
                auto_replace: auto_replace?,
                hold: hold?,
            },
            name: name?,
            data_dir: data_dir?,
            listen_client: listen_client?.into(),
            api: ApiAccess {
                tls: api_tls,
                tokens: api_tokens?.unwrap_or_default(),
            },
            allow_targets: allow_targets?.unwrap_or_default(),
            listen_peer: listen_peer?,
            listen_admin: listen_admin?,
            chp_api,
            advertise_client: advertise_client?,
        };
        Some((config, common?))
    })();
    if let Some((config, _)) = &config
        && !settings.has_mistakes()
    {
        for ConfigError { field, value, problem } in config.problems() {
            settings.refuse(field, &value, &problem);
        }
    }
    settings.finish(config)
}
