//! The headers of a CONNECT: authority, baggage, forwarded, traceparent, network (protocols 4.3). Pure.
//!
//! What a peer wrote is telemetry, never a right: a header that cannot be read is as good as absent. The
//! authority alone is strict, because it decides where the connection goes.

use std::{
    fmt::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ambit_model::{
    address::{Target, canonical},
    name::{Cluster, Hostname, Label, Namespace, Network},
    workload::{Workload, WorkloadType},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::FORWARDED};

/// Describes a workload.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The client's own network; on the inner CONNECT of double HBONE only.
pub const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// What kind of proxy opens the outer of two tunnels, `waypoint`; a node's tunnel does not say it.
pub const X_ISTIO_SOURCE: HeaderName = HeaderName::from_static("x-istio-source");

/// The longest DNS name (RFC 1035).
const MAX_HOST: usize = 253;
/// Entries of baggage that are looked at; we know eight keys, others may add theirs.
const MAX_BAGGAGE_ENTRIES: usize = 64;
/// The longest value taken from baggage: four Kubernetes names.
const MAX_VALUE: usize = 1024;

/// Why a CONNECT's authority names no destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the authority must be ip:port, [ipv6]:port or hostname:port with a port from 1 to 65535")]
pub struct InvalidAuthority;

/// Reads the authority of a CONNECT. IPv4 mapped into IPv6 is undone.
pub fn parse_authority(text: &str) -> Result<Target, InvalidAuthority> {
    let (host, port) = text.rsplit_once(':').ok_or(InvalidAuthority)?;
    let port = parse_port(port)?;
    if let Some(inside) = host.strip_prefix('[') {
        let ip: Ipv6Addr = inside.strip_suffix(']').and_then(|ip| ip.parse().ok()).ok_or(InvalidAuthority)?;
        return Ok(Target::Ip(canonical(SocketAddr::new(ip.into(), port))));
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Target::Ip(SocketAddr::new(ip.into(), port)));
    }
    if is_hostname(host) { Ok(Target::Host(host.into(), port)) } else { Err(InvalidAuthority) }
}

fn parse_port(text: &str) -> Result<u16, InvalidAuthority> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().map_err(|_| InvalidAuthority)?;
    if digits && port != 0 { Ok(port) } else { Err(InvalidAuthority) }
}

/// DNS labels, and nothing that ends in a number: that would be a mistyped address.
fn is_hostname(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= MAX_HOST && host.split('.').all(label) && !host.rsplit('.').next().is_some_and(numeric)
}

/// A workload's description as it travels. What is empty does not travel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Cluster,
    /// `k8s.namespace.name`
    pub namespace: Namespace,
    /// The kind in `k8s.<kind>.name`.
    pub workload_type: WorkloadType,
    /// `k8s.<kind>.name`
    pub workload_name: Label,
    /// `service.name`
    pub canonical_name: Label,
    /// `service.version`
    pub canonical_revision: Label,
    /// `cloud.region`
    pub region: Label,
    /// `cloud.availability_zone`
    pub zone: Label,
}

impl From<&Workload> for Baggage {
    fn from(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster.clone(),
            namespace: workload.namespace.clone(),
            workload_type: workload.workload_type,
            workload_name: workload.workload_name.clone(),
            canonical_name: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
        }
    }
}

impl Baggage {
    /// The header's value; `None` when there is nothing to say.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut text = String::with_capacity(192);
        let entries = [
            ("k8s.cluster.name", self.cluster.as_str()),
            ("k8s.namespace.name", self.namespace.as_str()),
            (kind_key(self.workload_type), self.workload_name.as_str()),
            ("service.name", self.canonical_name.as_str()),
            ("service.version", self.canonical_revision.as_str()),
            ("cloud.region", self.region.as_str()),
            ("cloud.availability_zone", self.zone.as_str()),
        ];
        for (key, value) in entries.into_iter().filter(|(_, value)| can_travel(value)) {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(text, "{comma}{key}={value}");
        }
        if text.is_empty() { None } else { HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok() }
    }

    /// What all `baggage` lines of `headers` say together; the last word on a key counts.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut baggage = Self::default();
        let lines = headers.get_all(BAGGAGE).iter().filter_map(|line| line.to_str().ok());
        for entry in lines.flat_map(|line| line.split(',')).take(MAX_BAGGAGE_ENTRIES) {
            let mut parts = entry.split('=');
            if let (Some(key), Some(value)) = (parts.next(), parts.next())
                && value.len() <= MAX_VALUE
            {
                baggage.set(key, value);
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "k8s.cluster.name" => self.cluster = value.into(),
            "k8s.namespace.name" => self.namespace = value.into(),
            "service.name" => self.canonical_name = value.into(),
            "service.version" => self.canonical_revision = value.into(),
            "cloud.region" => self.region = value.into(),
            "cloud.availability_zone" => self.zone = value.into(),
            _ => {
                if let Some(kind) = WORKLOAD_TYPES.into_iter().find(|&kind| kind_key(kind) == key) {
                    self.workload_type = kind;
                    self.workload_name = value.into();
                }
            }
        }
    }
}

const WORKLOAD_TYPES: [WorkloadType; 4] =
    [WorkloadType::Deployment, WorkloadType::Cronjob, WorkloadType::Pod, WorkloadType::Job];

fn kind_key(kind: WorkloadType) -> &'static str {
    match kind {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::Cronjob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    }
}

/// There is no quoting in this grammar: a value with its separators would be read as something else.
fn can_travel(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_VALUE
        && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',' && byte != b'=')
}

/// `forwarded`: who calls, and the service that was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The original client.
    pub client: SocketAddr,
    /// The service it asked for, when known.
    pub host: Option<Hostname>,
}

impl Forwarded {
    /// The header's value.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(bytes::Bytes::from(self.to_string())).ok()
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        self.host.iter().try_for_each(|host| write!(f, ";host={host}"))
    }
}

/// The service that the peer says was called; nothing when the header says nothing that can be read.
pub fn forwarded_host(headers: &HeaderMap) -> Option<Hostname> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    let host = text.split(';').find_map(|part| part.trim().strip_prefix("host="))?;
    let host = host.strip_prefix('"').and_then(|host| host.strip_suffix('"')).unwrap_or(host);
    is_hostname(host).then(|| host.into())
}

/// W3C trace context, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace; not zero.
    pub trace: u128,
    /// The span that called; not zero.
    pub parent: u64,
    /// Bit 0: sampled.
    pub flags: u8,
}

impl Traceparent {
    /// A new, unsampled trace out of the caller's random numbers.
    pub fn new(trace: u128, parent: u64) -> Self {
        Self { trace: trace.max(1), parent: parent.max(1), flags: 0 }
    }

    /// What the peer sent, if it is well-formed; the caller makes a new one otherwise.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
    }

    /// Reads the 55 characters.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = text.split('-');
        let mut next = |length| parts.next().filter(|part| part.len() == length && hex(part));
        let version = next(2)?;
        let trace = u128::from_str_radix(next(32)?, 16).ok()?;
        let parent = u64::from_str_radix(next(16)?, 16).ok()?;
        let flags = u8::from_str_radix(next(2)?, 16).ok()?;
        let legal = text.len() == 55 && version != "ff" && trace != 0 && parent != 0;
        legal.then_some(Self { trace, parent, flags })
    }

    /// The header's value.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(bytes::Bytes::from(self.to_string())).ok()
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, self.flags)
    }
}

/// The network that the peer says it called from.
pub fn forwarded_network(headers: &HeaderMap) -> Option<Network> {
    let text = headers.get(X_FORWARDED_NETWORK)?.to_str().ok()?;
    (!text.is_empty() && text.len() <= MAX_HOST).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect()
    }

    #[test]
    fn an_authority_is_read_strictly() {
        let ip = |text: &str| Ok(Target::Ip(text.parse().unwrap()));
        let host = |name: &str, port| Ok(Target::Host(name.into(), port));
        for (text, expected) in [
            ("10.0.0.1:80", ip("10.0.0.1:80")),
            ("[fd00::1]:8080", ip("[fd00::1]:8080")),
            ("[::ffff:10.0.0.1]:80", ip("10.0.0.1:80")),
            ("web.shop.svc.cluster.local:443", host("web.shop.svc.cluster.local", 443)),
            ("a_b:1", host("a_b", 1)),
        ] {
            assert_eq!(parse_authority(text), expected, "{text}");
        }
    }

    #[test]
    fn near_authorities_are_refused() {
        for text in [
            "",
            ":",
            ":80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1:8x",
            "256.0.0.1:80",
            "10.0.0:80",
            "1.2.3.4.5:80",
            "fd00::1:80",
            "[fd00::1]",
            "[fd00::1:80",
            "[10.0.0.1]:80",
            "[fe80::1%eth0]:80",
            "user@web:80",
            "web:80:80",
            "web/:80",
            "we b:80",
            "web..local:80",
            ".web:80",
            "web.:80",
            "wéb:80",
        ] {
            assert_eq!(parse_authority(text), Err(InvalidAuthority), "{text}");
        }
        assert_eq!(parse_authority(&format!("{}:80", "a.".repeat(127) + "a")), Err(InvalidAuthority));
        assert_eq!(parse_authority(&format!("{}:80", "a".repeat(64))), Err(InvalidAuthority));
    }

    #[test]
    fn baggage_has_its_keys_in_their_order() {
        let baggage = Baggage {
            cluster: "c".into(),
            namespace: "ns".into(),
            workload_type: WorkloadType::Deployment,
            workload_name: "web".into(),
            canonical_name: "web".into(),
            canonical_revision: "v1".into(),
            region: "r".into(),
            zone: "z".into(),
        };
        assert_eq!(
            baggage.header().unwrap(),
            "k8s.cluster.name=c,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,service.version=v1,\
             cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(Baggage::default().header(), None);
    }

    #[test]
    fn a_baggage_value_that_would_forge_another_does_not_travel() {
        let baggage =
            Baggage { region: "r,k8s.namespace.name=admin".into(), zone: "z".into(), ..Baggage::default() };
        assert_eq!(baggage.header().unwrap(), "cloud.availability_zone=z");
    }

    #[test]
    fn baggage_is_read_from_several_lines_and_only_two_parts_matter() {
        let read = Baggage::read(&headers(&[
            (BAGGAGE, "k8s.cluster.name=c=ignored,other=x,lonely"),
            (BAGGAGE, "k8s.job.name=j,service.name=, cloud.region=not-trimmed"),
            (BAGGAGE, "service.version=\u{e9}"),
        ]));
        let expected = Baggage {
            cluster: "c".into(),
            workload_type: WorkloadType::Job,
            workload_name: "j".into(),
            ..Baggage::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn forwarded_names_client_and_service() {
        let forwarded = |client: &str, host: Option<&str>| {
            Forwarded { client: client.parse().unwrap(), host: host.map(Into::into) }.to_string()
        };
        assert_eq!(forwarded("10.0.0.1:5", None), "for=\"10.0.0.1:5\"");
        assert_eq!(forwarded("[fd00::1]:5", Some("web.shop")), "for=\"[fd00::1]:5\";host=web.shop");
        for (text, host) in [
            ("for=\"10.0.0.1:5\";host=web.shop", Some("web.shop")),
            ("host=\"web.shop\"", Some("web.shop")),
            ("for=x;HOST=web", None),
            ("host=", None),
            ("host=\"web", None),
            ("by=1;for=2", None),
            ("host=w\u{e9}b", None),
        ] {
            assert_eq!(forwarded_host(&headers(&[(FORWARDED, text)])), host.map(Into::into), "{text}");
        }
    }

    #[test]
    fn a_traceparent_that_is_not_well_formed_is_no_traceparent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(Traceparent::parse(good).unwrap().to_string(), good);
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0-00af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(Traceparent::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn authorities_are_printed_as_they_are_read(v4: [u8; 4], v6: [u16; 8], port in 1u16.., host in "[a-z]{1,9}(\\.[a-z]{1,9}){0,4}") {
            for target in [
                Target::Ip(SocketAddr::new(v4.into(), port)),
                Target::Ip(canonical(SocketAddr::new(v6.into(), port))),
                Target::Host(host.as_str().into(), port),
            ] {
                prop_assert_eq!(parse_authority(&target.to_string()), Ok(target));
            }
        }

        #[test]
        fn any_text_is_judged_without_fear(text in "\\PC{0,80}") {
            if let Ok(target) = parse_authority(&text) {
                prop_assert_eq!(parse_authority(&target.to_string()), Ok(target));
            }
            let _ = Traceparent::parse(&text);
            let map = headers(&[(BAGGAGE, &text), (FORWARDED, &text), (X_FORWARDED_NETWORK, &text)]);
            let _ = (Baggage::read(&map), forwarded_host(&map), forwarded_network(&map));
        }

        #[test]
        fn baggage_is_read_as_it_was_written(words in proptest::array::uniform7("[a-z0-9.-]{0,20}"), kind in 0usize..4) {
            let [a, b, c, d, e, f, g] = words;
            let written = Baggage {
                cluster: a.into(), namespace: b.into(),
                workload_type: if c.is_empty() { WorkloadType::default() } else { WORKLOAD_TYPES[kind] },
                workload_name: c.into(), canonical_name: d.into(), canonical_revision: e.into(), region: f.into(), zone: g.into(),
            };
            let map = written.header().into_iter().map(|value| (BAGGAGE, value)).collect();
            prop_assert_eq!(Baggage::read(&map), written);
        }

        #[test]
        fn traceparents_are_read_as_written(trace: u128, parent: u64) {
            let made = Traceparent::new(trace, parent);
            prop_assert_eq!(Traceparent::parse(&made.to_string()), Some(made));
            prop_assert_eq!(made.to_string().len(), 55);
        }
    }
}
