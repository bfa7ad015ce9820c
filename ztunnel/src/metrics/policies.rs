//! Matches of policies that are only tried out.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use ambit_model::{authz::Action, name::PolicyKey};
use ambit_proxy::metrics::Lock;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// How many policies are told apart. Trying out more than a few at once is no longer a trial.
const MOST: usize = 1024;

/// How often each dry-run policy matched.
#[derive(Debug, Default)]
pub(super) struct DryRuns {
    matches: Lock<HashMap<(PolicyKey, &'static str), u64>>,
    /// Matches of policies beyond the limit.
    others: AtomicU64,
}

impl DryRuns {
    pub(super) fn matched(&self, policy: &PolicyKey, action: Action) {
        let action = match action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let mut matches = self.matches.hold();
        let has_room = matches.len() < MOST;
        let key = (policy.clone(), action);
        match matches.get_mut(&key) {
            Some(count) => *count += 1,
            None if has_room => drop(matches.insert(key, 1)),
            None => drop(self.others.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

impl Collector for DryRuns {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut matches: Vec<_> = {
            let matches = self.matches.hold();
            matches.iter().map(|((policy, action), count)| (policy.to_string(), *action, *count)).collect()
        };
        matches.sort();
        let others = self.others.load(Ordering::Relaxed);
        matches.extend((others > 0).then(|| ("other".to_owned(), "unknown", others)));
        let help = "Connections that a dry-run policy matched";
        let mut family = to.encode_descriptor("ambit_authz_dry_run", help, None, MetricType::Counter)?;
        for (policy, action, count) in &matches {
            let labels = [("policy", policy.as_str()), ("action", action)];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ambit_runtime::metrics::{Format, Registry};

    use super::*;

    #[test]
    fn matches_are_counted_by_policy_up_to_a_limit() {
        let runs = DryRuns::default();
        for number in 0..MOST + 5 {
            runs.matched(&PolicyKey::new("shop", format!("p{number}")), Action::Deny);
        }
        runs.matched(&PolicyKey::new("shop", "p0"), Action::Deny);
        let mut registry = Registry::new();
        registry.collect(runs);
        let text = registry.share().render(Format::Prometheus);
        assert!(text.contains("ambit_authz_dry_run_total{policy=\"shop/p0\",action=\"deny\"} 2\n"), "{text}");
        assert!(
            text.contains("ambit_authz_dry_run_total{policy=\"other\",action=\"unknown\"} 5\n"),
            "{text}"
        );
    }
}
