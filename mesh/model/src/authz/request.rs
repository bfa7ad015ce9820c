//! What a waypoint sees of a request, and how a policy compares it.

use std::net::IpAddr;

use http::{HeaderMap, Method};
use ipnet::IpNet;
use serde::Serialize;

use super::{Condition, InDoubt, PathTemplate, Text, rule::field};
use crate::claims::Claims;

/// What is known beyond addresses and identities.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The address of the client behind all proxies that are trusted.
    pub remote: IpAddr,
    /// The server name that the client's TLS greeted, if any.
    pub server_name: Option<&'a str>,
    /// The request; `None`: the connection is not looked into.
    pub request: Option<&'a Request<'a>>,
}

/// The head of a request, as it is judged: normalised, and the one that is sent on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The host that it asks, maybe with a port; its name without a dot at the end.
    pub host: &'a str,
    /// Its method.
    pub method: &'a Method,
    /// Its path, without the query.
    pub path: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// What its verified token says; `None`: it has none.
    pub claims: Option<&'a Claims>,
}

/// What a policy asks of a request. All fields must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// The host, without case. What names no port is compared with and without the request's.
    pub hosts: Vec<Text>,
    /// Not the host.
    pub not_hosts: Vec<Text>,
    /// The method.
    pub methods: Vec<Text>,
    /// Not the method.
    pub not_methods: Vec<Text>,
    /// The path.
    pub paths: Vec<PathMatch>,
    /// Not the path.
    pub not_paths: Vec<PathMatch>,
    /// The address of the client behind all proxies.
    pub remote_ips: Vec<IpNet>,
    /// Not this address.
    pub not_remote_ips: Vec<IpNet>,
    /// The principal of the token, `issuer/subject`.
    pub request_principals: Vec<Text>,
    /// Not the principal.
    pub not_request_principals: Vec<Text>,
    /// All of these.
    pub conditions: Vec<Condition>,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// As a text.
    Text(Text),
    /// As a template.
    Template(PathTemplate),
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl RequestMatch {
    /// Whether no field says anything.
    pub fn is_empty(&self) -> bool {
        let Self {
            hosts, not_hosts, methods, not_methods, paths, not_paths, remote_ips, not_remote_ips, ..
        } = self;
        [hosts, not_hosts, methods, not_methods, &self.request_principals, &self.not_request_principals]
            .iter()
            .all(|list| list.is_empty())
            && [paths, not_paths].iter().all(|list| list.is_empty())
            && [remote_ips, not_remote_ips].iter().all(|list| list.is_empty())
            && self.conditions.iter().all(Condition::is_empty)
    }

    pub(super) fn matches(&self, seen: Option<&Seen<'_>>, in_doubt: InDoubt) -> bool {
        let request = seen.and_then(|seen| seen.request);
        let asked = Asked { request, in_doubt };
        asked.about(&self.hosts, &self.not_hosts, |request, text| host_matches(text, request.host))
            && asked.about(&self.methods, &self.not_methods, |request, text| {
                text.matches(request.method.as_str())
            })
            && asked.about(&self.paths, &self.not_paths, |request, path| path.matches(request.path))
            && asked.about(&self.request_principals, &self.not_request_principals, |request, text| {
                let principal = request.claims.and_then(Claims::principal);
                principal.is_some_and(|pieces| text.matches_pieces(&pieces))
            })
            && Asked { request: seen, in_doubt }.about(
                &self.remote_ips,
                &self.not_remote_ips,
                |seen, range| range.contains(&seen.remote),
            )
            && self.conditions.iter().all(|condition| condition.matches(seen, in_doubt))
    }
}

/// Who is asked, and what is said where there is nobody to ask.
#[derive(Clone, Copy)]
struct Asked<'a, R> {
    request: Option<&'a R>,
    in_doubt: InDoubt,
}

impl<'a, R> Asked<'a, R> {
    fn about<T>(self, positive: &[T], negative: &[T], matches: impl Fn(&'a R, &T) -> bool) -> bool {
        if positive.is_empty() && negative.is_empty() {
            return true;
        }
        match self.request {
            Some(request) => field(positive, negative, |one| matches(request, one)),
            None => self.in_doubt.answer(),
        }
    }
}

/// A port that is not asked for makes no difference: `shop.example:80` is `shop.example`. One that is
/// asked for does.
fn host_matches(asked: &Text, host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    asked.matches_without_case(host) || asked.matches_without_case(name)
}
