//! One machine for each replica, as far as the network can tell, and cuts between them.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{finish, run, tool};

/// The bridge, in the namespace of the test and its clients.
const BRIDGE: &str = "switch";
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);

/// A bridge, and a network namespace for each replica on it. Only inside [`apart`](super::apart).
pub struct Network {
    // Each file is a namespace's handle.
    folder: TempDir,
    nodes: Vec<Node>,
}

struct Node {
    handle: PathBuf,
    address: Ipv4Addr,
}

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The replica at this place.
    Replica(usize),
    /// The test itself.
    Clients,
}

/// Packets that do not arrive: of those that `from` sends to `to`, so many of a hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The sender.
    pub from: End,
    /// The receiver, in whose namespace they are dropped.
    pub to: End,
    /// 100: nothing arrives.
    pub percent: u8,
}

impl Cut {
    /// Nothing gets from `from` to `to`; the other direction is another cut.
    pub fn one_way(from: End, to: End) -> Self {
        Cut { from, to, percent: 100 }
    }

    /// Nothing gets from one to the other, in both directions.
    pub fn between(one: End, other: End) -> [Self; 2] {
        [Cut::one_way(one, other), Cut::one_way(other, one)]
    }

    /// So many of a hundred packets are lost, in both directions.
    pub fn loss(one: End, other: End, percent: u8) -> [Self; 2] {
        Cut::between(one, other).map(|cut| Cut { percent, ..cut })
    }
}

impl Network {
    /// Makes the bridge, with nobody on it.
    ///
    /// # Errors
    /// One of the system's programs refuses; nothing outside of the test's namespaces has changed.
    pub fn new() -> Result<Self> {
        // Asked for now: a cut is too late to hear that there is no packet filter.
        run("nft", ["list", "tables"]).context("packets cannot be dropped here")?;
        run("ip", ["link", "add", "name", BRIDGE, "type", "bridge"])?;
        run("ip", ["address", "add", &format!("{CLIENTS}/24"), "dev", BRIDGE])?;
        run("ip", ["link", "set", BRIDGE, "up"])?;
        Ok(Network {
            folder: tempfile::Builder::new().prefix("holdfast-network-").tempdir()?,
            nodes: Vec::new(),
        })
    }

    /// Adds the namespace of one more replica, and returns its place.
    ///
    /// # Errors
    /// As for the bridge.
    pub fn add(&mut self) -> Result<usize> {
        let at = self.nodes.len();
        let handle = self.folder.path().join(at.to_string());
        let last = u8::try_from(10 + at).context("so many do not fit into one network")?;
        let address = Ipv4Addr::new(10, 93, 0, last);
        File::create(&handle)?;
        let text = handle.to_string_lossy().into_owned();
        run("unshare", [format!("--net={text}").as_str(), "--", "true"])?;
        self.nodes.push(Node { handle, address });
        let port = format!("port{at}");
        let (near, far) = (["link", "add", "name", &port, "type", "veth"], ["peer", "name", "net0"]);
        run("ip", near.iter().chain(&far).chain(&["netns", &text]))?;
        run("ip", ["link", "set", &port, "master", BRIDGE, "up"])?;
        self.run_in(at, &["ip", "link", "set", "lo", "up"])?;
        self.run_in(at, &["ip", "address", "add", &format!("{address}/24"), "dev", "net0"])?;
        self.run_in(at, &["ip", "link", "set", "net0", "up"])?;
        Ok(at)
    }

    /// Where the replica at this place is reached.
    pub fn address(&self, at: usize) -> Ipv4Addr {
        self.nodes[at].address
    }

    /// The beginning of a command line that runs the rest of it in the namespace of the replica at this place, under
    /// the same process id.
    pub fn enter(&self, at: usize) -> [OsString; 3] {
        let mut flag = OsString::from("--net=");
        flag.push(&self.nodes[at].handle);
        ["nsenter".into(), flag, "--".into()]
    }

    /// From here on exactly these packets are lost, and no others.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn cut(&self, cuts: &[Cut]) -> Result<()> {
        for at in 0..self.nodes.len() {
            self.filter(End::Replica(at), cuts)?;
        }
        self.filter(End::Clients, cuts)
    }

    /// From here on everything arrives.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn heal(&self) -> Result<()> {
        self.cut(&[])
    }

    fn filter(&self, to: End, cuts: &[Cut]) -> Result<()> {
        // The first two lines make sure that there is a table to remove; all of it takes effect at once.
        let mut rules = String::from("table ip faults\ndelete table ip faults\ntable ip faults {\nchain input {\n");
        rules.push_str("type filter hook input priority 0; policy accept;\n");
        for cut in cuts.iter().filter(|cut| cut.to == to) {
            let from = self.address_of(cut.from);
            match cut.percent {
                100.. => writeln!(rules, "ip saddr {from} drop")?,
                percent => writeln!(rules, "ip saddr {from} numgen random mod 100 < {percent} drop")?,
            }
        }
        rules.push_str("}\n}\n");
        let mut command = match to {
            End::Clients => tool("nft"),
            End::Replica(at) => {
                let [program, arguments @ ..] = self.enter(at);
                let mut command = tool(&program.to_string_lossy());
                command.args(arguments).arg("nft");
                command
            }
        };
        let command = command.args(["-f", "-"]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // Taken and dropped, so that it ends.
        child.stdin.take().context("no pipe")?.write_all(rules.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft: {}\n{rules}", said.trim());
        Ok(())
    }

    fn address_of(&self, end: End) -> Ipv4Addr {
        match end {
            End::Replica(at) => self.address(at),
            End::Clients => CLIENTS,
        }
    }

    fn run_in(&self, at: usize, command: &[&str]) -> Result<String> {
        let [program, arguments @ ..] = self.enter(at);
        let program = program.to_string_lossy();
        finish(&program, tool(&program).args(arguments).args(command))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // They end with the test's namespaces in any case; but a file on which one is mounted cannot be removed.
        for node in &self.nodes {
            let _ = run("umount", ["--lazy".as_ref(), node.handle.as_os_str()]);
        }
        let _ = run("ip", ["link", "delete", BRIDGE]);
    }
}
