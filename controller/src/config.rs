//! What the operator says, on the command line or in the environment. Read once, by `main`; each part of the
//! controller gets the group that it needs.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ambit_model::name::{Namespace, ServiceAccount};
use ambit_runtime::admin::Address;
use clap::{Args, Parser};

use crate::cluster::{EntryVisibility, L7Deny, Settings};

/// Tells tunnels and waypoints what the mesh is, and signs their certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "controller", version)]
pub struct Config {
    /// Where objects come from: `directory:PATH`.
    #[arg(long, env = "SOURCE", value_name = "KIND:WHERE")]
    pub source: Source,

    /// Where tunnels connect, for configuration and certificates.
    #[arg(long, env = "XDS_ADDR", default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15012))]
    pub listen: SocketAddr,

    /// Where the pages for operators are: `IP:PORT` or `unix:PATH`.
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin: Address,

    /// Where metrics are.
    #[arg(long, env = "METRICS_ADDR", default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15014))]
    pub metrics: SocketAddr,

    /// What holds for the whole mesh.
    #[command(flatten)]
    pub mesh: Mesh,

    /// Who may connect.
    #[command(flatten)]
    pub access: Access,

    /// How certificates are signed.
    #[command(flatten)]
    pub authority: Authority,

    /// What to log: a level, or `module=level` pairs, separated by commas.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log: String,

    /// How to log: `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: String,
}

/// What holds for the whole mesh and is not written in objects.
#[derive(Debug, Clone, Args)]
pub struct Mesh {
    /// The id of this cluster; tunnels must say the same.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,

    /// The domain of cluster services.
    #[arg(long, env = "DOMAIN_SUFFIX", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Who vouches for identities.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// The namespace of the mesh itself: policies in it hold everywhere, its label names the network.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub system_namespace: String,

    /// What becomes of a DENY rule whose conditions only a waypoint could judge: `deny` what is left of it, or, as
    /// `upstream` does, nothing if nothing is left.
    #[arg(long, env = "L7_DENY_WITHOUT_WAYPOINT", value_enum, default_value_t = L7Deny::Deny)]
    pub l7_deny_without_waypoint: L7Deny,

    /// Send dry-run policies to tunnels, which judge them for the record. Istio's tunnels do, too.
    #[arg(long, env = "AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", default_value_t = false, action = clap::ArgAction::Set)]
    pub dry_run_policies: bool,

    /// Make policies that let waypoints in to the workloads behind them.
    #[arg(long, env = "PILOT_AUTO_ALLOW_WAYPOINT_POLICY", default_value_t = false, action = clap::ArgAction::Set)]
    pub auto_allow_waypoints: bool,

    /// Who sees ServiceEntries. Unset: everybody, and no condition says so.
    #[arg(long, env = "SERVICE_ENTRY_VISIBILITY", value_enum)]
    pub service_entry_visibility: Option<EntryVisibility>,
}

impl Mesh {
    /// The settings of translation.
    pub fn settings(&self) -> Settings {
        Settings {
            cluster: self.cluster_id.as_str().into(),
            domain: self.cluster_domain.clone(),
            trust_domain: self.trust_domain.as_str().into(),
            root_namespace: self.system_namespace.as_str().into(),
            l7_deny: self.l7_deny_without_waypoint,
            dry_run_policies: self.dry_run_policies,
            auto_allow_waypoints: self.auto_allow_waypoints,
            entry_visibility: self.service_entry_visibility,
        }
    }
}

/// Who may connect, and ask for certificates of others.
#[derive(Debug, Clone, Args)]
pub struct Access {
    /// A directory with a token for each node: the file's name is the node's, its content what the node's tunnel sends.
    #[arg(long, env = "TOKENS")]
    pub tokens: Option<PathBuf>,

    /// Accounts that may ask for certificates of the pods on their node, `namespace/account`, separated by commas.
    #[arg(
        long,
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ',',
        default_value = "istio-system/ztunnel"
    )]
    pub trusted_node_accounts: Vec<Account>,
}

/// How certificates are signed.
#[derive(Debug, Clone, Args)]
pub struct Authority {
    /// Where the root is kept, made once and readable by its owner only.
    #[arg(long, env = "CA_DIR", default_value = "/var/lib/ambit/ca")]
    pub ca_dir: PathBuf,

    /// A directory with `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem`: an intermediate authority
    /// that is used instead of a root of our own.
    #[arg(long, env = "PLUGGED_CA")]
    pub plugged_ca: Option<PathBuf>,

    /// Where to write the root certificate, for tunnels to trust this controller by.
    #[arg(long, env = "ROOT_CERT")]
    pub root_cert: Option<PathBuf>,

    /// Names and addresses in this controller's own certificate, separated by commas.
    #[arg(
        long,
        env = "SERVER_NAMES",
        value_delimiter = ',',
        default_value = "istiod.istio-system.svc,localhost,127.0.0.1,::1"
    )]
    pub server_names: Vec<String>,

    /// How long certificates are valid, if the caller does not say.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", value_parser = duration, default_value = "24h")]
    pub default_ttl: Duration,

    /// How long they may be valid at most.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", value_parser = duration, default_value = "2160h")]
    pub max_ttl: Duration,

    /// How long a root of our own is valid.
    #[arg(long, env = "CITADEL_SELF_SIGNED_CA_CERT_TTL", value_parser = duration, default_value = "87600h")]
    pub root_ttl: Duration,
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = NoSource;

    fn from_str(text: &str) -> Result<Self, NoSource> {
        match text.split_once(':') {
            Some(("directory", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            Some(_) | None => Err(NoSource(text.to_owned())),
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

/// A source that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source of objects; write directory:PATH")]
pub struct NoSource(String);

/// A service account with its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The namespace.
    pub namespace: Namespace,
    /// The account.
    pub service_account: ServiceAccount,
}

impl FromStr for Account {
    type Err = NoAccount;

    fn from_str(text: &str) -> Result<Self, NoAccount> {
        match text.trim().split_once('/') {
            Some((namespace, account))
                if !namespace.is_empty() && !account.is_empty() && !account.contains('/') =>
            {
                Ok(Self { namespace: namespace.into(), service_account: account.into() })
            }
            Some(_) | None => Err(NoAccount(text.to_owned())),
        }
    }
}

/// A text that names no service account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no service account; write namespace/name")]
pub struct NoAccount(String);

/// `24h`, `90m`, `10s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is no duration; write 24h, 90m, 10s or 500ms"))?;
    let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
    let length = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => None,
    };
    length
        .filter(|length| !length.is_zero())
        .ok_or_else(|| format!("{text:?} is no duration; write 24h, 90m, 10s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_source_must_be_said() {
        let config = Config::try_parse_from(["controller", "--source", "directory:/etc/mesh"]).unwrap();
        assert_eq!(config.source, Source::Directory("/etc/mesh".into()));
        assert_eq!(config.listen.port(), 15012);
        assert_eq!(config.mesh.settings(), Settings::default());
        assert_eq!(config.authority.default_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(config.access.trusted_node_accounts, ["istio-system/ztunnel".parse().unwrap()]);
        assert!(Config::try_parse_from(["controller"]).is_err());
    }

    #[test]
    fn a_mistake_says_what_to_write() {
        for (flags, remedy) in [
            (["--source", "kubernetes"], "directory:PATH"),
            (["--trusted-node-accounts", "ztunnel"], "namespace/name"),
            (["--default-ttl", "soon"], "24h"),
            (["--default-ttl", "0h"], "24h"),
            (["--l7-deny-without-waypoint", "maybe"], "upstream"),
        ] {
            let always = ["controller", "--source", "directory:/x"];
            let first = if flags[0] == "--source" { &always[..1] } else { &always[..] };
            let error = Config::try_parse_from(first.iter().chain(&flags)).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn the_mesh_is_as_the_operator_says() {
        let config = Config::try_parse_from([
            "controller",
            "--source=directory:/x",
            "--l7-deny-without-waypoint=upstream",
            "--trust-domain=example.org",
            "--service-entry-visibility=namespace",
            "--dry-run-policies=true",
        ]);
        let settings = config.unwrap().mesh.settings();
        assert_eq!(settings.l7_deny, L7Deny::Upstream);
        assert_eq!(settings.trust_domain.as_str(), "example.org");
        assert_eq!(settings.entry_visibility, Some(EntryVisibility::Namespace));
        assert!(settings.dry_run_policies);
    }
}
