//! An API server of a few objects, which the test plays: lists, watches, patches, and what it was asked.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The server. Clones are the same.
#[derive(Clone)]
pub struct Api(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    /// By the path of their list, then by name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Every change since the beginning: list, type, object.
    changes: Vec<(String, &'static str, Value)>,
    asked: Vec<String>,
    /// Connections accepted since the last end. Those before are closed.
    era: usize,
    streams_lists: bool,
    hides: Option<String>,
    refuses: Option<(&'static str, u16)>,
}

pub const PODS: &str = "/api/v1/pods";
pub const NAMESPACES: &str = "/api/v1/namespaces";
pub const NODES: &str = "/api/v1/nodes";
pub const DAEMONSETS: &str = "/apis/apps/v1/namespaces/istio-system/daemonsets";

impl Api {
    pub fn new() -> Self {
        let state = State { streams_lists: true, ..State::default() };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    /// As a server of before lists were streamed.
    pub fn without_streamed_lists(self) -> Self {
        self.lock().streams_lists = false;
        self
    }

    /// Lists and watches do not show objects of this name; who asks for it gets it.
    pub fn hide(&self, name: Option<&str>) {
        self.lock().hides = name.map(str::to_owned);
        self.0.1.notify_all();
    }

    /// Questions to paths that begin so are refused.
    pub fn refuse(&self, path: &'static str, status: u16) {
        self.lock().refuses = Some((path, status));
    }

    pub fn put(&self, list: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let mut state = self.lock();
        let before = state.objects.entry(list.to_owned()).or_default().insert(name, object.clone());
        let change = if before.is_some() { "MODIFIED" } else { "ADDED" };
        state.changes.push((list.to_owned(), change, object));
        self.0.1.notify_all();
    }

    pub fn delete(&self, list: &str, name: &str) {
        let mut state = self.lock();
        if let Some(object) = state.objects.get_mut(list).unwrap().remove(name) {
            state.changes.push((list.to_owned(), "DELETED", object));
        }
        self.0.1.notify_all();
    }

    pub fn get(&self, list: &str, name: &str) -> Value {
        self.lock().objects.get(list).and_then(|all| all.get(name)).cloned().unwrap_or_default()
    }

    /// What was asked, as `METHOD path body`.
    pub fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    /// Serves until the end.
    pub fn serve(&self, listener: TcpListener) {
        let (api, era) = (self.clone(), self.lock().era);
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            while api.lock().era == era {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        let api = api.clone();
                        thread::spawn(move || api.connection(stream, era));
                    }
                    Err(_) => thread::park_timeout(Duration::from_millis(2)),
                }
            }
        });
    }

    /// Closes every connection and takes no other.
    pub fn end(&self) {
        self.lock().era += 1;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    fn connection(&self, mut stream: TcpStream, era: usize) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let mut line = head.lines().next()?.split(' ');
        let (method, target) = (line.next()?.to_owned(), line.next()?.to_owned());
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let asked = format!("{method} {target} {}", String::from_utf8_lossy(&body));
        if let Some((refused, status)) = self.lock().refuses
            && path.starts_with(refused)
        {
            return answer(&mut stream, status, &failure(status, "refused by the test"));
        }
        if query.contains("watch=true") {
            self.lock().asked.push(asked);
            return self.watch(stream, path, query, era);
        }
        let (status, object) = self.answered(&method, path, &body);
        // What was asked is recorded when it cannot be answered otherwise any more.
        self.lock().asked.push(asked);
        answer(&mut stream, status, &object)
    }

    fn watch(&self, mut stream: TcpStream, list: &str, query: &str, era: usize) -> Option<()> {
        let initial = query.contains("sendInitialEvents=true");
        if initial && !self.lock().streams_lists {
            return answer(&mut stream, 422, &failure(422, "sendInitialEvents is forbidden for watch"));
        }
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        .ok()?;
        let mut next = {
            let state = self.lock();
            if initial {
                for object in shown(&state, list) {
                    event(&mut stream, "ADDED", &object)?;
                }
                let mut end = bookmark(state.changes.len());
                end["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                event(&mut stream, "BOOKMARK", &end)?;
                state.changes.len()
            } else {
                let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="))?;
                from.parse().unwrap()
            }
        };
        loop {
            let mut state = self.lock();
            while state.era == era && state.changes.len() == next {
                state = self.0.1.wait(state).unwrap();
            }
            if state.era != era {
                return None;
            }
            let new: Vec<_> = state.changes[next..].to_vec();
            next = state.changes.len();
            let hidden = state.hides.clone();
            drop(state);
            for (of, change, mut object) in new {
                if of == list && object["metadata"]["name"].as_str() != hidden.as_deref() {
                    object["metadata"]["resourceVersion"] = next.to_string().into();
                    event(&mut stream, change, &object)?;
                }
            }
        }
    }

    fn answered(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let (path, is_status) = match path.strip_suffix("/status") {
            Some(path) => (path, true),
            None => (path, false),
        };
        // Pods are kept in one list for all namespaces.
        let (list, name) =
            match path.strip_prefix("/api/v1/namespaces/").and_then(|rest| rest.split_once("/pods/")) {
                Some((_, name)) => (PODS, name),
                None => path.rsplit_once('/').unwrap(),
            };
        match method {
            "GET" if self.lock().objects.contains_key(path) => {
                let state = self.lock();
                let version = state.changes.len().to_string();
                (
                    200,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": shown(&state, path)}),
                )
            }
            "GET" => {
                let object = self.get(list, name);
                if object.is_null() { (404, failure(404, "not found")) } else { (200, object) }
            }
            "POST" => (201, serde_json::from_slice(body).unwrap()),
            "PATCH" => {
                let mut object = self.get(list, name);
                let patch: Value = serde_json::from_slice(body).unwrap();
                if object.is_null() {
                    return (404, failure(404, "not found"));
                }
                if let Some(operations) = patch.as_array() {
                    for operation in operations {
                        let at = object.pointer_mut(operation["path"].as_str().unwrap()).unwrap();
                        match operation["op"].as_str().unwrap() {
                            "test" if *at == operation["value"] => {}
                            "test" => return (422, failure(422, "the test failed")),
                            _ => *at = operation["value"].clone(),
                        }
                    }
                } else {
                    assert!(is_status, "more permission than is needed: {path}");
                    if patch["metadata"]["uid"] != object["metadata"]["uid"] {
                        return (
                            409,
                            failure(
                                409,
                                "Precondition failed: UID in precondition: x, UID in object meta: y",
                            ),
                        );
                    }
                    for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
                        object["metadata"]["annotations"][key] = value.clone();
                    }
                    object["metadata"]["annotations"]
                        .as_object_mut()
                        .unwrap()
                        .retain(|_, value| !value.is_null());
                }
                self.put(list, object.clone());
                (200, object)
            }
            other => panic!("{other} {path}"),
        }
    }
}

fn shown(state: &State, list: &str) -> Vec<Value> {
    let all = state.objects.get(list).into_iter().flat_map(BTreeMap::values).cloned();
    let version = state.changes.len().to_string();
    all.filter(|object| object["metadata"]["name"].as_str() != state.hides.as_deref())
        .map(|mut object| {
            object["metadata"]["resourceVersion"] = version.clone().into();
            object
        })
        .collect()
}

fn bookmark(version: usize) -> Value {
    json!({"kind": "Bookmark", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}})
}

fn failure(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": if code == 404 { "NotFound" } else { "Test" }, "code": code})
}

fn event(stream: &mut TcpStream, change: &str, object: &Value) -> Option<()> {
    let line = format!("{}\n", json!({"type": change, "object": object}));
    write!(stream, "{:x}\r\n{line}\r\n", line.len()).ok()
}

fn answer(stream: &mut TcpStream, status: u16, object: &Value) -> Option<()> {
    let body = object.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).ok()
}

/// What tells the agent where the server is.
pub fn kubeconfig(server: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'http://{server}'}}}}]\n\
         users: [{{name: test, user: {{}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}
