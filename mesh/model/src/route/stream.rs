//! Where connections go whose requests are not looked into (TLSRoute, TCPRoute).

use std::{cmp::Reverse, sync::Arc};

use thiserror::Error;

use super::{Backend, Drawn, Origin, select::draw};
use crate::balance::Dice;

/// What one TLSRoute or TCPRoute says of a service. Made only by [`StreamRoute::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRoute {
    origin: Arc<Origin>,
    /// Empty: any connection.
    server_names: Vec<ServerName>,
    backends: Vec<Backend>,
}

/// A server name in the greeting of TLS, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ServerName {
    Exact(Box<str>),
    /// With its first dot: `.example.com` is every name under it, however deep, and not itself.
    Under(Box<str>),
}

impl StreamRoute {
    /// A route of connections that greet one of `server_names`, each maybe beginning with `*.`; if there
    /// are none, of every connection.
    pub fn new(
        origin: Origin,
        server_names: &[&str],
        backends: Vec<Backend>,
    ) -> Result<Self, InvalidStreamRoute> {
        if let Some(backend) = backends.iter().find(|backend| !backend.filters.is_empty()) {
            return Err(InvalidStreamRoute::Filters(backend.weight));
        }
        let names = server_names.iter().map(|name| ServerName::parse(name)).collect::<Result<_, _>>()?;
        Ok(Self { origin: Arc::new(origin), server_names: names, backends })
    }

    /// Which object it comes from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// The server names, as they are written.
    pub fn server_names(&self) -> impl Iterator<Item = String> {
        self.server_names.iter().map(ServerName::written)
    }

    /// Where connections go, by weight.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Draws a backend by weight; an invalid one keeps its share.
    pub fn draw(&self, dice: &mut dyn Dice) -> Drawn<'_> {
        draw(&self.backends, dice)
    }
}

/// The routes of one service and port, the most specific name first: exact ones, then wildcards by length,
/// then none; of equals the oldest.
#[derive(Clone, Debug, Default)]
pub struct StreamTable(Vec<(Option<ServerName>, StreamRoute)>);

impl StreamTable {
    /// Compiles `routes`, in whatever order they come.
    pub fn compile(routes: &[StreamRoute]) -> Self {
        let mut entries = Vec::new();
        for route in routes {
            let names = route.server_names.iter().map(|name| (Some(name.clone()), route.clone()));
            let any = route.server_names.is_empty().then(|| (None, route.clone()));
            entries.extend(names.chain(any));
        }
        let rank = |name: &Option<ServerName>| Reverse(name.as_ref().map(ServerName::specificity));
        let age = |route: &StreamRoute| (route.origin.created, route.origin.key.clone());
        entries.sort_by_cached_key(|(name, route)| (rank(name), age(route)));
        Self(entries)
    }

    /// The route of a connection that greets `server_name`, or greets nobody.
    pub fn find(&self, server_name: Option<&str>) -> Option<&StreamRoute> {
        let greeted = server_name.map(str::to_ascii_lowercase);
        let is_for = |name: &Option<ServerName>| match (name, &greeted) {
            (None, _) => true,
            (Some(name), Some(greeted)) => name.matches(greeted),
            (Some(_), None) => false,
        };
        self.0.iter().find(|(name, _)| is_for(name)).map(|(_, route)| route)
    }
}

impl ServerName {
    fn parse(written: &str) -> Result<Self, InvalidStreamRoute> {
        let (name, wild) = written.strip_prefix("*.").map_or((written, false), |name| (name, true));
        let label = |label: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            !label.is_empty() && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
        };
        if written.len() > 253 || !name.split('.').all(label) {
            return Err(InvalidStreamRoute::ServerName(written.to_owned()));
        }
        let name = name.to_ascii_lowercase();
        Ok(if wild { Self::Under(format!(".{name}").into()) } else { Self::Exact(name.into()) })
    }

    fn written(&self) -> String {
        match self {
            Self::Exact(name) => name.to_string(),
            Self::Under(name) => format!("*{name}"),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Under(under) => name.strip_suffix(&**under).is_some_and(|left| !left.is_empty()),
        }
    }

    fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Exact(name) => (true, name.len()),
            Self::Under(name) => (false, name.len()),
        }
    }
}

/// Why a route of connections is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidStreamRoute {
    /// A name is none that TLS could greet.
    #[error("{0:?} is no host name: letters, digits and `-` between dots, maybe after `*.`")]
    ServerName(String),
    /// Filters want requests.
    #[error("a backend of weight {0} has filters, and there are no requests to filter")]
    Filters(u32),
}
