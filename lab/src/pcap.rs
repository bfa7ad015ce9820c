//! Reads a capture: traffic per TCP port, the bytes of each direction of each connection, and TLS handshakes.
//!
//! The bytes are our own machine's, but a capture may end in the middle of anything: nothing is taken for granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a capture saw.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// TCP packets in the order in which they passed.
    pub segments: Vec<Segment>,
    /// Packets of any kind.
    pub packets: u64,
    /// Packets that the capture missed: with any, the absence of something proves nothing.
    pub lost: u64,
}

/// A TCP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// The sequence number of its first byte.
    pub sequence: u32,
    /// Whether it opens a connection (then its payload begins one after `sequence`).
    pub syn: bool,
    /// Its length on the wire.
    pub length: u64,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// One direction of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// What was sent.
    pub bytes: Vec<u8>,
}

/// Counts, for evidence in one look.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Summary {
    /// Traffic by TCP port: the lower port of the two, which is the server's.
    pub ports: BTreeMap<u16, Traffic>,
    /// TLS handshakes seen, in order of the clients' addresses.
    pub handshakes: Vec<Handshake>,
    /// Packets that the capture missed.
    pub lost: u64,
}

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Traffic {
    /// Packets, both directions.
    pub packets: u64,
    /// Bytes on the wire, both directions.
    pub bytes: u64,
}

/// What a server chose, and what its client had asked for, in the clear part of a TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Handshake {
    /// Who asked.
    pub client: SocketAddr,
    /// Who answered.
    pub server: SocketAddr,
    /// The version chosen.
    pub version: TlsVersion,
    /// The cipher suite chosen, by number.
    pub cipher: u16,
    /// The key exchange group chosen, by number (0x11ec is X25519MLKEM768).
    pub group: Option<u16>,
    /// The server name in the clear, if the client sent one.
    pub server_name: Option<String>,
}

/// A TLS version by its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct TlsVersion(pub u16);

impl TlsVersion {
    /// TLS 1.2.
    pub const V1_2: Self = Self(0x0303);
    /// TLS 1.3.
    pub const V1_3: Self = Self(0x0304);
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V1_3 => f.write_str("TLS 1.3"),
            Self::V1_2 => f.write_str("TLS 1.2"),
            Self(other) => write!(f, "TLS {other:#06x}"),
        }
    }
}

/// A file that is no capture we can read.
#[derive(Debug, thiserror::Error)]
pub enum PcapError {
    /// Not a pcap file of this machine.
    #[error("this is not a capture as tcpdump writes it here (pcap, microseconds); it begins with {0:02x?}")]
    Magic(Vec<u8>),
    /// Not captured on an Ethernet device.
    #[error("this capture is of link type {0}; only Ethernet (1) is read: capture on a veth device")]
    LinkType(u32),
}

impl Captured {
    /// Reads a pcap file. A packet cut off at the end is left out.
    pub fn parse(file: &[u8]) -> Result<Self, PcapError> {
        let mut reader = Reader(file);
        let header = reader.take(24).and_then(|header| Some((header.get(..4)?, header.get(20..24)?)));
        let Some((magic, link_type)) = header else {
            return Err(PcapError::Magic(file.iter().take(4).copied().collect()));
        };
        if magic != 0xa1b2_c3d4_u32.to_ne_bytes() {
            return Err(PcapError::Magic(magic.to_vec()));
        }
        match link_type.try_into().map(u32::from_ne_bytes) {
            Ok(1) => {}
            other => return Err(PcapError::LinkType(other.unwrap_or_default())),
        }
        let mut captured = Self::default();
        while let Some((frame, length)) = next_frame(&mut reader) {
            captured.packets += 1;
            captured.segments.extend(segment(frame, length));
        }
        Ok(captured)
    }

    /// Whether any connection carried `text` readably, also across packets.
    pub fn contains(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.flows().iter().any(|flow| flow.bytes.windows(text.len().max(1)).any(|window| window == text))
    }

    /// Whether traffic to or from that TCP port was seen.
    pub fn saw_port(&self, port: u16) -> bool {
        self.segments.iter().any(|segment| segment.from.port() == port || segment.to.port() == port)
    }

    /// What was sent in each direction of each connection, in order, what was sent twice once.
    /// Where something is missing there is one zero byte.
    pub fn flows(&self) -> Vec<Flow> {
        let mut open: BTreeMap<_, Unordered<'_>> = BTreeMap::new();
        let mut flows = Vec::new();
        for segment in &self.segments {
            let way = (segment.from, segment.to);
            let start = segment.sequence.wrapping_add(u32::from(segment.syn));
            let known = open.entry(way).or_insert_with(|| Unordered { zero: start, parts: Vec::new() });
            if segment.syn && start != known.zero {
                // The same ports again: another connection.
                let ended = std::mem::replace(known, Unordered { zero: start, parts: Vec::new() });
                flows.push(ended.flow(way));
            }
            let offset = i64::from(start.wrapping_sub(known.zero).cast_signed());
            known.parts.push((offset, &segment.payload));
        }
        flows.extend(open.into_iter().map(|(way, parts)| parts.flow(way)));
        flows.retain(|flow| !flow.bytes.is_empty());
        flows
    }

    /// Counts and handshakes.
    pub fn summary(&self) -> Summary {
        let mut ports: BTreeMap<u16, Traffic> = BTreeMap::new();
        for segment in &self.segments {
            let traffic = ports.entry(segment.from.port().min(segment.to.port())).or_default();
            traffic.packets += 1;
            traffic.bytes += segment.length;
        }
        Summary { ports, handshakes: self.handshakes(), lost: self.lost }
    }

    /// The TLS handshakes of which the server's choice was seen.
    pub fn handshakes(&self) -> Vec<Handshake> {
        let flows = self.flows();
        let answered = flows.iter().filter_map(|answer| {
            let chosen = server_hello(&answer.bytes)?;
            let mut asked = flows.iter().filter(|flow| (flow.from, flow.to) == (answer.to, answer.from));
            Some(Handshake {
                client: answer.to,
                server: answer.from,
                version: chosen.version,
                cipher: chosen.cipher,
                group: chosen.group,
                server_name: asked.find_map(|flow| client_hello_name(&flow.bytes)),
            })
        });
        let mut handshakes: Vec<_> = answered.collect();
        handshakes.sort_by_key(|handshake| (handshake.client, handshake.server));
        handshakes
    }

    /// The TLS versions spoken on that server port.
    pub fn tls_versions(&self, port: u16) -> BTreeSet<TlsVersion> {
        let on_port = |handshake: &Handshake| handshake.server.port() == port;
        self.handshakes().into_iter().filter(on_port).map(|handshake| handshake.version).collect()
    }
}

/// What was seen of a flow, by its place in it.
struct Unordered<'a> {
    zero: u32,
    parts: Vec<(i64, &'a [u8])>,
}

impl Unordered<'_> {
    fn flow(mut self, (from, to): (SocketAddr, SocketAddr)) -> Flow {
        self.parts.sort_by_key(|(offset, _)| *offset);
        let mut bytes = Vec::new();
        let mut next = self.parts.first().map_or(0, |(offset, _)| *offset);
        for (offset, part) in self.parts {
            if offset > next {
                bytes.push(0);
                next = offset;
            }
            let known = usize::try_from(next - offset).unwrap_or(usize::MAX);
            if let Some(new) = part.get(known..) {
                bytes.extend_from_slice(new);
                next += i64::try_from(new.len()).unwrap_or(0);
            }
        }
        Flow { from, to, bytes }
    }
}

/// Takes from the front; `None` once there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u24(&mut self) -> Option<usize> {
        let [a, b, c] = self.array()?;
        usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Something preceded by its length in one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// Something preceded by its length in two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

/// The next packet as far as it was captured, and its length on the wire.
fn next_frame<'a>(reader: &mut Reader<'a>) -> Option<(&'a [u8], u64)> {
    let _time: [u8; 8] = reader.array()?;
    let captured = reader.array().map(u32::from_ne_bytes)?;
    let length = reader.array().map(u32::from_ne_bytes)?;
    Some((reader.take(captured.try_into().ok()?)?, length.into()))
}

/// The TCP packet in an Ethernet frame, if it is one.
fn segment(frame: &[u8], length: u64) -> Option<Segment> {
    let mut reader = Reader(frame);
    reader.take(12)?;
    let (from, to, packet) = match reader.u16()? {
        0x0800 => ipv4(reader)?,
        0x86dd => ipv6(reader)?,
        _ => return None,
    };
    let mut reader = Reader(packet);
    let (from_port, to_port, sequence) = (reader.u16()?, reader.u16()?, reader.u32()?);
    let _ack = reader.u32()?;
    let header = usize::from(reader.u8()? >> 4) * 4;
    let syn = reader.u8()? & 0x02 != 0;
    let payload = packet.get(header..)?.to_vec();
    let (from, to) = (SocketAddr::new(from, from_port), SocketAddr::new(to, to_port));
    Some(Segment { from, to, sequence, syn, length, payload })
}

const TCP: u8 = 6;

fn ipv4(mut reader: Reader<'_>) -> Option<(IpAddr, IpAddr, &[u8])> {
    let packet = reader.0;
    let header = usize::from(reader.u8()? & 0x0f) * 4;
    reader.u8()?;
    let total = usize::from(reader.u16()?);
    let _id = reader.u16()?;
    let offset = reader.u16()? & 0x1fff;
    reader.u8()?;
    if reader.u8()? != TCP || offset != 0 {
        return None;
    }
    reader.u16()?;
    let (from, to) = (Ipv4Addr::from(reader.u32()?), Ipv4Addr::from(reader.u32()?));
    // A short frame is padded beyond `total`.
    Some((from.into(), to.into(), packet.get(header..total.min(packet.len()))?))
}

fn ipv6(mut reader: Reader<'_>) -> Option<(IpAddr, IpAddr, &[u8])> {
    reader.u32()?;
    let length = usize::from(reader.u16()?);
    // No extension headers between our own nodes.
    if reader.u8()? != TCP {
        return None;
    }
    reader.u8()?;
    let from = Ipv6Addr::from(reader.array::<16>()?);
    let to = Ipv6Addr::from(reader.array::<16>()?);
    Some((from.into(), to.into(), reader.0.get(..length.min(reader.0.len()))?))
}

/// The body of the handshake message of type `kind` with which a stream of TLS records begins.
fn first_handshake(stream: &[u8], kind: u8) -> Option<Reader<'_>> {
    let mut reader = Reader(stream);
    let (handshake, major) = (reader.u8()?, reader.u8()?);
    reader.u8()?;
    if (handshake, major) != (22, 3) {
        return None;
    }
    let mut record = Reader(reader.long()?);
    if record.u8()? != kind {
        return None;
    }
    let length = record.u24()?;
    Some(Reader(record.0.get(..length.min(record.0.len()))?))
}

struct Chosen {
    version: TlsVersion,
    cipher: u16,
    group: Option<u16>,
}

fn server_hello(stream: &[u8]) -> Option<Chosen> {
    let mut hello = first_handshake(stream, 2)?;
    let mut version = hello.u16()?;
    let _random: [u8; 32] = hello.array()?;
    let _session = hello.short()?;
    let cipher = hello.u16()?;
    let _compression = hello.u8()?;
    let mut group = None;
    for (kind, body) in extensions(&mut hello) {
        let mut body = Reader(body);
        match kind {
            43 => version = body.u16()?,
            51 => group = body.u16(),
            _ => {}
        }
    }
    Some(Chosen { version: TlsVersion(version), cipher, group })
}

fn client_hello_name(stream: &[u8]) -> Option<String> {
    let mut hello = first_handshake(stream, 1)?;
    let _version_and_random: [u8; 34] = hello.array()?;
    let _session = hello.short()?;
    let _ciphers = hello.long()?;
    let _compressions = hello.short()?;
    let (_, body) = extensions(&mut hello).into_iter().find(|(kind, _)| *kind == 0)?;
    let mut names = Reader(Reader(body).long()?);
    names.u8()?;
    String::from_utf8(names.long()?.to_vec()).ok()
}

fn extensions<'a>(hello: &mut Reader<'a>) -> Vec<(u16, &'a [u8])> {
    let mut all = Reader(hello.long().unwrap_or_default());
    std::iter::from_fn(|| Some((all.u16()?, all.long()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(from: &str, to: &str, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut tcp = Vec::new();
        tcp.extend(from.port().to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        let mut frame = vec![0; 12];
        match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend(u16::try_from(20 + tcp.len()).unwrap().to_be_bytes());
                frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(u16::try_from(tcp.len()).unwrap().to_be_bytes());
                frame.extend([6, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            _ => unreachable!(),
        }
        frame.extend(tcp);
        // Ethernet pads short frames.
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn file(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(0xa1b2_c3d4_u32.to_ne_bytes());
        file.extend([0; 16]);
        file.extend(1_u32.to_ne_bytes());
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_ne_bytes();
            file.extend([0; 8]);
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }

    const A: &str = "10.42.0.2:40000";
    const B: &str = "10.42.1.2:8080";

    #[test]
    fn text_is_found_across_packets_out_of_order_and_repeated() {
        let captured = Captured::parse(&file(&[
            frame(A, B, u32::MAX - 1, 2, b""),
            frame(A, B, 8, 0, b"et/secret"),
            frame(A, B, u32::MAX, 0, b"GET"),
            frame(A, B, 0, 0, b"ET /secret"),
        ]))
        .unwrap();
        let flows: Vec<_> = captured.flows().into_iter().map(|flow| flow.bytes).collect();
        assert_eq!(flows, [b"GET /secret/secret".to_vec()]);
        assert!(captured.contains("/secret/"));
        assert!(!captured.contains("password"));
    }

    #[test]
    fn a_connection_from_the_same_port_is_another_one() {
        let captured = Captured::parse(&file(&[
            frame(A, B, 99, 2, b""),
            frame(A, B, 100, 0, b"aaaa"),
            frame(A, B, 99, 2, b""),
            frame(A, B, 499, 2, b""),
            frame(A, B, 500, 0, b"bb"),
        ]))
        .unwrap();
        let flows: Vec<_> = captured.flows().into_iter().map(|flow| flow.bytes).collect();
        assert_eq!(flows, [b"aaaa".to_vec(), b"bb".to_vec()]);
    }

    #[test]
    fn a_gap_joins_nothing() {
        let captured =
            Captured::parse(&file(&[frame(A, B, 10, 0, b"sec"), frame(A, B, 20, 0, b"ret")])).unwrap();
        assert!(!captured.contains("secret"));
        assert!(captured.contains("ret"));
    }

    #[test]
    fn traffic_is_counted_by_the_servers_port_in_both_families() {
        let (c, d) = ("[fd00:42::2]:40001", "[fd00:42:0:1::2]:15008");
        let captured = Captured::parse(&file(&[
            frame(A, B, 0, 0, b"request"),
            frame(B, A, 0, 0, b"answer"),
            frame(c, d, 0, 0, b"tunnel"),
        ]))
        .unwrap();
        let ports = captured.summary().ports;
        assert_eq!(ports[&8080].packets, 2);
        assert_eq!(ports[&15008], Traffic { packets: 1, bytes: 14 + 40 + 20 + 6 });
        assert!(captured.saw_port(15008) && !captured.saw_port(15006));
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap();
        let mut record = vec![22, 3, 3];
        record.extend((length + 4).to_be_bytes());
        record.extend([kind, 0]);
        record.extend(length.to_be_bytes());
        record.extend(body);
        record
    }

    #[test]
    fn a_handshake_tells_version_cipher_group_and_server_name() {
        let mut client = vec![3, 3];
        client.extend([7; 32]);
        client.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        client.extend([0, 14, 0, 0, 0, 10, 0, 8, 0, 0, 5]);
        client.extend(b"istio");
        let mut server = vec![3, 3];
        server.extend([8; 32]);
        server.extend([0, 0x13, 0x01, 0]);
        server.extend([0, 14, 0, 43, 0, 2, 3, 4, 0, 51, 0, 4, 0x11, 0xec, 0, 0]);
        let captured = Captured::parse(&file(&[
            frame(A, B, 0, 0, &record(1, &client)),
            frame(B, A, 0, 0, &record(2, &server)),
        ]))
        .unwrap();
        assert_eq!(
            captured.handshakes(),
            [Handshake {
                client: A.parse().unwrap(),
                server: B.parse().unwrap(),
                version: TlsVersion::V1_3,
                cipher: 0x1301,
                group: Some(0x11ec),
                server_name: Some("istio".to_owned()),
            }]
        );
        assert_eq!(captured.tls_versions(8080), BTreeSet::from([TlsVersion::V1_3]));
        assert_eq!(TlsVersion::V1_3.to_string(), "TLS 1.3");
    }

    #[test]
    fn a_file_cut_off_anywhere_is_read_as_far_as_it_goes() {
        let whole = file(&[frame(A, B, 0, 0, b"one"), frame(A, B, 3, 0, b"two")]);
        for length in 24..whole.len() {
            assert!(Captured::parse(&whole[..length]).unwrap().segments.len() < 2);
        }
        assert!(matches!(Captured::parse(b"\x0a\x0d\x0d\x0a"), Err(PcapError::Magic(_))));
    }
}
