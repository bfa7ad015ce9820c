//! What ties a client to an endpoint: a session of its route (GEP-1619), or a rule of the service that hashes. Pure but for
//! the dice.

use std::net::IpAddr;

use ambit_model::{
    balance::Dice,
    name::Uid,
    route::{Chosen, Destination, Drawn, Lifetime, Path, Session, SessionKey, Ticket},
    snapshot::Snapshot,
    traffic::{Algorithm, HashOn, Key, hash},
};
use http::{HeaderMap, HeaderValue, header, request::Parts};

use crate::upstream::{choose::Goal, endpoints::Affinity};

/// What ties one request to an endpoint, and what its client is to be told.
#[derive(Debug, Default)]
pub struct Tie<'m> {
    /// For the choice.
    pub affinity: Affinity,
    visit: Option<Visit<'m>>,
    /// The cookie by which its next request will be known.
    cookie: Option<HeaderValue>,
}

/// A request of a route that has sessions.
#[derive(Debug)]
pub struct Visit<'m> {
    session: &'m Session,
    /// The path for which the client is told.
    path: &'m str,
    shown: Option<Ticket>,
    now: u64,
}

impl<'m> Visit<'m> {
    /// What a request shows at `now`, in seconds of Unix time; `None`: its route has no sessions.
    pub fn of(chosen: &Chosen<'m>, head: &Parts, now: u64) -> Option<Self> {
        let session = chosen.rule.session.as_ref()?;
        let path = match chosen.matched.paths() {
            Path::Prefix(prefix) if !prefix.as_str().is_empty() => prefix.as_str(),
            Path::Exact(path) => path.as_str(),
            Path::Prefix(_) | Path::Pattern(_) | Path::Grpc(_) => "/",
        };
        Some(Self { session, path, shown: session.ticket(head, now), now })
    }

    /// The backend and the endpoint where the client was, if both are still there. Weights do not matter to whom they
    /// have sorted already; but a backend of weight 0 gets nothing, for anybody can make up a ticket.
    pub fn drawn(&self, mesh: &Snapshot, chosen: &Chosen<'m>) -> Option<(Drawn<'m>, Uid)> {
        let ticket = self.shown?;
        chosen.rule.backends.iter().filter(|backend| backend.weight > 0).find_map(|backend| {
            let Destination::Service { service, port, subset } = &backend.to else { return None };
            let endpoints = mesh.endpoints(service)?.as_slice();
            let uid = &endpoints.iter().find(|one| ticket.is_for(&one.workload.uid))?.workload.uid;
            let drawn = Drawn::To { backend, service, port: *port, subset: subset.as_ref() };
            Some((drawn, uid.clone()))
        })
    }

    fn tell(&self, endpoint: &Uid, headers: &mut HeaderMap) {
        let Some(ticket) = self.session.next(self.shown, endpoint, self.now) else { return };
        match &self.session.key {
            SessionKey::Header(name) => {
                headers.extend(
                    HeaderValue::try_from(ticket.to_string()).ok().map(|value| (name.clone(), value)),
                );
            }
            SessionKey::Cookie(name) => {
                let age = match (self.session.lifetime, self.session.absolute) {
                    (Lifetime::Permanent, Some(limit)) => {
                        let passed = self.now.saturating_sub(ticket.since);
                        Some(limit.as_secs().saturating_sub(passed))
                    }
                    (Lifetime::Permanent | Lifetime::Session, _) => None,
                };
                append(headers, set_cookie(name, &ticket.to_string(), Some(self.path), age));
            }
        }
    }
}

impl<'m> Tie<'m> {
    /// What ties a request of `client` to an endpoint of `goal`, where it is on `visit` and was at `session`.
    pub fn of(
        goal: &Goal,
        head: &Parts,
        client: IpAddr,
        (visit, session): (Option<Visit<'m>>, Option<Uid>),
        dice: &mut dyn Dice,
    ) -> Self {
        let mut tie = Self { affinity: Affinity { key: None, session }, visit, cookie: None };
        let Some(on) = hashed(goal) else { return tie };
        tie.affinity.key = match (on.key(head, client), on) {
            (Key::Hash(key), _) => Some(key),
            (Key::Wanted, HashOn::Cookie { name, path, ttl }) => {
                let value = format!("{:016x}", dice.below(u64::MAX));
                let age = ttl.map(|ttl| ttl.as_secs()).filter(|age| *age > 0);
                tie.cookie = set_cookie(name, &value, path.as_deref(), age);
                Some(hash(value.as_bytes()))
            }
            (Key::None | Key::Wanted, _) => None,
        };
        tie
    }

    /// What ties a connection of `client`, into which nobody looks.
    pub fn of_connection(goal: &Goal, client: IpAddr) -> Affinity {
        let key = hashed(goal).map(|on| on.key_of_connection(client));
        let key = match key {
            Some(Key::Hash(key)) => Some(key),
            Some(Key::None | Key::Wanted) | None => None,
        };
        Affinity { key, session: None }
    }

    /// Tells the client of `endpoint`, which answered it, what it is to show the next time.
    pub fn tell(&self, endpoint: &Uid, headers: &mut HeaderMap) {
        append(headers, self.cookie.clone());
        if let Some(visit) = &self.visit {
            visit.tell(endpoint, headers);
        }
    }
}

fn hashed(goal: &Goal) -> Option<&HashOn> {
    match &goal.terms()?.policy.as_ref()?.balancing.algorithm {
        Algorithm::Hash(on) => Some(on),
        Algorithm::LeastRequest | Algorithm::RoundRobin | Algorithm::Random => None,
    }
}

fn append(headers: &mut HeaderMap, cookie: Option<HeaderValue>) {
    if let Some(cookie) = cookie {
        headers.append(header::SET_COOKIE, cookie);
    }
}

/// A cookie as a server tells of it (RFC 6265 4.1); `None`: its name or path cannot be written.
fn set_cookie(name: &str, value: &str, path: Option<&str>, age: Option<u64>) -> Option<HeaderValue> {
    let mut text = format!("{name}={value}");
    if let Some(age) = age {
        text.push_str(&format!("; Max-Age={age}"));
    }
    // A `;` would begin another attribute.
    if let Some(path) = path.filter(|path| !path.contains(';')) {
        text.push_str(&format!("; Path={path}"));
    }
    text.push_str("; HttpOnly");
    HeaderValue::try_from(text).ok()
}
