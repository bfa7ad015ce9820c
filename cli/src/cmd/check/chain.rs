//! The judgment of each node's chain of CNI plugins. Pure.

use super::verdict::Check;
use crate::output::few;

/// What each node's agent says of the list of CNI plugins there: its plugin captures a network that another has made,
/// so it comes after that one. Those that only add to it may come after ours too.
pub(super) fn plugins(asked: &[(String, Option<Vec<String>>)]) -> Check {
    const NAME: &str = "cni-order";
    let known: Vec<_> = asked.iter().filter_map(|(node, list)| Some((node, list.as_ref()?))).collect();
    if known.is_empty() {
        return Check::skipped(NAME, "no agent says which plugins its node has");
    }
    let places: Vec<_> = known.iter().map(|(node, list)| ((*node).clone(), place(list))).collect();
    let at = |wanted: Place| {
        let nodes = places.iter().filter(|(_, place)| *place == wanted).map(|(node, _)| node.clone());
        few(&nodes.collect::<Vec<_>>())
    };
    let remedy = "the agent repairs the list when it runs: look into its log, and who else writes there";
    let is = |wanted: Place| places.iter().any(|(_, place)| *place == wanted);
    if is(Place::Absent) {
        return Check::failure(NAME, format!("{OURS} is not in the list of {}", at(Place::Absent)), remedy);
    }
    if is(Place::Early) {
        let reason = format!("{OURS} comes before the plugin that makes the network on {}", at(Place::Early));
        return Check::failure(NAME, reason, remedy);
    }
    let followed: Vec<_> = places
        .iter()
        .filter_map(|(node, place)| match place {
            Place::Followed(by) => Some(format!("{by} on {node}")),
            Place::Chained | Place::Early | Place::Absent => None,
        })
        .collect();
    if !followed.is_empty() {
        let reason =
            format!("after {OURS} comes a plugin that may change what it captured: {}", few(&followed));
        return Check::warning(NAME, reason, remedy);
    }
    let unknown: Vec<_> =
        asked.iter().filter(|(_, list)| list.is_none()).map(|(node, _)| node.clone()).collect();
    let silent = if unknown.is_empty() { String::new() } else { format!("; not known of {}", few(&unknown)) };
    Check::pass(NAME, format!("{OURS} is chained on {} nodes{silent}", known.len()))
}

/// The agent's plugin, as it stands in a list.
const OURS: &str = "ambit-cni";

/// Plugins that add to a network that another has made: those of the reference plugins that are called meta.
const ADDING: [&str; 6] = ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"];

/// Where our plugin stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Where it belongs.
    Chained,
    /// Before there is a network.
    Early,
    /// Before one of which we do not know what it does.
    Followed(String),
    /// Nowhere.
    Absent,
}

fn place(list: &[String]) -> Place {
    let adds = |one: &String| ADDING.contains(&one.as_str());
    let Some(at) = list.iter().position(|one| one == OURS) else { return Place::Absent };
    let (before, from_ours) = list.split_at(at);
    if before.iter().all(adds) {
        return Place::Early;
    }
    match from_ours.iter().skip(1).find(|one| !adds(one)) {
        Some(other) => Place::Followed(other.clone()),
        None => Place::Chained,
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Verdict::{Failure, Pass, Skipped, Warning};
    use super::*;

    #[test]
    fn the_plugin_is_chained_behind_another() {
        let of = |list: Option<&[&str]>| {
            vec![("n1".to_owned(), list.map(|list| list.iter().map(|one| (*one).to_owned()).collect()))]
        };
        for (asked, verdict) in [
            (of(None), Skipped),
            (of(Some(&["bridge", "portmap", "ambit-cni"])), Pass),
            (of(Some(&["bridge", "ambit-cni", "portmap", "bandwidth"])), Pass),
            (of(Some(&["bridge", "ambit-cni", "istio-cni"])), Warning),
            (of(Some(&["ambit-cni", "bridge"])), Failure),
            (of(Some(&["portmap", "ambit-cni", "bridge"])), Failure),
            (of(Some(&["ambit-cni"])), Failure),
            (of(Some(&["bridge"])), Failure),
            // The runtime can use no configuration.
            (of(Some(&[])), Failure),
        ] {
            assert_eq!(plugins(&asked).verdict, verdict, "{asked:?}");
        }
        let silent = plugins(&[of(Some(&["bridge", "ambit-cni"])), vec![("n2".to_owned(), None)]].concat());
        assert_eq!(silent.verdict, Pass);
        assert!(silent.reason.contains("not known of n2"), "{silent:?}");
    }
}
