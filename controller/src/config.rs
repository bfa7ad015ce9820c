//! What the operator says, on the command line or in the environment. Read once, by `main`; each part of the
//! controller gets the group that it needs.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ambit_api::directory::read_value;
use ambit_model::{
    identity::Identity,
    name::{Namespace, ServiceAccount},
};
use ambit_runtime::{
    admin::Address,
    env::Env,
    telemetry::{Filter, Format},
};
use clap::{Args, Parser};
use serde_json::{Value, json};

use crate::{
    ca::{cert_manager::Issuer, serving::service_names},
    cluster::{EntryVisibility, L7Deny, Settings},
    gateways::manifest::Form,
    leader::identity,
};

/// Tells tunnels and waypoints what the mesh is, and signs their certificates.
#[derive(Debug, Clone, Parser)]
#[command(name = "controller", version = ambit_runtime::version::VERSION)]
pub struct Config {
    /// Where objects come from: `kubernetes`, or `directory:PATH`.
    #[arg(long, env = "SOURCE", value_name = "KIND[:WHERE]")]
    pub source: Source,

    /// Where tunnels connect, for configuration and certificates; TLS only.
    #[arg(long, env = "XDS_ADDR", value_name = "IP:PORT",
        default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15012))]
    pub listen: SocketAddr,

    /// Where health, metrics and the pages for operators are: `IP:PORT` or `unix:PATH`. Nobody is asked who he is
    /// there.
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADDRESS", default_value = "localhost:15014")]
    pub admin: Address,

    /// Where health is told to whoever asks, and nothing else: `IP:PORT`. Unset: with the other pages only.
    #[arg(long, env = "HEALTH_ADDR", value_name = "ADDRESS")]
    pub health: Option<Address>,

    /// Where metrics are for whoever asks, and nothing else: `IP:PORT`. Unset: with the other pages only.
    #[arg(long, env = "TELEMETRY_ADDR", value_name = "ADDRESS")]
    pub telemetry: Option<Address>,

    /// Where the API server asks whether objects are sound, in Kubernetes; TLS only. Unset: it is not asked to.
    #[arg(long, env = "WEBHOOK_ADDR", value_name = "IP:PORT")]
    pub webhook: Option<SocketAddr>,

    /// What holds for the whole mesh.
    #[command(flatten)]
    pub mesh: Mesh,

    /// Who may connect.
    #[command(flatten)]
    pub access: Access,

    /// How certificates are signed.
    #[command(flatten)]
    pub authority: Authority,

    /// The waypoints that Gateways ask for.
    #[command(flatten)]
    pub waypoints: Waypoints,

    /// Which of several controllers this is.
    #[command(flatten)]
    pub replica: Replica,

    /// What to log: a level, or `scope:level` pairs, separated by commas.
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = filter)]
    pub log: Filter,

    /// How to log: `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: Format,

    /// How long subscribers may take to leave when the controller ends.
    #[arg(long, env = "DRAIN_DEADLINE", value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub drain_deadline: Duration,
}

impl Config {
    /// Everything that this controller is called by.
    pub fn server_names(&self) -> Vec<String> {
        let mesh = &self.mesh;
        let services = service_names(self.replica.revision(), &mesh.system_namespace, &mesh.cluster_domain);
        let mut names = self.authority.server_names(mesh);
        names.extend(services);
        let mut once = std::collections::HashSet::new();
        names.retain(|name| once.insert(name.clone()));
        names
    }

    /// What all waypoints have in common, if Gateways are served here.
    pub fn form(&self) -> Option<Form> {
        let (mesh, waypoints) = (&self.mesh, &self.waypoints);
        let revision = self.replica.revision();
        let service = || {
            let suffix = revision.map(|revision| format!("-{revision}")).unwrap_or_default();
            format!("https://istiod{suffix}.{}.svc:15012", mesh.system_namespace)
        };
        Some(Form {
            image: waypoints.image.clone().filter(|image| !image.is_empty())?,
            control_plane: waypoints.control_plane.clone().unwrap_or_else(service),
            cluster: mesh.cluster_id.clone(),
            domain: mesh.cluster_domain.clone(),
            trust_domain: mesh.trust_domain.clone(),
            revision: revision.unwrap_or("default").to_owned(),
            log: waypoints.log.clone(),
            log_format: waypoints.log_format.clone(),
            deployment: waypoints.deployment.clone().map(|piece| piece.0).unwrap_or_else(|| json!({})),
        })
    }
}

/// The waypoints that Gateways ask for.
#[derive(Debug, Clone, Args)]
pub struct Waypoints {
    /// The image of waypoints. Unset: none are made, and Gateways are left to others.
    #[arg(long = "waypoint-image", env = "WAYPOINT_IMAGE", value_name = "IMAGE")]
    pub image: Option<String>,

    /// Where waypoints find this controller. Unset: its Service in the system namespace.
    #[arg(long = "waypoint-control-plane", env = "WAYPOINT_CONTROL_PLANE", value_name = "URL")]
    pub control_plane: Option<String>,

    /// A piece of a Deployment, YAML or JSON, that is laid over that of every waypoint: `{spec: {replicas: 1}}`. What a
    /// Gateway's parametersRef says is laid over that.
    #[arg(long = "waypoint-deployment", env = "WAYPOINT_DEPLOYMENT", value_name = "YAML")]
    pub deployment: Option<Piece>,

    /// What waypoints log: a level, or `scope=level` pairs, separated by commas.
    #[arg(id = "waypoint_log", long = "waypoint-log", env = "WAYPOINT_LOG", default_value = "info")]
    pub log: String,

    /// How they log: `text` or `json`.
    #[arg(
        id = "waypoint_log_format",
        long = "waypoint-log-format",
        env = "WAYPOINT_LOG_FORMAT",
        default_value = "text"
    )]
    pub log_format: String,
}

/// A piece of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece(pub Value);

impl FromStr for Piece {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match read_value(text)? {
            Value::Null => Ok(Self(json!({}))),
            value @ Value::Object(_) => Ok(Self(value)),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err("it is no piece of an object; write fields and values".to_owned())
            }
        }
    }
}

/// Which of several controllers this is, in Kubernetes.
#[derive(Debug, Clone, Args)]
pub struct Replica {
    /// The name of its pod.
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "controller")]
    pub pod_name: String,

    /// Its revision: several revisions serve side by side, each with a leader of its own.
    #[arg(long, env = "REVISION", value_name = "NAME")]
    pub revision: Option<String>,
}

impl Replica {
    /// The revision, unless it is the default one.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| !matches!(*revision, "" | "default"))
    }

    /// The Lease of those that share its revision.
    pub fn lease(&self) -> String {
        match self.revision() {
            Some(revision) => format!("ambit-leader-{revision}"),
            None => "ambit-leader".to_owned(),
        }
    }

    /// The configuration by which the API server finds this revision's webhook.
    pub fn webhook(&self, system_namespace: &str) -> String {
        match self.revision() {
            Some(revision) => format!("ambit-validator-{revision}-{system_namespace}"),
            None => format!("ambit-validator-{system_namespace}"),
        }
    }

    /// Who it is, as holder of a Lease.
    pub fn identity(&self) -> String {
        identity(&self.pod_name)
    }
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
    /// It is read again when it changes. In Kubernetes, callers show tokens of service accounts instead.
    #[arg(long, env = "TOKENS", value_name = "DIR")]
    pub tokens: Option<PathBuf>,

    /// What tokens of service accounts must be meant for, in Kubernetes.
    #[arg(
        long = "audience",
        env = "TOKEN_AUDIENCES",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "istio-ca"
    )]
    pub audiences: Vec<String>,

    /// The account that the tunnels of nodes with a token run as, in the system namespace.
    #[arg(long, env = "TUNNEL_ACCOUNT", value_name = "NAME", default_value = "ztunnel")]
    pub tunnel_account: String,

    /// Accounts that may ask for certificates of the pods on their node, `namespace/account`, separated by commas.
    /// Unset: the tunnels' own.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", value_delimiter = ',')]
    pub trusted_node_accounts: Vec<Account>,
}

impl Access {
    /// Whom a node's token proves its caller to be.
    pub fn tunnel_identity(&self, mesh: &Mesh) -> Identity {
        Identity::new(
            mesh.trust_domain.as_str(),
            mesh.system_namespace.as_str(),
            self.tunnel_account.as_str(),
        )
    }

    /// Who may ask for certificates of others.
    pub fn trusted(&self, mesh: &Mesh) -> Vec<Account> {
        if !self.trusted_node_accounts.is_empty() {
            return self.trusted_node_accounts.clone();
        }
        vec![Account {
            namespace: mesh.system_namespace.as_str().into(),
            service_account: self.tunnel_account.as_str().into(),
        }]
    }
}

/// How certificates are signed.
#[derive(Debug, Clone, Args)]
pub struct Authority {
    /// What signs. With `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and `cert-chain.pem` in it (Istio's `cacerts`),
    /// that authority; else a root of our own, made once and kept there, readable by its owner only.
    #[arg(long, env = "CA_DIR", value_name = "DIR", default_value = "/var/lib/ambit/ca")]
    pub ca_dir: PathBuf,

    /// Where to write the root certificate, for tunnels to trust this controller by.
    #[arg(long, env = "ROOT_CERT", value_name = "FILE")]
    pub root_cert: Option<PathBuf>,

    /// Where to write the revocation lists of `ca-crl.pem` in the CA directory, for tunnels (their CRL_PATH).
    #[arg(long, env = "CRL_OUT", value_name = "FILE")]
    pub crl_out: Option<PathBuf>,

    /// A name or address for this controller's own certificate, beside `istiod.<system namespace>.svc`,
    /// `localhost` and the loopback addresses. Again for each, or separated by commas.
    #[arg(long = "name", env = "SERVER_NAMES", value_name = "NAME|IP", value_delimiter = ',', value_parser = name)]
    pub names: Vec<String>,

    /// How long a workload's certificate is valid, if the caller does not say.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub default_workload_ttl: Duration,

    /// How long it may be valid at most; who asks for more is refused.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", value_name = "TIME", value_parser = duration, default_value = "2160h")]
    pub max_workload_ttl: Duration,

    /// How long every workload's certificate is valid, whatever the caller says: to watch renewals. At least 3s.
    #[arg(long, env = "DEBUG_CERT_TTL", value_name = "TIME", value_parser = duration)]
    pub debug_cert_ttl: Option<Duration>,

    /// How long a root of our own is valid, when it is made.
    #[arg(long, env = "CITADEL_SELF_SIGNED_CA_CERT_TTL", value_name = "TIME", value_parser = duration, default_value = "87600h")]
    pub root_ttl: Duration,

    /// Who signs for workloads instead, by cert-manager: `NAME` of a ClusterIssuer, `KIND/NAME`, or `GROUP/KIND/NAME`.
    #[arg(long = "ca-issuer", env = "CA_ISSUER", value_name = "[[GROUP/]KIND/]NAME", value_parser = issuer)]
    pub issuer: Option<Issuer>,

    /// The roots of that issuer, PEM, where cert-manager does not tell them.
    #[arg(long = "ca-issuer-roots", env = "CA_ISSUER_ROOTS", value_name = "FILE", requires = "issuer")]
    pub issuer_roots: Option<PathBuf>,

    /// How long this controller's own certificate is valid. It is replaced at half of that.
    #[arg(long = "server-cert-ttl", env = "SERVER_CERT_TTL", value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub server_ttl: Duration,
}

impl Authority {
    /// Everything that this controller is called by.
    pub fn server_names(&self, mesh: &Mesh) -> Vec<String> {
        let mut names = vec![
            format!("istiod.{}.svc", mesh.system_namespace),
            // What tunnels look for unless they are told otherwise (protocols 1.1).
            "istiod.istio-system.svc".to_owned(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        names.extend(self.names.iter().cloned());
        let mut once = std::collections::HashSet::new();
        names.retain(|name| once.insert(name.clone()));
        names
    }
}

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Kubernetes,
    /// A directory of YAML.
    Directory(PathBuf),
}

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

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes => f.write_str("kubernetes"),
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
        }
    }
}

/// A source that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no source of objects; write kubernetes or directory:PATH")]
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

/// `24h`, `1h30m`, `10s`: the words that all daemons take.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time; write 24h, 90m, 10s or 500ms");
    let mut words = Env::new([(String::new(), text.to_owned())]);
    let length = words.duration("").optional();
    words.finish().map_err(|_| wrong())?;
    length.filter(|length| !length.is_zero()).ok_or_else(wrong)
}

fn issuer(text: &str) -> Result<Issuer, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let (group, kind, name) = match parts.as_slice() {
        [name] => ("cert-manager.io", "ClusterIssuer", *name),
        [kind, name] => ("cert-manager.io", *kind, *name),
        [group, kind, name] => (*group, *kind, *name),
        _ => ("", "", ""),
    };
    if group.is_empty() || kind.is_empty() || name.is_empty() {
        return Err(format!("{text:?} is no issuer; write NAME, KIND/NAME or GROUP/KIND/NAME"));
    }
    Ok(Issuer { name: name.to_owned(), kind: kind.to_owned(), group: group.to_owned() })
}

fn filter(text: &str) -> Result<Filter, String> {
    Filter::default().with(text).map_err(|error| error.to_string())
}

/// A DNS name, perhaps of a whole level (`*.example.org`), or an IP address.
fn name(text: &str) -> Result<String, String> {
    let text = text.trim();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    let host = text.strip_prefix("*.").unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && host.split('.').all(label)) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is neither a DNS name nor an IP address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &[&str]) -> Result<Config, String> {
        let always = ["controller", "--source=directory:/etc/mesh", "--tokens=/etc/tokens"];
        Config::try_parse_from(always.iter().chain(flags)).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_source_and_the_tokens_must_be_said() {
        let config = read(&[]).unwrap();
        assert_eq!(config.source, Source::Directory("/etc/mesh".into()));
        assert_eq!(config.listen.port(), 15012);
        assert_eq!(config.admin.to_string(), "127.0.0.1:15014");
        assert_eq!(config.mesh.settings(), Settings::default());
        assert_eq!(config.authority.default_workload_ttl, Duration::from_secs(24 * 3600));
        assert_eq!(config.access.trusted(&config.mesh), ["istio-system/ztunnel".parse().unwrap()]);
        let tunnel = config.access.tunnel_identity(&config.mesh).to_string();
        assert_eq!(tunnel, "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
        assert!(Config::try_parse_from(["controller", "--tokens=/x"]).is_err());
    }

    #[test]
    fn a_mistake_says_what_to_write() {
        for (flags, remedy) in [
            (["--source", "etcd"], "directory:PATH"),
            (["--trusted-node-accounts", "ztunnel"], "namespace/name"),
            (["--default-workload-ttl", "soon"], "24h"),
            (["--max-workload-ttl", "0h"], "24h"),
            (["--l7-deny-without-waypoint", "maybe"], "upstream"),
            (["--name", "two words"], "DNS name"),
            (["--log", "loud"], "debug"),
            (["--log-format", "xml"], "json"),
            (["--admin", "here"], "unix:/PATH"),
        ] {
            let flags: Vec<_> = ["controller", "--tokens=/x"]
                .into_iter()
                .chain((flags[0] != "--source").then_some("--source=directory:/x"))
                .chain(flags)
                .collect();
            let error = Config::try_parse_from(flags).unwrap_err().to_string();
            assert!(error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn the_mesh_is_as_the_operator_says() {
        let config = read(&[
            "--l7-deny-without-waypoint=upstream",
            "--trust-domain=example.org",
            "--service-entry-visibility=namespace",
            "--dry-run-policies=true",
            "--system-namespace=mesh",
            "--tunnel-account=tunnel",
        ]);
        let config = config.unwrap();
        let settings = config.mesh.settings();
        assert_eq!(settings.l7_deny, L7Deny::Upstream);
        assert_eq!(settings.trust_domain.as_str(), "example.org");
        assert_eq!(settings.entry_visibility, Some(EntryVisibility::Namespace));
        assert!(settings.dry_run_policies);
        assert_eq!(config.access.trusted(&config.mesh), ["mesh/tunnel".parse().unwrap()]);
        let tunnel = config.access.tunnel_identity(&config.mesh).to_string();
        assert_eq!(tunnel, "spiffe://example.org/ns/mesh/sa/tunnel");
    }

    #[test]
    fn the_own_certificate_carries_the_usual_names_and_more() {
        let config =
            read(&["--name=mesh.example.org", "--name=10.0.0.1,fd00::1", "--name=localhost"]).unwrap();
        let names = config.authority.server_names(&config.mesh);
        let expected = [
            "istiod.istio-system.svc",
            "localhost",
            "127.0.0.1",
            "::1",
            "mesh.example.org",
            "10.0.0.1",
            "fd00::1",
        ];
        assert_eq!(names, expected);
    }
}
