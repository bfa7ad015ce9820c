//! Which of several controllers does what only one may do: the one that holds a Lease.
//!
//! The decision is pure ([`next`]); the loop around it looks every two seconds. Nobody's wall clock is believed: a
//! holder is gone when its lease has not *changed* for as long as it is good, by the clock of whoever wants it. The
//! holder counts from before it asked for its last renewal, gives up sooner than others may take over, and empties
//! the lease when it ends, so that the next one need not wait.
//!
//! The crates that do this judge by wall clocks or follow another release of `kube`, so it is done here.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::metrics::{counter, gauge};

/// How long a lease is good after its last change. As Kubernetes' own components have it.
const LEASE: Duration = Duration::from_secs(15);
/// How long the holder goes on without a renewal. What is between this and [`LEASE`] covers a write that is under way
/// when it gives up, and clocks that run at different speeds.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often everybody looks at the lease, and the holder renews it.
const RETRY: Duration = Duration::from_secs(2);
/// One request: after this the next attempt has a better chance, and there are several before [`RENEW_WITHIN`].
const REQUEST: Duration = Duration::from_secs(3);
/// A holder that claims to be good for longer is mistaken, and must not lock everybody out for ever.
const LONGEST: Duration = Duration::from_secs(60);

/// Names a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name within it.
    pub name: String,
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A name for this process as a holder. Processes of one pod follow each other under one pod name, so it is not enough.
pub fn identity(pod: &str) -> String {
    format!("{pod}_{:016x}", rand::random::<u64>())
}

/// Takes part until `stop` completes. `held` is true while this process leads.
pub async fn run(
    client: Client,
    lease: LeaseName,
    me: String,
    held: watch::Sender<bool>,
    counts: Counts,
    stop: impl Future<Output = ()> + Send,
) {
    let api = Api::namespaced(client, &lease.namespace);
    let mut campaign = Campaign { api, lease, me, held, counts, seen: None, renewed: None };
    tokio::select! {
        () = stop => {}
        never = campaign.run() => match never {},
    }
    campaign.resign().await;
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none: make it.
    Create,
    /// Nobody holds it, or its holder has not been heard of: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Somebody holds it, until then at least.
    Wait(Instant),
}

/// A lease as it was last seen, and when it was first seen so.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    spec: Option<LeaseSpec>,
    since: Instant,
}

impl Seen {
    /// The lease is seen at `now`. What is seen unchanged is as old as it was.
    pub fn again(before: Option<Self>, spec: Option<LeaseSpec>, now: Instant) -> Self {
        match before {
            Some(before) if before.spec == spec => before,
            Some(_) | None => Self { spec, since: now },
        }
    }
}

/// Decides what `me` does about a lease.
pub fn next(seen: &Seen, me: &str, now: Instant) -> Step {
    let Some(spec) = &seen.spec else { return Step::Create };
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) => {
            let good_for = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let until = seen.since + good_for.map_or(LEASE, Duration::from_secs).min(LONGEST);
            if now < until { Step::Wait(until) } else { Step::Take }
        }
    }
}

/// The lease as its holder `me` writes it.
fn claimed(before: Option<&LeaseSpec>, me: &str, now: Timestamp) -> LeaseSpec {
    let ours = before.is_some_and(|before| before.holder_identity.as_deref() == Some(me));
    let transitions = before.map_or(0, |before| {
        let until_now = before.lease_transitions.unwrap_or(0);
        if ours { until_now } else { until_now.saturating_add(1) }
    });
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: match before {
            Some(before) if ours => before.acquire_time.clone(),
            Some(_) | None => Some(MicroTime(now)),
        },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..before.cloned().unwrap_or_default()
    }
}

/// The lease as its holder leaves it.
fn emptied(before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: None,
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        ..before.clone()
    }
}

/// One process's part in an election.
struct Campaign {
    api: Api<Lease>,
    lease: LeaseName,
    me: String,
    held: watch::Sender<bool>,
    counts: Counts,
    seen: Option<Seen>,
    /// While it leads: from when on the last renewal counts, which is before it was asked for.
    renewed: Option<Instant>,
}

impl Campaign {
    async fn run(&mut self) -> Infallible {
        let mut complained = false;
        loop {
            let patience = self.expires().map_or(REQUEST, |end| REQUEST.min(end - Instant::now()));
            match timeout(patience, self.round()).await {
                Ok(Ok(())) => complained = false,
                failed => {
                    if !std::mem::replace(&mut complained, true) {
                        let error = failed.map(Result::err).ok().flatten();
                        let error = error.map_or_else(|| "no answer in time".to_owned(), |e| e.to_string());
                        warn!(lease = %self.lease, error, "The lease cannot be looked at or written");
                    }
                }
            }
            self.give_up_in_time();
            // Those who start together should not write together.
            let pause = RETRY.mul_f64(1.0 + rand::random_range(0.0..0.2));
            let pause = self.expires().map_or(pause, |end| pause.min(end - Instant::now()));
            sleep(pause).await;
            self.give_up_in_time();
        }
    }

    /// Until when it leads without another renewal.
    fn expires(&self) -> Option<Instant> {
        self.renewed.map(|since| since + RENEW_WITHIN)
    }

    fn give_up_in_time(&mut self) {
        if self.expires().is_some_and(|end| Instant::now() >= end) {
            self.lose("it could not be renewed in time");
        }
    }

    /// Looks at the lease and does what is to be done.
    async fn round(&mut self) -> Result<(), kube::Error> {
        let lease = self.api.get_opt(&self.lease.name).await?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let now = Instant::now();
        let seen = Seen::again(self.seen.take(), spec, now);
        let step = next(&seen, &self.me, now);
        let before = seen.spec.clone();
        self.seen = Some(seen);
        if step != Step::Renew {
            self.lose("another took it, or it was deleted");
        }
        let metadata = match step {
            Step::Wait(_) => return Ok(()),
            Step::Create => ObjectMeta {
                name: Some(self.lease.name.clone()),
                namespace: Some(self.lease.namespace.clone()),
                ..ObjectMeta::default()
            },
            Step::Take | Step::Renew => lease.map(|lease| lease.metadata).unwrap_or_default(),
        };
        let claim = claimed(before.as_ref(), &self.me, Timestamp::now());
        let lease = Lease { metadata, spec: Some(claim) };
        // With the version that was read: whoever wrote in between is not overwritten.
        let written = match step {
            Step::Create => self.api.create(&PostParams::default(), &lease).await,
            Step::Take | Step::Renew | Step::Wait(_) => {
                self.api.replace(&self.lease.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(written) => {
                self.seen = Some(Seen::again(self.seen.take(), written.spec, now));
                self.win(now);
                Ok(())
            }
            // Another was faster; the next look tells who.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn win(&mut self, since: Instant) {
        if self.renewed.replace(since).is_none() {
            info!(lease = %self.lease, holder = self.me, "This controller leads");
            self.counts.0.transitions.fetch_add(1, Relaxed);
            self.counts.0.leads.store(1, Relaxed);
            self.held.send_replace(true);
        }
    }

    fn lose(&mut self, why: &'static str) {
        if self.renewed.is_some() {
            warn!(lease = %self.lease, reason = why, "This controller no longer leads");
            self.step_down();
        }
    }

    fn step_down(&mut self) {
        if self.renewed.take().is_some() {
            self.counts.0.transitions.fetch_add(1, Relaxed);
            self.counts.0.leads.store(0, Relaxed);
            self.held.send_replace(false);
        }
    }

    /// Leaves the lease to others, if it is ours. A write of ours that was cut off may have got through, so the lease
    /// is read again.
    async fn resign(mut self) {
        self.step_down();
        if self.seen.is_none() {
            return;
        }
        let (api, name) = (&self.api, &self.lease.name);
        let emptying = async {
            let Some(mut lease) = api.get_opt(name).await? else { return Ok(()) };
            if let Some(spec) = &lease.spec
                && spec.holder_identity.as_deref() == Some(self.me.as_str())
            {
                lease.spec = Some(emptied(spec, Timestamp::now()));
                api.replace(name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(REQUEST, emptying).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(lease = %self.lease, %error, "The lease was not emptied; others wait until it ends");
            }
            Err(_) => {
                warn!(lease = %self.lease, "The lease was not emptied in time; others wait until it ends")
            }
        }
    }
}

/// How an election goes. Cheap to clone; a [`Collector`] of its figures.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Tally>);

#[derive(Debug, Default)]
struct Tally {
    leads: AtomicU64,
    transitions: AtomicU64,
}

impl Counts {
    /// How often this process began or ceased to lead.
    pub fn transitions(&self) -> u64 {
        self.0.transitions.load(Relaxed)
    }
}

impl Collector for Counts {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let leads = usize::from(self.0.leads.load(Relaxed) != 0);
        gauge(&mut to, "ambit_leader", "1 while this controller leads", leads)?;
        let help = "How often this controller began or ceased to lead";
        counter(&mut to, "ambit_leader_transitions", help, self.transitions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: seconds,
            // Long ago and far ahead: no wall clock counts.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_judged_by_how_long_it_has_been_seen_unchanged() {
        let since = Instant::now();
        let after = |seconds| since + Duration::from_secs(seconds);
        for (spec, now, step) in [
            (None, 0, Step::Create),
            (Some(LeaseSpec::default()), 0, Step::Take),
            (Some(held_by("", Some(15))), 0, Step::Take),
            (Some(held_by("me", Some(15))), 0, Step::Renew),
            (Some(held_by("me", Some(15))), 1000, Step::Renew),
            (Some(held_by("other", Some(15))), 0, Step::Wait(after(15))),
            (Some(held_by("other", Some(15))), 14, Step::Wait(after(15))),
            (Some(held_by("other", Some(15))), 15, Step::Take),
            (Some(held_by("other", Some(40))), 39, Step::Wait(after(40))),
            (Some(held_by("other", None)), 14, Step::Wait(after(15))),
            (Some(held_by("other", Some(-1))), 14, Step::Wait(after(15))),
            (Some(held_by("other", Some(i32::MAX))), 59, Step::Wait(after(60))),
            (Some(held_by("other", Some(i32::MAX))), 60, Step::Take),
        ] {
            let seen = Seen { spec: spec.clone(), since };
            assert_eq!(next(&seen, "me", after(now)), step, "{spec:?} after {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_starts_the_wait_anew_and_nothing_else_does() {
        let start = Instant::now();
        let later = start + Duration::from_secs(9);
        let first = Seen::again(None, Some(held_by("other", Some(15))), start);
        let same = Seen::again(Some(first.clone()), Some(held_by("other", Some(15))), later);
        assert_eq!(same.since, start);
        let mut renewed = held_by("other", Some(15));
        renewed.renew_time =
            Some(MicroTime(Timestamp::UNIX_EPOCH - k8s_openapi::jiff::SignedDuration::from_secs(5)));
        assert_eq!(Seen::again(Some(same), Some(renewed), later).since, later, "though its clock went back");
    }

    #[test]
    fn a_claim_counts_changes_of_holder_and_keeps_what_others_wrote() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(claimed(None, "me", now).lease_transitions, Some(0));
        let mut before = held_by("other", Some(40));
        before.lease_transitions = Some(4);
        before.strategy = Some("Oldest".to_owned());
        let taken = claimed(Some(&before), "me", now);
        assert_eq!((taken.lease_transitions, taken.lease_duration_seconds), (Some(5), Some(15)));
        assert_eq!((taken.strategy.as_deref(), &taken.acquire_time), (Some("Oldest"), &Some(MicroTime(now))));
        let later = now + k8s_openapi::jiff::SignedDuration::from_secs(2);
        let renewed = claimed(Some(&taken), "me", later);
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(5), &Some(MicroTime(now))));
        assert_eq!(renewed.renew_time, Some(MicroTime(later)));
        let left = emptied(&renewed, later);
        assert_eq!((left.holder_identity, left.lease_transitions), (None, Some(5)));
    }
}
