//! The agent at its post: takes in what is seen and what the plugin announces, one after the other, and orders
//! what follows. Nothing here waits for a pod.

use std::{collections::BTreeMap, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::{debug, warn};

use crate::{
    arrivals::Ask,
    enroll::{self, Rules, Verdict},
    events::{NOT_ENROLLED, Notice},
    feed::{Feed, Tools},
    netns::{NetnsAt, Sandboxes},
    pod::{Life, Mode, Network, Pod, Redirection},
    roster::{Bystander, Roster, View},
    scan::{self, Wanted},
    watch::Watch,
};

/// How often the node's processes are looked through for pods that could not be found among them.
const SCAN_AGAIN: Duration = Duration::from_secs(2);

/// How long a pod that was announced counts as seen although no view has it yet: much longer than any watch is
/// behind.
const NEWCOMER: Duration = Duration::from_secs(120);

/// All that changes when a pod comes or goes.
#[derive(Debug)]
pub(crate) struct Post {
    tools: Arc<Tools>,
    rules: Arc<Rules>,
    feed: Feed,
    roster: Roster,
    sandboxes: Sandboxes,
    view: View,
    newcomers: Newcomers,
    /// When each pod was last looked for.
    scanned: BTreeMap<String, Instant>,
    host_proc: PathBuf,
}

impl Post {
    pub(crate) fn new(
        tools: Arc<Tools>,
        rules: Arc<Rules>,
        sandboxes: Sandboxes,
        host_proc: PathBuf,
    ) -> Self {
        Self {
            feed: Feed::new(Arc::clone(&tools)),
            tools,
            rules,
            roster: Roster::default(),
            sandboxes,
            view: View::default(),
            newcomers: Newcomers::default(),
            scanned: BTreeMap::new(),
            host_proc,
        }
    }

    /// Takes in a view.
    pub(crate) async fn see(&mut self, mut view: View) {
        self.newcomers.join(&mut view, Instant::now());
        self.view = view;
        self.enact().await;
    }

    /// Waits until everyone has been tried once, and lets nobody else's probes through.
    pub(crate) async fn first_tries(&mut self, limit: Duration) {
        self.feed.first_tries(limit).await;
        if self.roster.all_have_addresses() {
            let uids = self.roster.uids().map(str::to_owned).collect();
            if let Err(error) = self.tools.probes.retain(uids).await {
                warn!(%error, "Probes of pods that are gone are still let through");
            }
        }
    }

    /// Does what has to be done, for ever.
    pub(crate) async fn follow(&mut self, watch: Watch, desk: &mut mpsc::Receiver<Ask>) {
        let views = stream::unfold(watch, |mut watch| async move {
            let view = watch.next().await;
            Some((view, watch))
        });
        let mut views = pin!(views);
        loop {
            let lost = self.roster.lost().next().is_some();
            tokio::select! {
                Some(view) = views.next() => self.see(view).await,
                Some(ask) = desk.recv() => self.answer(ask),
                () = sleep(SCAN_AGAIN), if lost => self.enact().await,
            }
        }
    }

    /// How many pods are enrolled, or being enrolled.
    pub(crate) fn members(&self) -> usize {
        self.roster.uids().count()
    }

    /// Takes everyone out, and the node's own rules away.
    pub(crate) async fn dissolve(mut self, limit: Duration) {
        self.feed.carry_out(self.roster.dissolve());
        self.feed.departures(limit).await;
        if let Err(error) = self.tools.probes.remove().await {
            warn!(%error, "The node's own rules are still in force");
        }
    }

    async fn enact(&mut self) {
        self.find_sandboxes().await;
        let plan = self.roster.reconcile(&self.view, &self.rules, &|pod| self.sandboxes.find(pod));
        self.tools.ledger.bystanders(&plan.bystanders);
        for refused in plan.bystanders.iter().filter(|bystander| bystander.wanted) {
            self.tools.events.tell(notice(refused));
        }
        self.feed.carry_out(plan.changes);
        let roster = &self.roster;
        self.sandboxes.retain(|uid| roster.has(uid));
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            // The plugin has given up.
            Ask::Enrol { reply, .. } if reply.is_closed() => {}
            Ask::Enrol { pod, namespace, redirect, netns, ips, reply } => {
                self.newcomers.welcome(&pod, namespace, &mut self.view, Instant::now());
                self.sandboxes.learn(&pod.uid, netns.clone());
                let member = self.roster.arrive(&pod, redirect, NetnsAt::Held(netns), &ips);
                // If it has given up now, the pod is enrolled until it is seen to be gone.
                let _ = reply.send(self.feed.enrol(member, pod.redirection));
            }
            Ask::Abandon { uid, turn, reply } => {
                let latest = self.feed.is_latest(&uid, turn);
                if latest {
                    self.sandboxes.forget(&uid);
                    self.feed.carry_out(self.roster.expel(&uid).into_iter().collect());
                }
                let _ = reply.send(self.feed.leaving(&uid).filter(|_| latest));
            }
        }
    }

    /// Looks for the namespaces of pods that run already and that nobody told us of.
    async fn find_sandboxes(&mut self) {
        if !self.sandboxes.has_to_look() {
            return;
        }
        let now = Instant::now();
        let lost: Vec<Arc<Pod>> =
            self.view.pods.iter().filter(|pod| self.is_lost(pod, now)).cloned().collect();
        if lost.is_empty() {
            return;
        }
        let wanted: Wanted = lost.iter().map(|pod| (pod.kubelet_uid.clone(), pod.ips.clone())).collect();
        let mut found = scan::find(self.host_proc.clone(), wanted).await;
        debug!(pods = lost.len(), found = found.len(), "Looked for the network namespaces of running pods");
        self.scanned.retain(|_, when| *when + SCAN_AGAIN > now);
        for pod in lost {
            match found.remove(&pod.kubelet_uid) {
                Some(netns) => self.sandboxes.learn(&pod.uid, netns),
                None => {
                    self.scanned.insert(pod.uid.clone(), now);
                }
            }
        }
    }

    /// Whether something has to be done in the pod and it is not known where it is.
    fn is_lost(&self, pod: &Pod, now: Instant) -> bool {
        let looked = self.scanned.get(&pod.uid).is_some_and(|when| *when + SCAN_AGAIN > now);
        let runs = pod.life == Life::Running && pod.network == Network::Own && !pod.ips.is_empty();
        if looked || !runs || self.sandboxes.find(pod).is_some() {
            return false;
        }
        let namespace = self.view.namespaces.get(&pod.namespace).copied().unwrap_or_default();
        let belongs = matches!(enroll::judge(pod, namespace, &self.rules), Verdict::In(_));
        belongs || pod.redirection != Redirection::Unsaid || self.roster.has(&pod.uid)
    }
}

/// Pods that were announced before they were seen. To be taken for gone they must first have been there. Pure.
#[derive(Debug, Default)]
struct Newcomers {
    pods: BTreeMap<String, (Arc<Pod>, Instant)>,
    /// What their namespaces said when they were announced: those may be as new, and seen even later.
    namespaces: BTreeMap<String, (Mode, Instant)>,
}

impl Newcomers {
    fn welcome(&mut self, pod: &Arc<Pod>, namespace: Mode, view: &mut View, now: Instant) {
        if !view.pods.iter().any(|seen| seen.uid == pod.uid) {
            self.pods.insert(pod.uid.clone(), (Arc::clone(pod), now + NEWCOMER));
            view.pods.push(Arc::clone(pod));
        }
        if !view.namespaces.contains_key(&pod.namespace) {
            self.namespaces.insert(pod.namespace.clone(), (namespace, now + NEWCOMER));
            view.namespaces.insert(pod.namespace.clone(), namespace);
        }
    }

    /// Adds to a view whoever is not in it yet.
    fn join(&mut self, view: &mut View, now: Instant) {
        for pod in &view.pods {
            self.pods.remove(&pod.uid);
        }
        self.pods.retain(|_, (_, until)| *until > now);
        view.pods.extend(self.pods.values().map(|(pod, _)| Arc::clone(pod)));
        self.namespaces.retain(|name, (_, until)| !view.namespaces.contains_key(name) && *until > now);
        view.namespaces.extend(self.namespaces.iter().map(|(name, (mode, _))| (name.clone(), *mode)));
    }
}

fn notice(refused: &Bystander) -> Notice {
    let Bystander { pod, reason, .. } = refused;
    Notice {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        reason: NOT_ENROLLED,
        note: format!("The pod is not in the mesh: {reason}. Remedy: {}", reason.remedy()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_pod_that_was_announced_counts_until_it_is_seen_or_never_is() {
        let view = |uids: &[&str]| View {
            pods: uids.iter().map(|uid| Arc::new(pod(uid))).collect(),
            ..View::default()
        };
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        let mut first = view(&["a"]);
        for uid in ["a", "b", "c"] {
            newcomers.welcome(&Arc::new(pod(uid)), Mode::Ambient, &mut first, now);
        }
        for (seen, later, shown) in [
            (&["a"][..], 0, &["a", "b", "c"][..]),
            (&["a", "b"], 1, &["a", "b", "c"]),
            // It was seen, and is not any more.
            (&["a"], 2, &["a", "c"]),
            (&[], 3, &["c"]),
            (&[], 600, &[]),
        ] {
            let mut view = view(seen);
            newcomers.join(&mut view, now + Duration::from_secs(later));
            assert_eq!(view.pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), shown, "{later}");
        }
    }

    #[test]
    fn what_the_namespace_of_an_announced_pod_said_holds_until_it_is_seen() {
        let (mut newcomers, now) = (Newcomers::default(), Instant::now());
        let mut first = View::default();
        newcomers.welcome(&Arc::new(pod("a")), Mode::Ambient, &mut first, now);
        assert_eq!(first.namespaces.get("shop"), Some(&Mode::Ambient));
        // The pod is seen before its namespace is.
        let mut view = View { pods: vec![Arc::new(pod("a"))], ..View::default() };
        newcomers.join(&mut view, now + Duration::from_secs(1));
        assert_eq!(view.namespaces.get("shop"), Some(&Mode::Ambient));
        // From then on the namespace alone says.
        let mut view = View { namespaces: [("shop".to_owned(), Mode::Unsaid)].into(), ..View::default() };
        newcomers.join(&mut view, now + Duration::from_secs(2));
        assert_eq!(view.namespaces.get("shop"), Some(&Mode::Unsaid));
        let mut view = View::default();
        newcomers.join(&mut view, now + Duration::from_secs(3));
        assert!(view.namespaces.is_empty());
    }
}
