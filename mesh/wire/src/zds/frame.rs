//! What agent and tunnel say, as bytes: one protobuf message a packet. Pure.

use ambit_proto::workload::zds as pb;
use pb::{workload_request::Payload as Ask, workload_response::Payload as Answer};
use prost::Message;

/// The largest packet either side accepts: the receive buffer of Istio's agent and tunnel.
pub const LIMIT: usize = 1024;

/// The longest refusal put into an [`Ack`]; together with the two headers around it, it stays below [`LIMIT`].
const LONGEST_REFUSAL: usize = 960;

/// What the agent tells about one pod. `N` is what stands for the namespace: nothing in the packet
/// itself, a descriptor once it has been put beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<N = ()> {
    /// The pod is here: start capturing for it.
    Add {
        /// The pod's Kubernetes UID.
        uid: String,
        /// Who the pod is.
        info: PodInfo,
        /// Its network namespace.
        netns: N,
    },
    /// The pod exists, but its namespace is not known now: leave it as it is.
    Keep {
        /// The pod's Kubernetes UID.
        uid: String,
    },
    /// The pod is gone.
    Del {
        /// The pod's Kubernetes UID.
        uid: String,
    },
    /// Every pod of the node has been told; what was not mentioned does not exist.
    SnapshotSent,
}

/// Who a pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace (of Kubernetes, not of the network).
    pub namespace: String,
    /// The service account it runs as.
    pub service_account: String,
}

/// The tunnel's first message: it speaks version 1, the only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello;

/// The tunnel's answer to a request: done, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack(pub Result<(), String>);

/// A packet that cannot be what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// More than fits the peer's buffer.
    #[error("a message of {0} bytes; a peer accepts {LIMIT}")]
    TooLong(usize),
    /// Not the protobuf message expected.
    #[error("not a message of this protocol")]
    Malformed(#[from] prost::DecodeError),
    /// A message with no payload, or with one added to the protocol after this was built.
    #[error("a message of no known kind")]
    Unknown,
    /// An `Add` that does not say whose pod it is.
    #[error("pod {uid} was added without workload_info")]
    NoInfo {
        /// The pod meant.
        uid: String,
    },
    /// A request about nobody.
    #[error("a request without a pod's uid")]
    NoUid,
    /// A hello in a version not spoken here.
    #[error("the peer speaks version {0} of the protocol; this side speaks 1")]
    Version(i32),
}

impl Request {
    /// As one packet.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let payload = match self {
            Self::Add { uid, info, netns: () } => Ask::Add(pb::AddWorkload {
                uid: uid.clone(),
                workload_info: Some(pb::WorkloadInfo {
                    name: info.name.clone(),
                    namespace: info.namespace.clone(),
                    service_account: info.service_account.clone(),
                }),
            }),
            Self::Keep { uid } => Ask::Keep(pb::KeepWorkload { uid: uid.clone() }),
            Self::Del { uid } => Ask::Del(pb::DelWorkload { uid: uid.clone() }),
            Self::SnapshotSent => Ask::SnapshotSent(pb::SnapshotSent {}),
        };
        encode(&pb::WorkloadRequest { payload: Some(payload) })
    }

    /// From one packet.
    pub fn decode(packet: &[u8]) -> Result<Self, FrameError> {
        let message: pb::WorkloadRequest = decode(packet)?;
        match message.payload.ok_or(FrameError::Unknown)? {
            Ask::Add(pb::AddWorkload { uid, workload_info }) => {
                let uid = named(uid)?;
                let Some(info) = workload_info else { return Err(FrameError::NoInfo { uid }) };
                let pb::WorkloadInfo { name, namespace, service_account } = info;
                Ok(Self::Add { uid, info: PodInfo { name, namespace, service_account }, netns: () })
            }
            Ask::Keep(pb::KeepWorkload { uid }) => Ok(Self::Keep { uid: named(uid)? }),
            Ask::Del(pb::DelWorkload { uid }) => Ok(Self::Del { uid: named(uid)? }),
            Ask::SnapshotSent(pb::SnapshotSent {}) => Ok(Self::SnapshotSent),
        }
    }
}

impl Hello {
    /// As one packet.
    pub fn encode(self) -> Result<Vec<u8>, FrameError> {
        encode(&pb::ZdsHello { version: pb::Version::V1.into() })
    }

    /// From one packet.
    pub fn decode(packet: &[u8]) -> Result<Self, FrameError> {
        let message: pb::ZdsHello = decode(packet)?;
        match pb::Version::try_from(message.version) {
            Ok(pb::Version::V1) => Ok(Self),
            Ok(pb::Version::NotUsed) | Err(_) => Err(FrameError::Version(message.version)),
        }
    }
}

impl Ack {
    /// As one packet. A refusal that would not fit is cut: half a reason is better than none.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let error = match &self.0 {
            Ok(()) => String::new(),
            // An empty text would say the opposite.
            Err(reason) if reason.is_empty() => "refused".to_owned(),
            Err(reason) => shortened(reason),
        };
        encode(&pb::WorkloadResponse { payload: Some(Answer::Ack(pb::Ack { error })) })
    }

    /// From one packet.
    pub fn decode(packet: &[u8]) -> Result<Self, FrameError> {
        let message: pb::WorkloadResponse = decode(packet)?;
        let Answer::Ack(pb::Ack { error }) = message.payload.ok_or(FrameError::Unknown)?;
        Ok(Self(if error.is_empty() { Ok(()) } else { Err(error) }))
    }
}

fn encode(message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let packet = message.encode_to_vec();
    if packet.len() > LIMIT { Err(FrameError::TooLong(packet.len())) } else { Ok(packet) }
}

fn decode<M: Message + Default>(packet: &[u8]) -> Result<M, FrameError> {
    if packet.len() > LIMIT {
        return Err(FrameError::TooLong(packet.len()));
    }
    Ok(M::decode(packet)?)
}

fn named(uid: String) -> Result<String, FrameError> {
    if uid.is_empty() { Err(FrameError::NoUid) } else { Ok(uid) }
}

fn shortened(reason: &str) -> String {
    let mut end = reason.len().min(LONGEST_REFUSAL);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> impl Strategy<Value = Request> {
        let uid = "[a-z0-9-]{1,64}";
        let word = "[a-zA-Zäß0-9.-]{0,63}";
        prop_oneof![
            (uid, word, word, word).prop_map(|(uid, name, namespace, service_account)| Request::Add {
                uid,
                info: PodInfo { name, namespace, service_account },
                netns: ()
            }),
            uid.prop_map(|uid| Request::Keep { uid }),
            uid.prop_map(|uid| Request::Del { uid }),
            Just(Request::SnapshotSent),
        ]
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(request in requests()) {
            let packet = request.encode().unwrap();
            prop_assert!(packet.len() <= LIMIT);
            prop_assert_eq!(Request::decode(&packet).unwrap(), request);
        }

        #[test]
        fn a_refusal_survives_the_wire_as_far_as_it_fits(reason in "[a-zäß€]{1,1500}") {
            let packet = Ack(Err(reason.clone())).encode().unwrap();
            prop_assert!(packet.len() <= LIMIT);
            let Ack(Err(back)) = Ack::decode(&packet).unwrap() else { panic!("a refusal became consent") };
            prop_assert!(reason.starts_with(&back) && !back.is_empty());
            prop_assert!(reason.len() > 900 || back == reason);
        }

        #[test]
        fn foreign_bytes_are_refused_or_understood_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let _ = Request::decode(&bytes);
            let _ = Hello::decode(&bytes);
            let _ = Ack::decode(&bytes);
            if bytes.len() > LIMIT {
                prop_assert!(matches!(Request::decode(&bytes), Err(FrameError::TooLong(_))));
            }
        }
    }

    #[test]
    fn the_bytes_are_istios() {
        let add = Request::Add {
            uid: "u".into(),
            info: PodInfo { name: "n".into(), namespace: "s".into(), service_account: "a".into() },
            netns: (),
        };
        assert_eq!(add.encode().unwrap(), b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a");
        // Del carries its uid in field 2, Keep is payload 5.
        assert_eq!(Request::Del { uid: "u".into() }.encode().unwrap(), b"\x12\x03\x12\x01u");
        assert_eq!(Request::Keep { uid: "u".into() }.encode().unwrap(), b"\x2a\x03\x0a\x01u");
        assert_eq!(Request::SnapshotSent.encode().unwrap(), b"\x1a\x00");
        assert_eq!(Hello.encode().unwrap(), b"\x08\x01");
        assert_eq!(Ack(Ok(())).encode().unwrap(), b"\x0a\x00");
        assert_eq!(Ack(Err("no".into())).encode().unwrap(), b"\x0a\x04\x0a\x02no");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(matches!(Request::decode(b""), Err(FrameError::Unknown)));
        assert!(matches!(Request::decode(b"\x22\x00"), Err(FrameError::Unknown)), "payload 4 does not exist");
        assert!(
            matches!(Request::decode(b"\x0a\x03\x0a\x01u"), Err(FrameError::NoInfo { uid }) if uid == "u")
        );
        assert!(matches!(Request::decode(b"\x12\x00"), Err(FrameError::NoUid)));
        assert!(matches!(Request::decode(b"\xff\xff"), Err(FrameError::Malformed(_))));
        assert!(matches!(Hello::decode(b""), Err(FrameError::Version(0))));
        assert!(matches!(Hello::decode(b"\x08\x07"), Err(FrameError::Version(7))));
        assert!(matches!(Ack::decode(b""), Err(FrameError::Unknown)));
        assert_eq!(
            Ack::decode(&Ack(Err(String::new())).encode().unwrap()).unwrap(),
            Ack(Err("refused".into()))
        );
    }

    #[test]
    fn what_does_not_fit_is_not_sent() {
        let long = Request::Del { uid: "u".repeat(LIMIT) };
        assert!(matches!(long.encode(), Err(FrameError::TooLong(_))));
    }
}
