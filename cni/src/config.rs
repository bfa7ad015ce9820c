//! What the operator says, on the command line or in the environment. Read once, by `main`.

use std::{fmt, path::PathBuf, str::FromStr};

use ambit_runtime::admin::Address;
use clap::Parser;

/// Captures the traffic of this node's pods and feeds the node's tunnel.
#[derive(Debug, Clone, Parser)]
#[command(name = "ambit-cni-agent", version)]
pub struct Config {
    /// Where pods and namespaces are described: `directory:PATH`.
    #[arg(long, env = "SOURCE", value_name = "KIND:WHERE")]
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

    /// Whose connections to pods are kubelet's probes: `auto` looks for kubelet, `off`, or a user's number.
    #[arg(long, env = "PROBES", default_value = "auto")]
    pub probes: Probing,

    /// Take every pod out of the mesh when the agent ends. Otherwise all stay captured, so that an
    /// upgrade of the agent leaves no gap.
    #[arg(long, env = "CLEANUP_ON_EXIT")]
    pub cleanup_on_exit: bool,

    /// What to log: a level, or `module=level` pairs, separated by commas.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log: String,

    /// How to log: `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: String,
}

/// Where pods come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
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
#[error("{0:?} is no source of pods; write directory:PATH")]
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
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
        }
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
    fn mistakes_are_told_with_their_remedy() {
        for (flags, remedy) in [
            (["--probes", "kubelet"], "auto, off"),
            (["--node", "a/b"], "letters"),
            (["--source", "kubernetes"], "directory:PATH"),
        ] {
            let always = [["--source", "directory:/x"], ["--node", "n"]];
            let others = always.iter().filter(|said| said[0] != flags[0]);
            let flags = std::iter::once("agent").chain(others.flatten().copied()).chain(flags);
            let error = Config::try_parse_from(flags).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }
}
