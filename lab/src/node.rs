//! A node: a network namespace on the wire, in which the node's daemons run.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::{Family, NodeIndex};
use crate::link::Link;
use crate::netns::Netns;
use crate::process::{self, Output, Process, ProcessError, Program};
use crate::services::DEAD_END;

/// A command run in a node or pod is given this long unless told otherwise.
pub(crate) const RUN_LIMIT: Duration = Duration::from_secs(30);

/// A node of the lab. A handle: cloning it makes no second node.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    pub(crate) index: NodeIndex,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) link: Link,
    pub(crate) logs: PathBuf,
}

impl Node {
    /// Its name, as in `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses on the wire, IPv4 first.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its end of the wire.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Runs a command to its end, in at most half a minute.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output, ProcessError> {
        self.run(&Program::line(argv), RUN_LIMIT)
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &Program, limit: Duration) -> Result<Output, ProcessError> {
        process::run(Some(&self.netns), program, limit)
    }

    /// Starts a program that stays; its output is appended to the log `<node>.<name>.log` of the lab.
    pub fn spawn(&self, name: &str, program: &Program) -> Result<Process, ProcessError> {
        Process::start(Some(&self.netns), program, &self.log(name))
    }

    /// The log file of its program of that name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.{name}.log", self.name))
    }

    /// What makes this namespace a node: `ip` commands.
    pub(crate) fn set_up(&self, family: Family, on_wire: bool, others: &[&Self]) -> String {
        let mut batch = vec!["link set lo up".to_owned()];
        if on_wire {
            for ip in &self.ips {
                batch.push(match ip {
                    IpAddr::V4(ip) => format!("addr add {ip}/24 dev eth0"),
                    IpAddr::V6(ip) => format!("addr add {ip}/64 dev eth0 nodad"),
                });
            }
            batch.push("link set eth0 up".to_owned());
        } else {
            batch.extend(self.ips.iter().map(|ip| format!("addr add {ip} dev lo")));
        }
        batch.extend(crate::address::dns(family).iter().map(|ip| format!("addr add {ip} dev lo")));
        // Services, and what is outside the lab, have no place: packets to them are sent to a dead end, which lets them
        // get as far as the rules that redirect or refuse them. Into loopback IPv6 would not route them.
        batch.push(format!("link add {DEAD_END} index 103 type veth peer name {DEAD_END}-end index 104"));
        batch.push(format!("link set {DEAD_END} up"));
        batch.push(format!("link set {DEAD_END}-end up"));
        for ip in &self.ips {
            let everything = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            batch.push(format!("route add {everything} dev {DEAD_END} src {ip}"));
        }
        for other in others {
            for ip in &other.ips {
                let pods = match ip {
                    IpAddr::V4(_) => other.index.pods_v4(),
                    IpAddr::V6(_) => other.index.pods_v6(),
                };
                batch.push(format!("route add {pods} via {ip}"));
            }
        }
        batch.join("\n")
    }
}
