//! Traefik: a router for each route and a service for each target, in a folder of files that it watches.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use holdfast_tests::fixture::Process;

use super::{Kind, Place, Routes};

const FOLDER: &str = "dynamic";

pub(super) fn prepare(place: &Place, routes: &Routes) -> Result<Process> {
    let routers: Vec<_> = (0..routes.count()).map(|route| router(routes, route)).collect();
    let services = routes.targets().iter().enumerate().map(|(number, target)| {
        format!(r#""t{number}": {{"loadBalancer": {{"servers": [{{"url": "http://{target}"}}]}}}}"#)
    });
    let services: Vec<_> = services.collect();
    fs::create_dir_all(place.folder().join(FOLDER))?;
    // JSON is YAML too.
    let config = format!(
        r#"{{"http": {{"routers": {{{}}}, "services": {{{}}}}}}}"#,
        routers.join(",\n"),
        services.join(",\n")
    );
    fs::write(file(place, "routes"), config)?;
    let folder = place.folder().join(FOLDER);
    Ok(place
        .process(Kind::Traefik)?
        .args([
            format!("--entryPoints.users.address={}", place.address()),
            format!("--providers.file.directory={}", folder.display()),
        ])
        .args([
            "--providers.file.watch=true",
            // It would wait 2 s for further changes.
            "--providers.providersThrottleDuration=1ms",
            "--log.level=ERROR",
            "--global.checkNewVersion=false",
            "--global.sendAnonymousUsage=false",
        ]))
}

/// A file more in the folder.
pub(super) fn add(place: &Place, routes: &Routes, route: usize) -> Result<()> {
    let config = format!(r#"{{"http": {{"routers": {{{}}}}}}}"#, router(routes, route));
    let new = place.folder().join("new.yml");
    fs::write(&new, config)?;
    fs::rename(new, file(place, &format!("route-{route}")))?;
    Ok(())
}

fn file(place: &Place, name: &str) -> PathBuf {
    place.folder().join(FOLDER).join(format!("{name}.yml"))
}

fn router(routes: &Routes, route: usize) -> String {
    let (prefix, target) = (routes.prefix(route), routes.target(route));
    format!(r#""r{route}": {{"entryPoints": ["users"], "rule": "PathPrefix(`{prefix}`)", "service": "t{target}"}}"#)
}
