//! Signs debug tokens (`mesh/wire/src/debug_token.rs`) for whoever reaches the pages for operators: who may forward a port
//! into the controller's namespace may see what waypoints know of his requests.
//!
//! Each token has a key of its own, which signs once and is dropped. What is logged says for which waypoints there is a
//! token now, and never the token.

use std::time::{Duration, SystemTime};

use ambit_model::name::Namespace;
use ambit_wire::{
    cert::request::Request,
    debug_token::{self, Audience, InvalidAudience, LONGEST_LIFE},
};
use tracing::info;

use super::{Desk, NotSigned, authority::starting};
use crate::{
    cluster::{Cluster, object::Name},
    translate::waypoint::is_waypoint,
};

/// For how long a token is if nobody says: to try something a few times.
pub const USUAL_LIFE: Duration = Duration::from_secs(600);
/// Nobody could use a shorter one.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which waypoints explain.
    pub audience: Audience,
    /// For how long.
    pub life: Duration,
}

impl Wish {
    /// Reads a wish, and judges it by the waypoints that there are. Pure.
    pub fn parse(cluster: &Cluster, audience: &str, life: Option<Duration>) -> Result<Self, InvalidWish> {
        let audience: Audience = audience.parse()?;
        let life = life.unwrap_or(USUAL_LIFE);
        if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
            return Err(InvalidWish::Life(life));
        }
        let is_there = match &audience {
            Audience::Namespace(namespace) => waypoints(cluster, namespace).next().is_some(),
            Audience::Waypoint { namespace, name } => {
                let gateway = cluster.gateways.get(&Name::new(namespace.clone(), name.as_str()));
                gateway.is_some_and(|gateway| is_waypoint(cluster, gateway))
            }
        };
        if is_there { Ok(Self { audience, life }) } else { Err(InvalidWish::Nobody(audience)) }
    }
}

fn waypoints<'c>(cluster: &'c Cluster, namespace: &'c Namespace) -> impl Iterator<Item = &'c Name> {
    let gateways = cluster.gateways.within(namespace);
    gateways.filter(|(_, gateway)| is_waypoint(cluster, gateway)).map(|(name, _)| name)
}

/// Why no token is signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWish {
    /// It names no waypoints.
    #[error(transparent)]
    Audience(#[from] InvalidAudience),
    /// It is for too long, or for no time.
    #[error("a token for {0:?} was asked for; it may be for {SHORTEST_LIFE:?} to {LONGEST_LIFE:?}")]
    Life(Duration),
    /// There is no such waypoint.
    #[error("no waypoint of {0} is known here; `ambit waypoint list -A` shows which there are")]
    Nobody(Audience),
}

impl Desk {
    /// Signs a token.
    pub async fn debug_token(&self, wish: &Wish) -> Result<String, NotSigned> {
        let identity = debug_token::identity(&self.0.cluster.read().settings().trust_domain);
        let turn = self.0.turns.acquire().await.map_err(|_| NotSigned::Interrupted)?;
        let now = SystemTime::now();
        let Request { key, csr } = Request::new(&identity).map_err(debug_token::SignError::from)?;
        let issued = self.certify(turn, csr, identity, (starting(now, wish.life), now)).await?;
        let token = debug_token::sign(&key, &issued, &wish.audience, now, wish.life)?;
        info!(token.audience = %wish.audience, token.life = ?wish.life, "Debug token signed");
        Ok(token)
    }
}
