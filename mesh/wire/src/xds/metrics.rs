//! What both ends count. Plain numbers: the daemon that exports them gives them their names.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::backoff::Reason;

/// A peer that invents type URLs must not fill the metrics page.
const TYPES: usize = 32;
/// Under which label the types beyond the limit are counted.
const OTHER: &str = "other";

/// The client's counters.
#[derive(Debug, Default)]
pub struct ClientMetrics {
    /// `istio_xds_message_total{url}` and `istio_xds_message_bytes_total{url}`.
    pub received: PerType,
    terminations: [AtomicU64; Reason::ALL.len()],
}

impl ClientMetrics {
    /// `istio_xds_connection_terminations_total{reason}`.
    pub fn terminations(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.terminations.iter().map(|count| count.load(Relaxed)))
    }

    pub(super) fn terminated(&self, reason: Reason) {
        let counters = Reason::ALL.into_iter().zip(&self.terminations);
        for (_, count) in counters.filter(|(r, _)| *r == reason) {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// The server's counters.
#[derive(Debug, Default)]
pub struct ServerMetrics {
    /// Responses sent.
    pub sent: PerType,
    /// Responses that were (partly) rejected, and the bytes of the reasons.
    pub nacked: PerType,
    /// From the publication of a change to its hand-over to a subscriber's connection; what a subscriber
    /// is sent because it has just come is not counted.
    pub delay: Delays,
    connected: AtomicU64,
    refused: AtomicU64,
}

impl ServerMetrics {
    /// Streams open now.
    pub fn connected(&self) -> u64 {
        self.connected.load(Relaxed)
    }

    /// Streams refused: not authenticated, not entitled, or too many.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    pub(super) fn opened(&self) {
        self.connected.fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self) {
        self.connected.fetch_sub(1, Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }
}

/// How long something took, in buckets.
#[derive(Debug, Default)]
pub struct Delays {
    buckets: [AtomicU64; Delays::BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Delays {
    /// The upper bounds of the buckets, in seconds; one more bucket has none.
    pub const BOUNDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0];

    /// Each upper bound with how many were not longer than it, and longer than the bound before.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = Self::BOUNDS.into_iter().chain([f64::MAX]);
        bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect()
    }

    /// The sum of all, in seconds.
    pub fn sum(&self) -> f64 {
        Duration::from_micros(self.microseconds.load(Relaxed)).as_secs_f64()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Adds one.
    pub fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let place = Self::BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(Self::BOUNDS.len());
        if let Some(bucket) = self.buckets.get(place) {
            bucket.fetch_add(1, Relaxed);
        }
        self.microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}

/// Messages and bytes, by type URL.
#[derive(Debug, Default)]
pub struct PerType(Mutex<BTreeMap<String, Traffic>>);

/// How much of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PerType {
    /// Every type seen so far.
    pub fn all(&self) -> Vec<(String, Traffic)> {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(url, traffic)| (url.clone(), *traffic)).collect()
    }

    /// One type.
    pub fn of(&self, type_url: &str) -> Traffic {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(type_url).copied().unwrap_or_default()
    }

    pub(super) fn add(&self, type_url: &str, bytes: usize) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = map.contains_key(type_url) || map.len() < TYPES;
        let traffic = map.entry(if known { type_url } else { OTHER }.to_owned()).or_default();
        traffic.messages += 1;
        traffic.bytes = traffic.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_types_share_one_label() {
        let counters = PerType::default();
        (0..100).for_each(|i| counters.add(&format!("type-{i}"), 10));
        assert_eq!(counters.all().len(), TYPES + 1);
        assert_eq!(counters.of(OTHER), Traffic { messages: 68, bytes: 680 });
    }

    #[test]
    fn a_delay_is_counted_in_its_bucket_and_in_the_sum() {
        let delays = Delays::default();
        for milliseconds in [1, 2, 700, 60_000] {
            delays.add(Duration::from_millis(milliseconds));
        }
        let counted: Vec<_> = delays.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(0.001, 1), (0.0025, 1), (1.0, 1), (f64::MAX, 1)]);
        assert_eq!((delays.count(), delays.sum()), (4, 60.703));
    }

    #[test]
    fn each_termination_counts_under_its_own_reason() {
        let metrics = ClientMetrics::default();
        metrics.terminated(Reason::Reconnect);
        let counted: Vec<_> = metrics.terminations().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [(Reason::Reconnect, 1)]);
    }
}
