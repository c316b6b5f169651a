//! Where the table comes from, what is served without one, and what survives.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_client::Endpoints;
use holdfast_proxy::{BuildError, TrustedProxies};
use tempfile::TempDir;

use crate::fixture::{CLUSTER, Conversation, Proxy, Replica, Setup, Target, ask, config, get, table, until};

/// P2: a proxy without a table says that it does not know, and never that there is nothing.
#[tokio::test]
async fn without_a_table_there_is_503_and_never_404() {
    let directory = TempDir::new().unwrap();
    let proxy = Proxy::start(config(directory.path())).await;
    for path in ["/", "/user/alice/", "/nowhere"] {
        let answer = get(proxy.public, path).await;
        assert_eq!(answer.status(), 503);
        assert!(answer.header("retry-after").is_some());
    }
    let health = get(proxy.public, "/_chp_healthz").await;
    assert_eq!(health.status(), 503);
    let ready = get(proxy.admin, "/readyz?verbose").await;
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.text(), "[-] table\n[+] listeners\n[+] not-draining\nnot ready\n");
    assert_eq!(get(proxy.admin, "/livez").await.status(), 200);
    let status = proxy.status().await;
    assert_eq!(status["source"], "none");
    assert!(status["digest"].is_null() && status["staleness_ms"].is_null() && status["cluster_id"].is_null());
    assert_eq!(
        proxy.metric(r#"holdfast_proxy_no_route_total{cause="no_table"}"#).await,
        3.0
    );
    proxy.stop().await;
    assert!(
        !directory.path().join("table.cache").exists(),
        "no table is not an empty table"
    );
}

#[tokio::test]
async fn the_stream_is_followed_and_reported() {
    let (one, two) = tokio::join!(Target::mirror("one"), Target::mirror("two"));
    let setup = Setup::new(&[("/user/a/", &one.url), ("/user/b/", &one.url)]).await;
    let health = get(setup.proxy.public, "/_chp_healthz").await;
    assert_eq!((health.status(), health.text().as_str()), (200, r#"{"status":"OK"}"#));
    assert_eq!(get(setup.proxy.admin, "/readyz").await.status(), 200);

    let next = table(2, &[("/user/a/", &two.url)]);
    let digest = next.digest().to_string();
    setup.replica.set(next);
    setup.proxy.at(2).await;
    assert_eq!(
        get(setup.proxy.public, "/user/a/").await.header("x-target"),
        Some("two")
    );
    assert_eq!(get(setup.proxy.public, "/user/b/").await.status(), 404);
    // The first bookmark proves that the leader has no more.
    until(async || !setup.proxy.status().await["staleness_ms"].is_null()).await;
    let status = setup.proxy.status().await;
    assert_eq!(status["name"], "p0");
    assert_eq!(status["cluster_id"], CLUSTER);
    assert_eq!(
        (&status["epoch"], &status["revision"], &status["routes"]),
        (&1.into(), &2.into(), &1.into())
    );
    assert_eq!(status["digest"], digest);
    assert_eq!(status["source"], "stream");
    assert_eq!(
        (&status["connected"], &status["draining"]),
        (&true.into(), &false.into())
    );
    assert_eq!(setup.proxy.metric("holdfast_proxy_table_revision").await, 2.0);
    assert_eq!(
        setup
            .proxy
            .metric(r#"holdfast_proxy_table_source{source="stream"}"#)
            .await,
        1.0
    );
    assert!(setup.proxy.metric("holdfast_proxy_table_staleness_seconds").await < 20.0);
    let requests = r#"holdfast_proxy_requests_total{kind="web",code_class="4xx"}"#;
    assert_eq!(setup.proxy.metric(requests).await, 1.0);
}

/// P1: without any replica everything goes on, readiness included.
#[tokio::test]
async fn losing_all_replicas_takes_no_route_and_no_readiness() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    setup.replica.stop().await;
    until(async || setup.proxy.status().await["connected"] == false).await;
    assert_eq!(get(setup.proxy.public, "/").await.status(), 200);
    assert_eq!(get(setup.proxy.admin, "/readyz").await.status(), 200);
    assert_eq!(setup.proxy.status().await["source"], "stream");
}

/// P1: neither does a restart, with every replica gone.
#[tokio::test]
async fn a_restart_from_the_cache_serves_every_route() {
    let hub = Target::mirror("hub").await;
    let specs: Vec<String> = (0..3000).map(|n| format!("/user/name-{n}/")).collect();
    let routes: Vec<(&str, &str)> = specs.iter().map(|spec| (spec.as_str(), hub.url.as_str())).collect();
    let Setup {
        proxy,
        replica,
        directory,
    } = Setup::new(&routes).await;
    let digest = proxy.status().await["digest"].clone();
    replica.stop().await;
    proxy.stop().await;

    let proxy = Proxy::start(config(directory.path())).await;
    let started = Instant::now();
    assert_eq!(get(proxy.public, &specs[0]).await.status(), 200);
    // Nobody can be asked, and that is known at once.
    assert!(
        started.elapsed() < Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    let status = proxy.status().await;
    assert_eq!(
        (&status["source"], &status["connected"]),
        (&"cache".into(), &false.into())
    );
    assert_eq!(status["digest"], digest);
    assert_eq!(status["cluster_id"], CLUSTER);
    assert_eq!(get(proxy.admin, "/readyz").await.status(), 200);
    for spec in specs.iter().step_by(50) {
        assert_eq!(get(proxy.public, spec).await.status(), 200, "{spec}");
    }
}

/// A crash loses at most what is younger than the last copy.
#[tokio::test]
async fn the_copy_is_written_while_the_proxy_runs() {
    let setup = Setup::new(&[("/", "http://127.0.0.1:1")]).await;
    until(async || setup.proxy.metric("holdfast_proxy_cache_revision").await == 1.0).await;
    setup.replica.set(table(2, &[("/a/", "http://127.0.0.1:1")]));
    until(async || setup.proxy.metric("holdfast_proxy_cache_revision").await == 2.0).await;
    for name in ["table.cache", "table.cache.1"] {
        assert!(setup.directory.path().join(name).exists(), "{name}");
    }
}

/// P6: damage is found and never served.
#[tokio::test]
async fn a_damaged_cache_is_no_table() {
    let setup = Setup::new(&[("/", "http://127.0.0.1:1")]).await;
    setup.proxy.stop().await;
    for name in ["table.cache", "table.cache.1"] {
        let path = setup.directory.path().join(name);
        if let Ok(mut bytes) = fs::read(&path) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&path, bytes).unwrap();
        }
    }
    let proxy = Proxy::start(config(setup.directory.path())).await;
    assert_eq!(proxy.status().await["source"], "none");
    assert_eq!(get(proxy.public, "/").await.status(), 503);
}

#[tokio::test]
async fn a_copy_that_cannot_be_written_is_counted_and_stops_nothing() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    until(async || setup.proxy.metric("holdfast_proxy_cache_revision").await == 1.0).await;
    // A directory in the way of the temporary file stops even root.
    let obstacle = setup.directory.path().join("table.cache.tmp");
    fs::create_dir(&obstacle).unwrap();
    setup.replica.set(table(2, &[("/", &hub.url), ("/a/", &hub.url)]));
    setup.proxy.at(2).await;
    until(async || setup.proxy.metric("holdfast_proxy_cache_write_errors_total").await >= 1.0).await;
    assert_eq!(get(setup.proxy.public, "/a/").await.status(), 200);
    fs::remove_dir(&obstacle).unwrap();
    until(async || setup.proxy.metric("holdfast_proxy_cache_revision").await == 2.0).await;
}

#[tokio::test]
async fn what_stands_in_the_way_of_a_start_is_named() {
    let directory = TempDir::new().unwrap();
    let first = config(directory.path()).build().await.unwrap();
    let said = |error: BuildError| error.to_string();

    let locked = said(config(directory.path()).build().await.err().unwrap());
    assert!(
        locked.contains("data_dir") && locked.contains(&directory.path().display().to_string()),
        "{locked}"
    );

    let other = TempDir::new().unwrap();
    let mut taken = config(other.path());
    taken.listen = first.public_addresses().to_vec();
    let taken = said(taken.build().await.err().unwrap());
    assert!(
        taken.contains("listen") && taken.contains(&first.public_addresses()[0].to_string()),
        "{taken}"
    );

    let mut taken = config(other.path());
    taken.listen_admin = first.admin_address();
    let taken = said(taken.build().await.err().unwrap());
    assert!(taken.contains("listen_admin"), "{taken}");

    let file = other.path().join("file");
    fs::write(&file, "").unwrap();
    let no_directory = said(config(&file.join("below")).build().await.err().unwrap());
    assert!(
        no_directory.contains("data_dir") && no_directory.contains("below"),
        "{no_directory}"
    );

    let mut wrong = config(other.path());
    wrong.name = String::new();
    wrong.connect_timeout = Duration::ZERO;
    let wrong = said(wrong.build().await.err().unwrap());
    assert!(wrong.contains("name") && wrong.contains("connect_timeout"), "{wrong}");
}

/// The higher revision wins: a replica that is behind does not take the table back.
#[tokio::test]
async fn an_older_table_does_not_replace_the_cached_one() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    setup.replica.set(table(5, &[("/", &hub.url), ("/a/", &hub.url)]));
    setup.proxy.at(5).await;
    setup.proxy.stop().await;
    let behind = Replica::start(table(3, &[])).await;
    let mut config = config(setup.directory.path());
    config.endpoints = Endpoints::parse(&[behind.address.to_string()]).unwrap();
    let proxy = Proxy::start(config).await;
    // When it asks again, it has refused what it was offered.
    until(async || behind.subscribes.load(Ordering::SeqCst) >= 3).await;
    let status = proxy.status().await;
    assert_eq!((&status["revision"], &status["routes"]), (&5.into(), &2.into()));
    assert_eq!(get(proxy.public, "/a/").await.status(), 200);
}

/// P4: by now the copy's address may be another user's, so a replica that can be asked is asked before anybody is let in.
#[tokio::test]
async fn nobody_is_served_from_an_old_copy_while_a_replica_is_about_to_answer() {
    let (old, new) = (Target::mirror("old").await, Target::mirror("new").await);
    let setup = Setup::new(&[("/user/a/", &old.url)]).await;
    setup.proxy.stop().await;
    setup.replica.stop().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(setup.directory.path());
    config.endpoints = Endpoints::parse(&[listener.local_addr().unwrap().to_string()]).unwrap();
    let proxy = Proxy::start(config).await;
    let mut user = Conversation::connect(proxy.public).await;
    user.send("GET /user/a/ HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(proxy.status().await["source"], "cache");
    let _replica = Replica::on(listener, table(2, &[("/user/a/", &new.url)]));
    let answer = user.answer().await;
    assert_eq!((answer.status(), answer.header("x-target")), (200, Some("new")));
}

/// A replica holds some deletions for as long as somebody may still be served: it has to hear of the dead.
#[tokio::test]
async fn a_replica_hears_of_a_target_that_refuses_connections_and_of_no_other() {
    let slow = Target::start(|conversation| async move {
        // Takes the connection and says nothing, until it is cut.
        let _kept = conversation;
        std::future::pending().await
    })
    .await;
    let well = Target::mirror("well").await;
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let routes = [("/dead/", dead.as_str()), ("/well/", &well.url), ("/slow/", &slow.url)];
    let setup = Setup::new(&routes).await;
    let cut = tokio::time::timeout(Duration::from_millis(300), get(setup.proxy.public, "/slow/"));
    assert!(cut.await.is_err(), "nobody answers");
    assert_eq!(get(setup.proxy.public, "/well/").await.status(), 200);
    for _ in 0..3 {
        assert_eq!(get(setup.proxy.public, "/dead/x").await.status(), 503);
    }
    until(async || !setup.replica.refused.lock().unwrap().is_empty()).await;
    // The next frame comes after all that were sent before it.
    setup.replica.set(table(2, &routes));
    setup.proxy.at(2).await;
    assert_eq!(
        *setup.replica.refused.lock().unwrap(),
        [("/dead/".to_owned(), 1)],
        "once, and in its version"
    );
    setup.proxy.stop().await;
}

/// For operators who would rather have nobody served than somebody by an old table.
#[tokio::test]
async fn a_table_older_than_it_may_be_is_not_served_until_a_replica_vouches_for_it() {
    let hub = Target::mirror("hub").await;
    let most = Duration::from_secs(5);
    let replica = Replica::start(table(1, &[("/", &hub.url)])).await;
    // Another one, which does not answer yet.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [replica.address, listener.local_addr().unwrap()].map(|address| address.to_string());
    let setup = Setup::with(&[], |config| {
        config.endpoints = Endpoints::parse(&endpoints).unwrap();
        config.max_stale = Some(most);
    })
    .await;
    until(async || !setup.proxy.status().await["staleness_ms"].is_null()).await;
    let ready = get(setup.proxy.admin, "/readyz?verbose").await.text();
    assert_eq!(ready, "[+] table\n[+] listeners\n[+] not-draining\n[+] not-stale\nok\n");
    let stopped = Instant::now();
    replica.stop().await;
    until(async || get(setup.proxy.public, "/").await.status() == 503).await;
    assert!(
        stopped.elapsed() > most - Duration::from_secs(1),
        "{:?}",
        stopped.elapsed()
    );
    let answer = get(setup.proxy.public, "/").await;
    assert!(answer.header("retry-after").is_some(), "{}", answer.head);
    assert_eq!(get(setup.proxy.public, "/_chp_healthz").await.status(), 503);
    let ready = get(setup.proxy.admin, "/readyz").await;
    assert_eq!(
        (ready.status(), ready.text().as_str()),
        (503, "[-] not-stale\nnot ready\n")
    );
    let series = r#"holdfast_proxy_no_route_total{cause="stale_table"}"#;
    assert_eq!(setup.proxy.metric(series).await, 2.0);
    let _replica = Replica::on(listener, table(2, &[("/", &hub.url)]));
    until(async || get(setup.proxy.public, "/").await.status() == 200).await;
    until(async || get(setup.proxy.admin, "/readyz").await.status() == 200).await;
}

/// Has the table's copy say that a replica vouched for it so long ago.
fn age_copy(directory: &TempDir, age: Duration) {
    let path = directory.path().join("table.cache");
    let mut bytes = fs::read(&path).unwrap();
    let vouched = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - age;
    let vouched = (vouched.as_millis() as u64).to_le_bytes();
    bytes[12..20].copy_from_slice(&vouched);
    bytes[20..24].copy_from_slice(&crc32fast::hash(&vouched).to_le_bytes());
    fs::write(&path, bytes).unwrap();
}

/// P7: however often it starts again, a proxy knows how old its table is.
#[tokio::test]
async fn a_restart_makes_no_table_younger() {
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
    let hub = Target::mirror("hub").await;
    let Setup {
        proxy,
        replica,
        directory,
    } = Setup::new(&[("/", &hub.url)]).await;
    until(async || !proxy.status().await["staleness_ms"].is_null()).await;
    replica.stop().await;
    proxy.stop().await;
    age_copy(&directory, WEEK);
    let mut limited = true;
    for _ in 0..3 {
        let mut config = config(directory.path());
        config.max_stale = limited.then_some(Duration::from_secs(300));
        config.policy.trusted_proxies = TrustedProxies::parse("127.0.0.0/8").unwrap();
        let proxy = Proxy::start(config).await;
        let answer = get(proxy.public, "/").await;
        assert_eq!(answer.status(), if limited { 503 } else { 200 }, "{}", answer.head);
        let told = answer
            .header("x-holdfast-staleness-ms")
            .unwrap()
            .parse::<u64>()
            .unwrap();
        let status = proxy.status().await["staleness_ms"].as_u64().unwrap();
        let metric = proxy.metric("holdfast_proxy_table_staleness_seconds").await;
        for seconds in [told as f64 / 1e3, status as f64 / 1e3, metric] {
            let expected = WEEK.as_secs_f64()..WEEK.as_secs_f64() + 60.0;
            assert!(expected.contains(&seconds), "{seconds}");
        }
        assert_eq!(proxy.status().await["ready"], !limited);
        proxy.stop().await;
        limited = !limited;
    }
}

/// A replica may be wrong by itself: that every route is gone is believed of two.
#[tokio::test]
async fn one_replica_that_says_that_every_route_is_gone_empties_no_proxy() {
    let hub = Target::mirror("hub").await;
    let setup = Setup::new(&[("/", &hub.url)]).await;
    setup.proxy.stop().await;
    let wrong = Replica::start(table(2, &[])).await;
    let mut config = config(setup.directory.path());
    config.endpoints = Endpoints::parse(&[wrong.address.to_string()]).unwrap();
    let proxy = Proxy::start(config).await;
    until(async || wrong.subscribes.load(Ordering::SeqCst) >= 3).await;
    let status = proxy.status().await;
    assert_eq!((&status["revision"], &status["routes"]), (&1.into(), &1.into()));
    assert_eq!(get(proxy.public, "/").await.status(), 200);
}

#[tokio::test]
async fn a_trusted_caller_is_told_by_which_table_it_was_answered_and_nobody_else() {
    let hub = Target::mirror("hub").await;
    let names = ["x-holdfast-revision", "x-holdfast-source", "x-holdfast-staleness-ms"];
    for (trusted, forwarded, is_told) in [
        ("127.0.0.0/8", "", true),
        ("127.0.0.0/8", "X-Forwarded-For: 6.6.6.6\r\n", false),
        ("10.0.0.0/8", "", false),
    ] {
        let setup = Setup::with(&[("/user/", &hub.url)], |config| {
            config.policy.trusted_proxies = TrustedProxies::parse(trusted).unwrap();
        })
        .await;
        until(async || !setup.proxy.status().await["staleness_ms"].is_null()).await;
        for path in ["/user/", "/nowhere"] {
            let answer = ask(
                setup.proxy.public,
                format!("GET {path} HTTP/1.1\r\nHost: a\r\n{forwarded}\r\n"),
            )
            .await;
            let told = names.map(|name| answer.header(name));
            match is_told {
                true => {
                    assert_eq!(told[..2], [Some("1"), Some("stream")], "{}", answer.head);
                    assert!(told[2].unwrap().parse::<u64>().unwrap() < 20_000, "{}", answer.head);
                }
                false => assert_eq!(told, [None; 3], "{}", answer.head),
            }
        }
    }
}

#[tokio::test]
async fn open_files_are_counted() {
    let setup = Setup::new(&[]).await;
    until(async || setup.proxy.metric("holdfast_proxy_open_files").await > 3.0).await;
    let most = setup.proxy.metric("holdfast_proxy_open_files_max").await;
    assert!(most > setup.proxy.metric("holdfast_proxy_open_files").await, "{most}");
}
