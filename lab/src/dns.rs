//! Cluster DNS: one `dnsmasq` on every node, all from the same list of services.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::address::{self, Family};
use crate::node::Node;
use crate::process::{Process, ProcessError, Program};
use crate::services::VirtualService;

/// The cluster's domain.
pub const DOMAIN: &str = "cluster.local";
/// As CoreDNS answers for services, in seconds.
const TTL: &str = "5";
/// Reading a list of some names takes a moment, on a busy machine several.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);

/// The lab's name servers.
#[derive(Debug)]
pub struct Dns {
    hosts: PathBuf,
    written: String,
    servers: Vec<Process>,
}

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The list of names could not be written.
    #[error("cannot write the list of names {path}: {source}; is the disk full?", path = path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `dnsmasq` did not start.
    #[error("cluster DNS did not start: {0}; install the package dnsmasq-base")]
    Start(ProcessError),
    /// `dnsmasq` did not read its list again.
    #[error("cluster DNS did not take up the new list of names: {0}")]
    Reload(ProcessError),
}

impl Dns {
    /// Starts a name server on each node; `extra` are further arguments of `dnsmasq` (records of other kinds, say).
    pub fn start(nodes: &[Node], family: Family, dir: &Path, extra: &[String]) -> Result<Self, DnsError> {
        let hosts = dir.join("dns.hosts");
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&hosts, ""))
            .map_err(|source| DnsError::Hosts { path: hosts.clone(), source })?;
        let program = server(&hosts, family).args(extra);
        let servers = nodes
            .iter()
            .map(|node| {
                let server = node.spawn("dns", &program)?;
                server.wait_until_said("started, version", crate::node::RUN_LIMIT)?;
                Ok(server)
            })
            .collect::<Result<_, _>>()
            .map_err(DnsError::Start)?;
        Ok(Self { hosts, written: String::new(), servers })
    }

    /// Has the name servers answer for these services, and for nothing else; returns when they do.
    pub fn apply(&mut self, services: &[VirtualService]) -> Result<(), DnsError> {
        let text = hosts(services);
        if text == self.written {
            return Ok(());
        }
        // Renamed into place: a server reads the old list or the new one.
        let next = self.hosts.with_extension("next");
        fs::write(&next, &text)
            .and_then(|()| fs::rename(&next, &self.hosts))
            .map_err(|source| DnsError::Hosts { path: self.hosts.clone(), source })?;
        self.written = text;
        let read = format!("read {}", self.hosts.display());
        let before: Vec<_> = self.servers.iter().map(|server| server.said().matches(&read).count()).collect();
        for server in &self.servers {
            server.signal(Signal::SIGHUP);
        }
        for (server, before) in self.servers.iter().zip(before) {
            server.wait_until_said_times(&read, before + 1, RELOAD_LIMIT).map_err(DnsError::Reload)?;
        }
        Ok(())
    }
}

/// Knows the cluster and nothing outside it: the lab has no outside.
fn server(hosts: &Path, family: Family) -> Program {
    let addresses: Vec<_> = address::dns(family).iter().map(ToString::to_string).collect();
    Program::new("dnsmasq")
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ])
        .args(["--user=root", "--pid-file=", "--log-facility=-", "--cache-size=0", "--local=/#/"])
        .arg(format!("--local-ttl={TTL}"))
        .arg(format!("--listen-address={}", addresses.join(",")))
        .arg(format!("--addn-hosts={}", hosts.display()))
}

/// The names of services: their own addresses, or those of their endpoints when they are headless.
fn hosts(services: &[VirtualService]) -> String {
    let mut text = String::new();
    for service in services {
        let addresses: Vec<_> = match service.ips.as_slice() {
            [] => service.endpoints.iter().copied().collect(),
            ips => ips.to_vec(),
        };
        for ip in addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{ip} {}.{}.svc.{DOMAIN}", service.name, service.namespace);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_its_addresses_and_a_headless_one_its_endpoints() {
        let service = |name: &str, ips: &[&str], endpoints: &[&str]| VirtualService {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ports: Vec::new(),
            endpoints: endpoints.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let services = [
            service("web", &["10.43.1.1", "fd00:43::101"], &["10.42.0.2"]),
            service("each", &[], &["10.42.0.2", "10.42.1.2"]),
            service("idle", &[], &[]),
        ];
        assert_eq!(
            hosts(&services),
            "10.43.1.1 web.shop.svc.cluster.local
fd00:43::101 web.shop.svc.cluster.local
10.42.0.2 each.shop.svc.cluster.local
10.42.1.2 each.shop.svc.cluster.local
"
        );
    }
}
