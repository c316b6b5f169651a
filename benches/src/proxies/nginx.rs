//! nginx: a location for each route, which it keeps in a tree, and an upstream for each target.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;

use anyhow::Result;
use holdfast_tests::fixture::Process;
use nix::sys::signal::Signal;

use super::{Kind, Place, Routes};
use crate::programs::Program;

const FILE: &str = "nginx.conf";
const LOCATIONS: &str = "locations.conf";
/// Kept for each target by each worker. Of many targets each has few.
const IDLE_SHARED: usize = 64;
const IDLE_OWN: usize = 8;

pub(super) fn prepare(place: &Place, routes: &Routes) -> Result<Process> {
    let idle = if routes.targets().len() > IDLE_SHARED {
        IDLE_OWN
    } else {
        IDLE_SHARED
    };
    let mut upstreams = String::new();
    for (number, target) in routes.targets().iter().enumerate() {
        writeln!(
            upstreams,
            "upstream t{number} {{ server {target}; keepalive {idle}; keepalive_requests 1000000000; }}"
        )?;
    }
    // The user is who runs this: another one could not enter the folder.
    let config = format!(
        "user root;
daemon off;
pid nginx.pid;
error_log stderr error;
worker_processes auto;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    map $http_upgrade $connection_to_target {{ default upgrade; '' ''; }}
    proxy_http_version 1.1;
    proxy_read_timeout 1h;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_to_target;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Port $server_port;
    proxy_set_header X-Forwarded-Proto $scheme;
    {upstreams}
    server {{
        listen {};
        location / {{ return 404; }}
        include {LOCATIONS};
    }}
}}
",
        place.address()
    );
    let mut locations = String::new();
    for route in 0..routes.count() {
        locations += &location(routes, route);
    }
    fs::write(place.folder().join(LOCATIONS), locations)?;
    fs::write(place.folder().join(FILE), config)?;
    let folder = place.folder();
    Ok(place
        .process(Kind::Nginx)?
        .args(["-e", "stderr", "-c", FILE, "-p"])
        .args([folder]))
}

/// One line more in the configuration, and the signal to read it again.
pub(super) fn add(place: &Place, program: &mut Program, routes: &Routes, route: usize) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(place.folder().join(LOCATIONS))?;
    file.write_all(location(routes, route).as_bytes())?;
    program.signal(Signal::SIGHUP);
    Ok(())
}

fn location(routes: &Routes, route: usize) -> String {
    let (prefix, target) = (routes.prefix(route), routes.target(route));
    format!("location {prefix} {{ proxy_pass http://t{target}; }}\n")
}
