//! The life of one subscriber's stream.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use ambit_proto::discovery::DeltaDiscoveryRequest;
use prost::Message as _;
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;
use tracing::{debug, info, warn};

use super::{Caller, Shared, Signal, SubscriberState, TypeState, answers::Answers};
use crate::xds::{
    ledger::{Heard, Ledger, Subscriber, Viewer},
    message::Response,
    node::Subscribed,
    throttle::Turn,
};

/// One response waits for the transport while the next is not even made.
const AHEAD: usize = 1;
/// A rejection is shown on the admin page; what comes from outside is cut there.
const SHOWN_NACK: usize = 4096;

/// One subscriber's stream; ends when either side does.
pub(super) struct Stream {
    shared: Arc<Shared>,
    id: u64,
    record: Arc<Mutex<Record>>,
    requests: tonic::Streaming<DeltaDiscoveryRequest>,
    answers: mpsc::Sender<Result<Response, Status>>,
}

/// What is known of it, also by those who look from outside.
#[derive(Debug)]
pub(super) struct Record {
    caller: Caller,
    peer: Option<SocketAddr>,
    since: SystemTime,
    identified: Option<Identified>,
}

/// A stream whose first request was in order.
#[derive(Debug)]
struct Identified {
    node: Subscribed,
    subscriber: Subscriber,
    answers: HashMap<String, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    sent: Option<SystemTime>,
    heard: Option<SystemTime>,
    nack: Option<(SystemTime, String)>,
}

impl Stream {
    /// Registers a new stream. To be [run](Self::run).
    pub(super) fn open(
        shared: Arc<Shared>,
        caller: Caller,
        peer: Option<SocketAddr>,
        requests: tonic::Streaming<DeltaDiscoveryRequest>,
    ) -> Result<(Self, Answers), Status> {
        let (answers, out) = mpsc::channel(AHEAD);
        let record = Record { caller, peer, since: SystemTime::now(), identified: None };
        let record = Arc::new(Mutex::new(record));
        let id = shared.enter(record.clone())?;
        Ok((Self { shared, id, record, requests, answers }, Answers::new(out)))
    }

    /// Serves the stream to its end, and says why it ended.
    pub(super) async fn run(mut self) {
        let answers = self.answers.clone();
        match self.serve().await {
            Ok(()) => debug!(subscriber = %self.record().name(), "Subscriber left"),
            Err(status) => {
                info!(subscriber = %self.record().name(), error = %status.message(), "Subscriber refused");
                // It may be gone already, which is why we are here.
                let _gone = answers.send(Err(status)).await;
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Status> {
        let mut signal = self.shared.signal.subscribe();
        // What a subscriber that returns lacks can only be told by who knows everything: until then its request
        // waits unread.
        loop {
            if *signal.borrow_and_update() == Signal::Closing {
                return Ok(());
            }
            if self.shared.ledger().is_open() {
                break;
            }
            tokio::select! {
                _ = signal.changed() => {}
                () = self.answers.closed() => return Ok(()),
            }
        }
        let throttle = self.shared.throttle.clone();
        let mut turn = None;
        let mut work = false;
        // When the first change was published that this subscriber has not been sent.
        let mut behind: Option<Instant> = None;
        loop {
            if *signal.borrow_and_update() == Signal::Closing {
                return Ok(());
            }
            let starting = self.record().is_starting();
            if !starting {
                turn = None;
            }
            let must_wait = starting && turn.is_none();
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        self.hear(request)?;
                        work = true;
                    }
                    Ok(None) | Err(_) => return Ok(()),
                },
                _ = signal.changed() => {
                    work = true;
                    behind.get_or_insert_with(Instant::now);
                }
                () = self.answers.closed() => return Ok(()),
                mine = throttle.turn(), if work && must_wait => turn = Some(mine),
                () = Turn::expire(&mut turn) => {}
                slot = self.answers.reserve(), if work && !must_wait => {
                    let Ok(slot) = slot else { return Ok(()) };
                    match next(&self.shared, &self.record)? {
                        Some(response) => {
                            slot.send(Ok(response));
                            if let Some(since) = behind.filter(|_| !starting) {
                                self.shared.metrics.delay.add(since.elapsed());
                            }
                        }
                        None => {
                            work = false;
                            if !self.record().is_waiting() {
                                behind = None;
                            }
                        }
                    }
                }
            }
        }
    }

    fn hear(&self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        let ledger = self.shared.ledger();
        let mut record = self.record();
        let heard = record.hear(&ledger, request)?;
        let name = record.name();
        match heard {
            Heard::Asked => debug!(subscriber = %name, xds.url = %type_url, "Subscribed"),
            Heard::Acked => {}
            Heard::Stale => debug!(subscriber = %name, xds.url = %type_url, "Stale nonce ignored"),
            Heard::UnknownType => {
                info!(subscriber = %name, xds.url = %type_url, "Asked for a type that is not served");
            }
            Heard::Nacked(message) => {
                self.shared.metrics.nacked.add(&type_url, message.len());
                warn!(subscriber = %name, xds.url = %type_url, nack = %message, "Subscriber rejected resources");
            }
        }
        Ok(())
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

impl Drop for Stream {
    /// Also when the task is dropped with its runtime, nobody stays on the list.
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

/// The next response to send. The ledger is locked before the record, here as everywhere.
fn next(shared: &Shared, record: &Mutex<Record>) -> Result<Option<Response>, Status> {
    let ledger = shared.ledger();
    let mut record = lock(record);
    let Some(identified) = &mut record.identified else { return Ok(None) };
    // Cancelled is the status after which a subscriber returns at once.
    let next = identified.subscriber.next(&ledger).map_err(|e| Status::cancelled(e.to_string()))?;
    if let Some(response) = &next {
        shared.metrics.sent.add(&response.type_url, response.encoded_len());
        let answer = identified.answers.entry(response.type_url.clone()).or_default();
        answer.sent = Some(SystemTime::now());
    }
    Ok(next)
}

impl Record {
    fn hear(&mut self, ledger: &Ledger, request: DeltaDiscoveryRequest) -> Result<Heard, Status> {
        let type_url = request.type_url.clone();
        let identified = match &mut self.identified {
            Some(identified) => identified,
            None => {
                let node = Subscribed::read(request.node.as_ref());
                let node = node.map_err(|e| Status::invalid_argument(e.to_string()))?;
                may_be(&self.caller, &node)?;
                let account = format!("{}/{}", self.caller.namespace, self.caller.service_account);
                let subscriber = Subscriber::new(Viewer { node: node.node_name.clone(), account });
                self.identified.insert(Identified { node, subscriber, answers: HashMap::new() })
            }
        };
        let heard = identified.subscriber.request(ledger, request);
        let heard = heard.map_err(|e| Status::resource_exhausted(e.to_string()))?;
        match &heard {
            Heard::Acked => identified.answered(type_url, None),
            Heard::Nacked(message) => identified.answered(type_url, Some(message)),
            Heard::Asked | Heard::Stale | Heard::UnknownType => {}
        }
        Ok(heard)
    }

    fn is_starting(&self) -> bool {
        self.identified.as_ref().is_some_and(|i| i.subscriber.is_starting())
    }

    /// Whether a response is on its way, behind which others wait.
    fn is_waiting(&self) -> bool {
        self.identified.as_ref().is_some_and(|i| i.subscriber.is_waiting())
    }

    fn name(&self) -> String {
        let node = self.identified.as_ref().map(|i| i.node.id.as_str());
        node.unwrap_or(&self.caller.name).to_owned()
    }

    pub(super) fn state(&self, ledger: &Ledger) -> SubscriberState {
        let mut state = SubscriberState {
            node_id: String::new(),
            node_name: String::new(),
            caller: self.caller.name.clone(),
            peer: self.peer,
            since: self.since,
            types: Vec::new(),
        };
        if let Some(identified) = &self.identified {
            state.node_id.clone_from(&identified.node.id);
            state.node_name.clone_from(&identified.node.node_name);
            state.types = identified.types(ledger);
        }
        state
    }
}

impl Identified {
    fn answered(&mut self, type_url: String, nack: Option<&str>) {
        let now = SystemTime::now();
        let answer = self.answers.entry(type_url).or_default();
        answer.heard = Some(now);
        if let Some(message) = nack {
            answer.nack = Some((now, message.chars().take(SHOWN_NACK).collect()));
        }
    }

    fn types(&self, ledger: &Ledger) -> Vec<TypeState> {
        let states = self.subscriber.progress(ledger).into_iter().map(|progress| {
            let answer = self.answers.get(&progress.type_url);
            TypeState {
                waiting_since: answer.and_then(|a| a.sent).filter(|_| progress.waiting),
                last_answer: answer.and_then(|a| a.heard),
                last_nack: answer.and_then(|a| a.nack.clone()),
                progress,
            }
        });
        states.collect()
    }
}

/// A caller speaks only for the node that its credentials were made for.
fn may_be(caller: &Caller, node: &Subscribed) -> Result<(), Status> {
    let refuse = |what: &str, proven: &str, said: &str| {
        Err(Status::permission_denied(format!(
            "credentials are for {what} {proven:?}, the node says {said:?}; check POD_NAMESPACE, NODE_NAME and the token"
        )))
    };
    if caller.namespace != node.namespace {
        return refuse("namespace", &caller.namespace, &node.namespace);
    }
    if !node.service_account.is_empty() && caller.service_account != node.service_account {
        return refuse("service account", &caller.service_account, &node.service_account);
    }
    match &caller.node {
        Some(proven) if !node.node_name.is_empty() && *proven != node.node_name => {
            refuse("node", proven, &node.node_name)
        }
        Some(_) | None => Ok(()),
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn node(namespace: &str, service_account: &str, node_name: &str) -> Subscribed {
        Subscribed {
            id: "ztunnel~1.1.1.1~z.ns~ns.svc.cluster.local".into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
            node_name: node_name.into(),
        }
    }

    #[test]
    fn a_caller_speaks_only_for_its_own_namespace_account_and_node() {
        let caller = Caller {
            name: "c".into(),
            namespace: "istio-system".into(),
            service_account: "ztunnel".into(),
            node: Some("n1".into()),
        };
        for (said, right) in [
            (node("istio-system", "", ""), true),
            (node("istio-system", "ztunnel", "n1"), true),
            (node("default", "", ""), false),
            (node("istio-system", "default", ""), false),
            (node("istio-system", "", "n2"), false),
        ] {
            let verdict = may_be(&caller, &said);
            assert_eq!(verdict.is_ok(), right, "{said:?}");
            if let Err(status) = verdict {
                assert_eq!(status.code(), Code::PermissionDenied);
            }
        }
        let anywhere = Caller { node: None, ..caller };
        assert!(may_be(&anywhere, &node("istio-system", "", "n2")).is_ok());
    }
}
