//! The rules of one pod as `nft` and `ip` read them. Pure.
//!
//! One table of our own holds everything, so that it can be replaced in one transaction and removed
//! without a trace. Two things differ from a literal reading of Istio's chains, on purpose:
//!
//! - Only a connection's first packet (SYN alone) is ever redirected. A connection that was open before
//!   the pod was enrolled is first seen by conntrack in mid-stream, as "new", and would be torn apart.
//! - There is a [`draining`] form that captures nothing new and still translates what was captured, so
//!   that the tunnel's goodbye reaches the application when a pod leaves the mesh.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The table, of family `inet`.
pub const TABLE: &str = "ambit";

/// The mark that the tunnel puts on its own packets: what carries it is never captured.
const TUNNEL_MARK: &str = "0x539";
/// The mark of connections that belong to the tunnel.
const CONNECTION_MARK: &str = "0x111";
/// Both marks live in these bits; the others belong to other software.
const MASK: &str = "0xfff";
const REST: &str = "0xfffff000";

/// The tunnel's listeners.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const HBONE: u16 = 15008;
const DNS: u16 = 15053;

/// Where the routes of marked packets lie, and which rule leads there.
const ROUTE_TABLE: u16 = 100;
const RULE_PREFERENCE: u16 = 32764;

/// The first packet of a connection, and only that.
const OPENING: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// From where kubelet's probes come unless the operator says otherwise.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// The same for IPv6.
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// Kubelet's probes come from these addresses (the node translates them), and reach the application
/// unseen by the tunnel. So nothing else may have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAddresses {
    /// For IPv4.
    pub v4: Ipv4Addr,
    /// For IPv6.
    pub v6: Ipv6Addr,
}

impl ProbeAddresses {
    /// The one of the same family.
    pub fn of(self, ip: IpAddr) -> IpAddr {
        if ip.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

impl Default for ProbeAddresses {
    fn default() -> Self {
        Self { v4: PROBE_V4, v6: PROBE_V6 }
    }
}

/// What to capture in one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// Questions to name servers.
    pub dns: Capture,
    /// Connections to the pod; those through HBONE arrive all the same.
    pub inbound: Capture,
    /// Interfaces behind which nested machines sit, whose connections are treated as the pod's own.
    pub virtual_interfaces: Vec<Interface>,
    /// From where probes come.
    pub probes: ProbeAddresses,
}

/// Whether a kind of traffic passes through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// It does.
    On,
    /// It goes its own way.
    Off,
}

/// Which IP families the pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone: no rule touches IPv6.
    Ipv4,
    /// Both.
    Dual,
}

/// The name of a network interface, as the kernel allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

/// A word that cannot be an interface's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a network interface: 1 to 15 letters, digits, '-', '_', '.', ':' or '@'"
)]
pub struct NoInterface(pub String);

/// The whole table, replacing whatever it held, for `nft -f`.
pub fn ruleset(redirect: &Redirect, families: Families) -> String {
    let mut text = replacing();
    if redirect.dns == Capture::On {
        chain(
            &mut text,
            "raw-prerouting",
            "filter hook prerouting priority raw",
            &[guard(
                families,
                &format!("meta mark & {MASK} != {TUNNEL_MARK} udp sport 53 counter ct zone set 1"),
            )],
        );
        chain(
            &mut text,
            "raw-output",
            "filter hook output priority raw",
            &[guard(
                families,
                &format!("meta mark & {MASK} == {TUNNEL_MARK} udp dport 53 counter ct zone set 1"),
            )],
        );
    }
    marks(&mut text, families);
    chain(&mut text, "nat-prerouting", "nat hook prerouting priority dstnat", &incoming(redirect, families));
    chain(&mut text, "nat-output", "nat hook output priority -100", &outgoing(redirect, families));
    text.push_str("}\n");
    text
}

/// The table while a pod leaves: nothing new is captured; the empty `nat` chains keep the kernel
/// translating what was.
pub fn draining(families: Families) -> String {
    let mut text = replacing();
    marks(&mut text, families);
    chain(&mut text, "nat-prerouting", "nat hook prerouting priority dstnat", &[]);
    chain(&mut text, "nat-output", "nat hook output priority -100", &[]);
    text.push_str("}\n");
    text
}

/// Takes the table away; no error if there is none.
pub fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Commands for `ip FAMILY -force -batch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `-4` or `-6`.
    pub family: &'static str,
    /// One command a line.
    pub commands: String,
}

/// Policy routing: a marked packet is for this pod, whatever its address says. So the application's
/// answer to a client whose address the tunnel borrowed comes back to the tunnel.
pub fn routing(families: Families) -> Vec<Batch> {
    routed(families, "rule add", "route replace")
}

/// Takes the policy routing away.
pub fn routing_removal(families: Families) -> Vec<Batch> {
    routed(families, "rule del", "route del")
}

fn routed(families: Families, rule: &str, route: &str) -> Vec<Batch> {
    let v4 = ("-4", "0.0.0.0/0");
    let v6 = (families == Families::Dual).then_some(("-6", "::/0"));
    let batch = |(family, all)| Batch {
        family,
        commands: format!(
            "{rule} fwmark {CONNECTION_MARK}/{MASK} pref {RULE_PREFERENCE} lookup {ROUTE_TABLE}\n\
             {route} local {all} dev lo table {ROUTE_TABLE}\n"
        ),
    };
    std::iter::once(v4).chain(v6).map(batch).collect()
}

/// Connections that come to the pod, and those of machines nested in it.
fn incoming(redirect: &Redirect, families: Families) -> Vec<String> {
    let mut rules = Vec::new();
    for Interface(name) in &redirect.virtual_interfaces {
        rules.push(guard(families, &format!("iifname \"{name}\" {OPENING} counter redirect to :{OUTBOUND}")));
        rules.push(guard(families, &format!("iifname \"{name}\" meta l4proto tcp counter return")));
    }
    if redirect.inbound == Capture::On {
        for (ip, probe) in probers(redirect, families) {
            rules.push(format!("{ip} saddr {probe} meta l4proto tcp counter accept"));
        }
        for Family { ip, loopback, .. } in family(families) {
            rules.push(format!(
                "{ip} daddr != {loopback} tcp dport != {HBONE} {OPENING} meta mark & {MASK} != {TUNNEL_MARK} counter redirect to :{INBOUND}"
            ));
        }
    }
    rules
}

/// Connections and questions of the pod itself. The order is a decision list.
fn outgoing(redirect: &Redirect, families: Families) -> Vec<String> {
    let mut rules = Vec::new();
    for (ip, probe) in probers(redirect, families) {
        rules.push(format!("{ip} daddr {probe} meta l4proto tcp counter accept"));
    }
    if redirect.dns == Capture::On {
        rules.push(guard(families, &format!(
            "oifname != \"lo\" udp dport 53 meta mark & {MASK} != {TUNNEL_MARK} counter redirect to :{DNS}"
        )));
        for Family { ip, loopback, .. } in family(families) {
            rules.push(format!(
                "{ip} daddr != {loopback} tcp dport 53 {OPENING} meta mark & {MASK} != {TUNNEL_MARK} counter redirect to :{DNS}"
            ));
        }
    }
    rules.push(guard(
        families,
        &format!("meta l4proto tcp meta mark & {MASK} == {CONNECTION_MARK} counter accept"),
    ));
    for Family { ip, loopback, .. } in family(families) {
        // The pod calls itself: direct.
        rules.push(format!("{ip} daddr != {loopback} oifname \"lo\" counter accept"));
    }
    for Family { ip, loopback, .. } in family(families) {
        rules.push(format!(
            "{ip} daddr != {loopback} {OPENING} meta mark & {MASK} != {TUNNEL_MARK} counter redirect to :{OUTBOUND}"
        ));
    }
    rules
}

/// What the tunnel sends to the application comes in through `lo` with the tunnel's mark; it marks the
/// connection, and the connection marks the application's answers. The tunnel's own packets keep theirs:
/// a changed mark would have the kernel look up the route of each of them again.
fn marks(text: &mut String, families: Families) {
    chain(
        text,
        "mangle-prerouting",
        "filter hook prerouting priority mangle",
        &[guard(
            families,
            &format!(
                "meta mark & {MASK} == {TUNNEL_MARK} counter ct mark set ct mark & {REST} | {CONNECTION_MARK}"
            ),
        )],
    );
    chain(
        text,
        "mangle-output",
        "route hook output priority mangle",
        &[guard(
            families,
            &format!(
                "ct mark & {MASK} == {CONNECTION_MARK} meta mark & {MASK} != {TUNNEL_MARK} counter meta mark set ct mark"
            ),
        )],
    );
}

struct Family {
    ip: &'static str,
    loopback: &'static str,
}

fn family(families: Families) -> impl Iterator<Item = Family> {
    let v4 = Family { ip: "ip", loopback: "127.0.0.1" };
    let v6 = Family { ip: "ip6", loopback: "::1" };
    std::iter::once(v4).chain((families == Families::Dual).then_some(v6))
}

fn probers(redirect: &Redirect, families: Families) -> impl Iterator<Item = (&'static str, IpAddr)> {
    let ProbeAddresses { v4, v6 } = redirect.probes;
    let all = [IpAddr::from(v4), IpAddr::from(v6)];
    family(families).zip(all).map(|(Family { ip, .. }, probe)| (ip, probe))
}

/// A rule that names no address speaks of both families in a table of family `inet`.
fn guard(families: Families, rule: &str) -> String {
    match families {
        Families::Ipv4 => format!("meta nfproto ipv4 {rule}"),
        Families::Dual => rule.to_owned(),
    }
}

/// Deleting needs a table, and adding one that exists is no error: so the table is new in any case.
fn replacing() -> String {
    format!("{}table inet {TABLE} {{\n", removal())
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    line(text, format_args!("\tchain {name} {{"));
    line(text, format_args!("\t\ttype {hook}; policy accept;"));
    for rule in rules {
        line(text, format_args!("\t\t{rule}"));
    }
    line(text, format_args!("\t}}"));
}

fn line(text: &mut String, what: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{what}");
}

impl Interface {
    /// A name of at most 15 plain characters: it is pasted into a ruleset.
    pub fn parse(name: &str) -> Result<Self, NoInterface> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if (1..=15).contains(&name.len()) && name.chars().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(NoInterface(name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> Redirect {
        Redirect {
            dns: Capture::On,
            inbound: Capture::On,
            virtual_interfaces: Vec::new(),
            probes: Default::default(),
        }
    }

    #[test]
    fn the_usual_pod() {
        insta::assert_snapshot!("usual", ruleset(&usual(), Families::Dual));
    }

    #[test]
    fn without_ipv6_no_rule_speaks_of_it() {
        let text = ruleset(&usual(), Families::Ipv4);
        assert!(!text.contains("ip6"));
        insta::assert_snapshot!("ipv4", text);
    }

    #[test]
    fn without_dns_no_rule_knows_port_53() {
        let text = ruleset(&Redirect { dns: Capture::Off, ..usual() }, Families::Dual);
        assert!(!text.contains("53 ") && !text.contains("raw"));
        insta::assert_snapshot!("dns_off", text);
    }

    #[test]
    fn an_ingress_keeps_its_incoming_traffic_and_its_marks() {
        let text = ruleset(&Redirect { inbound: Capture::Off, ..usual() }, Families::Dual);
        assert!(!text.contains(":15006") && text.contains("mangle-prerouting"));
        insta::assert_snapshot!("ingress", text);
    }

    #[test]
    fn nested_machines_are_captured_before_anything_else() {
        let virtual_interfaces = vec![Interface::parse("kv0").unwrap(), Interface::parse("tap-1").unwrap()];
        insta::assert_snapshot!(
            "virtual",
            ruleset(&Redirect { virtual_interfaces, ..usual() }, Families::Dual)
        );
    }

    #[test]
    fn a_pod_that_leaves() {
        let text = draining(Families::Dual);
        assert!(!text.contains("redirect"));
        insta::assert_snapshot!("draining", text);
        insta::assert_snapshot!("removal", removal());
    }

    #[test]
    fn policy_routing() {
        let shown = |batches: Vec<Batch>| {
            let lines = batches.iter().map(|batch| format!("ip {} batch:\n{}", batch.family, batch.commands));
            lines.collect::<String>()
        };
        insta::assert_snapshot!("routing_dual", shown(routing(Families::Dual)));
        insta::assert_snapshot!("routing_ipv4", shown(routing(Families::Ipv4)));
        insta::assert_snapshot!("routing_removal", shown(routing_removal(Families::Dual)));
    }

    #[test]
    fn every_redirect_of_tcp_is_of_an_opening_packet() {
        let virtual_interfaces = vec![Interface::parse("kv0").unwrap()];
        let text = ruleset(&Redirect { virtual_interfaces, ..usual() }, Families::Dual);
        for rule in text.lines().filter(|rule| rule.contains("redirect to")) {
            assert!(rule.contains(OPENING) || rule.contains("udp"), "{rule}");
        }
    }

    #[test]
    fn a_name_cannot_carry_rules() {
        for bad in ["", "a b", "a\"; drop", "sixteencharacter", "a/b", "ä"] {
            assert_eq!(Interface::parse(bad), Err(NoInterface(bad.to_owned())));
        }
    }
}
