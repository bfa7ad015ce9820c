//! Environment variables that mean the same to both proxies (protocols 10.5, 1.1, 1.2, 4.5 to 4.7).

mod control;
mod proxy_config;
mod telemetry;
mod traffic;

use std::{
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use ambit_runtime::{
    env::Env,
    workers::{Setting, cpus, threads},
};
use ambit_wire::tls::{Compliance, Versions};

pub use self::{
    control::{Authority, Ca, LocalXds, Own, Xds},
    proxy_config::{MESH_FILE, ProxyConfig},
    telemetry::{Export, Telemetry},
    traffic::{Keepalive, Pages, hbone},
};

/// What is demanded of TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// `COMPLIANCE_POLICY`.
    pub compliance: Compliance,
    /// `TLS12_ENABLED`.
    pub versions: Versions,
    /// The revocation lists: `CRL_PATH`.
    pub crl: Option<PathBuf>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// `RUST_LOG`.
    pub level: String,
    /// `LOG_FORMAT`.
    pub format: LogFormat,
    /// Whether verdicts of policies are logged at info: `AUTHZ_POLICY_INFO_LOGGING`.
    pub authorization: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "text" | "plain" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("accepted: text, json"),
        }
    }
}

/// The files that configuration may be in.
pub trait Files {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
}

/// Those of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }
}

/// The mesh's file, overridden by `PROXY_CONFIG`.
pub fn proxy_config(env: &mut Env, files: &dyn Files) -> ProxyConfig {
    let mesh = match files.read(Path::new(MESH_FILE)) {
        Ok(text) => ProxyConfig::of_mesh(&text).unwrap_or_else(|error| {
            env.reject(MESH_FILE, format!("is not a mesh configuration: {error}"));
            ProxyConfig::default()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => ProxyConfig::default(),
        Err(error) => {
            env.reject(MESH_FILE, format!("cannot be read: {error}"));
            ProxyConfig::default()
        }
    };
    let own = env.parsed("PROXY_CONFIG", ProxyConfig::of_proxy).or(ProxyConfig::default());
    mesh.overridden_by(own)
}

impl Tls {
    /// Reads it.
    pub fn read(env: &mut Env) -> Self {
        let tls12 = env.flag("TLS12_ENABLED").or(false);
        Self {
            compliance: env.parsed("COMPLIANCE_POLICY", str::parse).or(Compliance::None),
            versions: if tls12 { Versions::Tls12And13 } else { Versions::Tls13 },
            crl: env.path("CRL_PATH").optional(),
        }
    }
}

impl Logging {
    /// Reads it.
    pub fn read(env: &mut Env) -> Self {
        let level = env.string("RUST_LOG").optional().filter(|level| !level.is_empty());
        Self {
            level: level.unwrap_or_else(|| "info".to_owned()),
            format: env.parsed("LOG_FORMAT", str::parse).or(LogFormat::Text),
            authorization: env.flag("AUTHZ_POLICY_INFO_LOGGING").or(false),
        }
    }
}

/// How long connections may go on: a little less than the pod has, so that the last step is a clean
/// end and not SIGKILL (protocols 7.4, edge case 48).
pub fn drain(env: &mut Env) -> Duration {
    let grace = env.number::<u64>("TERMINATION_GRACE_PERIOD_SECONDS").optional();
    let of_grace =
        grace.map(|seconds| if seconds > 10 { seconds - 5 } else { seconds.saturating_sub(1).max(1) });
    let deadline = env.duration("CONNECTION_TERMINATION_DEADLINE").optional();
    deadline.unwrap_or_else(|| Duration::from_secs(of_grace.unwrap_or(5)))
}

/// How many workers: what the operator set, else the mesh, else by the limit of the container (`prefix` is `ZTUNNEL` or
/// `WAYPOINT`).
pub fn worker_threads(env: &mut Env, proxy: &ProxyConfig, prefix: &str) -> NonZeroUsize {
    let mut quantity = |names: [&str; 2]| {
        let read =
            names.map(|name| env.parsed(&format!("{prefix}_{name}"), cpu_quantity).optional().flatten());
        read.into_iter().flatten().next()
    };
    let limit = quantity(["CPU_LIMIT", "RESOURCE_CPU_LIMIT"]);
    let request = quantity(["CPU_REQUEST", "RESOURCE_CPU_REQUEST"]);
    let of_mesh = proxy.concurrency.and_then(NonZeroUsize::new).map(Setting::Count);
    let own = env.parsed(&format!("{prefix}_WORKER_THREADS"), |text| match text {
        "" => Ok(None),
        text => text.parse().map(Some),
    });
    threads(limit, request, cpus(), own.or(None).or(of_mesh))
}

/// CPUs as Kubernetes writes them: `2`, `0.5`, `1500m`; rounded up. Nothing, or zero, is no limit.
fn cpu_quantity(text: &str) -> Result<Option<NonZeroUsize>, &'static str> {
    let wrong = "accepted: a number of CPUs such as 2, 0.5 or 1500m";
    let text = text.trim();
    let digits = |text: &str| {
        if text.is_empty() { Ok(0) } else { text.parse::<usize>().map_err(|_| wrong) }
    };
    let (whole, has_rest) = if let Some(thousandths) = text.strip_suffix('m') {
        let thousandths = thousandths.parse::<usize>().map_err(|_| wrong)?;
        (thousandths / 1000, !thousandths.is_multiple_of(1000))
    } else {
        let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
        (digits(whole)?, digits(rest)? > 0)
    };
    Ok(NonZeroUsize::new(whole.saturating_add(usize::from(has_rest))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_quantities_are_rounded_up() {
        let cases = [
            ("2", Some(2)),
            ("0.5", Some(1)),
            ("2.0", Some(2)),
            ("2.01", Some(3)),
            ("1m", Some(1)),
            ("2000m", Some(2)),
            ("0", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(cpu_quantity(text), Ok(expected.and_then(NonZeroUsize::new)), "{text}");
        }
        for text in ["two", "-1", "1Gi", "m", "1.2.3"] {
            assert!(cpu_quantity(text).is_err(), "{text}");
        }
    }
}
