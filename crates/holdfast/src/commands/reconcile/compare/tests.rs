use super::*;

use holdfast_table::Route;

use crate::commands::reconcile::hub::Service;

const ALIVE: &str = "http://10.0.0.1:1";
const GONE: &str = "http://10.0.0.2:1";
const SILENT: &str = "http://10.0.0.3:1";
const UNSEEN: &str = "http://10.0.0.4:1";

fn route(spec: &str, target: &str, data: &str) -> Entry {
    Entry {
        route: Route::parse(spec, target, data, "").unwrap(),
        modified: Revision(7),
    }
}

fn hub() -> Entry {
    route("/", "http://10.0.0.9:1", r#"{"hub":true}"#)
}

fn of(user: &str, target: &str) -> Entry {
    let data = format!(r#"{{"server_name":"","user":"{user}"}}"#);
    route(&format!("/user/{user}/"), target, &data)
}

fn server(user: &str, ready: bool) -> Server {
    let url = format!("/user/{user}/");
    Server {
        user: user.to_owned(),
        name: String::new(),
        spec: RouteSpec::parse(&url).ok(),
        url,
        ready,
    }
}

fn found(routes: &[Entry], servers: &[Server]) -> Vec<(Kind, String, Repair)> {
    let wanted = Wanted {
        servers: servers.to_vec(),
        services: Vec::new(),
    };
    found_in(routes, &wanted)
}

fn found_in(routes: &[Entry], wanted: &Wanted) -> Vec<(Kind, String, Repair)> {
    let reached = HashMap::from([
        ("10.0.0.1:1".to_owned(), Reach::Accepts),
        ("10.0.0.9:1".to_owned(), Reach::Accepts),
        ("10.0.0.2:1".to_owned(), Reach::Refuses("connection refused".to_owned())),
        ("10.0.0.3:1".to_owned(), Reach::Silent("no connection".to_owned())),
    ]);
    let found = compare(&Seen {
        routes,
        wanted,
        reached: &reached,
        proxies: &[],
        silent_replicas: &[],
    });
    found
        .into_iter()
        .map(|found| (found.kind, found.about, found.repair))
        .collect()
}

fn delete(spec: &str) -> Repair {
    Repair::Delete(RouteSpec::parse(spec).unwrap(), Revision(7))
}

#[test]
fn what_agrees_is_no_disagreement() {
    let extra = route("/docs/", ALIVE, "{}");
    let everything = [hub(), extra, of("alice", ALIVE)];
    assert!(found(&everything, &[server("alice", true)]).is_empty());
    assert!(found(&[hub()], &[]).is_empty());
}

#[test]
fn a_ready_server_without_a_route_is_for_the_hub_to_mend() {
    assert_eq!(
        found(&[hub()], &[server("alice", true)]),
        [(Kind::ServerWithoutRoute, "/user/alice/".to_owned(), Repair::HubChecks)]
    );
    assert_eq!(
        found(&[], &[]),
        [(Kind::ServerWithoutRoute, "the hub".to_owned(), Repair::HubChecks)]
    );
    // Another spelling of the same path leads there just as well.
    let spelled = route("/user/%61lice/", ALIVE, r#"{"user":"alice"}"#);
    assert!(found(&[hub(), spelled], &[server("alice", true)]).is_empty());
}

#[test]
fn a_route_goes_only_if_the_hub_does_not_know_it_and_nobody_is_at_its_target() {
    // The target, whether another user's server was heard, what the hub says of alice's, and what comes of it.
    let by_hand = None;
    let no_disagreement = Some(None);
    let of_kind = |kind: Kind, repair: Repair| Some(Some((kind, repair)));
    let stale = |repair| of_kind(Kind::RouteWithoutServer, repair);
    let deleted = stale(delete("/user/alice/"));
    for (target, hears, alice, expected) in [
        (ALIVE, true, None, by_hand.clone()),
        (UNSEEN, true, None, by_hand.clone()),
        (GONE, true, None, deleted.clone()),
        (GONE, false, None, deleted.clone()),
        (SILENT, true, None, deleted),
        (SILENT, false, None, by_hand),
        (ALIVE, true, Some(true), no_disagreement.clone()),
        (UNSEEN, true, Some(true), no_disagreement.clone()),
        (GONE, true, Some(false), no_disagreement.clone()),
        (SILENT, true, Some(false), no_disagreement),
    ] {
        let mut routes = vec![hub(), of("alice", target)];
        let mut servers: Vec<Server> = alice.map(|ready| server("alice", ready)).into_iter().collect();
        if hears {
            // Not the same address as alice's.
            let mut bobs = of("bob", "http://10.0.0.9:1");
            bobs.route.target = Target::parse("http://10.0.0.9:1/bob").unwrap();
            routes.push(bobs);
            servers.push(server("bob", true));
        }
        let found = found(&routes, &servers);
        match expected {
            Some(None) => assert!(found.is_empty(), "{target} {hears} {alice:?}: {found:?}"),
            Some(Some((kind, repair))) => assert_eq!(found, [(kind, "/user/alice/".to_owned(), repair)]),
            None => {
                assert_eq!(found.len(), 1, "{target} {hears} {alice:?}: {found:?}");
                assert_eq!(found[0].0, Kind::RouteWithoutServer);
                assert!(!found[0].2.is_safe(), "{target} {hears} {alice:?}: {found:?}");
            }
        }
    }
}

#[test]
fn a_dead_target_of_a_wanted_route_is_never_ours_to_mend() {
    for target in [GONE, SILENT] {
        let found = found(&[hub(), of("alice", target)], &[server("alice", true)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1.as_str()), (Kind::DeadTarget, "/user/alice/"));
        assert!(
            matches!(&found[0].2, Repair::ByHand(text) if text.contains("alice")),
            "{found:?}"
        );
    }
    // Nor is anything that no user has.
    for data in [
        r#"{"hub":true}"#,
        r#"{"extra":true}"#,
        "{}",
        r#"{"user":1}"#,
        r#"{"user":1e999}"#,
    ] {
        let found = found(&[hub(), route("/other/", GONE, data)], &[]);
        assert_eq!(found.len(), 1, "{data}: {found:?}");
        assert_eq!(found[0].0, Kind::DeadTarget, "{data}");
        assert!(!found[0].2.is_safe(), "{data}");
    }
}

#[test]
fn two_users_on_one_target_are_told_but_one_user_may_have_two_routes_there() {
    let servers = [server("alice", true), server("bob", true)];
    let shared = found(&[hub(), of("alice", ALIVE), of("bob", "http://10.0.0.1:1/")], &servers);
    assert_eq!(shared.len(), 1, "{shared:?}");
    assert_eq!((shared[0].0, shared[0].1.as_str()), (Kind::TwoUsersOneTarget, ALIVE));
    assert!(!shared[0].2.is_safe());
    // Paths of their own, as behind a gateway.
    let apart = [
        hub(),
        of("alice", "http://10.0.0.1:1/a"),
        of("bob", "http://10.0.0.1:1/b"),
    ];
    assert!(found(&apart, &servers).is_empty());
    let second = route("/docs/", ALIVE, r#"{"user":"alice"}"#);
    let found = found(&[hub(), of("alice", ALIVE), second], &servers[..1]);
    assert!(
        found.iter().all(|(kind, ..)| *kind != Kind::TwoUsersOneTarget),
        "{found:?}"
    );
}

#[test]
fn a_service_is_known_by_its_name_and_path() {
    let wanted = Wanted {
        servers: Vec::new(),
        services: vec![Service {
            name: "docs".to_owned(),
            prefix: "/services/docs/".to_owned(),
        }],
    };
    let data = r#"{"service":"docs"}"#;
    for (spec, target, expected) in [
        ("/services/docs/", ALIVE, vec![]),
        ("docs.hub.test/services/docs/", ALIVE, vec![]),
        (
            "/old/docs/",
            GONE,
            vec![
                (
                    Kind::ServerWithoutRoute,
                    "/services/docs/".to_owned(),
                    Repair::HubChecks,
                ),
                (Kind::RouteWithoutServer, "/old/docs/".to_owned(), delete("/old/docs/")),
            ],
        ),
    ] {
        assert_eq!(
            found_in(&[hub(), route(spec, target, data)], &wanted),
            expected,
            "{spec}"
        );
    }
}

#[test]
fn a_server_that_no_route_can_lead_to_is_told() {
    let mut server = server("alice", true);
    (server.url, server.spec) = ("/user/../".to_owned(), None);
    let found = found(&[hub()], &[server]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].0, found[0].1.as_str()),
        (Kind::ServerWithoutRoute, "/user/../")
    );
    assert!(!found[0].2.is_safe());
}

#[test]
fn proxies_and_replicas_are_told_and_left_alone() {
    let proxy = |name: &str, problem: Option<Kind>| Proxy {
        name: name.to_owned(),
        problem: problem.map(|kind| (kind, "it is so".to_owned())),
    };
    let proxies = [
        proxy("p0", None),
        proxy("p1", Some(Kind::ProxyBehind)),
        proxy("p2", Some(Kind::ProxyDiffers)),
    ];
    let found = compare(&Seen {
        routes: &[hub()],
        wanted: &Wanted::default(),
        reached: &HashMap::new(),
        proxies: &proxies,
        silent_replicas: &["10.0.0.1:7011".to_owned()],
    });
    assert!(found.iter().all(|found| !found.repair.is_safe()), "{found:?}");
    let found: Vec<_> = found.iter().map(|found| (found.kind, found.about.as_str())).collect();
    assert_eq!(
        found,
        [
            (Kind::ProxyDiffers, "p2"),
            (Kind::ProxyBehind, "p1"),
            (Kind::ReplicaSilent, "10.0.0.1:7011")
        ]
    );
}
