//! Connections that are older than their pod's capture: they go on outside of the mesh until they end.
//!
//! The kernel gives every socket a number, its cookie, that no other one gets. Those of a pod's connections are noted
//! when its rules have come into force and before a tunnel listens where they lead: whoever is connected then is so
//! without us. Before the rules, one that is made between the look and them would be missed. What is left is counted
//! when somebody asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use tracing::debug;

use crate::{netns::Netns, redirect::Families};

/// As many as one client can have to one server. Half a megabyte of cookies; a pod with more is not followed.
const MOST: usize = 1 << 16;

/// What a pod's enrolment may wait for its connections. Twenty thousand were listed within 35 ms; a pod that starts has
/// none.
const LIMIT: Duration = Duration::from_millis(200);

/// The kernel fills no more than this with one answer.
const DATAGRAM: usize = 32 * 1024;

/// How many pods are looked at at once; each look is a thread.
const AT_ONCE: usize = 8;

/// What tells a connection's socket from every other that there has been since the node was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(u64);

/// Each pod's connections that are older than its capture. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outside(Arc<Mutex<BTreeMap<String, Noted>>>);

#[derive(Debug, Clone)]
struct Noted {
    netns: Netns,
    cookies: BTreeSet<Cookie>,
}

/// Why a pod's connections are not known.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The kernel does not answer.
    #[error("the kernel does not list connections: {0}; is its module tcp_diag there?")]
    Kernel(#[from] io::Error),
    /// It answers something else.
    #[error("the kernel's list of connections cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
    /// More than are followed.
    #[error("there are more than {MOST} connections")]
    TooMany,
    /// It takes too long.
    #[error("connections could not be listed within {LIMIT:?}")]
    Late,
}

impl Outside {
    /// Notes the connections that a pod had when it was captured. Without them nothing is known of it, unless it was
    /// known before and the pod is where it was.
    pub fn note(&self, uid: &str, netns: &Netns, cookies: Option<BTreeSet<Cookie>>) {
        let mut all = self.lock();
        match cookies {
            Some(cookies) => {
                all.insert(uid.to_owned(), Noted { netns: netns.clone(), cookies });
            }
            None => all.retain(|of, noted| of != uid || noted.netns == *netns),
        }
    }

    /// Forgets a pod.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// How many connections of each pod are outside now, by its UID. A pod of which that is not known is missing.
    pub async fn count(&self) -> BTreeMap<String, usize> {
        // What is over stays over: nobody has to look.
        let open = |(uid, noted): (&String, &Noted)| {
            (!noted.cookies.is_empty()).then(|| (uid.clone(), noted.netns.clone()))
        };
        let open: Vec<_> = self.lock().iter().filter_map(open).collect();
        let looks = open.into_iter().map(|(uid, netns)| async move {
            let found = netns.inside(|| established(Families::Dual)).await;
            (uid, netns, found)
        });
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        let mut unknown = BTreeSet::new();
        while let Some((uid, netns, found)) = looks.next().await {
            let error = match found {
                Ok(Ok(now)) => {
                    if let Some(noted) = self.lock().get_mut(&uid).filter(|noted| noted.netns == netns) {
                        noted.cookies.retain(|cookie| now.contains(cookie));
                    }
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            debug!(pod.uid = %uid, error, "A pod's connections could not be counted");
            unknown.insert(uid);
        }
        let noted = self.lock();
        let known = noted.iter().filter(|(uid, _)| !unknown.contains(*uid));
        known.map(|(uid, noted)| (uid.clone(), noted.cookies.len())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Noted>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The TCP connections of this thread's network namespace that would be captured if they were made now: those of these
/// families that leave it.
pub fn established(families: Families) -> Result<BTreeSet<Cookie>, LookError> {
    let until = Instant::now() + LIMIT;
    let mut found = BTreeSet::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let question = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::ESTABLISHED,
            socket_id,
        };
        ask(question, families, until, &mut found)?;
    }
    Ok(found)
}

fn ask(
    question: InetRequest,
    families: Families,
    until: Instant,
    found: &mut BTreeSet<Cookie>,
) -> Result<(), LookError> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    // The kernel has each part of its answer ready when it is asked for: there is nothing to wait for.
    socket.set_non_blocking(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(question));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send(&request, 0)?;
    let mut part = Vec::with_capacity(DATAGRAM);
    loop {
        part.clear();
        socket.recv(&mut part, 0)?;
        if read(&part, families, found)? == Answer::Whole {
            return Ok(());
        }
        if found.len() > MOST {
            return Err(LookError::TooMany);
        }
        if Instant::now() > until {
            return Err(LookError::Late);
        }
    }
}

/// Whether more of an answer is to come.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Part,
    Whole,
}

/// Takes the connections out of one part of the kernel's answer.
fn read(mut part: &[u8], families: Families, found: &mut BTreeSet<Cookie>) -> Result<Answer, LookError> {
    /// Each message begins at a multiple of this.
    const ALIGNED: usize = 4;
    while !part.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(part)?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(one)) => {
                let SocketId { source_address, destination_address, cookie, .. } = one.header.socket_id;
                if would_be_captured(source_address, destination_address, families) {
                    found.insert(Cookie(u64::from_ne_bytes(cookie)));
                }
            }
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(Answer::Whole),
            NetlinkPayload::Done(done) => {
                return Err(io::Error::from_raw_os_error(done.code.wrapping_neg()).into());
            }
            NetlinkPayload::Error(error) => return Err(error.to_io().into()),
            // Nothing of a list of connections.
            NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | NetlinkPayload::InnerMessage(_) | _ => {}
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        part = length.checked_next_multiple_of(ALIGNED).and_then(|next| part.get(next..)).unwrap_or_default();
    }
    Ok(Answer::Part)
}

fn would_be_captured(own: IpAddr, peer: IpAddr, families: Families) -> bool {
    // IPv4 on a socket for both families.
    let (own, peer) = (own.to_canonical(), peer.to_canonical());
    let leaves_the_pod = !peer.is_loopback() && own != peer;
    leaves_the_pod && (families == Families::Dual || peer.is_ipv4())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use netlink_packet_sock_diag::inet::{InetResponse, InetResponseHeader};

    use super::*;

    #[test]
    fn what_is_never_captured_is_not_counted() {
        use Families::{Dual, Ipv4};
        for (own, peer, families, expected) in [
            ("10.0.0.1", "10.0.0.2", Dual, true),
            ("10.0.0.1", "10.0.0.2", Ipv4, true),
            ("fd00::1", "fd00::2", Dual, true),
            ("fd00::1", "fd00::2", Ipv4, false),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", Ipv4, true),
            ("127.0.0.1", "127.0.0.1", Dual, false),
            ("10.0.0.1", "127.0.0.9", Dual, false),
            ("::1", "::1", Dual, false),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", Dual, false),
            // To its own address, over loopback.
            ("10.0.0.1", "10.0.0.1", Dual, false),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1", Dual, false),
        ] {
            let got = would_be_captured(own.parse().unwrap(), peer.parse().unwrap(), families);
            assert_eq!(got, expected, "{own} {peer} {families:?}");
        }
    }

    fn sent(payloads: impl IntoIterator<Item = NetlinkPayload<SockDiagMessage>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for payload in payloads {
            let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(InetRequest {
                family: AF_INET,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::all(),
                socket_id: SocketId::new_v4(),
            }));
            message.payload = payload;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        bytes
    }

    fn connection(peer: &str, cookie: u64) -> NetlinkPayload<SockDiagMessage> {
        let socket_id = SocketId {
            source_address: "10.0.0.1".parse().unwrap(),
            destination_address: peer.parse().unwrap(),
            cookie: cookie.to_ne_bytes(),
            ..SocketId::new_v4()
        };
        let header = InetResponseHeader {
            family: AF_INET,
            state: 1,
            timer: None,
            socket_id,
            recv_queue: 0,
            send_queue: 0,
            uid: 0,
            inode: 0,
        };
        let one = InetResponse { header, nlas: Default::default() };
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(Box::new(one)))
    }

    fn done(code: i32) -> NetlinkPayload<SockDiagMessage> {
        let mut done = DoneMessage::default();
        done.code = code;
        NetlinkPayload::Done(done)
    }

    #[test]
    fn an_answer_is_read_to_its_end() {
        let mut found = BTreeSet::new();
        let part = sent([connection("10.0.0.2", 7), connection("127.0.0.1", 8), connection("10.0.0.3", 9)]);
        assert_eq!(read(&part, Families::Dual, &mut found).unwrap(), Answer::Part);
        assert_eq!(
            read(&sent([connection("10.0.0.4", 10), done(0)]), Families::Dual, &mut found).unwrap(),
            Answer::Whole
        );
        assert_eq!(found, BTreeSet::from([7, 9, 10].map(Cookie)));
    }

    #[test]
    fn half_an_answer_and_a_refusal_are_errors() {
        let mut found = BTreeSet::new();
        let part = sent([connection("10.0.0.2", 7)]);
        let cut = read(&part[..part.len() - 1], Families::Dual, &mut found);
        assert!(matches!(cut, Err(LookError::Unreadable(_))), "{cut:?}");
        let mut refusal = ErrorMessage::default();
        refusal.code = std::num::NonZeroI32::new(-2);
        refusal.header = vec![0; 16];
        for refused in [done(-2), NetlinkPayload::Error(refusal)] {
            let told = read(&sent([refused]), Families::Dual, &mut found);
            let Err(LookError::Kernel(error)) = told else { panic!("{told:?}") };
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }
}
