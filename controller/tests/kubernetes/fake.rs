//! A stand-in for the API server: objects by path, versions, pages, server-side apply of conditions, and faults.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// The API server. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    seen: Vec<String>,
    faults: Vec<Fault>,
    /// Answers of the webhook to what is created as a dry run: the message of a refusal.
    refuses: Option<String>,
    /// Paths of kinds that are not served.
    unserved: Vec<String>,
}

/// What goes wrong with requests that contain a text, and how often.
struct Fault {
    matching: String,
    times: usize,
    how: How,
}

/// How a request fails.
#[derive(Clone)]
pub(crate) enum How {
    /// With this answer.
    Answer(u16, Value),
    /// Without an answer.
    Hang,
}

/// How one client reaches the API server.
#[derive(Clone, Default)]
pub(crate) struct Link {
    cut: Arc<Mutex<bool>>,
}

impl Link {
    /// From now on nothing gets through, and nothing comes back.
    pub(crate) fn cut(&self) {
        *self.cut.lock().unwrap() = true;
    }
}

impl Fake {
    pub(crate) fn client(&self) -> Client {
        self.client_over(Link::default())
    }

    pub(crate) fn client_over(&self, link: Link) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (fake, link) = (fake.clone(), link.clone());
            async move {
                if *link.cut.lock().unwrap() {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::convert::Infallible>(fake.answer(request).await)
            }
        });
        Client::new(service, "default")
    }

    /// Puts an object at a path, `/api/v1/namespaces/shop/services/web`.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.0.lock().unwrap();
        state.store(path, object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// The next requests whose method and path with query contain `matching` fail.
    pub(crate) fn fault(&self, matching: &str, times: usize, how: How) {
        self.0.lock().unwrap().faults.push(Fault { matching: matching.to_owned(), times, how });
    }

    /// Kinds whose paths contain this are not served.
    pub(crate) fn unserve(&self, path: &str) {
        self.0.lock().unwrap().unserved.push(path.to_owned());
    }

    pub(crate) fn serve(&self) {
        self.0.lock().unwrap().unserved.clear();
    }

    pub(crate) fn refuse(&self, message: &str) {
        self.0.lock().unwrap().refuses = Some(message.to_owned());
    }

    /// The requests so far whose method and path with query contain this.
    pub(crate) fn seen(&self, matching: &str) -> usize {
        self.0.lock().unwrap().seen.iter().filter(|one| one.contains(matching)).count()
    }

    /// The conditions of an object, `type=status reason`.
    pub(crate) fn conditions(&self, path: &str) -> Vec<String> {
        let object = self.get(path).unwrap();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
        let one =
            |one: &Value| format!("{}={} {}", text(one, "type"), text(one, "status"), text(one, "reason"));
        conditions.iter().map(one).collect()
    }

    /// The conditions of a route, `controller parent: type=status reason`.
    pub(crate) fn parents(&self, path: &str) -> Vec<String> {
        let object = self.get(path).unwrap();
        let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
        let mut told = Vec::new();
        for parent in object["status"]["parents"].as_array().into_iter().flatten() {
            let who = format!("{} {}", text(parent, "controllerName"), text(&parent["parentRef"], "name"));
            for one in parent["conditions"].as_array().unwrap() {
                told.push(format!(
                    "{who}: {}={} {}",
                    text(one, "type"),
                    text(one, "status"),
                    text(one, "reason")
                ));
            }
        }
        told
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let target = head.uri.path_and_query().unwrap().to_string();
        let line = format!("{} {target}", head.method);
        let fault = {
            let mut state = self.0.lock().unwrap();
            state.seen.push(line.clone());
            let fault = state.faults.iter_mut().find(|one| one.times > 0 && line.contains(&one.matching));
            fault.map(|fault| {
                fault.times -= 1;
                fault.how.clone()
            })
        };
        let (code, answer) = match fault {
            Some(How::Answer(code, answer)) => (code, answer),
            Some(How::Hang) => std::future::pending().await,
            None => self.0.lock().unwrap().handle(&head.method, head.uri.path(), head.uri.query(), &body),
        };
        let mut response = Response::new(Body::from(serde_json::to_vec(&answer).unwrap()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    }
}

/// A failure, as the API server words it.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message })
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn handle(&mut self, method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> (u16, Value) {
        let query: BTreeMap<&str, &str> =
            query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
        if self.unserved.iter().any(|unserved| path.contains(unserved)) {
            return (404, failure(404, "NotFound", "the server could not find the requested resource"));
        }
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match (method.as_str(), self.objects.get(path).cloned()) {
            ("GET", Some(object)) => (200, object),
            ("GET", None) if !is_name(path) => (200, self.list(path, &query)),
            ("POST", _) if query.contains_key("dryRun") => match &self.refuses {
                Some(message) => (422, failure(422, "Invalid", message)),
                None => (201, sent),
            },
            ("POST", _) => {
                let path = format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap());
                match self.objects.contains_key(&path) {
                    true => (409, failure(409, "AlreadyExists", "it is there")),
                    false => (201, self.store(&path, sent)),
                }
            }
            ("PUT", Some(object)) => {
                match sent["metadata"]["resourceVersion"] == object["metadata"]["resourceVersion"] {
                    true => (200, self.store(path, sent)),
                    false => (409, failure(409, "Conflict", "it was changed")),
                }
            }
            ("PATCH", _) => self.patch(path, &query, &sent),
            _ => (404, failure(404, "NotFound", "not found")),
        }
    }

    fn list(&self, path: &str, query: &BTreeMap<&str, &str>) -> Value {
        let (root, plural) = path.rsplit_once('/').unwrap();
        let here = self.objects.iter().filter(|(path, _)| {
            path.starts_with(&format!("{root}/namespaces/")) && path.contains(&format!("/{plural}/"))
        });
        let from: usize = query.get("continue").map_or(0, |from| from.parse().unwrap());
        let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let items: Vec<_> = here.map(|(_, object)| object.clone()).collect();
        let page: Vec<_> = items.iter().skip(from).take(limit).cloned().collect();
        let next = from.saturating_add(page.len());
        let next = if next < items.len() { next.to_string() } else { String::new() };
        json!({ "kind": "List", "metadata": { "continue": next }, "items": page })
    }

    fn patch(&mut self, path: &str, query: &BTreeMap<&str, &str>, sent: &Value) -> (u16, Value) {
        let (path, applied) = match path.strip_suffix("/status") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let Some(mut object) = self.objects.get(path).cloned() else {
            return (404, failure(404, "NotFound", "not found"));
        };
        if applied && !query.contains_key("force") {
            if sent["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                return (409, failure(409, "Conflict", "it was changed"));
            }
            for (field, list) in sent["status"].as_object().unwrap() {
                object["status"][field] = list.clone();
            }
        } else if applied {
            apply(&mut object, query["fieldManager"], sent);
        } else {
            merge_webhooks(&mut object, sent);
        }
        (200, self.store(path, object))
    }
}

/// Whether a path names an object, as far as these tests go: they have no other names with these letters.
fn is_name(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap();
    !last.ends_with('s') && !last.ends_with("ies")
}

/// Server-side apply of conditions, each kept by its type, as in Services.
fn apply(object: &mut Value, manager: &str, sent: &Value) {
    let of = |object: &Value| object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut owned: BTreeMap<String, Vec<String>> =
        serde_json::from_value(object["owned"].clone()).unwrap_or_default();
    let new = of(sent);
    let kind = |one: &Value| one["type"].as_str().unwrap().to_owned();
    let before = owned.remove(manager).unwrap_or_default();
    let taken: Vec<_> = new.iter().map(kind).collect();
    let mut conditions = of(object);
    conditions.retain(|one| !before.contains(&kind(one)) && !taken.contains(&kind(one)));
    conditions.extend(new);
    object["status"]["conditions"] = json!(conditions);
    if !taken.is_empty() {
        owned.insert(manager.to_owned(), taken);
    }
    let entries = owned.keys().map(|manager| {
        json!({ "manager": manager, "operation": "Apply", "subresource": "status", "fieldsType": "FieldsV1" })
    });
    object["metadata"]["managedFields"] = json!(entries.collect::<Vec<_>>());
    object["owned"] = json!(owned);
}

/// A strategic merge of webhooks by their name.
fn merge_webhooks(object: &mut Value, sent: &Value) {
    for change in sent["webhooks"].as_array().unwrap() {
        let webhooks = object["webhooks"].as_array_mut().unwrap();
        let webhook = webhooks.iter_mut().find(|one| one["name"] == change["name"]).unwrap();
        for (field, value) in change.as_object().unwrap() {
            match (webhook[field].as_object_mut(), value.as_object()) {
                (Some(there), Some(new)) => there.extend(new.clone()),
                _ => webhook[field] = value.clone(),
            }
        }
    }
}
