//! What the plugin and the agent say to each other: HTTP over a Unix socket, JSON of Istio's shape.

use std::net::IpAddr;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

/// Where an arrival is told.
pub const PATH: &str = "/cmdadd";

/// The status of an answer that says neither yes nor no: the agent does not know whether the pod belongs.
pub const UNDECIDED: u16 = 503;

/// A pod whose network has just been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Arrival {
    /// The file that stands for its network namespace, as the runtime sees it.
    pub netns: String,
    /// Its name.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its UID as kubelet knows it. Istio's plugin does not say.
    #[serde(rename = "PodUID", default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Its addresses.
    #[serde(rename = "IPs", default)]
    pub ips: Vec<Ip>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ip {
    /// The index of its interface in the result of the plugins before us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    /// The address and its network.
    pub address: Network,
}

/// An address as Go writes a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The address.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
    /// The mask's bytes in base64.
    #[serde(rename = "Mask", default, skip_serializing_if = "String::is_empty")]
    pub mask: String,
}

/// The agent's answer to an arrival that may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Whether the pod is captured.
    pub captured: bool,
    /// Why not.
    #[serde(default)]
    pub reason: String,
}

/// The agent's answer to one that may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sorry {
    /// Why, and what can be done.
    pub error: String,
}

impl Network {
    /// `10.0.0.7/24`, or a lone address.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let ip = ip.parse::<IpAddr>().ok()?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(length) => length.parse::<u32>().ok().filter(|length| *length <= bits)?,
            None => bits,
        };
        let all = u128::MAX.checked_shl(128 - length).unwrap_or(0).to_be_bytes();
        let size = if ip.is_ipv4() { 4 } else { 16 };
        Some(Self { ip, mask: BASE64_STANDARD.encode(all.get(..size)?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_is_written_as_istios_agent_would_read_it() {
        let arrival = Arrival {
            netns: "/var/run/netns/cni-1".into(),
            pod_name: "web".into(),
            pod_namespace: "shop".into(),
            pod_uid: Some("u1".into()),
            ips: vec![Ip { interface: Some(2), address: Network::parse("10.0.0.7/24").unwrap() }],
        };
        let text = serde_json::to_string(&arrival).unwrap();
        assert_eq!(
            text,
            r#"{"Netns":"/var/run/netns/cni-1","PodName":"web","PodNamespace":"shop","PodUID":"u1","IPs":[{"Interface":2,"Address":{"IP":"10.0.0.7","Mask":"////AA=="}}]}"#
        );
        assert_eq!(serde_json::from_str::<Arrival>(&text).unwrap(), arrival);
    }

    #[test]
    fn what_istios_plugin_writes_is_read() {
        let text = r#"{"Netns":"/n","PodName":"p","PodNamespace":"ns","IPs":[{"Interface":null,"Address":{"IP":"fd00::7","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":"fd00::1"}]}"#;
        let arrival: Arrival = serde_json::from_str(text).unwrap();
        assert_eq!(arrival.ips[0].address, Network::parse("fd00::7/64").unwrap());
        assert_eq!(arrival.pod_uid, None);
    }

    #[test]
    fn networks() {
        for (text, mask) in
            [("10.0.0.1/0", "AAAAAA=="), ("10.0.0.1", "/////w=="), ("10.0.0.1/32", "/////w==")]
        {
            assert_eq!(Network::parse(text).unwrap().mask, mask, "{text}");
        }
        for text in ["", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0/8", "::1/129", "/24"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }
}
