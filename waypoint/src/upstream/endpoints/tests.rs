//! Who is asked, and who may be set aside.

use std::sync::Barrier;

use ambit_fixtures::mesh::{pod, service, snapshot};
use ambit_model::{
    balance::Purpose,
    service::Service,
    snapshot::Snapshot,
    traffic::{Balancing, FailureKind, HashOn, TrafficPolicy, hash},
};

use super::*;
use crate::upstream::health::Outcome;

const WEB: &str = "shop/web.shop.svc.cluster.local";
const S: Duration = Duration::from_secs(1);

/// A service with some endpoints, and how they do.
struct Stage {
    mesh: Snapshot,
    service: Service,
    client: Workload,
    terms: Terms,
    kept: Arc<Destination>,
    affinity: Affinity,
    endpoints: Endpoints,
}

impl Stage {
    fn new(count: usize, algorithm: Algorithm) -> Self {
        let pods = (0..count).map(|number| {
            pod(&format!("shop/web-{number}")).at(&format!("10.0.0.{number}")).behind(WEB, &[])
        });
        let web = service(WEB).ports(&[(80, 8080)]);
        let balancing = Balancing { algorithm, ..Balancing::default() };
        let policy = Arc::new(TrafficPolicy { balancing, ..TrafficPolicy::default() });
        Self {
            mesh: snapshot(pods, [web.clone()]),
            service: web.build(),
            client: pod("shop/client").build(),
            terms: Terms { subset: None, policy: Some(policy) },
            kept: Arc::default(),
            affinity: Affinity { key: Some(7), session: None },
            endpoints: Endpoints::default(),
        }
    }

    fn known(&self) -> &OfService {
        self.mesh.endpoints(&self.service.key()).expect("endpoints")
    }

    fn question(&self, now: Duration) -> Question<'_> {
        let wanted = Wanted::of(&self.service, 80, Purpose::Standard, (&self.client).into());
        let Self { terms, kept, affinity, .. } = self;
        Question { wanted, terms, kept: Some(kept), affinity, tried: &[], now }
    }

    fn doing(&self, number: usize) -> Arc<Doing> {
        let uid = &self.known().as_slice()[number].workload.uid;
        self.endpoints.born(self.question(S).key(uid), None)
    }

    /// Who is asked by thirty requests.
    fn asked(&self, now: Duration) -> Vec<String> {
        let mut rolls = 0_u64..;
        let mut dice = |bound: u64| hash(&rolls.next().expect("a number").to_be_bytes()) % bound.max(1);
        let names = (0..30).map(|_| {
            let question = self.question(now);
            let (pick, _) = self.endpoints.choose(&question, self.known(), &mut dice).expect("an endpoint");
            pick.endpoint.workload.name.to_string()
        });
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[test]
fn who_rests_is_asked_where_all_others_rest_or_are_set_aside() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random] {
        let stage = Stage::new(3, algorithm.clone());
        assert_eq!(stage.asked(S), ["web-0", "web-1", "web-2"], "{algorithm:?}");
        assert!(stage.doing(0).rest(S, 5 * S));
        assert!(!stage.doing(0).rest(S, 4 * S), "it does already, and for longer");
        assert_eq!(stage.asked(S), ["web-1", "web-2"], "{algorithm:?}");
        assert_eq!(stage.asked(6 * S), ["web-0", "web-1", "web-2"], "{algorithm:?}: its time is over");
        let outliers = Outliers { unreachable: Some(1), ..Outliers::default() };
        for number in 1..3 {
            let gone = Outcome::Failed(FailureKind::Unreachable);
            let step = |health: Health, may_be| health.after(gone, S, &outliers, may_be);
            let why = stage.endpoints.step(&stage.doing(number), S, step, || true);
            assert_eq!(why, Some(Reason::Failures));
        }
        assert_eq!(stage.asked(S), ["web-0"], "{algorithm:?}: rather than one that is set aside");
    }
}

#[test]
fn a_key_stays_where_it_is_while_the_endpoint_rests() {
    let stage = Stage::new(3, Algorithm::Hash(HashOn::Source));
    let found = stage.asked(S);
    (0..3).for_each(|number| assert!(stage.doing(number).rest(S, 5 * S)));
    assert_eq!((found.len(), stage.asked(S)), (1, found));
}

#[test]
fn of_those_that_fail_at_the_same_instant_no_more_are_set_aside_than_may_be() {
    let outliers = Outliers { unreachable: Some(1), most_percent: 25, ..Outliers::default() };
    let gone = Outcome::Failed(FailureKind::Unreachable);
    for _ in 0..200 {
        let stage = Stage::new(8, Algorithm::RoundRobin);
        let together = Barrier::new(8);
        let fails = &|number: usize| {
            let (doing, question) = (stage.doing(number), stage.question(S));
            together.wait();
            let step = |health: Health, may_be| health.after(gone, S, &outliers, may_be);
            let may_be = || stage.endpoints.admit_one_more(&question, stage.known(), &outliers);
            stage.endpoints.step(&doing, S, step, may_be).is_some()
        };
        let gone = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || fails(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).collect::<Vec<_>>()
        });
        let aside = (0..8).filter(|number| !stage.doing(*number).health().is_trusted(S)).count();
        assert_eq!((gone.iter().filter(|gone| **gone).count(), aside), (2, 2));
    }
}
