//! Whether there is room for a request, by every RateLimitPolicy that counts it: those that are counted here first, for
//! they cost nothing, then those that a limit service counts.
//!
//! Who is denied never comes here, so it spends nothing. What a limit service refuses has spent what is counted here.

mod ask;

use std::{net::SocketAddr, time::Duration};

use ambit_model::{
    limit::{Caller, GlobalLimit, Going, Lookup, OnError, RateLimit, Standing, Table},
    service_config::ServiceConfig,
    snapshot::Snapshot,
};
use ambit_proxy::metrics::Lock;
use ambit_wire::limiter::Answer;
use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};
use tokio::sync::Semaphore;

use crate::{
    accept::arrival::Client,
    metrics::{LimitKind, LimitOutcome, Metrics},
    refusal::Refusal,
    upstream::Upstream,
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// How many questions to limit services are under way. Each holds a request and some KiB; a service that hangs holds as
/// many for its timeout, and no more.
const UNDERWAY: usize = 4096;

/// What is counted for all workers of this waypoint.
#[derive(Debug)]
pub struct Limits {
    /// One lock: a request needs room in all of its limits at once. It is held for some look-ups and no await.
    table: Lock<Table>,
    underway: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self { table: Lock::default(), underway: Semaphore::new(UNDERWAY) }
    }
}

/// There was room for a request: what its client is told of that. Without a limit that counts it, nothing.
#[derive(Debug, Default)]
pub struct Room {
    /// How the limit stands that is nearest to its end.
    nearest: Option<Standing>,
    for_client: Vec<(HeaderName, HeaderValue)>,
}

impl Room {
    /// Adds to a response how much room there is left, and what limit services want the client to know. It takes the place
    /// of what an application says of its own limits.
    pub fn tell(&self, headers: &mut HeaderMap) {
        if let Some(Standing { limit, remaining, reset }) = self.nearest {
            tell_numbers(
                [
                    (LIMIT, Some(limit.into())),
                    (REMAINING, Some(remaining.into())),
                    (RESET, reset.map(seconds)),
                ],
                headers,
            );
        }
        tell(&self.for_client, headers);
    }

    fn stands(&mut self, one: Option<Standing>) {
        let known = [self.nearest, one].into_iter().flatten();
        self.nearest = known.reduce(Standing::nearer);
    }
}

/// A limit that has no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Which, as its author knows it.
    by: String,
    limit: Option<u32>,
    remaining: u32,
    wait: Option<Duration>,
    reset: Option<Duration>,
    for_client: Vec<(HeaderName, HeaderValue)>,
}

impl Limited {
    /// Which, as its author knows it: `shop/web local[0]`.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// Tells the client when to come again. The names are those of Envoy, from a draft (RateLimit header fields 03).
    pub fn tell(&self, headers: &mut HeaderMap) {
        tell_numbers(
            [
                (LIMIT, self.limit.map(u64::from)),
                (REMAINING, Some(u64::from(self.remaining))),
                (RESET, self.reset.map(seconds)),
                // Who comes at once comes in vain.
                (header::RETRY_AFTER, self.wait.map(|wait| seconds(wait).max(1))),
            ],
            headers,
        );
        tell(&self.for_client, headers);
    }
}

/// Rounded up: a second too early is too early.
fn seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

fn tell_numbers<const N: usize>(numbers: [(HeaderName, Option<u64>); N], headers: &mut HeaderMap) {
    for (name, number) in numbers {
        // What an application says of its own limits would be read as a part of ours.
        match number {
            Some(number) => drop(headers.insert(name, number.into())),
            None => drop(headers.remove(name)),
        }
    }
}

fn tell(list: &[(HeaderName, HeaderValue)], headers: &mut HeaderMap) {
    for (name, value) in list {
        headers.insert(name, value.clone());
    }
}

/// A request, as far as limits ask.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// What applies to its service.
    pub config: &'a ServiceConfig,
    /// Who asks.
    pub client: &'a Client,
    /// The address that was asked for.
    pub address: SocketAddr,
    /// Where it goes.
    pub going: Going<'a>,
}

/// Finds room for a request, and tells the application what limit services want it to know. What its client is told goes
/// into `room`, and stays there if it is refused later.
pub async fn find_room(
    upstream: &Upstream,
    mesh: &Snapshot,
    counted: Counted<'_>,
    head: &mut Parts,
    room: &mut Room,
) -> Result<(), Refusal> {
    let Counted { config, client, address, going } = counted;
    let caller = Caller { identity: client.identity.as_ref(), address: client.address.ip() };
    let shared = upstream.shared();
    let lookups = lookups(config, &going, &caller, head);
    if !lookups.is_empty() {
        room.stands(shared.limits.take(&lookups, shared.settings.started.elapsed(), &shared.metrics)?);
    }
    for (limit, global) in globals(config, &going) {
        let descriptors = global.descriptors_of(&caller, head);
        if descriptors.is_empty() {
            continue;
        }
        let answer = ask::ask(upstream, mesh, global, &descriptors, address).await;
        let Some(answer) = judged(limit, global, answer, &shared.metrics)? else { continue };
        tell(&answer.for_application, &mut head.headers);
        room.stands(answer.nearest);
        room.for_client.extend(answer.for_client);
    }
    Ok(())
}

/// Which limits count a request, as their authors know them. Pure.
pub fn counting(counted: &Counted<'_>, head: &Parts) -> impl Iterator<Item = String> {
    let Counted { config, client, going, .. } = counted;
    let caller = Caller { identity: client.identity.as_ref(), address: client.address.ip() };
    let local = lookups(config, going, &caller, head).into_iter().map(|lookup| lookup.counter.to_string());
    let global =
        globals(config, going).filter(|(_, global)| !global.descriptors_of(&caller, head).is_empty());
    let global: Vec<_> = global.map(|(limit, _)| by_service(limit)).collect();
    local.chain(global)
}

/// What is counted here. Pure.
fn lookups(config: &ServiceConfig, going: &Going<'_>, caller: &Caller<'_>, head: &Parts) -> Vec<Lookup> {
    let limits = config.limits().filter(|(limit, _)| limit.counts(going));
    let all = limits.flat_map(|(limit, counters)| limit.local.iter().zip(counters));
    let counting = all.filter(|(local, _)| local.counts(head));
    let lookup =
        counting.map(|(local, counter)| Lookup { counter: counter.clone(), key: local.key(caller, head) });
    lookup.collect()
}

/// What a limit service counts. Pure.
fn globals<'c>(
    config: &'c ServiceConfig,
    going: &Going<'_>,
) -> impl Iterator<Item = (&'c RateLimit, &'c GlobalLimit)> {
    let limits = config.limits().map(|(limit, _)| limit).filter(|limit| limit.counts(going));
    limits.filter_map(|limit| Some((limit, limit.global.as_deref()?)))
}

/// A limit that a limit service counts, as its author knows it.
fn by_service(limit: &RateLimit) -> String {
    format!("{} global", limit.policy)
}

/// What becomes of a request by what a limit service said; `None`: it said nothing, and the request is taken.
fn judged(
    limit: &RateLimit,
    global: &GlobalLimit,
    answer: Result<Answer, String>,
    metrics: &Metrics,
) -> Result<Option<Answer>, Refusal> {
    let by = || by_service(limit);
    match answer {
        Ok(Answer { over: Some(over), for_client, .. }) => {
            metrics.limited(LimitKind::Global, LimitOutcome::Limited);
            Err(Refusal::Limited(Box::new(Limited {
                by: by(),
                limit: over.limit,
                remaining: over.remaining,
                wait: over.reset,
                reset: over.reset,
                for_client,
            })))
        }
        Ok(answer) => {
            metrics.limited(LimitKind::Global, LimitOutcome::Allowed);
            Ok(Some(answer))
        }
        Err(reason) => {
            metrics.limited(LimitKind::Global, LimitOutcome::Error);
            match global.on_error() {
                OnError::Take => {
                    tracing::debug!(policy = %limit.policy, reason, "No word of the limit service; request taken");
                    Ok(None)
                }
                OnError::Refuse => Err(Refusal::NoLimiter { by: by(), reason }),
            }
        }
    }
}

impl Limits {
    fn take(
        &self,
        lookups: &[Lookup],
        now: Duration,
        metrics: &Metrics,
    ) -> Result<Option<Standing>, Refusal> {
        let taken = {
            let mut table = self.table.hold();
            let taken = table.take(lookups, now);
            metrics.limit_buckets(table.len(), table.evicted());
            taken
        };
        match taken {
            Ok(taken) => {
                metrics.limited(LimitKind::Local, LimitOutcome::Allowed);
                metrics.counted_together(taken.together);
                Ok(taken.nearest)
            }
            Err(excess) => {
                metrics.limited(LimitKind::Local, LimitOutcome::Limited);
                Err(Refusal::Limited(Box::new(Limited {
                    by: excess.counter.to_string(),
                    limit: Some(excess.limit),
                    remaining: excess.remaining,
                    wait: Some(excess.wait),
                    reset: Some(excess.reset),
                    for_client: Vec::new(),
                })))
            }
        }
    }

    /// Lets go of what is as good as new.
    pub fn sweep(&self, now: Duration, metrics: &Metrics) {
        let mut table = self.table.hold();
        table.sweep(now);
        metrics.limit_buckets(table.len(), table.evicted());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_whole_seconds_and_never_to_come_at_once() {
        let limited = Limited {
            by: "shop/p local[0]".to_owned(),
            limit: Some(10),
            remaining: 0,
            wait: Some(Duration::ZERO),
            reset: Some(Duration::from_millis(1001)),
            for_client: vec![(HeaderName::from_static("x-more"), HeaderValue::from_static("1"))],
        };
        let told = |limited: &Limited| {
            let mut headers = HeaderMap::new();
            limited.tell(&mut headers);
            let text = |(name, value): (&HeaderName, &HeaderValue)| {
                format!("{name}: {}", value.to_str().unwrap_or_default())
            };
            let mut all: Vec<_> = headers.iter().map(text).collect();
            all.sort();
            all
        };
        let expected = [
            "retry-after: 1",
            "x-more: 1",
            "x-ratelimit-limit: 10",
            "x-ratelimit-remaining: 0",
            "x-ratelimit-reset: 2",
        ];
        assert_eq!(told(&limited), expected);
        // A limit service that says nothing more than "no".
        let bare = Limited { limit: None, wait: None, reset: None, for_client: Vec::new(), ..limited };
        assert_eq!(told(&bare), ["x-ratelimit-remaining: 0"]);
    }
}
