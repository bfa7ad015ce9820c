//! Which endpoint of a service takes a connection, at which port and address (protocols 5.5).

use std::net::IpAddr;

use crate::{
    name::{Cluster, Label, Network, Node},
    service::{HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, TargetPort},
    snapshot::{Endpoint, Endpoints},
    workload::{Health, Locality, Workload},
};

/// How often an endpoint is drawn blindly before all are looked at.
///
/// Where most endpoints are eligible the first draw hits, and a connection costs the same in a service
/// of ten endpoints and of ten thousand.
const BLIND_DRAWS: u32 = 4;

/// Who is asking, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Its network.
    pub network: &'a Network,
    /// Its node.
    pub node: &'a Node,
    /// Its cluster.
    pub cluster: &'a Cluster,
    /// Its place.
    pub locality: &'a Locality,
}

impl<'a> From<&'a Workload> for Caller<'a> {
    fn from(workload: &'a Workload) -> Self {
        Self {
            network: &workload.network,
            node: &workload.node,
            cluster: &workload.cluster,
            locality: &workload.locality,
        }
    }
}

/// A source of chance: `below(n)` is uniform in `0..n`, and 0 for `n = 0`.
pub trait Dice {
    /// A number in `0..bound`.
    fn below(&mut self, bound: u64) -> u64;
}

impl<F: FnMut(u64) -> u64> Dice for F {
    fn below(&mut self, bound: u64) -> u64 {
        self(bound)
    }
}

/// What is asked of an endpoint beside its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An ordinary connection: the service must have the port, and the endpoint a target for it.
    Standard,
    /// A waypoint: the port may be missing where an application tunnel says where to go.
    Waypoint,
}

/// The chosen endpoint.
#[derive(Clone, Debug)]
pub struct Pick<'s> {
    /// The endpoint.
    pub endpoint: &'s Endpoint,
    /// Its target port.
    pub port: u16,
}

/// What an endpoint should have in common with whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Preferences<'a> {
    /// In which respects, and what becomes of those that have not.
    pub balancing: &'a LoadBalancing,
    /// Which region stands in for which, as (region of the caller, region of the endpoint): with
    /// [`Mode::Failover`] such an endpoint comes before others that share nothing more.
    pub regions: &'a [(Label, Label)],
}

/// As the service itself says.
impl<'a> From<&'a Service> for Preferences<'a> {
    fn from(service: &'a Service) -> Self {
        Self { balancing: &service.load_balancing, regions: &[] }
    }
}

/// For what an endpoint is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Of this service.
    pub service: &'a Service,
    /// For this port of it.
    pub port: u16,
    /// For what.
    pub purpose: Purpose,
    /// By whom.
    pub caller: Caller<'a>,
    /// Which of them rather.
    pub preferences: Preferences<'a>,
}

impl<'a> Wanted<'a> {
    /// Of `service`, as it says itself.
    pub fn of(service: &'a Service, port: u16, purpose: Purpose, caller: Caller<'a>) -> Self {
        Self { service, port, purpose, caller, preferences: service.into() }
    }

    /// Whether `endpoint` may be chosen, and its port.
    pub fn eligible<'s>(&self, endpoint: &'s Endpoint) -> Option<Pick<'s>> {
        let workload = &endpoint.workload;
        let LoadBalancing { routing_preferences, mode, health_policy } = self.preferences.balancing;
        let healthy = workload.health == Health::Healthy || *health_policy == HealthPolicy::AllowAll;
        let reachable = !workload.addresses.is_empty()
            || !workload.hostname.is_empty()
            || (workload.network != *self.caller.network && workload.network_gateway.is_some());
        let is_near = *mode != Mode::Strict
            || routing_preferences.iter().all(|scope| shared(*scope, self.caller, workload));
        if !healthy || !reachable || !is_near {
            return None;
        }
        let port = target_port(self.service, endpoint, self.port, self.purpose)?;
        Some(Pick { endpoint, port })
    }
}

/// Chooses an endpoint, leaving out those that `excluded` names (endpoints that could not be reached a moment ago).
/// `None`: no endpoint is eligible.
pub fn pick<'s>(
    wanted: &Wanted<'_>,
    endpoints: &'s Endpoints,
    excluded: &dyn Fn(&Workload) -> bool,
    dice: &mut dyn Dice,
) -> Option<Pick<'s>> {
    let eligible =
        |endpoint: &'s Endpoint| wanted.eligible(endpoint).filter(|pick| !excluded(&pick.endpoint.workload));
    match wanted.preferences.balancing.mode {
        Mode::Standard | Mode::Passthrough => blind(endpoints, eligible, dice)
            .or_else(|| weighted(endpoints.as_slice().iter().filter_map(eligible), dice)),
        Mode::Strict => weighted(endpoints.as_slice().iter().filter_map(eligible), dice),
        Mode::Failover => {
            let ranked = || {
                let picks = endpoints.as_slice().iter().filter_map(eligible);
                picks.map(|pick| (wanted.rank(&pick.endpoint.workload), pick))
            };
            let best = ranked().map(|(rank, _)| rank).max()?;
            weighted(ranked().filter(|(rank, _)| *rank == best).map(|(_, pick)| pick), dice)
        }
    }
}

/// Chooses as [`pick`] does, but by turns in place of chance: as turns go on, each gets its share exactly, and none of them
/// twice in a row while others wait. `turn` gives each number once; whoever is passed over has used one up.
///
/// Where all have the same weight and none is nearer than another, every turn is one endpoint's, and only those are looked
/// at that are passed over and the one that is found. Weights and places need a look at all.
pub fn pick_in_turn<'s>(
    wanted: &Wanted<'_>,
    endpoints: &'s Endpoints,
    excluded: &dyn Fn(&Workload) -> bool,
    turn: &mut dyn FnMut() -> u64,
) -> Option<Pick<'s>> {
    let eligible =
        |endpoint: &'s Endpoint| wanted.eligible(endpoint).filter(|pick| !excluded(&pick.endpoint.workload));
    let picks = || endpoints.as_slice().iter().filter_map(eligible);
    match wanted.preferences.balancing.mode {
        // Who takes turns at the same time may leave this one without the only endpoint that is eligible.
        Mode::Standard | Mode::Passthrough | Mode::Strict => walked(endpoints, eligible, turn)
            .or_else(|| weighted(picks(), &mut |total| strided(turn(), total))),
        Mode::Failover => {
            let rank = |pick: &Pick<'_>| wanted.rank(&pick.endpoint.workload);
            let best = picks().map(|pick| rank(&pick)).max()?;
            weighted(picks().filter(|pick| rank(pick) == best), &mut |total| strided(turn(), total))
        }
    }
}

/// The endpoint whose turn it is, or that of the next turn if it is not eligible, and so on through all of them.
fn walked<'s>(
    endpoints: &'s Endpoints,
    eligible: impl Fn(&'s Endpoint) -> Option<Pick<'s>>,
    turn: &mut dyn FnMut() -> u64,
) -> Option<Pick<'s>> {
    if !endpoints.are_equal() {
        return None;
    }
    let all = endpoints.as_slice();
    let count = u64::try_from(all.len()).ok()?;
    all.iter().find_map(|_| all.get(usize::try_from(strided(turn(), count)).ok()?).and_then(&eligible))
}

/// A number below `total` for each turn, every one of them once in `total` turns, far from the one before.
fn strided(turn: u64, total: u64) -> u64 {
    fn common(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { common(b, a % b) }
    }
    // The golden section spreads best; a step without a common divisor meets every number.
    let near = total.saturating_mul(618) / 1000;
    let step = (near.max(1)..=total.max(1)).find(|step| common(*step, total) == 1).unwrap_or(1);
    let at = u128::from(turn % total.max(1)) * u128::from(step) % u128::from(total.max(1));
    u64::try_from(at).unwrap_or_default()
}

/// Draws without looking at all endpoints: fair, since all have the same weight and a draw that is not
/// eligible is thrown away.
fn blind<'s>(
    endpoints: &'s Endpoints,
    eligible: impl Fn(&'s Endpoint) -> Option<Pick<'s>>,
    dice: &mut dyn Dice,
) -> Option<Pick<'s>> {
    if !endpoints.are_equal() {
        return None;
    }
    let count = u64::try_from(endpoints.as_slice().len()).ok()?;
    (0..BLIND_DRAWS).find_map(|_| {
        let drawn = usize::try_from(dice.below(count)).ok()?;
        endpoints.as_slice().get(drawn).and_then(&eligible)
    })
}

/// Draws by capacity; if all are zero, none.
fn weighted<'s>(picks: impl Iterator<Item = Pick<'s>>, dice: &mut dyn Dice) -> Option<Pick<'s>> {
    let picks: Vec<_> = picks.collect();
    let weight = |pick: &Pick<'_>| u64::from(pick.endpoint.workload.capacity.0);
    let total: u64 = picks.iter().map(weight).sum();
    if total == 0 {
        return None;
    }
    let mut drawn = dice.below(total);
    picks.into_iter().find(|pick| {
        let weight = weight(pick);
        let here = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        here
    })
}

/// The port of `endpoint` for the service port: its own map, else the service's, else the service
/// port itself where an application tunnel names one. `None`: it has no such port.
pub fn target_port(service: &Service, endpoint: &Endpoint, port: u16, purpose: Purpose) -> Option<u16> {
    let tunnel_port = endpoint.workload.application_tunnel.is_some_and(|tunnel| tunnel.port.is_some());
    let of_service = service.ports.get(port);
    match (of_service, purpose) {
        (None, Purpose::Standard) => return None,
        (None, Purpose::Waypoint) if endpoint.workload.application_tunnel.is_none() => return None,
        (Some(_), _) | (None, Purpose::Waypoint) => {}
    }
    let number = |target: Option<TargetPort>| match target {
        Some(TargetPort::Number(port)) => Some(port),
        Some(TargetPort::Named) | None => None,
    };
    let own = number(endpoint.ports.get(port));
    own.or_else(|| number(of_service)).or_else(|| tunnel_port.then_some(port))
}

impl Wanted<'_> {
    /// How near a workload is; of those that are equally near, one in a region that stands in comes first.
    fn rank(&self, workload: &Workload) -> (usize, bool) {
        let Caller { locality, .. } = self.caller;
        let stands_in =
            |(from, to): &(Label, Label)| (from, to) == (&locality.region, &workload.locality.region);
        let leading = rank(&self.preferences.balancing.routing_preferences, self.caller, workload);
        (leading, self.preferences.regions.iter().any(stands_in))
    }
}

/// How many of the leading scopes endpoint and caller share. NETWORK in the first place weighs more
/// than all others together, and does not stop the comparison: any endpoint of the own network beats
/// any remote one, and remote ones are still ordered by the rest.
fn rank(scopes: &[Scope], caller: Caller<'_>, workload: &Workload) -> usize {
    let leading =
        |scopes: &[Scope]| scopes.iter().take_while(|scope| shared(**scope, caller, workload)).count();
    match scopes.split_first() {
        Some((Scope::Network, rest)) => {
            let bonus = if shared(Scope::Network, caller, workload) { 1 + rest.len() } else { 0 };
            bonus + leading(rest)
        }
        Some(_) | None => leading(scopes),
    }
}

fn shared(scope: Scope, caller: Caller<'_>, workload: &Workload) -> bool {
    match scope {
        Scope::Region => workload.locality.region == caller.locality.region,
        Scope::Zone => workload.locality.zone == caller.locality.zone,
        Scope::Subzone => workload.locality.subzone == caller.locality.subzone,
        Scope::Node => workload.node == *caller.node,
        Scope::Cluster => workload.cluster == *caller.cluster,
        Scope::Network => workload.network == *caller.network,
    }
}

/// Which address of `workload` a connection to `requested` uses: that very one if it is the
/// workload's, else one that the service's families admit, of the same family if there is one.
pub fn address(workload: &Workload, requested: IpAddr, families: IpFamilies) -> Option<IpAddr> {
    let addresses = &workload.addresses;
    if addresses.contains(&requested) {
        return Some(requested);
    }
    let admitted = || addresses.iter().copied().filter(|ip| families.admit(ip));
    admitted().find(|ip| ip.is_ipv4() == requested.is_ipv4()).or_else(|| admitted().next())
}
