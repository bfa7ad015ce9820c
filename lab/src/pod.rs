//! A pod: a network namespace with one device, joined to its node.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::address::{Family, GATEWAY_V6};
use crate::netns::Netns;
use crate::node::{Node, RUN_LIMIT};
use crate::process::{self, Output, Process, ProcessError, Program};

/// A pod's name in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The pod.
    pub name: String,
}

/// A pod of the lab. A handle: cloning it makes no second pod, dropping it removes none.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) name: PodName,
    pub(crate) netns: Netns,
    pub(crate) node: Node,
    /// Its number among its node's pods, from which its addresses and its device on the node are named.
    pub(crate) host: u8,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) logs: PathBuf,
}

impl PodName {
    /// `namespace` and `name` together.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &PodName {
        &self.name
    }

    /// Its network namespace; its path is what a node agent opens.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node on which it runs.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its addresses, the primary one first.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its address and that port, in the wanted family if the pod has it.
    pub fn address(&self, v6: bool, port: u16) -> Option<SocketAddr> {
        let ip = self.ips.iter().find(|ip| ip.is_ipv6() == v6)?;
        Some(SocketAddr::new(*ip, port))
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

    /// Starts a program that stays; its output is appended to the log `<namespace>.<pod>.<name>.log` of the lab.
    pub fn spawn(&self, name: &str, program: &Program) -> Result<Process, ProcessError> {
        Process::start(Some(&self.netns), program, &self.log(name))
    }

    /// The log file of its program of that name.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.{}.{name}.log", self.name.namespace, self.name.name))
    }

    /// Its device's other end, on the node.
    pub(crate) fn node_device(&self) -> String {
        format!("veth{}", self.host)
    }

    /// The pod's side: addresses that are its alone (/32, /128), everything else by its node.
    pub(crate) fn set_up(&self, family: Family) -> String {
        let mut batch = vec!["link set lo up".to_owned()];
        batch.extend(self.ips.iter().map(|ip| match ip {
            IpAddr::V4(ip) => format!("addr add {ip}/32 dev eth0"),
            IpAddr::V6(ip) => format!("addr add {ip}/128 dev eth0 nodad"),
        }));
        batch.push("link set eth0 up".to_owned());
        if family.v4() {
            let gateway = self.node.index.gateway_v4();
            batch.push(format!("route add {gateway} dev eth0 scope link"));
            batch.push(format!("route add default via {gateway} dev eth0"));
        }
        if family.v6() {
            batch.push(format!("route add default via {GATEWAY_V6} dev eth0"));
        }
        batch.join("\n")
    }

    /// The node's side: the gateway on every pod's link, and one route to each address.
    pub(crate) fn set_up_node(&self, family: Family) -> String {
        let device = self.node_device();
        let mut batch = Vec::new();
        if family.v4() {
            batch.push(format!("addr add {}/32 dev {device}", self.node.index.gateway_v4()));
        }
        if family.v6() {
            batch.push(format!("addr add {GATEWAY_V6}/64 dev {device} nodad"));
        }
        batch.push(format!("link set {device} up"));
        for ip in &self.ips {
            let from = self.node.ips.iter().find(|node| node.is_ipv4() == ip.is_ipv4());
            let from = from.map_or_else(String::new, |from| format!(" src {from}"));
            batch.push(format!("route add {ip} dev {device}{from}"));
        }
        batch.join("\n")
    }
}
