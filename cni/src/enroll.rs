//! Does this pod belong to the mesh, and how is its traffic captured? Pure.

use std::{collections::BTreeSet, fmt};

use crate::{
    pod::{Life, Mode, Network, Pod, Sidecar, Wishes},
    redirect::{Capture, Interface, ProbeAddresses, Redirect},
};

/// Interfaces that a pod may name. Each is two rules that every packet of the pod passes; a machine has a handful.
const MOST_INTERFACES: usize = 32;

/// What the operator decided for all pods of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Namespaces whose pods are never enrolled, whatever their labels say.
    pub excluded: BTreeSet<String>,
    /// Whether DNS is captured where the pod does not say.
    pub dns: Capture,
    /// From where probes come.
    pub probes: ProbeAddresses,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs, and this is captured.
    In(Redirect),
    /// It does not.
    Out(Reason),
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It uses the node's network.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It has finished.
    Over,
    /// Its own label opts out.
    PodOptsOut,
    /// Neither it nor its namespace asks for it.
    NotAsked,
    /// It belongs, and its annotation about interfaces cannot be followed.
    Interfaces,
    /// It belongs, and has no network yet. It is enrolled when it gets one.
    NotStarted,
}

/// Judges one pod. `namespace` is what its namespace's label says; `Unsaid` if there is no such namespace.
pub fn judge(pod: &Pod, namespace: Mode, rules: &Rules) -> Verdict {
    if let Some(reason) = obstacle(pod, namespace, rules) {
        return Verdict::Out(reason);
    }
    match interfaces(&pod.wishes) {
        Ok(virtual_interfaces) => Verdict::In(redirect(pod, rules, virtual_interfaces)),
        Err(reason) => Verdict::Out(reason),
    }
}

/// Whether someone wants a pod in the mesh that is left out for this reason, and should be told.
pub fn is_refused(pod: &Pod, namespace: Mode, reason: Reason) -> bool {
    match reason {
        Reason::HostNetwork | Reason::Sidecar | Reason::Interfaces => {
            matches!((pod.mode, namespace), (Mode::Ambient, _) | (Mode::Unsaid, Mode::Ambient))
        }
        // The operator excluded the namespace; only a pod's own label contradicts.
        Reason::ExcludedNamespace => pod.mode == Mode::Ambient,
        Reason::Over | Reason::PodOptsOut | Reason::NotAsked | Reason::NotStarted => false,
    }
}

fn obstacle(pod: &Pod, namespace: Mode, rules: &Rules) -> Option<Reason> {
    if pod.network == Network::Host {
        return Some(Reason::HostNetwork);
    }
    if pod.life == Life::Over {
        return Some(Reason::Over);
    }
    if rules.excluded.contains(&pod.namespace) {
        return Some(Reason::ExcludedNamespace);
    }
    if pod.sidecar == Sidecar::Injected {
        return Some(Reason::Sidecar);
    }
    match (pod.mode, namespace) {
        (Mode::Out, _) => Some(Reason::PodOptsOut),
        (Mode::Ambient, _) | (Mode::Unsaid, Mode::Ambient) => None,
        (Mode::Unsaid, Mode::Out | Mode::Unsaid) => Some(Reason::NotAsked),
    }
}

/// The interfaces of nested machines. What is no name is a mistake: to pass over it would let that machine's traffic go
/// out uncaptured.
fn interfaces(wishes: &Wishes) -> Result<Vec<Interface>, Reason> {
    let list = wishes.virtual_interfaces.as_deref().unwrap_or_default();
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    // No more than one beyond the limit is looked at: an annotation may be a quarter of a megabyte long.
    let parsed = names.take(MOST_INTERFACES + 1).map(Interface::parse).collect::<Result<Vec<_>, _>>();
    parsed.ok().filter(|parsed| parsed.len() <= MOST_INTERFACES).ok_or(Reason::Interfaces)
}

fn redirect(pod: &Pod, rules: &Rules, virtual_interfaces: Vec<Interface>) -> Redirect {
    let wishes = &pod.wishes;
    Redirect {
        dns: match wishes.dns_capture.as_deref() {
            Some("true") => Capture::On,
            Some("false") => Capture::Off,
            Some(_) | None => rules.dns,
        },
        inbound: match wishes.bypass_inbound_capture.as_deref() {
            Some("true") => Capture::Off,
            Some(_) | None => Capture::On,
        },
        virtual_interfaces,
        probes: rules.probes,
    }
}

impl Reason {
    /// What one can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::HostNetwork => "set hostNetwork to false, or label it istio.io/dataplane-mode=none",
            Self::Sidecar => "start it without a sidecar (label sidecar.istio.io/inject=false)",
            Self::ExcludedNamespace => "move it, or take the namespace off the agent's --excluded-namespaces",
            Self::Over | Self::NotStarted => "nothing has to be done",
            Self::PodOptsOut => "remove that label",
            Self::NotAsked => "label it or its namespace",
            Self::Interfaces => "write at most 32 names of at most 15 characters there, with commas between",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "it uses the node's network",
            Self::Sidecar => "it has a sidecar",
            Self::ExcludedNamespace => "its namespace is excluded on this node",
            Self::Over => "it has finished",
            Self::PodOptsOut => "its own label istio.io/dataplane-mode opts out",
            Self::NotAsked => "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient",
            Self::NotStarted => "it has no network yet",
            Self::Interfaces => {
                "its annotation istio.io/reroute-virtual-interfaces names too many interfaces, or one that cannot exist"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn rules() -> Rules {
        Rules {
            excluded: ["kube-system".to_owned()].into(),
            dns: Capture::On,
            probes: ProbeAddresses::default(),
        }
    }

    fn outcome(pod: &Pod, namespace: Mode) -> Option<Reason> {
        match judge(pod, namespace, &rules()) {
            Verdict::In(_) => None,
            Verdict::Out(reason) => Some(reason),
        }
    }

    #[test]
    fn the_pods_own_label_wins_over_its_namespaces() {
        use Mode::{Ambient, Out, Unsaid};
        for (own, namespace, expected) in [
            (Unsaid, Unsaid, Some(Reason::NotAsked)),
            (Unsaid, Ambient, None),
            (Unsaid, Out, Some(Reason::NotAsked)),
            (Ambient, Unsaid, None),
            (Ambient, Ambient, None),
            (Ambient, Out, None),
            (Out, Unsaid, Some(Reason::PodOptsOut)),
            (Out, Ambient, Some(Reason::PodOptsOut)),
            (Out, Out, Some(Reason::PodOptsOut)),
        ] {
            assert_eq!(outcome(&Pod { mode: own, ..pod("a") }, namespace), expected, "{own:?} {namespace:?}");
        }
    }

    #[test]
    fn some_pods_never_belong() {
        let ambient = Pod { mode: Mode::Ambient, ..pod("a") };
        for (pod, reason) in [
            (Pod { network: Network::Host, ..ambient.clone() }, Reason::HostNetwork),
            (Pod { sidecar: Sidecar::Injected, ..ambient.clone() }, Reason::Sidecar),
            (Pod { life: Life::Over, ..ambient.clone() }, Reason::Over),
            (Pod { namespace: "kube-system".into(), ..ambient }, Reason::ExcludedNamespace),
        ] {
            assert_eq!(outcome(&pod, Mode::Ambient), Some(reason));
        }
    }

    #[test]
    fn whoever_asks_in_vain_is_told() {
        use Mode::{Ambient, Out, Unsaid};
        for (own, namespace, reason, told) in [
            (Ambient, Unsaid, Reason::HostNetwork, true),
            (Unsaid, Ambient, Reason::HostNetwork, true),
            (Unsaid, Ambient, Reason::Sidecar, true),
            (Unsaid, Unsaid, Reason::Sidecar, false),
            (Out, Ambient, Reason::HostNetwork, false),
            (Ambient, Unsaid, Reason::ExcludedNamespace, true),
            (Unsaid, Ambient, Reason::ExcludedNamespace, false),
            (Ambient, Ambient, Reason::Over, false),
        ] {
            let pod = Pod { mode: own, ..pod("a") };
            assert_eq!(is_refused(&pod, namespace, reason), told, "{own:?} {namespace:?} {reason:?}");
        }
    }

    #[test]
    fn annotations_choose_what_is_captured() {
        let with = |wishes| {
            let pod = Pod { mode: Mode::Ambient, wishes, ..pod("a") };
            match judge(&pod, Mode::Unsaid, &rules()) {
                Verdict::In(redirect) => redirect,
                Verdict::Out(reason) => panic!("{reason}"),
            }
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with(Wishes::default()).dns, Capture::On);
        assert_eq!(with(Wishes { dns_capture: some("false"), ..Wishes::default() }).dns, Capture::Off);
        assert_eq!(with(Wishes { dns_capture: some("maybe"), ..Wishes::default() }).dns, Capture::On);
        assert_eq!(with(Wishes::default()).inbound, Capture::On);
        let ingress = Wishes { bypass_inbound_capture: some("true"), ..Wishes::default() };
        assert_eq!(with(ingress).inbound, Capture::Off);
        let nested = Wishes { virtual_interfaces: some("kv0, tap0,,"), ..Wishes::default() };
        let names = ["kv0", "tap0"].map(|name| Interface::parse(name).unwrap());
        assert_eq!(with(nested).virtual_interfaces, names);
    }

    #[test]
    fn interfaces_that_cannot_be_followed_keep_the_pod_out_and_are_told() {
        let many = |count: usize| (0..count).map(|index| format!("tap{index}")).collect::<Vec<_>>().join(",");
        for (list, is_fine) in [
            (many(MOST_INTERFACES), true),
            (many(MOST_INTERFACES + 1), false),
            (many(10_000), false),
            ("fifteen-letters".to_owned(), true),
            ("sixteen-letters-".to_owned(), false),
            ("kv0,no good".to_owned(), false),
            ("kv0\";flush".to_owned(), false),
        ] {
            let wishes = Wishes { virtual_interfaces: Some(list.clone()), ..Wishes::default() };
            let pod = Pod { mode: Mode::Ambient, wishes, ..pod("a") };
            let verdict = judge(&pod, Mode::Unsaid, &rules());
            assert_eq!(matches!(verdict, Verdict::In(_)), is_fine, "{list:.60}");
            if !is_fine {
                assert_eq!(verdict, Verdict::Out(Reason::Interfaces));
                assert!(is_refused(&pod, Mode::Unsaid, Reason::Interfaces));
            }
        }
        assert!(Reason::Interfaces.to_string().contains(ambit_api::labels::REROUTE_VIRTUAL_INTERFACES));
        assert!(Reason::Interfaces.remedy().contains(&MOST_INTERFACES.to_string()));
    }

    #[test]
    fn dns_can_be_off_for_the_node_and_on_for_a_pod() {
        let off = Rules { dns: Capture::Off, ..rules() };
        let wishes = Wishes { dns_capture: Some("true".into()), ..Wishes::default() };
        let one = Pod { mode: Mode::Ambient, wishes, ..pod("a") };
        let other = Pod { mode: Mode::Ambient, ..pod("b") };
        for (pod, dns) in [(one, Capture::On), (other, Capture::Off)] {
            assert!(matches!(judge(&pod, Mode::Unsaid, &off), Verdict::In(redirect) if redirect.dns == dns));
        }
    }
}
