//! The tables of istioctl's `ztunnel-config`: same columns, same order, same words. Pure.

use std::collections::HashMap;

use time::OffsetDateTime;

use super::dump::{Certificate, Connection, Dump, Item, Service, Waypoint, Workload};
use crate::output::{Table, moment};

/// Between columns, as istioctl has them.
const GAP: usize = 1;
const CERTIFICATE_GAP: usize = 5;

/// What is to be shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Filter<'a> {
    pub(super) namespace: Option<&'a str>,
    pub(super) node: Option<&'a str>,
    pub(super) address: Option<&'a str>,
}

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Direction {
    /// To the pod.
    Inbound,
    /// From the pod.
    Outbound,
}

/// How the ends of connections are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// As services and workloads, where they are known.
    Known,
    /// As addresses.
    Addresses,
}

impl Filter<'_> {
    pub(super) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespace.is_none_or(|wanted| wanted.eq_ignore_ascii_case(namespace))
    }

    pub(super) fn has_workload(&self, workload: &Workload) -> bool {
        self.has_namespace(&workload.namespace)
            && self.node.is_none_or(|node| node.eq_ignore_ascii_case(&workload.node))
            && self
                .address
                .is_none_or(|wanted| workload.workload_ips.iter().any(|ip| ip.eq_ignore_ascii_case(wanted)))
    }

    /// `spiffe://domain/ns/NAMESPACE/sa/account`.
    pub(super) fn has_identity(&self, identity: &str) -> bool {
        self.has_namespace(identity.split('/').skip_while(|part| *part != "ns").nth(1).unwrap_or_default())
    }
}

pub(super) fn workloads(dump: &Dump, filter: &Filter<'_>) -> Table {
    let mut table = Table::new(GAP, &["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"]);
    let mut shown: Vec<_> = dump.workloads.iter().map(|item| &item.shown).collect();
    shown.retain(|workload| filter.has_workload(workload));
    shown.sort_by_key(|workload| (&workload.namespace, &workload.name, &workload.node));
    for workload in shown {
        let address = match workload.workload_ips.as_slice() {
            [] => workload.hostname.clone(),
            ips => ips.join(","),
        };
        table.row([
            workload.namespace.clone(),
            workload.name.clone(),
            address,
            workload.node.clone(),
            waypoint(workload.waypoint.as_ref(), &dump.services),
            workload.protocol.clone(),
        ]);
    }
    table
}

pub(super) fn services(dump: &Dump, filter: &Filter<'_>) -> Table {
    let mut table = Table::new(GAP, &["NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"]);
    let health: HashMap<_, _> =
        dump.workloads.iter().map(|item| (item.shown.uid.as_str(), item.shown.status == "Healthy")).collect();
    let mut shown: Vec<_> = dump.services.iter().map(|item| &item.shown).collect();
    shown.retain(|service| filter.has_namespace(&service.namespace));
    shown.sort_by_key(|service| (&service.namespace, &service.name, &service.hostname));
    for service in shown {
        let healthy = |uid: &str| health.get(uid).is_some_and(|healthy| *healthy);
        let count = service.endpoints.values().filter(|endpoint| healthy(&endpoint.workload_uid)).count();
        let vips: Vec<_> = service.vips.iter().map(|vip| ip_of(vip)).collect();
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            vips.join(","),
            waypoint(service.waypoint.as_ref(), &dump.services),
            format!("{count}/{}", service.endpoints.len()),
        ]);
    }
    table
}

pub(super) fn policies(dump: &Dump, filter: &Filter<'_>) -> Table {
    let mut table = Table::new(GAP, &["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    let mut shown: Vec<_> = dump.policies.iter().map(|item| &item.shown).collect();
    shown.retain(|policy| filter.has_namespace(&policy.namespace));
    shown.sort_by_key(|policy| (&policy.namespace, &policy.name));
    for policy in shown {
        table.row([&policy.namespace, &policy.name, &policy.action, &policy.scope]);
    }
    table
}

pub(super) fn certificates(dump: &Dump, filter: &Filter<'_>, now: OffsetDateTime) -> Table {
    let head =
        ["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    let mut table = Table::new(CERTIFICATE_GAP, &head);
    for held in dump.certificates.iter().map(|item| &item.shown) {
        if !filter.has_identity(&held.identity) {
            continue;
        }
        let state = if held.state.starts_with("Unavailable") { "Unavailable" } else { held.state.as_str() };
        if held.cert_chain.is_empty() {
            table.row([held.identity.as_str(), "NA", state, "false", "NA", "NA", "NA"]);
            continue;
        }
        // Older tunnels had the root at the end of the chain.
        let last = held.cert_chain.len() - 1;
        let is_root = |place: usize| held.root_certs.is_empty() && place == last;
        let chain = held.cert_chain.iter().enumerate().map(|(place, certificate)| match place {
            0 => ("Leaf", certificate),
            place if is_root(place) => ("Root", certificate),
            _ => ("Intermediate", certificate),
        });
        for (kind, certificate) in chain.chain(held.root_certs.iter().map(|root| ("Root", root))) {
            table.row([
                held.identity.clone(),
                kind.to_owned(),
                state.to_owned(),
                is_valid(certificate, now).to_string(),
                hexadecimal(&certificate.serial_number),
                or_na(&certificate.expiration_time),
                or_na(&certificate.valid_from),
            ]);
        }
    }
    table
}

pub(super) fn connections(
    dump: &Dump,
    filter: &Filter<'_>,
    direction: Option<Direction>,
    names: Names,
) -> Table {
    let mut table =
        Table::new(GAP, &["WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL"]);
    let known = match names {
        Names::Known => known_addresses(dump),
        Names::Addresses => HashMap::new(),
    };
    let name = |address: &str| named(&known, address);
    let mut pods: Vec<_> = dump.pods.iter().map(|item| &item.shown).collect();
    pods.retain(|pod| filter.has_namespace(&pod.info.namespace));
    pods.sort_by_key(|pod| (&pod.info.namespace, &pod.info.name));
    for pod in pods {
        let workload = format!("{}.{}", pod.info.name, pod.info.namespace);
        let wanted = |of: Direction| direction.is_none_or(|direction| direction == of);
        let target = |connection: &Connection| connection.original_dst.clone().unwrap_or_default();
        for open in pod.connections.inbound.iter().filter(|_| wanted(Direction::Inbound)) {
            let (local, remote) = (name(&open.actual_dst), name(&open.src));
            table.row([
                workload.clone(),
                "Inbound".to_owned(),
                local,
                remote,
                target(open),
                open.protocol.clone(),
            ]);
        }
        for open in pod.connections.outbound.iter().filter(|_| wanted(Direction::Outbound)) {
            let (local, remote) = (name(&open.src), name(&open.actual_dst));
            let target = name(&target(open));
            table.row([
                workload.clone(),
                "Outbound".to_owned(),
                local,
                remote,
                target,
                open.protocol.clone(),
            ]);
        }
    }
    table
}

/// `None` for none, the name of its service, or `NA` when that is not known.
fn waypoint(waypoint: Option<&Waypoint>, services: &[Item<Service>]) -> String {
    let Some(Waypoint { destination }) = waypoint else { return "None".to_owned() };
    let is_it = |service: &Service| {
        destination.split_once('/').is_some_and(|(namespace, hostname)| {
            namespace == service.namespace && hostname == service.hostname
        }) || service.vips.contains(destination)
    };
    let service = services.iter().find(|item| is_it(&item.shown));
    service.map_or_else(|| "NA".to_owned(), |item| item.shown.name.clone())
}

/// `network/ip` is `ip`.
fn ip_of(address: &str) -> &str {
    address.split_once('/').map_or("", |(_, ip)| ip)
}

/// Services and workloads by each of their addresses.
fn known_addresses(dump: &Dump) -> HashMap<&str, String> {
    let workloads = dump.workloads.iter().flat_map(|item| {
        let name = format!("{}.{}", item.shown.name, item.shown.namespace);
        item.shown.workload_ips.iter().map(move |ip| (ip.as_str(), name.clone()))
    });
    let services = dump
        .services
        .iter()
        .flat_map(|item| item.shown.vips.iter().map(|vip| (ip_of(vip), item.shown.hostname.clone())));
    workloads.chain(services).collect()
}

fn named(known: &HashMap<&str, String>, address: &str) -> String {
    let parts = address.rsplit_once(':');
    let name = parts.and_then(|(ip, port)| {
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        Some(format!("{}:{port}", known.get(ip)?))
    });
    name.unwrap_or_else(|| address.to_owned())
}

fn or_na(text: &str) -> String {
    if text.is_empty() { "NA".to_owned() } else { text.to_owned() }
}

fn is_valid(certificate: &Certificate, now: OffsetDateTime) -> bool {
    let bounds = (moment(&certificate.valid_from), moment(&certificate.expiration_time));
    matches!(bounds, (Some(from), Some(to)) if from < now && now < to)
}

/// A serial number has up to twenty bytes, more than any integer of the language: divide by hand.
fn hexadecimal(decimal: &str) -> String {
    let digits: Option<Vec<u32>> = decimal.chars().map(|digit| digit.to_digit(10)).collect();
    let Some(mut digits) = digits.filter(|digits| !digits.is_empty()) else { return or_na(decimal) };
    let mut reversed = String::new();
    while !digits.is_empty() {
        let mut rest = 0;
        let mut quotient = Vec::new();
        for digit in digits {
            let value = rest * 10 + digit;
            rest = value % 16;
            if value >= 16 || !quotient.is_empty() {
                quotient.push(value / 16);
            }
        }
        reversed.extend(char::from_digit(rest, 16));
        digits = quotient;
    }
    reversed.chars().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Dump {
        Dump::parse(include_str!("testdata/dump.json")).unwrap()
    }

    fn now() -> OffsetDateTime {
        moment("2026-11-24T23:50:00Z").unwrap()
    }

    #[test]
    fn the_tables_of_a_recorded_dump() {
        let (dump, filter) = (dump(), Filter::default());
        let all = [
            workloads(&dump, &filter),
            services(&dump, &filter),
            policies(&dump, &filter),
            certificates(&dump, &filter, now()),
            connections(&dump, &filter, None, Names::Known),
            connections(&dump, &filter, None, Names::Addresses),
        ];
        let text: Vec<_> = all.iter().map(|table| table.render(false)).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn waypoints_and_certificates_have_the_words_that_istioctl_has() {
        let certificate = |serial: &str| {
            format!(
                r#"{{"serialNumber": "{serial}", "validFrom": "2026-11-01T00:00:00Z", "expirationTime": "2026-11-02T00:00:00Z"}}"#
            )
        };
        let text = format!(
            r#"{{
                "workloads": [
                    {{"name": "a", "namespace": "n", "hostname": "a.example", "waypoint": {{"destination": "n/gate.n.svc"}}}},
                    {{"name": "b", "namespace": "n", "waypoint": {{"destination": "net/10.0.0.9"}}}},
                    {{"name": "c", "namespace": "n", "waypoint": {{"destination": "net/10.0.0.8"}}}}
                ],
                "services": [{{"name": "gate", "namespace": "n", "hostname": "gate.n.svc", "vips": ["net/10.0.0.9"],
                    "endpoints": {{"x": {{"workloadUid": "x"}}}}}}],
                "certificates": [
                    {{"identity": "spiffe://d/ns/n/sa/old", "state": "Available", "certChain": [{}, {}, {}]}},
                    {{"identity": "spiffe://d/ns/n/sa/new", "state": "Initializing"}},
                    {{"identity": "spiffe://d/ns/n/sa/bad", "state": "Unavailable: the CA says no"}}
                ]
            }}"#,
            certificate("1"),
            certificate("2"),
            certificate("3")
        );
        let (dump, filter) = (Dump::parse(&text).unwrap(), Filter::default());
        let all = [workloads(&dump, &filter), services(&dump, &filter), certificates(&dump, &filter, now())];
        let text: Vec<_> = all.iter().map(|table| table.render(false)).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn filters_leave_what_was_asked_for() {
        let dump = dump();
        let lines = |filter: Filter<'_>| workloads(&dump, &filter).render(false).lines().count() - 1;
        let all = lines(Filter::default());
        let on_a = lines(Filter { node: Some("NODE-A"), ..Filter::default() });
        let on_b = lines(Filter { node: Some("node-b"), ..Filter::default() });
        assert!(on_a > 0 && on_b > 0 && on_a + on_b <= all);
        assert_eq!(lines(Filter { namespace: Some("nowhere"), ..Filter::default() }), 0);
        assert_eq!(lines(Filter { address: Some("10.42.0.2"), ..Filter::default() }), 1);
        let filter = Filter { namespace: Some("nowhere"), ..Filter::default() };
        assert_eq!(certificates(&dump, &filter, now()).render(false).lines().count(), 1);
        let inbound = connections(&dump, &Filter::default(), Some(Direction::Inbound), Names::Known);
        assert!(!inbound.render(false).contains("Outbound"));
        let raw = dump.raw_workloads(&Filter { address: Some("10.42.0.2"), ..Filter::default() });
        assert_eq!(raw[0]["workloadIps"][0], "10.42.0.2");
        assert!(raw[0]["locality"].is_object(), "fields that no table shows stay in JSON");
    }

    #[test]
    fn two_tunnels_are_shown_as_one_mesh() {
        let (mut both, other) = (dump(), dump());
        let (certificates, pods) = (both.certificates.len(), both.pods.len());
        both.add(other);
        assert_eq!((both.certificates.len(), both.pods.len()), (certificates * 2, pods * 2));
        assert_eq!(both.workloads.len(), dump().workloads.len());
    }

    #[test]
    fn a_serial_number_of_any_length_is_written_in_hexadecimal() {
        for (decimal, expected) in [
            ("0", "0"),
            ("255", "ff"),
            ("4096", "1000"),
            ("340282366920938463463374607431768211455", "ffffffffffffffffffffffffffffffff"),
            ("1461501637330902918203684832716283019655932542975", "ffffffffffffffffffffffffffffffffffffffff"),
            ("", "NA"),
            ("ab:cd", "ab:cd"),
        ] {
            assert_eq!(hexadecimal(decimal), expected);
        }
    }

    #[test]
    fn lists_may_be_maps_and_other_things_are_refused() {
        let old =
            r#"{"workloads": {"/10.0.0.1": {"name": "a", "namespace": "b", "workloadIps": ["10.0.0.1"]}}}"#;
        assert_eq!(Dump::parse(old).unwrap().workloads.len(), 1);
        for bad in ["[]", "not json", r#"{"workloads": 7}"#, r#"{"services": [{"vips": 1}]}"#] {
            assert!(Dump::parse(bad).is_err(), "{bad}");
        }
    }
}
