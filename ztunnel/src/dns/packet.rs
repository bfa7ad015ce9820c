//! Questions as they come and answers as they go. Pure.
//!
//! Of a question only what must be known is understood; the packet itself is kept as it is, for it
//! may have to be passed on.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder},
};

use super::answer::{Family, Owned};

/// What a client that says nothing takes in one datagram (RFC 1035, 4.2.1).
const SMALLEST_PAYLOAD: u16 = 512;

/// How long an answer may be kept: a service that moves must be found again soon.
const TTL: u32 = 30;

/// A question that can be dealt with.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// What is to be done with a packet that is no such question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Nothing: it is not even known to whom it would be an answer.
    Ignore,
    /// This is to be sent back.
    Reply(Vec<u8>),
}

impl Asked {
    pub(super) fn read(packet: &[u8]) -> Result<Self, Unusable> {
        let mut decoder = BinDecoder::new(packet);
        let Ok(header) = Header::read(&mut decoder) else { return Err(Unusable::Ignore) };
        let metadata = header.metadata;
        let refuse = |code| Err(Unusable::Reply(error(&metadata, code)));
        if metadata.message_type == MessageType::Response {
            return refuse(ResponseCode::FormErr);
        }
        if metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let (1, Ok(query)) = (header.counts.queries, Query::read(&mut decoder)) else {
            return refuse(ResponseCode::FormErr);
        };
        // What follows the question may be anything: it is for the nameserver, unless the name is ours.
        let edns = Message::from_vec(packet).ok().and_then(|message| message.edns);
        Ok(Self { metadata, query, edns })
    }

    /// The name in lower case and without its final dot; `None` when it has characters that no
    /// service's name has.
    pub(super) fn name(&self) -> Option<String> {
        let is_plain = |label: &[u8]| label.iter().all(|c| c.is_ascii_alphanumeric() || b"-_*".contains(c));
        let mut labels = Vec::new();
        for label in self.query.name().iter() {
            let text = std::str::from_utf8(label).ok().filter(|_| is_plain(label))?;
            labels.push(text.to_ascii_lowercase());
        }
        Some(labels.join(".")).filter(|name| !name.is_empty())
    }

    /// The addresses that it asks for; `None` when it asks for something else.
    pub(super) fn family(&self) -> Option<Family> {
        if self.query.query_class() != DNSClass::IN {
            return None;
        }
        if self.query.query_type() == RecordType::A {
            Some(Family::V4)
        } else if self.query.query_type() == RecordType::AAAA {
            Some(Family::V6)
        } else {
            None
        }
    }

    /// The type, of a closed list: for labels.
    pub(super) fn type_word(&self) -> &'static str {
        TYPES.iter().find(|(kind, _)| *kind == self.query.query_type()).map_or("other", |(_, word)| word)
    }

    /// The name as it was asked, for the log.
    pub(super) fn shown(&self) -> String {
        self.query.name().to_ascii()
    }

    /// How much the client takes in one datagram.
    pub(super) fn payload(&self) -> u16 {
        self.edns.as_ref().map_or(SMALLEST_PAYLOAD, |edns| edns.max_payload().max(SMALLEST_PAYLOAD))
    }

    /// Whether `packet`, a response to this very packet with another ID, may be believed: it repeats
    /// the question, or it is an error that has none.
    pub(super) fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        let mut decoder = BinDecoder::new(packet);
        let Ok(header) = Header::read(&mut decoder) else { return false };
        let is_response = header.metadata.id == id && header.metadata.message_type == MessageType::Response;
        let is_error = header.metadata.response_code != ResponseCode::NoError;
        is_response
            && match header.counts.queries {
                0 => is_error,
                1 => Query::read(&mut decoder).is_ok_and(|query| query == self.query),
                _ => false,
            }
    }

    /// The answer of the mesh, in at most `limit` bytes: what does not fit is left out, and said so.
    pub(super) fn owned(&self, owned: &Owned, limit: u16) -> Vec<u8> {
        let mut message = self.response(ResponseCode::NoError);
        message.metadata.authoritative = true;
        let asked = self.query.name().clone();
        let canonical = owned.canonical.as_deref().and_then(|name| Name::from_ascii(format!("{name}.")).ok());
        if let Some(canonical) = &canonical {
            message.add_answer(Record::from_rdata(
                asked.clone(),
                TTL,
                RData::CNAME(CNAME(canonical.clone())),
            ));
        }
        let name = canonical.unwrap_or(asked);
        for address in &owned.addresses {
            let data = match address {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            message.add_answer(Record::from_rdata(name.clone(), TTL, data));
        }
        written(&message, limit).unwrap_or_else(|| error(&self.metadata, ResponseCode::ServFail))
    }

    /// An answer that says only that there is none.
    pub(super) fn failed(&self) -> Vec<u8> {
        let message = self.response(ResponseCode::ServFail);
        written(&message, u16::MAX).unwrap_or_else(|| error(&self.metadata, ResponseCode::ServFail))
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(self.payload());
            message.set_edns(edns);
        }
        message
    }
}

/// The types that are told apart in metrics.
const TYPES: [(RecordType, &str); 13] = [
    (RecordType::A, "A"),
    (RecordType::AAAA, "AAAA"),
    (RecordType::CNAME, "CNAME"),
    (RecordType::HTTPS, "HTTPS"),
    (RecordType::MX, "MX"),
    (RecordType::NAPTR, "NAPTR"),
    (RecordType::NS, "NS"),
    (RecordType::PTR, "PTR"),
    (RecordType::SOA, "SOA"),
    (RecordType::SRV, "SRV"),
    (RecordType::SVCB, "SVCB"),
    (RecordType::TXT, "TXT"),
    (RecordType::ANY, "ANY"),
];

fn written(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    Some(bytes)
}

/// An answer without a question, for packets whose question is not understood.
fn error(metadata: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata.recursion_desired = metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    written(&message, u16::MAX).unwrap_or_default()
}

#[cfg(test)]
mod tests;
