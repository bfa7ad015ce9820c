//! How the control plane and the CA are reached, and as whom (protocols 1.1, 1.2, 1.8).

use std::{collections::BTreeMap, net::IpAddr, path::Path, path::PathBuf, str::FromStr, time::Duration};

use ambit_model::{
    identity::{Identity, TrustDomain},
    name::{Cluster, Network, Node},
};
use ambit_runtime::env::Env;
use ambit_wire::{
    channel::{ChannelSettings, RootSource, TokenSource},
    xds::{NodeInfo, NodeKind},
};

use super::{Files, proxy_config::ProxyConfig};

/// Where Istio's images have the root of the control plane.
const ROOT_FILE: &str = "./var/run/secrets/istio/root-cert.pem";
/// Where Istio's images have the token for the control plane.
const TOKEN_FILE: &str = "./var/run/secrets/tokens/istio-token";
/// The control plane in a cluster, and elsewhere.
const IN_CLUSTER: &str = "https://istiod.istio-system.svc:15012";
const ELSEWHERE: &str = "https://localhost:15012";
/// How long a certificate is asked to live.
const SECRET_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Who this proxy is.
#[derive(Clone, Debug)]
pub struct Own {
    /// The node that it is on: `NODE_NAME`.
    pub node: Option<Node>,
    /// Its address: `INSTANCE_IP`.
    pub ip: Option<IpAddr>,
    /// Its own identity, from `TRUST_DOMAIN`, `POD_NAMESPACE` and `SERVICE_ACCOUNT`; `None` when the
    /// last two are not both set.
    pub identity: Option<Identity>,
    /// Its cluster: `ISTIO_META_CLUSTER_ID`, else `CLUSTER_ID`.
    pub cluster: Cluster,
    /// What service names end in: `CLUSTER_DOMAIN`.
    pub cluster_domain: String,
    /// Its network: `NETWORK`.
    pub network: Network,
    /// What it tells the control plane of itself.
    pub info: NodeInfo,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct Xds {
    /// How it is reached; `None` when `XDS_ADDRESS` is empty.
    pub channel: Option<ChannelSettings>,
    /// Whether addresses are asked for one by one: `XDS_ON_DEMAND`.
    pub on_demand: bool,
    /// What is known without a control plane.
    pub local: Option<LocalXds>,
}

/// Workloads, services and policies from a file or from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalXds {
    /// A file, read again when it changes: `LOCAL_XDS_PATH`.
    File(PathBuf),
    /// The text itself: `LOCAL_XDS`.
    Inline(String),
}

/// The certificate authority.
#[derive(Clone, Debug)]
pub struct Ca {
    /// Who signs.
    pub authority: Authority,
    /// How long a certificate is asked to live: `SECRET_TTL`.
    pub ttl: Duration,
}

/// Who signs the pods' certificates.
#[derive(Clone, Debug)]
pub enum Authority {
    /// The one at `CA_ADDRESS`.
    Remote(Box<ChannelSettings>),
    /// One in this process, for tests: `FAKE_CA`.
    Fake,
}

impl Own {
    /// Reads it.
    pub fn read(env: &mut Env, proxy: &ProxyConfig, kind: NodeKind) -> Self {
        let text = |env: &mut Env, name: &str| env.string(name).or(String::new());
        let meta_cluster = env.string("ISTIO_META_CLUSTER_ID").optional();
        let cluster = env.string("CLUSTER_ID").optional();
        let cluster = meta_cluster.or(cluster).unwrap_or_else(|| "Kubernetes".to_owned());
        let info = NodeInfo {
            kind,
            instance_ip: text(env, "INSTANCE_IP"),
            pod_name: text(env, "POD_NAME"),
            pod_namespace: text(env, "POD_NAMESPACE"),
            node_name: text(env, "NODE_NAME"),
            metadata: metadata(env, proxy),
        };
        let account = text(env, "SERVICE_ACCOUNT");
        let trust_domain = TrustDomain::from(text(env, "TRUST_DOMAIN").as_str());
        let has_identity = !info.pod_namespace.is_empty() && !account.is_empty();
        Self {
            node: Some(info.node_name.as_str()).filter(|name| !name.is_empty()).map(Node::from),
            ip: env.number("INSTANCE_IP").optional(),
            identity: has_identity
                .then(|| Identity::new(trust_domain, info.pod_namespace.as_str(), account.as_str())),
            cluster: Cluster::from(cluster),
            cluster_domain: env.string("CLUSTER_DOMAIN").or("cluster.local".to_owned()),
            network: Network::from(text(env, "NETWORK")),
            info,
        }
    }
}

/// The node's metadata: the proxy's configuration, then `ISTIO_META_*`, then `ISTIO_METAJSON_*`.
fn metadata(env: &mut Env, proxy: &ProxyConfig) -> BTreeMap<String, serde_json::Value> {
    let text = |(key, value): (&String, &String)| (key.clone(), serde_json::Value::from(value.as_str()));
    let mut metadata: BTreeMap<_, _> = proxy.proxy_metadata.iter().map(text).collect();
    metadata.extend(env.prefixed("ISTIO_META_").iter().map(|(key, value)| text((key, value))));
    for (key, value) in env.prefixed("ISTIO_METAJSON_") {
        match serde_json::from_str(&value) {
            Ok(value) => drop(metadata.insert(key, value)),
            Err(error) => env.reject(&format!("ISTIO_METAJSON_{key}"), format!("must be JSON: {error}")),
        }
    }
    metadata
}

impl Xds {
    /// Reads it.
    pub fn read(env: &mut Env, files: &dyn Files, proxy: &ProxyConfig, own: &Own) -> Self {
        let default = proxy.discovery_address.clone().unwrap_or_else(|| default_address(env));
        let address = address(env, "XDS_ADDRESS", default);
        let path = env.path("LOCAL_XDS_PATH").optional().map(LocalXds::File);
        let inline = env.string("LOCAL_XDS").optional().filter(|text| !text.is_empty()).map(LocalXds::Inline);
        if path.is_some() && inline.is_some() {
            env.reject("LOCAL_XDS", "cannot be set together with LOCAL_XDS_PATH; unset one of them");
        }
        Self {
            channel: address.map(|address| channel(env, files, own, "XDS", address)),
            on_demand: env.flag("XDS_ON_DEMAND").or(false),
            local: path.or(inline),
        }
    }
}

impl Ca {
    /// Reads it.
    pub fn read(env: &mut Env, files: &dyn Files, own: &Own) -> Self {
        let fake = env.flag("FAKE_CA").or(false);
        let default = default_address(env);
        let ttl = env.duration("SECRET_TTL").or(SECRET_TTL);
        if ttl.is_zero() {
            env.reject("SECRET_TTL", "must be longer than nothing");
        }
        if fake {
            return Self { authority: Authority::Fake, ttl };
        }
        // Never taken for "no CA": that would be the way to certificates that nobody vouches for.
        let address = address(env, "CA_ADDRESS", default).unwrap_or_else(|| {
            env.reject("CA_ADDRESS", "is empty; name the CA, or set FAKE_CA=true in a test");
            String::new()
        });
        Self { authority: Authority::Remote(Box::new(channel(env, files, own, "CA", address))), ttl }
    }
}

fn default_address(env: &mut Env) -> String {
    let in_cluster = env.string("KUBERNETES_SERVICE_HOST").optional().is_some();
    if in_cluster { IN_CLUSTER } else { ELSEWHERE }.to_owned()
}

/// An address with a scheme; `None` when it is set to nothing.
fn address(env: &mut Env, name: &str, default: String) -> Option<String> {
    let address = env.string(name).or(default);
    if address.is_empty() {
        return None;
    }
    let address = if address.contains("://") { address } else { format!("https://{address}") };
    let uri = http::Uri::from_str(&address);
    let is_fine = uri.is_ok_and(|uri| {
        uri.host().is_some_and(|host| !host.is_empty()) && matches!(uri.scheme_str(), Some("https" | "http"))
    });
    if !is_fine {
        env.reject(name, format!("is {address:?}; accepted: https://host:port"));
    }
    Some(address)
}

fn channel(env: &mut Env, files: &dyn Files, own: &Own, prefix: &str, address: String) -> ChannelSettings {
    let roots = env.string(&format!("{prefix}_ROOT_CA")).optional().filter(|value| !value.is_empty());
    let alt_hostname = env.string(&format!("ALT_{prefix}_HOSTNAME")).optional();
    ChannelSettings {
        address,
        roots: RootSource::from_setting(roots.as_deref().unwrap_or(ROOT_FILE)),
        alt_hostname: alt_hostname.filter(|name| !name.is_empty()),
        token: token(env, files),
        cluster_id: own.cluster.as_str().to_owned(),
        headers: headers(env, prefix),
    }
}

fn token(env: &mut Env, files: &dyn Files) -> TokenSource {
    match env.string("AUTH_TOKEN").optional().filter(|token| !token.is_empty()) {
        Some(token) => TokenSource::from_setting(&token),
        None if files.read(Path::new(TOKEN_FILE)).is_ok() => TokenSource::File(TOKEN_FILE.into()),
        None => TokenSource::None,
    }
}

/// `XDS_HEADER_X=v` is the header `x: v`.
fn headers(env: &mut Env, prefix: &str) -> Vec<(String, String)> {
    let prefix = format!("{prefix}_HEADER_");
    let mut headers = Vec::new();
    for (name, value) in env.prefixed(&prefix) {
        let is_name = http::HeaderName::from_str(&name).is_ok();
        if is_name && http::HeaderValue::from_str(&value).is_ok() {
            headers.push((name.to_ascii_lowercase(), value));
        } else {
            // Not the value: such headers are often secrets.
            env.reject(
                &format!("{prefix}{name}"),
                "is not a header: its name or its value has characters that HTTP forbids",
            );
        }
    }
    headers
}
