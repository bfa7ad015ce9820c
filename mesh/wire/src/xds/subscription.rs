//! What a client has asked for and what it holds. Pure: messages in, messages out.
//!
//! A response passes through in two steps. [`Subscriptions::receive`] opens it; the
//! [`Update`] goes to the handler, the [`Receipt`] comes back with the handler's verdict to
//! [`Subscriptions::settle`], which alone can make the answer. So nothing is acknowledged, and nobody
//! is woken, before the state is in place.

use std::collections::{HashMap, HashSet};

use ambit_proto::discovery::{DeltaDiscoveryRequest, Node, Status};
use prost::Message as _;

use super::{
    Mode, Received, Rejected, Update,
    message::{Envelope, Response},
};

/// The NACK text of a broken control plane would otherwise grow without limit.
const NACK_TEXT: usize = 16 * 1024;

/// The subscriptions of one process, over all the streams of its life.
#[derive(Debug)]
pub(super) struct Subscriptions {
    /// In the order in which they are opened.
    kinds: Vec<Kind>,
}

/// What is known of one type.
#[derive(Debug)]
struct Kind {
    type_url: String,
    mode: Mode,
    /// Accepted and not removed since: name and version.
    held: HashMap<Box<str>, Box<str>>,
    /// Rejected without ever having been accepted. Not told to the control plane, which must send
    /// them again; kept to notice that one of them is gone when the next stream does not mention it.
    rejected: HashSet<Box<str>>,
    /// Demanded, not answered.
    pending: HashSet<String>,
    /// A response of this type was accepted whole, once.
    synced: bool,
    /// No response of this type came on this stream yet.
    fresh: bool,
}

/// A response that was opened and not answered yet.
#[derive(Debug)]
#[must_use = "a response is answered by `settle`"]
pub(super) struct Receipt {
    type_url: String,
    nonce: String,
    names: Vec<(Box<str>, Box<str>)>,
    removed: Vec<Box<str>>,
    aliases: Vec<String>,
    unreadable: usize,
}

/// The answer to a response.
#[derive(Debug)]
pub(super) struct Settled {
    /// ACK or NACK, to be sent.
    pub(super) reply: DeltaDiscoveryRequest,
    /// Demanded keys that are answered now.
    pub(super) woken: Vec<String>,
    /// The text of the NACK, if it is one.
    pub(super) nack: Option<String>,
}

/// What to do for a demand.
#[derive(Debug)]
pub(super) enum Asked {
    /// Send this.
    Request(Box<DeltaDiscoveryRequest>),
    /// An earlier request asks for it already.
    Already,
    /// Everything of this type comes by itself, or the type is not subscribed at all.
    NotOnDemand,
}

impl Subscriptions {
    /// Nothing held, nothing asked.
    pub(super) fn new(kinds: impl IntoIterator<Item = (String, Mode)>) -> Self {
        let kinds = kinds.into_iter().map(|(type_url, mode)| Kind::new(type_url, mode)).collect();
        Self { kinds }
    }

    /// The first requests of a new stream.
    pub(super) fn open(&mut self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        self.kinds.iter_mut().map(|kind| kind.open(node)).collect()
    }

    /// Opens a response.
    pub(super) fn receive(&mut self, response: Response) -> (Update, Receipt) {
        let on_demand = self.kind(&response.type_url).is_some_and(|kind| kind.mode == Mode::OnDemand);
        let mut update = Update {
            type_url: response.type_url.clone(),
            upserts: Vec::with_capacity(response.resources.len()),
            removed: response.removed_resources,
        };
        let mut receipt = Receipt {
            type_url: response.type_url,
            nonce: response.nonce,
            names: Vec::with_capacity(response.resources.len()),
            removed: Vec::new(),
            aliases: Vec::new(),
            unreadable: 0,
        };
        for sealed in response.resources {
            let Ok(envelope) = Envelope::decode(sealed) else {
                receipt.unreadable += 1;
                continue;
            };
            receipt.names.push((envelope.name.as_str().into(), envelope.version.as_str().into()));
            if on_demand {
                receipt.aliases.extend(envelope.aliases.iter().cloned());
            }
            update.upserts.push(Received {
                name: envelope.name,
                aliases: envelope.aliases,
                version: envelope.version,
                body: envelope.resource.map(|any| any.value),
            });
        }
        if let Some(kind) = self.kind_mut(&update.type_url) {
            kind.notice_the_missing(&mut update);
        }
        receipt.removed = update.removed.iter().map(|name| name.as_str().into()).collect();
        (update, receipt)
    }

    /// Records the handler's verdict and makes the answer.
    pub(super) fn settle(&mut self, receipt: Receipt, rejected: &[Rejected]) -> Settled {
        let nack = nack_text(receipt.unreadable, rejected);
        let reply = DeltaDiscoveryRequest {
            type_url: receipt.type_url.clone(),
            response_nonce: receipt.nonce.clone(),
            error_detail: nack.clone().map(|message| Status { message, ..Status::default() }),
            ..DeltaDiscoveryRequest::default()
        };
        let woken = match self.kind_mut(&receipt.type_url) {
            Some(kind) => kind.record(receipt, rejected, nack.is_none()),
            None => Vec::new(),
        };
        Settled { reply, woken, nack }
    }

    /// Asks for one resource of an on-demand type.
    pub(super) fn demand(&mut self, type_url: &str, key: &str) -> Asked {
        let Some(kind) = self.kind_mut(type_url).filter(|kind| kind.mode == Mode::OnDemand) else {
            return Asked::NotOnDemand;
        };
        if !kind.pending.insert(key.to_owned()) {
            return Asked::Already;
        }
        Asked::Request(Box::new(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec![key.to_owned()],
            ..DeltaDiscoveryRequest::default()
        }))
    }

    /// Nobody waits for this key any more, so it need not survive a reconnect.
    pub(super) fn forget(&mut self, type_url: &str, key: &str) {
        if let Some(kind) = self.kind_mut(type_url) {
            kind.pending.remove(key);
        }
    }

    /// Whether every type that comes by itself was accepted whole at least once.
    pub(super) fn synced(&self) -> bool {
        self.kinds.iter().all(|kind| kind.mode == Mode::OnDemand || kind.synced)
    }

    /// Whether this type was subscribed.
    pub(super) fn knows(&self, type_url: &str) -> bool {
        self.kind(type_url).is_some()
    }

    /// Each type with its mode and how many resources are held.
    pub(super) fn held(&self) -> impl Iterator<Item = (&str, Mode, usize)> {
        self.kinds.iter().map(|kind| (kind.type_url.as_str(), kind.mode, kind.held.len()))
    }

    fn kind(&self, type_url: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.type_url == type_url)
    }

    fn kind_mut(&mut self, type_url: &str) -> Option<&mut Kind> {
        self.kinds.iter_mut().find(|kind| kind.type_url == type_url)
    }
}

impl Kind {
    fn new(type_url: String, mode: Mode) -> Self {
        Self {
            type_url,
            mode,
            held: HashMap::new(),
            rejected: HashSet::new(),
            pending: HashSet::new(),
            synced: false,
            fresh: true,
        }
    }

    fn open(&mut self, node: &Node) -> DeltaDiscoveryRequest {
        self.fresh = true;
        // Subscribed to everything and unsubscribed from it: the way to say "nothing", since an
        // empty list means everything.
        let names = match self.mode {
            Mode::Wildcard => Vec::new(),
            Mode::OnDemand => vec!["*".to_owned()],
        };
        let held = self.held.iter().map(|(name, version)| (name.to_string(), version.to_string()));
        let pending = self.pending.iter().filter(|key| !self.held.contains_key(key.as_str()));
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.type_url.clone(),
            resource_names_unsubscribe: names.clone(),
            resource_names_subscribe: names,
            initial_resource_versions: held.chain(pending.map(|key| (key.clone(), String::new()))).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// A rejected resource is not among the versions that we tell, so its removal while we were away
    /// is not told to us. But everything not told is sent again at once: what the first response
    /// does not mention is gone. (Were it not noticed, a policy that could not be read would deny
    /// until the process ends.)
    fn notice_the_missing(&mut self, update: &mut Update) {
        if !std::mem::take(&mut self.fresh) || self.mode == Mode::OnDemand || self.rejected.is_empty() {
            return;
        }
        let mentioned: HashSet<&str> = update
            .upserts
            .iter()
            .map(|r| r.name.as_str())
            .chain(update.removed.iter().map(String::as_str))
            .collect();
        let missing: Vec<String> = self
            .rejected
            .iter()
            .filter(|name| !mentioned.contains(&***name))
            .map(|name| name.to_string())
            .collect();
        update.removed.extend(missing);
    }

    /// Removals first: a name may come back in the same response.
    fn record(&mut self, receipt: Receipt, rejected: &[Rejected], whole: bool) -> Vec<String> {
        let mut woken = Vec::new();
        let mut wake = |pending: &mut HashSet<String>, key: &str| woken.extend(pending.take(key));
        for name in &receipt.removed {
            self.held.remove(name);
            self.rejected.remove(name);
            wake(&mut self.pending, name);
        }
        let bad: HashSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        for (name, version) in receipt.names {
            wake(&mut self.pending, &name);
            if !bad.contains(&*name) {
                self.rejected.remove(&name);
                self.held.insert(name, version);
            } else if !self.held.contains_key(&name) {
                self.rejected.insert(name);
            }
        }
        for alias in &receipt.aliases {
            wake(&mut self.pending, alias);
        }
        self.synced |= whole;
        woken
    }
}

fn nack_text(unreadable: usize, rejected: &[Rejected]) -> Option<String> {
    let mut parts: Vec<String> = rejected.iter().map(|r| format!("{}: {}", r.name, r.reason)).collect();
    if unreadable > 0 {
        parts.push(format!("(unnamed): {unreadable} resources are not valid protobuf"));
    }
    if parts.is_empty() {
        return None;
    }
    let mut text = parts.join("; ");
    if text.len() > NACK_TEXT {
        let end = (0..=NACK_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::message;
    use super::*;
    use crate::codec::{ADDRESS, AUTHORIZATION};
    use bytes::Bytes;

    fn tunnel(address: Mode) -> Subscriptions {
        Subscriptions::new([(ADDRESS.to_owned(), address), (AUTHORIZATION.to_owned(), Mode::Wildcard)])
    }

    fn response(type_url: &str, resources: &[(&str, &str)], removed: &[&str]) -> Response {
        Response {
            type_url: type_url.into(),
            nonce: "n1".into(),
            resources: resources
                .iter()
                .map(|(name, version)| message::seal(type_url, name, version, Bytes::from_static(b"x")))
                .collect(),
            removed_resources: removed.iter().map(|s| (*s).to_owned()).collect(),
            ..Response::default()
        }
    }

    fn accept(s: &mut Subscriptions, response: Response, rejected: &[Rejected]) -> (Update, Settled) {
        let (update, receipt) = s.receive(response);
        (update, s.settle(receipt, rejected))
    }

    fn bad(name: &str) -> Rejected {
        Rejected { name: name.into(), reason: "no good".into() }
    }

    fn versions(request: &DeltaDiscoveryRequest) -> Vec<(&str, &str)> {
        let mut all: Vec<_> =
            request.initial_resource_versions.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_wildcard_stream_opens_with_an_empty_list_and_the_node() {
        let node = Node { id: "me".into(), ..Node::default() };
        let requests = tunnel(Mode::Wildcard).open(&node);
        let urls: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
        assert_eq!(urls, [ADDRESS, AUTHORIZATION]);
        for request in requests {
            let bare = DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: request.type_url.clone(),
                ..DeltaDiscoveryRequest::default()
            };
            assert_eq!(request, bare);
        }
    }

    #[test]
    fn an_on_demand_stream_opens_subscribed_to_nothing() {
        let requests = tunnel(Mode::OnDemand).open(&Node::default());
        assert_eq!(requests[0].resource_names_subscribe, ["*"]);
        assert_eq!(requests[0].resource_names_unsubscribe, ["*"]);
        assert!(requests[1].resource_names_subscribe.is_empty());
    }

    #[test]
    fn a_clean_response_is_acked_with_its_nonce_and_nothing_else() {
        let mut s = tunnel(Mode::Wildcard);
        let (_, settled) = accept(&mut s, response(ADDRESS, &[("a", "1")], &[]), &[]);
        let ack = DeltaDiscoveryRequest {
            type_url: ADDRESS.into(),
            response_nonce: "n1".into(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(settled.reply, ack);
        assert_eq!(settled.nack, None);
    }

    #[test]
    fn a_nack_lists_every_rejected_name_and_leaves_the_code_zero() {
        let mut s = tunnel(Mode::Wildcard);
        let incoming = response(ADDRESS, &[("a", "1"), ("b", "1"), ("c", "1")], &[]);
        let (_, settled) = accept(&mut s, incoming, &[bad("a"), bad("c")]);
        let detail = settled.reply.error_detail.unwrap();
        assert_eq!(detail.message, "a: no good; c: no good");
        assert_eq!(detail.code, 0);
        assert_eq!(settled.reply.response_nonce, "n1");
        assert_eq!(versions(&s.open(&Node::default())[0]), [("b", "1")], "only what was accepted");
    }

    #[test]
    fn a_rejected_update_keeps_the_version_that_is_still_in_force() {
        let mut s = tunnel(Mode::Wildcard);
        accept(&mut s, response(ADDRESS, &[("a", "1")], &[]), &[]);
        accept(&mut s, response(ADDRESS, &[("a", "2")], &[]), &[bad("a")]);
        assert_eq!(versions(&s.open(&Node::default())[0]), [("a", "1")]);
    }

    #[test]
    fn a_removed_name_is_no_longer_held_unless_the_same_response_brings_it_back() {
        let mut s = tunnel(Mode::Wildcard);
        accept(&mut s, response(ADDRESS, &[("a", "1"), ("b", "1")], &[]), &[]);
        accept(&mut s, response(ADDRESS, &[("b", "2")], &["a", "b"]), &[]);
        assert_eq!(versions(&s.open(&Node::default())[0]), [("b", "2")]);
    }

    #[test]
    fn the_first_sync_needs_a_clean_response_of_every_wildcard_type() {
        let mut s = tunnel(Mode::Wildcard);
        accept(&mut s, response(AUTHORIZATION, &[], &[]), &[]);
        assert!(!s.synced());
        accept(&mut s, response(ADDRESS, &[("a", "1"), ("b", "1")], &[]), &[bad("b")]);
        assert!(!s.synced(), "a NACKed response does not count");
        accept(&mut s, response(ADDRESS, &[("b", "2")], &[]), &[]);
        assert!(s.synced());
    }

    #[test]
    fn an_on_demand_type_does_not_hold_up_the_first_sync() {
        let mut s = tunnel(Mode::OnDemand);
        accept(&mut s, response(AUTHORIZATION, &[], &[]), &[]);
        assert!(s.synced());
    }

    #[test]
    fn an_unknown_type_is_acked_and_otherwise_ignored() {
        let mut s = tunnel(Mode::Wildcard);
        let (_, settled) = accept(&mut s, response("type.googleapis.com/other", &[("a", "1")], &[]), &[]);
        assert_eq!(settled.nack, None);
        assert_eq!(settled.reply.type_url, "type.googleapis.com/other");
        assert!(!s.synced());
    }

    #[test]
    fn a_resource_that_is_not_protobuf_is_nacked_and_the_others_count() {
        let mut s = tunnel(Mode::Wildcard);
        let mut incoming = response(ADDRESS, &[("a", "1")], &[]);
        incoming.resources.push(Bytes::from_static(b"\xff\xff\xff"));
        let (update, settled) = accept(&mut s, incoming, &[]);
        assert_eq!(update.upserts.len(), 1);
        assert_eq!(settled.nack.unwrap(), "(unnamed): 1 resources are not valid protobuf");
        assert!(!s.synced());
        assert_eq!(versions(&s.open(&Node::default())[0]), [("a", "1")]);
    }

    #[test]
    fn a_resource_without_body_reaches_the_handler_as_such() {
        let mut s = tunnel(Mode::Wildcard);
        let hollow = Envelope { name: "a".into(), ..Envelope::default() };
        let incoming =
            Response { resources: vec![hollow.encode_to_vec().into()], ..response(ADDRESS, &[], &[]) };
        let (update, receipt) = s.receive(incoming);
        assert_eq!(update.upserts[0].body, None);
        let settled = s.settle(receipt, &[bad("a")]);
        assert_eq!(settled.nack.unwrap(), "a: no good");
    }

    #[test]
    fn a_demand_asks_once_without_nonce_or_node() {
        let mut s = tunnel(Mode::OnDemand);
        let Asked::Request(request) = s.demand(ADDRESS, "/10.0.0.1") else { panic!("asks") };
        let expected = DeltaDiscoveryRequest {
            type_url: ADDRESS.into(),
            resource_names_subscribe: vec!["/10.0.0.1".into()],
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(*request, expected);
        assert!(matches!(s.demand(ADDRESS, "/10.0.0.1"), Asked::Already));
        assert!(matches!(s.demand(AUTHORIZATION, "x"), Asked::NotOnDemand));
        assert!(matches!(s.demand("other", "x"), Asked::NotOnDemand));
    }

    #[test]
    fn a_demand_survives_a_reconnect_with_an_empty_version() {
        let mut s = tunnel(Mode::OnDemand);
        accept(&mut s, response(ADDRESS, &[("a", "1")], &[]), &[]);
        assert!(matches!(s.demand(ADDRESS, "b"), Asked::Request(_)));
        assert!(matches!(s.demand(ADDRESS, "a"), Asked::Request(_)));
        assert_eq!(versions(&s.open(&Node::default())[0]), [("a", "1"), ("b", "")]);
        s.forget(ADDRESS, "b");
        assert_eq!(versions(&s.open(&Node::default())[0]), [("a", "1")]);
    }

    #[test]
    fn a_demand_is_answered_by_name_by_removal_and_by_alias_accepted_or_not() {
        let mut s = tunnel(Mode::OnDemand);
        for key in ["uid-1", "ns/host", "/10.0.0.9", "other"] {
            assert!(matches!(s.demand(ADDRESS, key), Asked::Request(_)));
        }
        let (_, settled) =
            accept(&mut s, response(ADDRESS, &[("uid-1", "1")], &["ns/host"]), &[bad("uid-1")]);
        assert_eq!(settled.woken, ["ns/host", "uid-1"]);

        let sealed = message::seal(ADDRESS, "uid-9", "1", Bytes::new());
        let aliased = message::with_aliases(&sealed, &["/10.0.0.9".into(), "/10.0.0.10".into()]);
        let incoming = Response { resources: vec![aliased], ..response(ADDRESS, &[], &[]) };
        let (_, settled) = accept(&mut s, incoming, &[]);
        assert_eq!(settled.woken, ["/10.0.0.9"]);
        assert_eq!(versions(&s.open(&Node::default())[0]), [("other", ""), ("uid-9", "1")]);
    }

    #[test]
    fn a_rejected_resource_that_vanished_while_we_were_away_is_removed() {
        let mut s = tunnel(Mode::Wildcard);
        let incoming = response(AUTHORIZATION, &[("ns/bad", ""), ("ns/worse", ""), ("ns/good", "")], &[]);
        accept(&mut s, incoming, &[bad("ns/bad"), bad("ns/worse")]);
        let (update, _) = accept(&mut s, response(AUTHORIZATION, &[("ns/good", "")], &[]), &[]);
        assert!(update.removed.is_empty(), "on the same stream the server tells removals itself");
        s.open(&Node::default());
        let incoming = response(AUTHORIZATION, &[("ns/good", ""), ("ns/worse", "")], &[]);
        let (update, _) = accept(&mut s, incoming, &[bad("ns/worse")]);
        assert_eq!(update.removed, ["ns/bad"]);
        let (update, _) = accept(&mut s, response(AUTHORIZATION, &[], &[]), &[]);
        assert!(update.removed.is_empty(), "only the first response of a stream is complete");
    }

    #[test]
    fn a_nack_never_grows_without_limit() {
        let rejected: Vec<_> = (0..5000).map(|i| bad(&format!("é{i}"))).collect();
        assert!(nack_text(0, &rejected).unwrap().len() <= NACK_TEXT + '…'.len_utf8());
    }
}
