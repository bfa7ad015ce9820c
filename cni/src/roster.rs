//! Who is enrolled and who should be: the difference is what there is to do. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    enroll::{self, Reason, Rules, Verdict},
    netns::NetnsAt,
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
    /// Its network namespace, if known.
    pub netns: Option<NetnsAt>,
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
    /// Pods that were taken out and may still bear what an agent wrote: that is seen with a delay, and must
    /// not have them taken out again.
    departed: BTreeSet<String>,
}

/// A pod of this node that is left alone, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bystander {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Why.
    pub reason: Reason,
    /// Whether someone wants it in.
    pub wanted: bool,
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
    pub fn reconcile(&mut self, view: &View, rules: &Rules, netns: &dyn Fn(&Pod) -> Option<NetnsAt>) -> Plan {
        let mut plan = Plan::default();
        let mut left = std::mem::take(&mut self.members);
        let departed = std::mem::take(&mut self.departed);
        for pod in &view.pods {
            if self.members.contains_key(&pod.uid) {
                continue;
            }
            let before = left.remove(&pod.uid);
            let namespace = view.namespaces.get(&pod.namespace).copied().unwrap_or_default();
            let found = netns(pod);
            let verdict = match enroll::judge(pod, namespace, rules) {
                Verdict::In(_) if before.is_none() && is_unborn(pod, found.as_ref()) => {
                    Verdict::Out(Reason::NotStarted)
                }
                verdict @ (Verdict::In(_) | Verdict::Out(_)) => verdict,
            };
            match verdict {
                Verdict::In(redirect) => {
                    let member = Member::of(pod, redirect, found, before.as_ref());
                    if before.as_ref() != Some(&member) {
                        plan.changes.push(Change::Join { member: member.clone(), written: pod.redirection });
                    }
                    self.members.insert(pod.uid.clone(), member);
                }
                Verdict::Out(reason) => {
                    let leftover = || leftover(pod, found).filter(|member| !departed.contains(&member.uid));
                    let gone = before.or_else(leftover);
                    if gone.is_some()
                        || (departed.contains(&pod.uid) && pod.redirection != Redirection::Unsaid)
                    {
                        self.departed.insert(pod.uid.clone());
                    }
                    if let Some(member) = gone {
                        plan.changes.push(Change::Leave { member, how: Leave::of(pod) });
                    }
                    let wanted = enroll::is_refused(pod, namespace, reason);
                    plan.bystanders.push(Bystander { pod: Arc::clone(pod), reason, wanted });
                }
            }
        }
        // Whoever is not in the view any more. They leave first: an address may have changed hands.
        let gone = left.into_values().map(|member| Change::Leave { member, how: Leave::Gone });
        plan.changes.splice(0..0, gone);
        plan
    }

    /// Takes in one pod whose network has just been made. What it returns is taken for done.
    pub fn arrive(&mut self, pod: &Pod, redirect: Redirect, netns: NetnsAt, ips: &[IpAddr]) -> Member {
        let mut member = Member::of(pod, redirect, Some(netns), self.members.get(&pod.uid));
        if !ips.is_empty() {
            member.ips = ips.to_vec();
        }
        self.departed.remove(&pod.uid);
        self.members.insert(pod.uid.clone(), member.clone());
        member
    }

    /// Takes out a pod whose start has failed.
    pub fn expel(&mut self, uid: &str) -> Option<Change> {
        let member = self.members.remove(uid)?;
        self.departed.insert(uid.to_owned());
        Some(Change::Leave { member, how: Leave::LivesOn })
    }

    /// Every pod that belongs and whose namespace is not known, with its addresses.
    pub fn lost(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.netns.is_none() && !member.ips.is_empty())
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

    /// Whether the pod is a member.
    pub fn has(&self, uid: &str) -> bool {
        self.members.contains_key(uid)
    }

    /// Whether every member's address is known.
    pub fn all_have_addresses(&self) -> bool {
        self.members.values().all(|member| !member.ips.is_empty())
    }
}

/// A pod of which no agent has written anything and which has no network that we could know of: whoever makes
/// its network will tell us.
fn is_unborn(pod: &Pod, netns: Option<&NetnsAt>) -> bool {
    netns.is_none() && pod.ips.is_empty() && pod.redirection == Redirection::Unsaid
}

/// A pod that does not belong, and on which an agent once wrote that it does: something of the rules
/// may be left in it.
fn leftover(pod: &Pod, netns: Option<NetnsAt>) -> Option<Member> {
    match pod.redirection {
        Redirection::Enabled | Redirection::Pending => {
            let nothing = Redirect {
                dns: crate::redirect::Capture::Off,
                inbound: crate::redirect::Capture::Off,
                virtual_interfaces: Vec::new(),
                probes: Default::default(),
            };
            Some(Member::of(pod, nothing, netns, None))
        }
        Redirection::Unsaid => None,
    }
}

impl Member {
    fn of(pod: &Pod, redirect: Redirect, netns: Option<NetnsAt>, before: Option<&Self>) -> Self {
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
        Rules { excluded: Default::default(), dns: Capture::On, probes: Default::default() }
    }

    fn view(pods: impl IntoIterator<Item = Pod>) -> View {
        View {
            pods: pods.into_iter().map(Arc::new).collect(),
            namespaces: [("shop".to_owned(), Mode::Ambient)].into(),
        }
    }

    fn seen(roster: &mut Roster, view: &View) -> Vec<String> {
        let plan = roster.reconcile(view, &rules(), &|pod| pod.netns.clone().map(NetnsAt::File));
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
    fn a_pod_without_a_network_is_waited_for_and_arrives_once() {
        let mut roster = Roster::default();
        let unborn = Pod { ips: Vec::new(), ..pod("a") };
        let plan = roster.reconcile(&view([unborn.clone()]), &rules(), &|_| None);
        assert!(plan.changes.is_empty());
        assert_eq!(plan.bystanders[0].reason, Reason::NotStarted);
        // An agent that was here before us knew its network.
        let known = Pod { redirection: Redirection::Enabled, ..unborn.clone() };
        assert_eq!(seen(&mut Roster::default(), &view([known])), ["join a"]);

        let Verdict::In(redirect) = enroll::judge(&unborn, Mode::Ambient, &rules()) else { panic!() };
        let netns = || Some(NetnsAt::File("/run/netns/a".into()));
        let ips = pod("a").ips;
        let member = roster.arrive(&unborn, redirect, netns().unwrap(), &ips);
        assert_eq!(member.ips, ips);
        for later in [unborn, pod("a")] {
            let plan = roster.reconcile(&view([later]), &rules(), &|_| netns());
            assert_eq!(plan.changes, [], "it is enrolled already");
        }
    }

    #[test]
    fn a_pod_whose_start_failed_is_waited_for_again() {
        let mut roster = Roster::default();
        let unborn = Pod { ips: Vec::new(), ..pod("a") };
        let Verdict::In(redirect) = enroll::judge(&unborn, Mode::Ambient, &rules()) else { panic!() };
        roster.arrive(&unborn, redirect, NetnsAt::File("/x".into()), &[]);
        let Some(Change::Leave { how: Leave::LivesOn, .. }) = roster.expel("a") else { panic!() };
        assert_eq!(roster.expel("a"), None);
        assert_eq!(seen(&mut roster, &view([unborn])), Vec::<String>::new());
    }

    #[test]
    fn what_is_still_written_on_a_pod_that_left_does_not_make_it_leave_twice() {
        let mut roster = Roster::default();
        let written = Pod { redirection: Redirection::Enabled, ..pod("a") };
        seen(&mut roster, &view([written.clone()]));
        let out = |redirection| Pod { mode: Mode::Out, redirection, ..pod("a") };
        assert_eq!(seen(&mut roster, &view([out(Redirection::Enabled)])), ["leave a LivesOn"]);
        assert!(seen(&mut roster, &view([out(Redirection::Enabled)])).is_empty());
        assert!(seen(&mut roster, &view([out(Redirection::Unsaid)])).is_empty());
        // Another agent's word, which has to be undone.
        assert_eq!(seen(&mut roster, &view([out(Redirection::Enabled)])), ["leave a LivesOn"]);
        assert_eq!(seen(&mut roster, &view([written])), ["join a"]);
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
            let mut enrolled = BTreeSet::new();
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
                let plan = roster.reconcile(&view(all), &rules(), &|pod| pod.netns.clone().map(NetnsAt::File));
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
