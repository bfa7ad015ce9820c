//! Figures of connections and bytes, by who talks to whom (protocols 10.1).

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ambit_wire::copy::Meter;
use hashbrown::{Equivalent, HashMap};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{Collection, Ends, Lock, OwnedEnds, Series, UNKNOWN};

/// How many different sets of labels are kept. One is about 300 bytes here, and five lines of 1 KiB
/// on the metrics page, which is what sets the limit.
const MOST: usize = 16 * 1024;

/// The response flag of what went well.
pub const WELL: &str = "-";

/// What one connection is labelled with, borrowed from whoever knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Labels<'a> {
    /// Who tells: `source`, `destination` or `waypoint`.
    pub reporter: &'static str,
    /// Who opened it, and to whom.
    pub ends: Ends<'a>,
    /// Whether it travels in mutual TLS.
    pub mutual_tls: bool,
    /// How it ended: the response flag, [`WELL`] if all went well.
    pub flag: &'static str,
}

/// The figures of one set of labels.
#[derive(Debug)]
pub struct Traffic {
    labels: Owned,
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    bytes: Lock<Bytes>,
}

/// Bytes are counted by each connection for itself and added up when somebody looks: moving them
/// costs no access to memory that workers share.
#[derive(Debug, Default)]
struct Bytes {
    /// Those of connections that have ended.
    past: Moved,
    /// The meters of open connections, by their address.
    open: HashMap<usize, (Arc<Meter>, AppIs)>,
}

/// Bytes by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    to_server: u64,
    to_client: u64,
}

/// Which end of the connection the application is that a meter speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppIs {
    /// The one that opened it.
    Client,
    /// The one that it was opened to.
    Server,
}

impl Moved {
    fn of(meter: &Meter, app: AppIs) -> Self {
        match app {
            AppIs::Client => Self { to_server: meter.from_app(), to_client: meter.to_app() },
            AppIs::Server => Self { to_server: meter.to_app(), to_client: meter.from_app() },
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            to_server: self.to_server.wrapping_add(other.to_server),
            to_client: self.to_client.wrapping_add(other.to_client),
        }
    }
}

impl Bytes {
    fn moved(&self) -> Moved {
        let open = self.open.values().map(|(meter, app)| Moved::of(meter, *app));
        open.fold(self.past, Moved::and)
    }
}

impl Traffic {
    fn new(labels: Owned) -> Self {
        let zero = AtomicU64::default;
        Self { labels, opened: zero(), closed: zero(), failed: zero(), bytes: Lock::default() }
    }

    /// Counts from now on the bytes that `meter` tells.
    fn meter(&self, meter: Arc<Meter>, app: AppIs) {
        self.bytes.hold().open.insert(Arc::as_ptr(&meter).addr(), (meter, app));
    }

    /// What `meter` told is the past.
    fn end(&self, meter: &Arc<Meter>) {
        let mut bytes = self.bytes.hold();
        if let Some((meter, app)) = bytes.open.remove(&Arc::as_ptr(meter).addr()) {
            bytes.past = bytes.past.and(Moved::of(&meter, app));
        }
    }

    fn moved(&self) -> Moved {
        self.bytes.hold().moved()
    }
}

/// The figures of all sets of labels.
#[derive(Debug)]
pub struct AllTraffic {
    series: Collection<Traffic>,
    /// Where connections are counted for whose labels there is no room, by reporter.
    overflow: Vec<Arc<Traffic>>,
}

impl AllTraffic {
    /// Nothing was counted yet; these will tell.
    pub fn told_by(reporters: &[&'static str]) -> Self {
        Self::at_most(MOST, reporters)
    }

    fn at_most(most: usize, reporters: &[&'static str]) -> Self {
        let overflow = |reporter: &&'static str| Arc::new(Traffic::new(Owned::unknown(reporter)));
        Self { series: Collection::new(most), overflow: reporters.iter().map(overflow).collect() }
    }

    /// Counts a connection as opened, and from now on the bytes that `meter` tells. What is returned
    /// is to be given to [`closed`](Self::closed).
    pub fn opened(&self, labels: &Labels<'_>, meter: Arc<Meter>, app: AppIs) -> Arc<Traffic> {
        let traffic = self.find(labels);
        traffic.opened.fetch_add(1, Ordering::Relaxed);
        traffic.meter(meter, app);
        traffic
    }

    /// Counts a connection as closed, and as failed unless all went well.
    pub fn closed(&self, traffic: &Arc<Traffic>, meter: &Arc<Meter>, flag: &'static str) {
        traffic.end(meter);
        if flag == traffic.labels.flag {
            traffic.closed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let ended = self.find(&Labels { flag, ..traffic.labels.view() });
        ended.closed.fetch_add(1, Ordering::Relaxed);
        ended.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn find(&self, labels: &Labels<'_>) -> Arc<Traffic> {
        let found = self.series.find(labels, || Traffic::new(Owned::from(labels)));
        found.unwrap_or_else(|| {
            let told = self.overflow.iter().find(|one| one.labels.reporter == labels.reporter);
            told.or(self.overflow.first())
                .cloned()
                .unwrap_or_else(|| Arc::new(Traffic::new(Owned::from(labels))))
        })
    }
}

impl Series for Traffic {
    type Labels = Owned;

    fn labels(&self) -> &Owned {
        &self.labels
    }
}

/// The labels as they are kept: with the first workloads and service that had them.
#[derive(Clone, Debug)]
pub struct Owned {
    reporter: &'static str,
    ends: OwnedEnds,
    mutual_tls: bool,
    flag: &'static str,
}

impl Owned {
    fn unknown(reporter: &'static str) -> Self {
        Self { reporter, ends: OwnedEnds::default(), mutual_tls: false, flag: WELL }
    }

    fn view(&self) -> Labels<'_> {
        Labels {
            reporter: self.reporter,
            ends: self.ends.view(),
            mutual_tls: self.mutual_tls,
            flag: self.flag,
        }
    }
}

impl From<&Labels<'_>> for Owned {
    fn from(labels: &Labels<'_>) -> Self {
        Self {
            reporter: labels.reporter,
            ends: OwnedEnds::from(&labels.ends),
            mutual_tls: labels.mutual_tls,
            flag: labels.flag,
        }
    }
}

impl Hash for Owned {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl Equivalent<Owned> for Labels<'_> {
    fn equivalent(&self, kept: &Owned) -> bool {
        *self == kept.view()
    }
}

impl EncodeLabelSet for Owned {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let between = [
            ("response_flags", self.flag),
            ("connection_security_policy", if self.mutual_tls { "mutual_tls" } else { UNKNOWN }),
        ];
        self.ends.encode(encoder, self.reporter, "tcp", &between)
    }
}

impl Collector for AllTraffic {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = self.series.all();
        let used = |one: &&Arc<Traffic>| one.opened.load(Ordering::Relaxed) > 0;
        all.extend(self.overflow.iter().filter(used).cloned());
        for figure in &FIGURES {
            let mut family = to.encode_descriptor(figure.name, figure.help, None, MetricType::Counter)?;
            for traffic in &all {
                let value = (figure.value)(traffic);
                let belongs = (traffic.labels.flag == WELL) == figure.of_those_that_went_well;
                if value > 0 || belongs {
                    ConstCounter::new(value).encode(family.encode_family(&traffic.labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// One of the five families. A connection that ends badly was opened, and its bytes counted, before
/// that was known: under the labels of those that went well.
struct Figure {
    name: &'static str,
    help: &'static str,
    of_those_that_went_well: bool,
    value: fn(&Traffic) -> u64,
}

const FIGURES: [Figure; 5] = [
    Figure {
        name: "istio_tcp_connections_opened",
        help: "TCP connections opened",
        of_those_that_went_well: true,
        value: |traffic| traffic.opened.load(Ordering::Relaxed),
    },
    Figure {
        name: "istio_tcp_connections_closed",
        help: "TCP connections closed",
        of_those_that_went_well: true,
        value: |traffic| traffic.closed.load(Ordering::Relaxed),
    },
    Figure {
        name: "istio_tcp_connections_failed",
        help: "TCP connections that were refused or broke",
        of_those_that_went_well: false,
        value: |traffic| traffic.failed.load(Ordering::Relaxed),
    },
    Figure {
        name: "istio_tcp_received_bytes",
        help: "Bytes from clients to servers",
        of_those_that_went_well: true,
        value: |traffic| traffic.moved().to_server,
    },
    Figure {
        name: "istio_tcp_sent_bytes",
        help: "Bytes from servers to clients",
        of_those_that_went_well: true,
        value: |traffic| traffic.moved().to_client,
    },
];

#[cfg(test)]
mod tests;
