//! Names: what the mesh owns is answered by it; everything else is as the name server says it, byte for byte.

use ambit_e2e::observe::sum;
use ambit_e2e::story::{self, Tell};
use ambit_e2e::telling::Evidence;
use ambit_e2e::town::{SOON, Town};
use ambit_lab::Program;
use ambit_lab::mesh::{SHOP, Settings};
use anyhow::{Context as _, ensure};

const STEPS: [(&str, Tell); 5] = [
    ("A service's name is answered by the tunnel", owned),
    ("Names that the mesh does not own are answered as without it", forwarded),
    ("What does not exist does not exist", missing),
    ("Not one of many queries is lost", many),
    ("Queries are counted", counted),
];

/// Longer than an answer without EDNS may be.
const LARGE: usize = 12;

#[test]
fn names_are_answered_as_without_the_mesh() -> anyhow::Result<()> {
    let adjust = |mesh: &mut Settings| {
        mesh.dns.extend(
            [
                "--srv-host=_http._tcp.web.shop.svc.cluster.local,web.shop.svc.cluster.local,80,10,20",
                "--host-record=target.example.test,192.0.2.7,2001:db8::7",
                "--cname=alias.example.test,target.example.test",
                "--txt-record=text.example.test,v=1,a text of two parts",
                "--mx-host=example.test,target.example.test,10",
                "--ptr-record=7.2.0.192.in-addr.arpa,target.example.test",
                "--caa-record=example.test,0,issue,ca.example.test",
            ]
            .map(str::to_owned),
        );
        let part = "x".repeat(200);
        mesh.dns.extend((0..LARGE).map(|number| format!("--txt-record=large.example.test,{number}-{part}")));
    };
    story::tell("names", SHOP, adjust, &STEPS)
}

/// Header and records of an answer, without what differs each time. Records in an order of their own.
fn dig(town: &Town, pod: &str, question: &str) -> anyhow::Result<Vec<String>> {
    let show = [
        "+tries=1",
        "+time=2",
        "+noall",
        "+comments",
        "+question",
        "+answer",
        "+authority",
        "+additional",
        "+nocookie",
    ];
    let words = question.split(' ');
    let said = town.pod(pod)?.exec(["dig"].into_iter().chain(show).chain(words))?.ok()?;
    let mut lines: Vec<_> = said
        .lines()
        .map(|line| match line.split_once(", id: ") {
            Some((status, _)) => status.to_owned(),
            None => line.split_whitespace().collect::<Vec<_>>().join(" "),
        })
        .filter(|line| !line.is_empty() && !line.starts_with("; <<>>"))
        .collect();
    ensure!(lines.iter().any(|line| line.contains("status:")), "no answer to {question}: {said}");
    lines.sort();
    Ok(lines)
}

fn owned(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for (name, count) in [("web.shop.svc.cluster.local", 1), ("cart.shop.svc.cluster.local", 1)] {
        for kind in ["A", "AAAA"] {
            let answer = dig(town, "shop/client", &format!("{name} {kind}"))?;
            let direct = dig(town, "guest/guest", &format!("{name} {kind}"))?;
            let records = |lines: &[String]| -> Vec<(String, String)> {
                let records = lines.iter().filter(|line| line.starts_with(name));
                let fields = records.map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
                fields.filter_map(|mut fields| Some((fields.pop()?, fields.get(1)?.clone()))).collect()
            };
            let (ours, theirs) = (records(&answer), records(&direct));
            ensure!(ours.len() == count, "{name} {kind}: {answer:?}");
            let addresses =
                |all: &[(String, String)]| all.iter().map(|(address, _)| address.clone()).collect::<Vec<_>>();
            ensure!(addresses(&ours) == addresses(&theirs), "{name} {kind}: {ours:?} for {theirs:?}");
            // The mesh's own answers live 30 seconds, the name server's five.
            ensure!(
                ours.iter().all(|(_, ttl)| ttl == "30"),
                "{name} {kind} was not answered by the tunnel: {ours:?}"
            );
            seen.saw(format!("{name} {kind} is {}.", addresses(&ours).join(", ")));
        }
    }
    Ok(())
}

fn forwarded(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let questions = [
        "_http._tcp.web.shop.svc.cluster.local SRV",
        "alias.example.test A",
        "alias.example.test AAAA",
        "alias.example.test CNAME",
        "target.example.test A",
        "target.example.test ANY",
        "text.example.test TXT",
        "example.test MX",
        "example.test CAA",
        "-x 192.0.2.7",
        "target.example.test A +tcp",
        "text.example.test TXT +noedns",
        // Too long for a datagram: cut, and asked again by TCP.
        "large.example.test TXT +noedns",
        "large.example.test TXT +noedns +ignore",
        "large.example.test TXT +bufsize=1232",
        // Fits in one, as the question says.
        "large.example.test TXT +bufsize=4096 +notcp",
    ];
    for question in questions {
        let direct = dig(town, "guest/guest", question)?;
        let through = dig(town, "shop/client", question)?;
        ensure!(direct == through, "{question}:\ndirect:  {direct:#?}\nthrough: {through:#?}");
    }
    let large = dig(town, "shop/client", "large.example.test TXT")?;
    let count = large
        .iter()
        .filter(|line| line.starts_with("large.example.test.") && line.contains("TXT \""))
        .count();
    ensure!(count == LARGE, "{count} of {LARGE} records");
    let cut = dig(town, "shop/client", "large.example.test TXT +noedns +ignore")?;
    ensure!(cut.iter().any(|line| line.contains("flags:") && line.contains(" tc")), "not cut: {cut:?}");
    seen.saw(format!(
        "{} questions, each answered as directly; a large answer is cut, and comes by TCP.",
        questions.len()
    ));
    Ok(())
}

fn missing(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    for question in ["nobody.shop.svc.cluster.local A", "nobody.example.test A", "nobody.example.test TXT"] {
        let direct = dig(town, "guest/guest", question)?;
        let through = dig(town, "shop/client", question)?;
        ensure!(through == direct, "{question}:\ndirect:  {direct:#?}\nthrough: {through:#?}");
        let status = through.iter().find_map(|line| line.split_once("status: ")).context("no status")?.1;
        ensure!(status.starts_with("NXDOMAIN"), "{question}: {status}");
    }
    seen.saw("NXDOMAIN, with or without the mesh.");
    Ok(())
}

/// Asks by datagram from a new port each time, as resolvers do; prints how many were answered.
const ASKS: &str = "
import socket, struct, sys
server, count, answered = sys.argv[1], int(sys.argv[2]), 0
for number in range(count):
    name = ['web.shop.svc.cluster.local', 'target.example.test'][number % 2]
    question = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.')) + b'\\0\\0\\1\\0\\1'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        asks.settimeout(2)
        asks.sendto(struct.pack('>6H', number, 0x100, 1, 0, 0, 0) + question, (server, 53))
        try:
            answer = asks.recv(4096)
        except TimeoutError:
            print('no answer to', number, name, flush=True)
            continue
        answered += answer[:2] == struct.pack('>H', number) and answer[3] & 15 == 0 and answer[7] > 0
print(answered)
";

fn many(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    const COUNT: &str = "1000";
    let server = ambit_lab::address::dns(town.mesh().lab().family());
    let server = server.first().context("the lab has no name server")?.to_string();
    let program = Program::new("python3").args(["-c", ASKS, &server, COUNT]);
    let answered = town.pod("shop/client")?.run(&program, SOON)?.ok()?;
    ensure!(answered.trim() == COUNT, "of {COUNT}: {answered}");
    seen.saw(format!(
        "{COUNT} asked, {} answered, half by the tunnel, half by the name server.",
        answered.trim()
    ));
    Ok(())
}

fn counted(town: &mut Town, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    let samples = town.metrics("node-a")?;
    let asked = sum(&samples, "istio_dns_requests_total", &[("source_canonical_service", "client")]);
    let passed_on =
        sum(&samples, "istio_dns_upstream_requests_total", &[("source_canonical_service", "client")]);
    ensure!(asked > passed_on && passed_on >= 15.0, "{asked} asked, {passed_on} passed on");
    let failures = sum(&samples, "istio_dns_upstream_failures_total", &[]);
    ensure!(failures.abs() < 0.5, "{failures} failures of the name server");
    seen.saw(format!("{asked} questions, {passed_on} of them passed on, none failed."));
    Ok(())
}
