use std::collections::BTreeMap;

use clap::{Args, Command, FromArgMatches};
use holdfast_proxy::{ErrorPages, Redirect, TrustedProxies};

use super::*;
use crate::config;

/// What configurable-http-proxy 5.3.0 prints for `--help`.
const HELP: &str = include_str!("help-5.3.0.txt");

fn chp() -> Command {
    ChpArgs::augment_args(Command::new("chp"))
}

fn parsed(flags: &[&str]) -> Result<(ChpArgs, Settings), clap::Error> {
    let line = ["holdfast", "chp"].iter().chain(flags);
    let line: Vec<OsString> = line.map(OsString::from).collect();
    let (matches, settings) = config::load(|| Command::new("holdfast").subcommand(chp()), &line)?;
    let args = ChpArgs::from_arg_matches(matches.subcommand().unwrap().1)?;
    Ok((args, settings))
}

fn told_with(flags: &[&str], secrets: &Secrets) -> Result<Told, String> {
    let (args, mut settings) = parsed(flags).map_err(|error| error.to_string())?;
    read(&args, secrets, &mut settings).map_err(|mistakes| mistakes.to_string())
}

fn told(flags: &[&str]) -> Result<Told, String> {
    told_with(flags, &Secrets::default())
}

/// Every flag of the other's `--help`: whether it takes a value, and its default.
fn flags_of_chp() -> BTreeMap<String, (bool, Option<String>)> {
    let mut flags = BTreeMap::<String, (bool, String)>::new();
    let mut last = String::new();
    for line in HELP.lines().skip_while(|line| *line != "Options:").skip(1) {
        let text = match line.trim_start().strip_prefix('-') {
            Some(_) if line.starts_with("  -") => {
                let names = line.trim_start();
                let (names, text) = names.split_once("  ").unwrap_or((names, ""));
                let name = names.rsplit(", ").next().unwrap().split(' ').next().unwrap();
                last = name.trim_start_matches("--").to_owned();
                flags.insert(last.clone(), (names.contains('<'), String::new()));
                text
            }
            _ => line,
        };
        if let Some((_, description)) = flags.get_mut(&last) {
            description.push(' ');
            description.push_str(text.trim());
        }
    }
    let default = |text: &str| {
        let (_, rest) = text.split_once("(default: ")?;
        Some(rest.split(')').next()?.trim_matches('"').to_owned())
    };
    let described = flags.into_iter();
    described
        .map(|(name, (value, text))| (name, (value, default(&text))))
        .collect()
}

#[test]
fn every_flag_has_chps_name_and_default_and_takes_a_value_where_chps_does() {
    let chps = flags_of_chp();
    assert!(chps.len() > 45, "{chps:?}");
    let ours = chp();
    for (name, (takes_value, default)) in &chps {
        if name == "help" {
            continue;
        }
        let arg = ours.get_arguments().find(|arg| arg.get_long() == Some(name.as_str()));
        let arg = arg.unwrap_or_else(|| panic!("--{name} is missing"));
        assert_eq!(arg.get_action().takes_values(), *takes_value, "--{name}");
        let own = arg.get_default_values().first().map(|value| value.to_str().unwrap());
        let default = default.as_deref().filter(|default| *default != "{}");
        assert_eq!(own, default, "--{name}");
        assert_eq!(arg.get_env(), None, "--{name}");
    }
    let more = ours.get_arguments().filter_map(|arg| arg.get_long());
    let more: Vec<_> = more.filter(|name| !chps.contains_key(*name)).collect();
    assert_eq!(more, ["data-dir", "drain-timeout", "trusted-proxies", "allow-targets"]);
}

#[test]
fn who_is_believed_and_where_routes_may_lead_is_said_as_a_proxy_is_told_it() {
    let flags = [
        "--trusted-proxies=10.0.0.0/8,unix",
        "--allow-targets=10.0.0.0/8:8888,127.0.0.1",
    ];
    let given = told(&flags).unwrap();
    let named = TrustedProxies::parse("10.0.0.0/8,unix").unwrap();
    assert_eq!(given.proxy.policy.trusted_proxies, named);
    assert_eq!(given.proxy.allow_targets.len(), 2);
    let folder = Folder::open(None).unwrap();
    let replica = replica(&given, &folder);
    assert_eq!(replica.allow_targets.len(), 2, "refused when it is written");
    folder.close().unwrap();
    let none = told(&[]).unwrap();
    assert_eq!(none.proxy.policy.trusted_proxies, TrustedProxies::default());
    assert!(none.proxy.allow_targets.is_empty());
    let said = told(&["--trusted-proxies=everybody", "--allow-targets=ftp://x"]).unwrap_err();
    for part in ["--trusted-proxies \"everybody\"", "--allow-targets \"ftp://x\""] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
}

#[test]
fn the_token_may_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "secret\n").unwrap();
    let secrets = |token: Option<&str>, file: &std::path::Path| Secrets {
        token: token.map(str::to_owned),
        token_file: Some(file.to_str().unwrap().to_owned()),
        ..Secrets::default()
    };
    let told = |secrets: &Secrets| told_with(&["--api-ip=0.0.0.0"], secrets);
    let tokens = told(&secrets(None, &path)).unwrap().api.tokens;
    assert!(tokens.admit(Some("secret")) && !tokens.admit(Some("other")) && !tokens.admit(None));
    let both = told(&secrets(Some("secret"), &path)).unwrap_err();
    assert!(
        both.contains("CONFIGPROXY_AUTH_TOKEN_FILE exclude each other"),
        "{both}"
    );
    let missing = told(&secrets(None, &folder.path().join("none"))).unwrap_err();
    assert!(
        missing.contains("CONFIGPROXY_AUTH_TOKEN_FILE") && missing.contains("cannot be read"),
        "{missing}"
    );
}

#[test]
fn a_command_line_is_read_as_chp_reads_it() {
    // As JupyterHub writes it.
    let hubs = "--ip 127.0.0.1 --port 8010 --api-ip 127.0.0.1 --api-port 8011 --error-target http://127.0.0.1:8081/hub/error \
                --log-level info --host-routing";
    let hubs = told(&hubs.split(' ').collect::<Vec<_>>()).unwrap();
    assert_eq!(hubs.proxy.listen[0].to_string(), "127.0.0.1:8010");
    assert_eq!(hubs.api.listen.to_string(), "127.0.0.1:8011");
    assert!(hubs.api.host_routing && matches!(hubs.proxy.error_pages, ErrorPages::Target(_)));

    // As zero-to-jupyterhub does.
    let token = Secrets {
        token: Some("secret".into()),
        ..Secrets::default()
    };
    let charts = [
        "--ip=",
        "--api-ip=",
        "--api-port=8001",
        "--default-target=http://hub:8081",
        "--port=8000",
    ];
    let charts = told_with(&charts, &token).unwrap();
    assert_eq!(charts.proxy.listen[0].port(), Some(8000));
    assert!(charts.api.listen.to_string().ends_with(":8001") && !charts.api.listen.is_local());
    let default = charts.default.unwrap();
    assert_eq!(
        (default.spec.as_str(), default.target.as_str()),
        ("/", "http://hub:8081")
    );
    assert_eq!(default.data.as_str(), r#"{"jupyterhub":null}"#, "not the hub's");
    assert!(
        charts.proxy.default_target.is_none(),
        "a route, which a hub may replace or delete"
    );

    // Ports, and what follows from them.
    let ports = |flags: &[&str]| {
        let told = told(flags).unwrap();
        let api = told.api.listen.to_string();
        let (_, api) = api.rsplit_once(':').unwrap();
        (told.proxy.listen[0].port(), api.parse::<u16>().unwrap())
    };
    assert_eq!(ports(&[]), (Some(8000), 8001));
    assert_eq!(ports(&["--port", "9000"]), (Some(9000), 9001));
    assert_eq!(ports(&["--port", "0"]), (Some(8000), 8001));
    assert_eq!(ports(&["--port", "9000", "--api-port", "0"]), (Some(9000), 9001));
    assert_eq!(
        ports(&["--port", "1", "--port=9000"]),
        (Some(9000), 9001),
        "the last one counts"
    );
    assert_eq!(ports(&["--socket", "/run/x"]), (None, 8001));

    let sockets = told(&[
        "--socket",
        "/run/x",
        "--api-socket",
        "/run/y",
        "--api-port",
        "5",
        "--metrics-socket",
        "/run/z",
    ]);
    let sockets = sockets.unwrap();
    assert_eq!(sockets.proxy.listen[0].to_string(), "unix:/run/x");
    assert_eq!(sockets.api.listen.to_string(), "unix:/run/y");
    assert_eq!(sockets.proxy.listen_metrics.unwrap().to_string(), "unix:/run/z");

    let rest = told(&[
        "--timeout",
        "1500",
        "--proxy-timeout",
        "2500",
        "--keep-alive-timeout",
        "3500",
        "--no-x-forward",
        "--no-prepend-path",
        "--no-include-prefix",
        "--auto-rewrite",
        "--change-origin",
        "--protocol-rewrite",
        "https",
        "--custom-header",
        " X-A : 1 ",
        "--custom-header",
        "X-A: 2",
        "--insecure",
        "--metrics-port",
        "9100",
        "--metrics-ip",
        "127.0.0.1",
        "--log-level",
        "WARN",
        "--client-ssl-request-cert",
        "--client-ssl-reject-unauthorized",
        "--drain-timeout",
        "1s",
        "--data-dir",
        "/tmp",
    ]);
    let rest = rest.unwrap();
    let (proxy, policy) = (&rest.proxy, &rest.proxy.policy);
    let ms = Duration::from_millis;
    assert_eq!(
        (proxy.client_timeout, proxy.target_timeout),
        (Some(ms(1500)), Some(ms(2500)))
    );
    assert_eq!((proxy.keep_alive_timeout, proxy.drain_timeout), (ms(3500), ms(1000)));
    assert!(!policy.x_forward && !policy.prepend_path && !policy.include_prefix);
    assert!(policy.auto_rewrite && policy.change_origin && policy.protocol_rewrite.is_some());
    assert_eq!(
        (policy.custom_headers.len(), &policy.custom_headers["x-a"]),
        (1, &"2".parse().unwrap())
    );
    assert!(proxy.target_tls.insecure && rest.data_dir.is_some());
    assert_eq!(proxy.listen_metrics.as_ref().unwrap().to_string(), "127.0.0.1:9100");
    assert_eq!(
        proxy.control_ports.iter().map(SocketAddr::port).collect::<Vec<_>>(),
        [8001, 9100]
    );
    let none = told(&[
        "--timeout=0",
        "--proxy-timeout=0",
        "--keep-alive-timeout=0",
        "--metrics-port=0",
    ])
    .unwrap();
    assert_eq!((none.proxy.client_timeout, none.proxy.target_timeout), (None, None));
    assert!(none.proxy.listen_metrics.is_none() && none.proxy.keep_alive_timeout == ms(30_000));
}

#[test]
fn certificates_are_asked_for_where_chp_asks() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, "").unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key, ca) = (file("c"), file("k"), file("ca"));
    let secrets = || Secrets {
        passphrase: Some(Passphrase::new("users'".into())),
        api_passphrase: Some(Passphrase::new("the API's".into())),
        ..Secrets::default()
    };
    let all = |flags: &[&str]| {
        let own = ["--ssl-cert", &certificate, "--ssl-key", &key, "--ssl-ca", &ca];
        let api = [
            "--api-ssl-cert",
            &certificate,
            "--api-ssl-key",
            &key,
            "--api-ssl-ca",
            &ca,
        ];
        let client = [
            "--client-ssl-cert",
            &certificate,
            "--client-ssl-key",
            &key,
            "--client-ssl-ca",
            &ca,
        ];
        let line: Vec<&str> = own
            .into_iter()
            .chain(api)
            .chain(client)
            .chain(flags.iter().copied())
            .collect();
        told_with(&line, &secrets()).unwrap()
    };
    let shown = all(&["--ssl-reject-unauthorized", "--api-ssl-reject-unauthorized"]);
    let (users, api) = (shown.proxy.tls.unwrap(), shown.api.tls.unwrap());
    assert!(users.clients.is_none() && api.clients.is_none(), "nobody is asked");
    assert_eq!(users.passphrase, Some(Passphrase::new("users'".into())));
    assert_eq!(api.passphrase, Some(Passphrase::new("the API's".into())));
    assert!(shown.proxy.target_tls.identity.is_some() && shown.proxy.target_tls.ca.is_some());

    let asked = all(&["--ssl-request-cert", "--api-ssl-request-cert", "--ssl-protocol=TLSv1_2"]);
    let (users, api) = (asked.proxy.tls.unwrap(), asked.api.tls.unwrap());
    assert!(
        users.clients.unwrap().required && api.clients.unwrap().required,
        "who is asked must answer"
    );
    assert_eq!(users.versions, TlsVersions::parse("TLSv1_2").unwrap());
    assert_eq!(api.versions, users.versions);

    let redirected = all(&["--redirect-port", "8080", "--redirect-to", "443", "--port", "8443"]);
    assert!(matches!(redirected.proxy.redirect, Some(Redirect { listen, to: Some(443) }) if listen.port() == 8080));
    let none = all(&["--redirect-port", "8080", "--port", "80"]);
    assert!(
        none.proxy.redirect.is_none() && none.notes.len() == 1,
        "{:?}",
        none.notes
    );
}

#[test]
fn what_cannot_be_had_is_refused_and_says_what_to_do() {
    let said = told(&[
        "--port=80a",
        "--api-port=70000",
        "--ssl-allow-rc4",
        "--ssl-dhparam=x",
        "--storage-backend=redis",
        "--error-target=http://x",
        "--error-path=/tmp",
        "--custom-header=none",
        "--timeout=5s",
        "--log-level=loud",
        "--default-target=hub",
        "--api-ssl-cert=/nonexistent",
        "--api-ssl-request-cert",
        "--client-ssl-key=/nonexistent",
        "--drain-timeout=5",
        "--metrics-socket=",
    ])
    .unwrap_err();
    for part in [
        "--port \"80a\": must be a port",
        "--api-port \"70000\": must be a port",
        "--ssl-allow-rc4: RC4",
        "--ssl-dhparam: every key exchange",
        "--storage-backend: there are no other storages here: leave it out",
        "--error-target and --error-path exclude each other",
        "--custom-header \"none\": a colon is expected",
        "--timeout \"5s\": must be a whole number of milliseconds",
        "--log-level \"loud\": must be debug, info, warn or error",
        "--default-target \"hub\"",
        "--api-ssl-cert \"/nonexistent\": cannot be read",
        "--api-ssl-cert and --api-ssl-key go together",
        "--api-ssl-request-cert needs --api-ssl-ca",
        "--client-ssl-cert and --client-ssl-key go together",
        "--drain-timeout \"5\": has no unit",
        "--metrics-socket \"\": must name a file",
    ] {
        assert!(said.contains(part), "{part} is missing in: {said}");
    }
    for (flags, part) in [
        (&["--api-ip=0.0.0.0"][..], "set CONFIGPROXY_AUTH_TOKEN"),
        (&["--redirect-port=8080"][..], "--redirect-port needs a certificate"),
        (&["--metrics-port=8000"][..], "port 8000 is asked for twice"),
        (&["--port=8002", "--api-port=8002"][..], "port 8002 is asked for twice"),
        (&["--port=65535"][..], "--api-port is missing"),
        (&["--keep-alive-timeout=172800000"][..], "keep_alive_timeout"),
        // By clap.
        (&["--unknown"][..], "unexpected argument '--unknown'"),
        (&["more"][..], "unexpected argument 'more'"),
        (&["--port"][..], "a value is required"),
        (&["--socket=/x", "--port=1"][..], "cannot be used with"),
        (&["--ssl-request-cert=true"][..], "unexpected value 'true'"),
    ] {
        let said = told(flags).unwrap_err();
        assert!(said.contains(part), "{flags:?}: {said}");
    }
}

#[test]
fn the_other_programs_name_is_this_command() {
    let called = |program: &str| is_called_by_name(&[program.into(), "--port=1".into()]);
    assert!(called("configurable-http-proxy") && called("/usr/bin/configurable-http-proxy"));
    assert!(!called("holdfast") && !called("/configurable-http-proxy/holdfast") && !is_called_by_name(&[]));
}
