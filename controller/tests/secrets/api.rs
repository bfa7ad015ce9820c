//! An API server in memory: objects, versions, conflicts, watches that can be cut, and faults on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Api(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Moves with every version, and when watches are cut.
    changed: watch::Sender<(u64, u64)>,
    writes_under_way: AtomicUsize,
    most_writes_under_way: AtomicUsize,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Watches that begin before this version are told that it is gone.
    oldest: u64,
    objects: BTreeMap<Place, Value>,
    log: Vec<(u64, &'static str, Place, Value)>,
    requests: Vec<(Method, String)>,
    faults: Vec<Fault>,
    named: u64,
    /// Groups whose definitions are missing.
    unserved: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    kind: String,
    namespace: String,
    name: String,
}

struct Fault {
    method: Method,
    path: &'static str,
    code: u16,
    times: usize,
    is_done: bool,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new((0, 0)),
            writes_under_way: AtomicUsize::new(0),
            most_writes_under_way: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// The next `times` requests of this kind fail with `code`.
    pub(crate) fn fail(&self, method: Method, path: &'static str, code: u16, times: usize) {
        self.state().faults.push(Fault { method, path, code, times, is_done: false });
    }

    /// The next request of this kind is carried out, and answered with `code` all the same.
    pub(crate) fn lose_answer(&self, method: Method, path: &'static str, code: u16) {
        self.state().faults.push(Fault { method, path, code, times: 1, is_done: true });
    }

    /// Ends every watch, and forgets everything before now.
    pub(crate) fn cut(&self) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
        let version = state.version;
        drop(state);
        self.0.changed.send_modify(|(at, cuts)| (*at, *cuts) = (version, *cuts + 1));
    }

    /// From now on a group's kinds are served, or are not. What is stored stays.
    #[allow(dead_code, reason = "asked for by the tests of the source alone")]
    pub(crate) fn serve_group(&self, group: &str, is_served: bool) {
        let mut state = self.state();
        if is_served {
            state.unserved.remove(group);
        } else {
            state.unserved.insert(group.to_owned());
        }
        drop(state);
        self.cut();
    }

    pub(crate) fn put(&self, kind: &str, namespace: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let place = Place { kind: kind.to_owned(), namespace: namespace.to_owned(), name };
        self.write(place, object);
    }

    pub(crate) fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let place = Place { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
        self.delete(&place).unwrap();
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = Place { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
        self.state().objects.get(&place).cloned()
    }

    pub(crate) fn all(&self, kind: &str) -> Vec<Value> {
        let state = self.state();
        let found = state.objects.iter().filter(|(place, _)| place.kind == kind);
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Writes that were asked for, of the resource in `path`.
    pub(crate) fn writes(&self, path: &str) -> usize {
        let state = self.state();
        let writes = state.requests.iter().filter(|(method, at)| method != Method::GET && at.contains(path));
        writes.count()
    }

    /// How many writes there ever were at the same time. Reads are not counted: watches begin whenever they do.
    pub(crate) fn most_writes_under_way(&self) -> usize {
        self.0.most_writes_under_way.load(SeqCst)
    }

    /// Completes when `holds` does.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut changed = self.0.changed.subscribe();
        let wait = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(600), wait)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn write(&self, place: Place, mut object: Value) -> Value {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        metadata.insert("name".to_owned(), json!(place.name));
        if !place.namespace.is_empty() {
            metadata.insert("namespace".to_owned(), json!(place.namespace));
        }
        let is_new = state.objects.insert(place.clone(), object.clone()).is_none();
        let kind = if is_new { "ADDED" } else { "MODIFIED" };
        state.log.push((version, kind, place, object.clone()));
        drop(state);
        self.0.changed.send_modify(|(at, _)| *at = version);
        object
    }

    fn delete(&self, place: &Place) -> Option<Value> {
        let mut state = self.state();
        let object = state.objects.remove(place)?;
        state.version += 1;
        let version = state.version;
        state.log.push((version, "DELETED", place.clone(), object.clone()));
        drop(state);
        self.0.changed.send_modify(|(at, _)| *at = version);
        Some(object)
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let writes = usize::from(parts.method != Method::GET);
        let under_way = self.0.writes_under_way.fetch_add(writes, SeqCst) + writes;
        self.0.most_writes_under_way.fetch_max(under_way, SeqCst);
        // Others come in between, as with a real one.
        tokio::task::yield_now().await;
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let answer = self.carry_out(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or(""), body);
        self.0.writes_under_way.fetch_sub(writes, SeqCst);
        answer
    }

    fn carry_out(&self, method: &Method, path: &str, query: &str, body: Value) -> Answer {
        let fault = {
            let mut state = self.state();
            state.requests.push((method.clone(), path.to_owned()));
            let fault = state
                .faults
                .iter_mut()
                .find(|fault| fault.times > 0 && fault.method == *method && path.contains(fault.path));
            fault.map(|fault| {
                fault.times -= 1;
                (fault.code, fault.is_done)
            })
        };
        if let Some((code, false)) = fault {
            return refusal(code);
        }
        let answer = self.serve(method, path, query, body);
        match fault {
            Some((code, _)) => refusal(code),
            None => answer,
        }
    }

    fn serve(&self, method: &Method, path: &str, query: &str, body: Value) -> Answer {
        let query: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%2F", "/")))
            .collect();
        if let Some(rest) = path.strip_prefix("/apis/") {
            let group = rest.split('/').next().unwrap();
            if self.state().unserved.contains(group) {
                return refusal(404);
            }
            if rest.split('/').count() == 2 {
                return document(StatusCode::OK, &discovery(rest));
            }
        }
        if query.contains_key("sendInitialEvents") {
            return refusal(422);
        }
        let (kind, namespace, name) = place(path);
        let Some(name) = name else {
            return match *method {
                Method::POST => self.create(kind, namespace.unwrap_or_default(), body),
                _ if query.contains_key("watch") => self.watch(&kind, namespace.as_deref(), &query),
                _ => self.list(&kind, namespace.as_deref(), &query),
            };
        };
        let place = Place { kind, namespace: namespace.unwrap_or_default(), name };
        let found = self.state().objects.get(&place).cloned();
        let Some(found) = found else { return refusal(404) };
        let version = body["metadata"]["resourceVersion"].as_str();
        let is_stale = version.is_some_and(|version| found["metadata"]["resourceVersion"] != version);
        match *method {
            Method::GET => document(StatusCode::OK, &found),
            Method::PUT | Method::PATCH if is_stale => refusal(409),
            Method::PUT => document(StatusCode::OK, &self.write(place, body)),
            Method::PATCH => {
                let mut object = found;
                merge(&mut object, &body);
                document(StatusCode::OK, &self.write(place, object))
            }
            Method::DELETE => document(StatusCode::OK, &self.delete(&place).unwrap_or_default()),
            _ => refusal(405),
        }
    }

    fn create(&self, kind: String, namespace: String, mut object: Value) -> Answer {
        let name = match object["metadata"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => {
                let mut state = self.state();
                state.named += 1;
                format!("{}{}", object["metadata"]["generateName"].as_str().unwrap(), state.named)
            }
        };
        object["metadata"]["creationTimestamp"] = json!("2020-01-01T00:00:00Z");
        let place = Place { kind, namespace, name };
        if self.state().objects.contains_key(&place) {
            return refusal(409);
        }
        document(StatusCode::CREATED, &self.write(place, object))
    }

    fn list(&self, kind: &str, namespace: Option<&str>, query: &BTreeMap<String, String>) -> Answer {
        let state = self.state();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|(place, object)| is_wanted(place, object, kind, namespace, query))
            .map(|(_, object)| object)
            .collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": state.version.to_string() }, "items": items,
        });
        document(StatusCode::OK, &list)
    }

    fn watch(&self, kind: &str, namespace: Option<&str>, query: &BTreeMap<String, String>) -> Answer {
        let from: u64 = query.get("resourceVersion").and_then(|from| from.parse().ok()).unwrap_or(0);
        let changed = self.0.changed.subscribe();
        let cuts = changed.borrow().1;
        if from < self.state().oldest {
            // In the stream, as the API server does, or as the answer, as some proxies do.
            return if cuts.is_multiple_of(2) {
                refusal(410)
            } else {
                document(StatusCode::OK, &json!({"type": "ERROR", "object": status(410)}))
            };
        }
        let (api, kind) = (self.clone(), kind.to_owned());
        let (namespace, query) = (namespace.map(str::to_owned), query.clone());
        let lines = futures_util::stream::unfold((changed, from), move |(mut changed, from)| {
            let (api, kind, namespace, query) = (api.clone(), kind.clone(), namespace.clone(), query.clone());
            async move {
                loop {
                    let (latest, cut) = *changed.borrow_and_update();
                    if cut != cuts {
                        return None;
                    }
                    let news: String = {
                        let state = api.state();
                        let since = state.log.iter().filter(|(version, ..)| *version > from);
                        since
                            .filter(|(_, _, place, object)| {
                                is_wanted(place, object, &kind, namespace.as_deref(), &query)
                            })
                            .map(|(_, kind, _, object)| {
                                format!("{}\n", json!({"type": kind, "object": object}))
                            })
                            .collect()
                    };
                    if !news.is_empty() {
                        return Some((Frame::data(Bytes::from(news)), (changed, latest)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Response::new(UnsyncBoxBody::new(StreamBody::new(lines.map(Ok))))
    }
}

fn is_wanted(
    place: &Place,
    object: &Value,
    kind: &str,
    namespace: Option<&str>,
    query: &BTreeMap<String, String>,
) -> bool {
    let name = query.get("fieldSelector").and_then(|field| field.strip_prefix("metadata.name="));
    let label = query.get("labelSelector").and_then(|label| label.split_once('='));
    place.kind == kind
        && namespace.is_none_or(|namespace| place.namespace == namespace)
        && name.is_none_or(|name| place.name == name)
        && label.is_none_or(|(name, value)| object["metadata"]["labels"][name] == value)
}

/// Every kind of others that the controller reads, in whatever group: the version alone is theirs.
fn discovery(group_version: &str) -> Value {
    let names = [
        "serviceentries",
        "workloadentries",
        "authorizationpolicies",
        "peerauthentications",
        "gateways",
        "gatewayclasses",
    ];
    let resources = names.map(|name| {
        json!({"name": name, "singularName": "", "namespaced": true, "kind": name, "verbs": ["list", "watch"]})
    });
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

/// Resource, namespace and name in a path of the API.
fn place(path: &str) -> (String, Option<String>, Option<String>) {
    let mut parts: Vec<_> = path.trim_matches('/').split('/').map(str::to_owned).collect();
    parts.drain(..if parts[0] == "api" { 2 } else { 3 });
    match parts.as_slice() {
        [kind] => (kind.clone(), None, None),
        [kind, name] => (kind.clone(), None, Some(name.clone())),
        [_, namespace, kind] => (kind.clone(), Some(namespace.clone()), None),
        [_, namespace, kind, name] => (kind.clone(), Some(namespace.clone()), Some(name.clone())),
        other => panic!("{other:?}"),
    }
}

fn merge(into: &mut Value, change: &Value) {
    let (Some(fields), Some(changes)) = (into.as_object_mut(), change.as_object()) else {
        *into = change.clone();
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert_with(|| json!({})), change);
        }
    }
}

fn refusal(code: u16) -> Answer {
    document(StatusCode::from_u16(code).unwrap(), &status(code))
}

fn status(code: u16) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "Unknown",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": format!("the test says {code}"),
    })
}

fn document(status: StatusCode, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string()));
    Response::builder().status(status).body(UnsyncBoxBody::new(body)).unwrap()
}
