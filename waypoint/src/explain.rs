//! What became of one request and why, for the bearer of a debug token: a value that is built along the story, and printed
//! at its end as the response's `x-ambit-explanation`. Pure; times are arguments.
//!
//! One line of JSON, in ASCII, of [`LONGEST`] bytes at most. Texts are cut at [`TEXT`] bytes, with `...`; of lists the least
//! telling is left out first, and `leftOut` says of which and how many.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use ambit_model::{
    authz::{Ask, Opinion},
    claims::Claims,
    identity::Identity,
    route::{
        Chosen, Filter, Filters, MadeOf, Match, Path, RouteTable, Text as Asks, Wanted,
        retry::{Next, Stop},
    },
    workload::Workload,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request::Parts};
use serde::Serialize;

use crate::{
    accept::arrival::Client,
    permit::Permit,
    plan::Target,
    refusal::Refusal,
    upstream::{choose::Goal, endpoints::Standing, health::Reason},
};

/// Where a response has its explanation.
pub const X_AMBIT_EXPLANATION: HeaderName = HeaderName::from_static("x-ambit-explanation");
/// The longest explanation, in bytes: with a client that takes 8 KiB of headers it leaves half to the others.
const LONGEST: usize = 4096;
/// The longest text in it, in bytes as they are printed. All that stand alone fit into an explanation.
const TEXT: usize = 256;
/// How much is kept of a list.
const ITEMS: usize = 32;

/// What became of a request.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    waypoint: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    service: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    path: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    caller: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    principal: Told,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<Policy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    asked: Vec<Asked>,
    #[serde(skip_serializing_if = "Told::is_empty")]
    permitted: Told,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Route>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Told>,
    /// It was held back so long on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    delayed_ms: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    filters: Vec<&'static str>,
    #[serde(skip_serializing_if = "Told::is_empty")]
    to: Told,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    /// From the head of the request to that of its response.
    took_ms: f64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    left_out: BTreeMap<&'static str, usize>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    name: Told,
    action: &'static str,
    matches: bool,
    #[serde(skip_serializing_if = "is_not")]
    dry_run: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Asked {
    provider: Told,
    policy: Told,
}

/// The rule that takes the request, and why it is that one.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Route {
    #[serde(skip_serializing_if = "Told::is_empty")]
    name: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    rule: Told,
    /// The match by which it was chosen.
    #[serde(rename = "match", skip_serializing_if = "Told::is_empty")]
    matched: Told,
    /// How many matches there are at this port, and how many of them would have taken the request, too, had this one
    /// not come before them.
    of: usize,
    also: usize,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    endpoint: Told,
    address: Told,
    at_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Told::is_empty")]
    outcome: Told,
    /// What becomes of the endpoint by it.
    #[serde(skip_serializing_if = "Told::is_empty")]
    health: Told,
    #[serde(skip_serializing_if = "Told::is_empty")]
    then: Told,
    #[serde(skip)]
    is_well: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Ended {
    refusal: &'static str,
    error: Told,
    advice: Told,
}

impl Explanation {
    /// Nothing is known yet, but who tells.
    pub fn of(waypoint: &Identity) -> Self {
        let name = format_args!("{}/{}", waypoint.namespace, waypoint.service_account);
        Self { waypoint: Told::new(name), ..Self::default() }
    }

    /// Its head has its one reading. A query is where secrets are.
    pub fn read(&mut self, head: &Parts) {
        self.path = Told::new(head.uri.path());
    }

    /// For what it is meant, and who sends it.
    pub fn meant_for(&mut self, target: &Target, client: &Client) {
        self.service = match target {
            Target::Service { service, port, .. } => Told::new(format_args!("{}:{port}", service.key())),
            Target::Workload { workload, port, .. } => Told::new(format_args!("{}:{port}", workload.uid)),
        };
        self.caller = match &client.identity {
            Some(identity) => Told::new(identity),
            None => Told::new(format_args!("{} (plain text)", client.address.ip())),
        };
    }

    /// Whose its token is.
    pub fn identified(&mut self, claims: Option<&Claims>) {
        self.principal =
            claims.and_then(Claims::principal).map(|parts| Told::new(parts.concat())).unwrap_or_default();
    }

    /// What policies say of it. Again, after an authorizer has changed it.
    pub fn judged(&mut self, opinions: Vec<Opinion<'_>>) {
        self.policies.clear();
        self.left_out.remove(POLICIES);
        for Opinion { policy, says, matches, dry_run } in opinions {
            let told = Policy { name: Told::new(policy), action: says, matches, dry_run };
            self.policies.push(told);
            if self.policies.len() > ITEMS {
                self.leave_out(POLICIES);
            }
        }
    }

    /// Somebody is asked about it, by a policy or a route.
    pub fn asks(&mut self, ask: &Ask) {
        let told = Asked { provider: Told::new(&ask.provider), policy: Told::new(&ask.policy) };
        keep(&mut self.asked, told, ASKED, &mut self.left_out);
    }

    /// It may go on.
    pub fn permitted(&mut self, permit: &Permit) {
        self.permitted = Told::new(permit.granted_by());
    }

    /// The rule that takes it, of all in `table`.
    pub fn routed(&mut self, table: Option<&RouteTable>, chosen: Option<&Chosen<'_>>, head: &Parts) {
        let Some(table) = table else { return };
        let matching = table.entries().iter().filter(|entry| entry.matched.matches(head)).count();
        let mut route = Route { of: table.entries().len(), ..Route::default() };
        if let Some(Chosen { origin, rule, matched, .. }) = chosen {
            route.name = Told::new(origin.key.as_str());
            route.rule = rule.name.as_ref().map(Told::new).unwrap_or_default();
            route.matched = Told::new(Described(matched));
            route.also = matching.saturating_sub(1);
        }
        self.route = Some(route);
    }

    /// The limits that count it.
    pub fn counted(&mut self, limits: impl Iterator<Item = String>) {
        for limit in limits {
            keep(&mut self.limits, Told::new(limit), LIMITS, &mut self.left_out);
        }
    }

    /// It is held back on purpose, for so long.
    pub fn delayed(&mut self, delay: Duration) {
        self.delayed_ms = Some(millis(delay));
    }

    /// Where it goes, and what is done to it on the way.
    pub fn planned<'f>(&mut self, goal: &Goal, filters: impl Iterator<Item = &'f Filters>) {
        self.to = match goal {
            Goal::Service { service, port, terms } => match &terms.subset {
                Some(subset) => Told::new(format_args!("{}:{port}, subset {}", service.key(), subset.name)),
                None => Told::new(format_args!("{}:{port}", service.key())),
            },
            Goal::Workload { workload, port } => Told::new(format_args!("{}:{port}", workload.uid)),
        };
        for filter in filters.flat_map(Filters::as_slice) {
            keep(&mut self.filters, kind(filter), FILTERS, &mut self.left_out);
        }
    }

    /// A filter answers it, and nobody is asked.
    pub fn answered_here(&mut self) {
        self.to = Told::new("nobody: a filter of the route answers");
    }

    /// It is sent to `workload` at `address`; `at` is counted from its arrival.
    pub fn attempt(&mut self, workload: &Workload, address: SocketAddr, at: Duration) {
        let (endpoint, address) = (Told::new(&workload.uid), Told::new(address));
        let at_ms = millis(at);
        let (outcome, health, then) = Default::default();
        let told = Attempt { endpoint, address, at_ms, took_ms: None, outcome, health, then, is_well: false };
        self.attempts.push(told);
        if self.attempts.len() > ITEMS {
            self.leave_out(ATTEMPTS);
        }
    }

    /// The attempt has ended with the status of a response, or without.
    pub fn answered(&mut self, outcome: Result<StatusCode, &Refusal>, at: Duration) {
        let Some(attempt) = self.attempts.last_mut() else { return };
        attempt.took_ms = Some(((millis(at) - attempt.at_ms) * 1e3).round() / 1e3);
        attempt.is_well = outcome.is_ok_and(|status| status.as_u16() < 400);
        attempt.outcome = match outcome {
            Ok(status) => Told::new(status.as_u16()),
            Err(refusal) => Told::new(format_args!("{}: {refusal}", refusal.word())),
        };
    }

    /// By the last attempt its endpoint gets less from now on, or nothing.
    pub fn fell(&mut self, standing: Standing) {
        let Some(attempt) = self.attempts.last_mut() else { return };
        attempt.health = match standing {
            Standing::Ready => Told::default(),
            Standing::Resting(left) => Told::new(format_args!("passed over for {left:.1?}, as it asks")),
            Standing::Aside(Reason::Failures, left) => {
                Told::new(format_args!("set aside for {left:.1?}: it failed too often in a row"))
            }
            Standing::Aside(Reason::SuccessRate, left) => {
                Told::new(format_args!("set aside for {left:.1?}: the others' requests go well more often"))
            }
        };
    }

    /// Whether it is sent once more.
    pub fn next(&mut self, next: Next) {
        let Some(attempt) = self.attempts.last_mut().filter(|attempt| !attempt.is_well) else { return };
        attempt.then = match next {
            Next::Repeat(wait) => Told::new(format_args!("sent again after {wait:?}")),
            Next::Stop(stop) => Told::new(why_not(stop)),
        };
    }

    /// Puts it into the headers of the response. `refusal` is what ended it, if something did.
    pub fn tell(mut self, refusal: Option<&Refusal>, took: Duration, headers: &mut HeaderMap) {
        self.took_ms = millis(took);
        self.ended = refusal.map(|refusal| Ended {
            refusal: refusal.word(),
            error: Told::new(refusal),
            advice: Told::new(refusal.advice()),
        });
        if let Some(value) = self.print().and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(X_AMBIT_EXPLANATION, value);
        }
    }

    /// As long as it is too long, the least telling goes.
    fn print(&mut self) -> Option<String> {
        loop {
            let text = escaped(&serde_json::to_string(self).ok()?);
            if text.len() <= LONGEST {
                return Some(text);
            }
            let is_silent = self.policies.iter().any(|policy| !policy.matches);
            let lists = [LIMITS, FILTERS, ASKED, ATTEMPTS, POLICIES];
            let left_out = is_silent && self.leave_out(POLICIES);
            if !left_out && !lists.into_iter().any(|list| self.leave_out(list)) {
                return None;
            }
        }
    }

    /// Leaves out one item of a list, if there is one. Of policies those go first that do not match, of attempts the
    /// earliest.
    fn leave_out(&mut self, list: &'static str) -> bool {
        let one = match list {
            POLICIES => {
                let last_silent = self.policies.iter().rposition(|policy| !policy.matches);
                let place = last_silent.or(self.policies.len().checked_sub(1));
                place.map(|place| drop(self.policies.remove(place)))
            }
            ATTEMPTS => (!self.attempts.is_empty()).then(|| drop(self.attempts.remove(0))),
            LIMITS => self.limits.pop().map(drop),
            FILTERS => self.filters.pop().map(drop),
            _ => self.asked.pop().map(drop),
        };
        if one.is_some() {
            *self.left_out.entry(list).or_default() += 1;
        }
        one.is_some()
    }
}

const POLICIES: &str = "policies";
const ASKED: &str = "asked";
const LIMITS: &str = "limits";
const FILTERS: &str = "filters";
const ATTEMPTS: &str = "attempts";

/// Adds to a list that is kept from its beginning.
fn keep<T>(list: &mut Vec<T>, one: T, name: &'static str, left_out: &mut BTreeMap<&'static str, usize>) {
    if list.len() < ITEMS {
        list.push(one);
    } else {
        *left_out.entry(name).or_default() += 1;
    }
}

fn is_not(flag: &bool) -> bool {
    !flag
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn why_not(stop: Stop) -> &'static str {
    match stop {
        Stop::Outcome => "not sent again: after this outcome nothing says so",
        Stop::NotIdempotent => "not sent again: it may have been processed, and its method is not idempotent",
        Stop::Body => "not sent again: its body is given away",
        Stop::Attempts => "not sent again: that is as often as it may be",
        Stop::Time => "not sent again: its time would be over",
        Stop::Budget => "not sent again: too many requests are repeated already",
    }
}

/// As HTTPRoute calls it, which has no faults.
fn kind(filter: &Filter) -> &'static str {
    match filter {
        Filter::RequestHeaders(_) => "RequestHeaderModifier",
        Filter::ResponseHeaders(_) => "ResponseHeaderModifier",
        Filter::Rewrite(_) => "URLRewrite",
        Filter::Redirect(_) => "RequestRedirect",
        Filter::Mirror(_) => "RequestMirror",
        Filter::Cors(_) => "CORS",
        Filter::Fault(_) => "Fault",
        Filter::ExternalAuth(_) => "ExternalAuth",
    }
}

/// A match in words: `path prefix /shop, header x-canary = always`.
struct Described<'m>(&'m Match);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.paths() {
            Path::Exact(path) => write!(f, "path {}", path.as_str())?,
            Path::Prefix(prefix) if prefix.as_str().is_empty() => f.write_str("every path")?,
            Path::Prefix(prefix) => match prefix.made_of() {
                MadeOf::Segments => write!(f, "path prefix {}", prefix.as_str())?,
                MadeOf::Characters => write!(f, "path beginning with {}", prefix.as_str())?,
            },
            Path::Pattern(pattern) => write!(f, "path ~ {}", pattern.as_str())?,
            Path::Grpc(call) => {
                f.write_str("gRPC")?;
                compared(f, " service", call.service())?;
                compared(f, " method", call.method())?;
            }
        }
        if let Some(method) = self.0.methods() {
            write!(f, ", method {method}")?;
        }
        for header in self.0.headers() {
            let word = match header.wanted {
                Wanted::Yes => "header",
                Wanted::No => "without header",
            };
            compared(f, format_args!(", {word} {}", header.name), Some(&header.value))?;
        }
        for query in self.0.queries() {
            compared(f, format_args!(", query {}", query.name), Some(&query.value))?;
        }
        Ok(())
    }
}

fn compared(f: &mut fmt::Formatter<'_>, what: impl fmt::Display, asks: Option<&Asks>) -> fmt::Result {
    match asks {
        None => Ok(()),
        Some(Asks::Exact(text)) => write!(f, "{what} = {text}"),
        Some(Asks::Prefix(text)) => write!(f, "{what} beginning with {text}"),
        Some(Asks::Present) => write!(f, "{what}"),
        Some(Asks::Pattern(pattern)) => write!(f, "{what} ~ {}", pattern.as_str()),
    }
}

/// A text of bounded length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Told(String);

impl Told {
    fn new(what: impl fmt::Display) -> Self {
        let mut whole = Bounded::default();
        // It fails when there is no room for more, and the rest is not written.
        let is_whole = fmt::Write::write_fmt(&mut whole, format_args!("{what}")).is_ok();
        Self(if is_whole { whole.text } else { whole.text + "..." })
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes characters as long as all of them, printed, have [`TEXT`] bytes at most.
#[derive(Default)]
struct Bounded {
    text: String,
    printed: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for one in text.chars() {
            self.printed += match one {
                '"' | '\\' => 2,
                ' '..='~' => 1,
                other => other.len_utf16() * 6,
            };
            if self.printed > TEXT - 3 {
                return Err(fmt::Error);
            }
            self.text.push(one);
        }
        Ok(())
    }
}

/// JSON in ASCII: what is not stands in texts alone, where `\u` is understood.
fn escaped(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for one in json.chars() {
        if matches!(one, ' '..='~') {
            ascii.push(one);
        } else {
            for unit in one.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests;
