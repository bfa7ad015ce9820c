//! Who is enrolled and who should be: the difference is what there is to do. Pure.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use crate::{
    enroll::{self, Reason, Rules, Verdict},
    pod::{Life, Mode, Pod, Redirection},
    redirect::Redirect,
};

/// The pods of this node and the labels of namespaces, at one moment.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The pods of this node.
    pub pods: Vec<Arc<Pod>>,
    /// What each namespace's label says.
    pub namespaces: BTreeMap<String, Mode>,
}

/// A pod that should be enrolled, and everything that enrolment depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The pod's UID.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The account it runs as.
    pub service_account: String,
    /// The file of its network namespace, if known.
    pub netns: Option<PathBuf>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// What is captured.
    pub redirect: Redirect,
}

/// How a pod leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It lives on, outside of the mesh: its network has to be put back as it was.
    LivesOn,
    /// It is gone or finished: its network went with it.
    Gone,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Enrol the pod, or enrol it anew with what has changed.
    Join {
        /// The pod as it should be.
        member: Member,
        /// What is written on it already.
        written: Redirection,
    },
    /// Take the pod out.
    Leave {
        /// The pod as it was.
        member: Member,
        /// How.
        how: Leave,
    },
}

/// The pods that are enrolled, or being enrolled.
#[derive(Debug, Default)]
pub struct Roster {
    members: BTreeMap<String, Member>,
}

/// A pod of this node that is left alone, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bystander {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Why.
    pub reason: Reason,
}

/// What follows from a view.
#[derive(Debug, Default)]
pub struct Plan {
    /// What to do.
    pub changes: Vec<Change>,
    /// Who is left alone.
    pub bystanders: Vec<Bystander>,
}

impl Roster {
    /// Takes in a view; what it returns is taken for done.
    pub fn reconcile(&mut self, view: &View, rules: &Rules, netns: &dyn Fn(&Pod) -> Option<PathBuf>) -> Plan {
        let mut plan = Plan::default();
        let mut left = std::mem::take(&mut self.members);
        for pod in &view.pods {
            if self.members.contains_key(&pod.uid) {
                continue;
            }
            let before = left.remove(&pod.uid);
            let namespace = view.namespaces.get(&pod.namespace).copied().unwrap_or_default();
            match enroll::judge(pod, namespace, rules) {
                Verdict::In(redirect) => {
                    let member = Member::of(pod, redirect, netns(pod), before.as_ref());
                    if before.as_ref() != Some(&member) {
                        plan.changes.push(Change::Join { member: member.clone(), written: pod.redirection });
                    }
                    self.members.insert(pod.uid.clone(), member);
                }
                Verdict::Out(reason) => {
                    if let Some(member) = before.or_else(|| leftover(pod, netns(pod))) {
                        plan.changes.push(Change::Leave { member, how: Leave::of(pod) });
                    }
                    plan.bystanders.push(Bystander { pod: Arc::clone(pod), reason });
                }
            }
        }
        // Whoever is not in the view any more. They leave first: an address may have changed hands.
        let gone = left.into_values().map(|member| Change::Leave { member, how: Leave::Gone });
        plan.changes.splice(0..0, gone);
        plan
    }

    /// Everyone leaves, and lives on.
    pub fn dissolve(&mut self) -> Vec<Change> {
        let members = std::mem::take(&mut self.members);
        members.into_values().map(|member| Change::Leave { member, how: Leave::LivesOn }).collect()
    }

    /// The UIDs of all members.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Whether every member's address is known.
    pub fn all_have_addresses(&self) -> bool {
        self.members.values().all(|member| !member.ips.is_empty())
    }
}

/// A pod that does not belong, and on which an agent once wrote that it does: something of the rules
/// may be left in it.
fn leftover(pod: &Pod, netns: Option<PathBuf>) -> Option<Member> {
    match pod.redirection {
        Redirection::Enabled | Redirection::Pending => {
            let nothing = Redirect {
                dns: crate::redirect::Capture::Off,
                inbound: crate::redirect::Capture::Off,
                virtual_interfaces: Vec::new(),
            };
            Some(Member::of(pod, nothing, netns, None))
        }
        Redirection::Unsaid => None,
    }
}

impl Member {
    fn of(pod: &Pod, redirect: Redirect, netns: Option<PathBuf>, before: Option<&Self>) -> Self {
        // Kubernetes clears a pod's addresses for a moment now and then; the pod keeps them.
        let ips = match before {
            Some(before) if pod.ips.is_empty() => before.ips.clone(),
            Some(_) | None => pod.ips.clone(),
        };
        Self {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            netns,
            ips,
            redirect,
        }
    }
}

impl Leave {
    fn of(pod: &Pod) -> Self {
        match pod.life {
            Life::Running => Self::LivesOn,
            Life::Over => Self::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pod::{Wishes, tests::pod},
        redirect::Capture,
    };

    fn rules() -> Rules {
        Rules { excluded: Default::default(), dns: Capture::On }
    }

    fn view(pods: impl IntoIterator<Item = Pod>) -> View {
        View {
            pods: pods.into_iter().map(Arc::new).collect(),
            namespaces: [("shop".to_owned(), Mode::Ambient)].into(),
        }
    }

    fn seen(roster: &mut Roster, view: &View) -> Vec<String> {
        let plan = roster.reconcile(view, &rules(), &|pod| pod.netns.clone());
        plan.changes
            .iter()
            .map(|change| match change {
                Change::Join { member, .. } => format!("join {}", member.uid),
                Change::Leave { member, how } => format!("leave {} {how:?}", member.uid),
            })
            .collect()
    }

    #[test]
    fn a_view_seen_twice_changes_nothing() {
        let mut roster = Roster::default();
        let all = view([pod("a"), pod("b")]);
        assert_eq!(seen(&mut roster, &all), ["join a", "join b"]);
        assert!(seen(&mut roster, &all).is_empty());
        // What the agent itself writes is no reason to begin again.
        let written = view([Pod { redirection: Redirection::Enabled, ..pod("a") }, pod("b")]);
        assert!(seen(&mut roster, &written).is_empty());
    }

    #[test]
    fn pods_leave_as_they_should() {
        let mut roster = Roster::default();
        seen(&mut roster, &view(["a", "b", "c", "d"].map(pod)));
        let after = view([
            Pod { mode: Mode::Out, ..pod("a") },
            Pod { life: Life::Over, ips: Vec::new(), ..pod("b") },
            pod("d"),
        ]);
        assert_eq!(seen(&mut roster, &after), ["leave c Gone", "leave a LivesOn", "leave b Gone"]);
        assert_eq!(roster.uids().collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn a_namespace_that_loses_its_label_lets_its_pods_live_on() {
        let mut roster = Roster::default();
        seen(&mut roster, &view([pod("a")]));
        let mut after = view([pod("a")]);
        after.namespaces.clear();
        assert_eq!(seen(&mut roster, &after), ["leave a LivesOn"]);
        assert_eq!(seen(&mut roster, &view([pod("a")])), ["join a"]);
    }

    #[test]
    fn what_matters_to_enrolment_enrols_anew() {
        let mut roster = Roster::default();
        seen(&mut roster, &view([pod("a")]));
        let moved = Pod { netns: Some("/run/netns/x".into()), ..pod("a") };
        assert_eq!(seen(&mut roster, &view([moved.clone()])), ["join a"]);
        let wishes = Wishes { dns_capture: Some("false".into()), ..Wishes::default() };
        assert_eq!(seen(&mut roster, &view([Pod { wishes, ..moved }])), ["join a"]);
    }

    #[test]
    fn what_a_former_agent_left_behind_is_cleaned_up() {
        let mut roster = Roster::default();
        let stale = Pod { mode: Mode::Out, redirection: Redirection::Enabled, ..pod("a") };
        assert_eq!(seen(&mut roster, &view([stale])), ["leave a LivesOn"]);
    }

    #[test]
    fn an_address_that_vanishes_for_a_moment_is_kept() {
        let mut roster = Roster::default();
        seen(&mut roster, &view([pod("a")]));
        assert!(seen(&mut roster, &view([Pod { ips: Vec::new(), ..pod("a") }])).is_empty());
        assert!(roster.all_have_addresses());
    }

    #[test]
    fn bystanders_are_told_apart() {
        let plan =
            Roster::default().reconcile(&view([Pod { mode: Mode::Out, ..pod("a") }]), &rules(), &|_| None);
        assert_eq!(plan.bystanders.len(), 1);
        assert_eq!(plan.bystanders[0].reason, Reason::PodOptsOut);
    }

    proptest::proptest! {
        /// After any sequence of views the members are exactly those whom the last view enrols.
        #[test]
        fn the_roster_follows_the_view(
            views in proptest::collection::vec(proptest::collection::btree_map(0u8..5, 0u8..4, 0..5), 1..12)
        ) {
            let mut roster = Roster::default();
            let mut enrolled = std::collections::BTreeSet::new();
            for pods in views {
                let all = pods.iter().map(|(uid, kind)| {
                    let pod = pod(&uid.to_string());
                    match kind {
                        0 => Pod { mode: Mode::Out, ..pod },
                        1 => Pod { life: Life::Over, ..pod },
                        2 => Pod { netns: Some("/x".into()), ..pod },
                        _ => pod,
                    }
                });
                let plan = roster.reconcile(&view(all), &rules(), &|pod| pod.netns.clone());
                for change in plan.changes {
                    match change {
                        Change::Join { member, .. } => { enrolled.insert(member.uid); }
                        Change::Leave { member, .. } => proptest::prop_assert!(enrolled.remove(&member.uid)),
                    }
                }
                let wanted = pods.iter().filter(|(_, kind)| **kind > 1).map(|(uid, _)| uid.to_string()).collect();
                proptest::prop_assert_eq!(&enrolled, &wanted);
            }
        }
    }
}
