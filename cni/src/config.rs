//! What the operator says, on the command line or in the environment. Read once, by `main`.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use ambit_runtime::admin::Address;
use clap::{Args, Parser};

use crate::redirect::{
    ProbeAddresses,
    rules::{PROBE_V4, PROBE_V6},
};

/// Captures the traffic of this node's pods and feeds the node's tunnel.
#[derive(Debug, Clone, Parser)]
#[command(name = "ambit-cni-agent", version)]
pub struct Config {
    /// Where pods and namespaces are described: `kubernetes`, or `directory:PATH`.
    #[arg(long, env = "SOURCE", value_name = "KIND[:WHERE]")]
    pub source: Source,

    /// The name of this node: pods with it in `spec.nodeName` are ours.
    #[arg(long, env = "NODE_NAME", value_parser = node_name)]
    pub node: String,

    /// The socket at which tunnels connect.
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds_socket: PathBuf,

    /// Whether DNS is captured, in pods that do not say.
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns_capture: bool,

    /// Whether IPv6 is captured, in pods that have it.
    #[arg(long, env = "AMBIENT_IPV6", default_value_t = true, action = clap::ArgAction::Set)]
    pub ipv6: bool,

    /// Namespaces whose pods are never captured, separated by commas.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub excluded_namespaces: Vec<String>,

    /// Where the pages for operators are: `IP:PORT` or `unix:PATH`.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:8000")]
    pub admin: Address,

    /// Where health is told to whoever asks, and nothing else: `IP:PORT`. Unset: with the other pages only.
    #[arg(long, env = "HEALTH_ADDR", value_name = "ADDRESS")]
    pub health: Option<Address>,

    /// Where metrics are for whoever asks, and nothing else: `IP:PORT`. Unset: with the other pages only.
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "ADDRESS")]
    pub telemetry: Option<Address>,

    /// Whose connections to pods are kubelet's probes: `auto` looks for kubelet, `off`, or a user's number.
    #[arg(long, env = "PROBES", default_value = "auto")]
    pub probes: Probing,

    /// The address that kubelet's probes of pods are given. Nothing else may have it: pods let it pass.
    #[arg(long, env = "HOST_PROBE_SNAT_IP", value_name = "IPV4", default_value_t = PROBE_V4)]
    pub probe_address: Ipv4Addr,

    /// The same for IPv6.
    #[arg(long, env = "HOST_PROBE_SNAT_IPV6", value_name = "IPV6", default_value_t = PROBE_V6)]
    pub probe_address_v6: Ipv6Addr,

    /// The node's `/proc`, where the agent has one of its own. Under it sys/net has to be writable.
    #[arg(long, env = "HOST_PROC", value_name = "PATH", default_value = "/proc")]
    pub host_proc: PathBuf,

    /// Take every pod out of the mesh, and the plugin away, when the agent ends. Otherwise all stays, so that
    /// an upgrade of the agent leaves no gap; in Kubernetes all is taken away too if --daemonset was deleted.
    #[arg(long, env = "CLEANUP_ON_EXIT")]
    pub cleanup_on_exit: bool,

    /// In Kubernetes.
    #[command(flatten)]
    pub cluster: Cluster,

    /// The plugin.
    #[command(flatten)]
    pub plugin: Plugin,

    /// What to log: a level, or `module=level` pairs, separated by commas.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log: String,

    /// How to log: `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: String,
}

/// What is only of use in Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct Cluster {
    /// The namespace of the agent's own pod.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    pub pod_namespace: String,

    /// The DaemonSet that the agent belongs to, in its own namespace: when it has been deleted the agent takes
    /// everything away as it ends. Empty: it never does.
    #[arg(long, env = "DAEMONSET", value_name = "NAME", default_value = "ambit-cni-node")]
    pub daemonset: String,

    /// Remove the taint ambit.io/not-ready from the node once pods can be captured on it.
    #[arg(long, env = "REMOVE_TAINT", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub remove_taint: bool,
}

/// How the plugin is installed, and reached.
#[derive(Debug, Clone, Args)]
pub struct Plugin {
    /// The socket at which the plugin asks. In Kubernetes /var/run/ambit-cni/agent.sock; else unset: nobody asks.
    #[arg(long = "plugin-socket", env = "PLUGIN_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Put the plugin into the node's runtime, and keep it there.
    #[arg(long = "install-plugin", env = "INSTALL_PLUGIN", value_name = "BOOL", default_value_t = false,
        action = clap::ArgAction::Set)]
    pub install: bool,

    /// The plugin's program. Unset: `ambit-cni` beside the agent's own.
    #[arg(long = "plugin-program", env = "PLUGIN_PROGRAM", value_name = "PATH")]
    pub program: Option<PathBuf>,

    /// Where the node's runtime looks for plugins.
    #[arg(long = "cni-bin-dir", env = "CNI_BIN_DIR", value_name = "PATH", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,

    /// Where the node's runtime looks for configurations of networks.
    #[arg(
        long = "cni-conf-dir",
        env = "CNI_CONF_DIR",
        value_name = "PATH",
        default_value = "/etc/cni/net.d"
    )]
    pub conf_dir: PathBuf,

    /// Write the whole chain to a file of our own, which the runtime takes before all others, instead of joining
    /// the network's own file: then not even a node that has just started runs a pod without the mesh.
    #[arg(long, env = "OWN_CNI_CONFIG", value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    pub own_cni_config: bool,

    /// The name of that file.
    #[arg(long, env = "OWN_CNI_CONFIG_FILE", value_name = "NAME", default_value = "02-ambit-cni.conflist",
        value_parser = conflist_name)]
    pub own_cni_config_file: String,

    /// The mesh's own namespace: its tunnels and controllers start even while no agent answers.
    #[arg(long, env = "SYSTEM_NAMESPACE", value_name = "NAME", default_value = "istio-system")]
    pub system_namespace: String,

    /// How many seconds the plugin waits for the agent.
    #[arg(long = "plugin-timeout", env = "PLUGIN_TIMEOUT", value_name = "SECONDS", default_value_t = 15,
        value_parser = clap::value_parser!(u64).range(1..=120))]
    pub timeout: u64,
}

/// Where the plugin asks, in Kubernetes.
const PLUGIN_SOCKET: &str = "/var/run/ambit-cni/agent.sock";

impl Config {
    /// The socket at which the plugin asks, if it does.
    pub fn plugin_socket(&self) -> Option<PathBuf> {
        match (&self.plugin.socket, &self.source) {
            (Some(path), _) => Some(path.clone()),
            (None, Source::Kubernetes) => Some(PathBuf::from(PLUGIN_SOCKET)),
            (None, Source::Directory(_)) => None,
        }
    }

    /// Namespace and name of the agent's own DaemonSet.
    pub fn own_daemonset(&self) -> Option<(&str, &str)> {
        let Cluster { pod_namespace, daemonset, .. } = &self.cluster;
        (!daemonset.is_empty()).then_some((pod_namespace.as_str(), daemonset.as_str()))
    }

    /// From where probes come.
    pub fn probe_addresses(&self) -> ProbeAddresses {
        ProbeAddresses { v4: self.probe_address, v6: self.probe_address_v6 }
    }
}

/// Where pods come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The Kubernetes API.
    Kubernetes,
    /// A directory of YAML.
    Directory(PathBuf),
}

/// Whose connections are probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probing {
    /// Kubelet's, if it runs here.
    Auto,
    /// Nobody's.
    Off,
    /// This user's.
    User(u32),
}

/// A source that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source of pods; write kubernetes or directory:PATH")]
pub struct NoSource(String);

/// A prober that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither auto, off nor the number of a user")]
pub struct NoProber(String);

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, NoSource> {
        match text.split_once(':') {
            Some(("directory", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(_) | None => Err(NoSource(text.to_owned())),
        }
    }
}

impl FromStr for Probing {
    type Err = NoProber;

    fn from_str(text: &str) -> Result<Self, NoProber> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            user => user.parse().map(Self::User).map_err(|_| NoProber(user.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
        }
    }
}

/// A runtime reads only files whose names end so; and it must lie in the directory.
fn conflist_name(text: &str) -> Result<String, String> {
    let name = Path::new(text).file_name().and_then(|name| name.to_str());
    if name == Some(text) && text.ends_with(".conflist") && !text.starts_with('.') {
        Ok(text.to_owned())
    } else {
        Err("the file's name ends in .conflist, and has no directory".to_owned())
    }
}

/// The name becomes part of file names.
fn node_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if !text.is_empty() && text.len() <= 240 && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("the name of a node is made of letters, digits, '-' and '.'".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        let always = ["agent", "--source", "directory:/etc/mesh", "--node", "n1"];
        Config::try_parse_from(always.iter().chain(flags))
    }

    #[test]
    fn what_is_not_said_is_as_in_istio() {
        let config = parse(&[]).unwrap();
        assert_eq!(config.source, Source::Directory("/etc/mesh".into()));
        assert_eq!(config.zds_socket, PathBuf::from("/var/run/ztunnel/ztunnel.sock"));
        assert!(config.dns_capture && config.ipv6 && !config.cleanup_on_exit);
        assert_eq!(config.excluded_namespaces, ["kube-system"]);
        assert_eq!(config.probes, Probing::Auto);
    }

    #[test]
    fn everything_can_be_said() {
        let flags =
            ["--dns-capture", "false", "--ipv6=false", "--excluded-namespaces", "a,b", "--probes", "0"];
        let config = parse(&flags).unwrap();
        assert!(!config.dns_capture && !config.ipv6);
        assert_eq!(config.excluded_namespaces, ["a", "b"]);
        assert_eq!(config.probes, Probing::User(0));
    }

    #[test]
    fn the_plugin_asks_where_there_are_runtimes() {
        let config =
            |flags: &[&str]| Config::try_parse_from(["agent", "--node", "n"].iter().chain(flags)).unwrap();
        let cluster = config(&["--source", "kubernetes"]);
        assert_eq!(cluster.plugin_socket(), Some(PLUGIN_SOCKET.into()));
        assert_eq!(cluster.own_daemonset(), Some(("istio-system", "ambit-cni-node")));
        assert_eq!(config(&["--source", "directory:/x"]).plugin_socket(), None);
        let named = config(&["--source", "kubernetes", "--plugin-socket", "/s", "--daemonset", ""]);
        assert_eq!((named.plugin_socket(), named.own_daemonset()), (Some("/s".into()), None));
    }

    #[test]
    fn mistakes_are_told_with_their_remedy() {
        for (flags, remedy) in [
            (["--probes", "kubelet"], "auto, off"),
            (["--node", "a/b"], "letters"),
            (["--source", "kubernetes:x"], "directory:PATH"),
            (["--own-cni-config-file", "a/b.conflist"], "no directory"),
            (["--own-cni-config-file", "02-x.conf"], ".conflist"),
        ] {
            let always = [["--source", "directory:/x"], ["--node", "n"]];
            let others = always.iter().filter(|said| said[0] != flags[0]);
            let flags = std::iter::once("agent").chain(others.flatten().copied()).chain(flags);
            let error = Config::try_parse_from(flags).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }
}
