//! One leader at most, soon another, whatever clocks and connections do.

use std::time::Duration;

use ambit_controller::leader::{Counts, LeaseName, run};
use ambit_runtime::task;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::fake::{Fake, How, Link, failure};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/istio-system/leases/ambit-leader";
/// Longer than any of this takes.
const DEADLINE: Duration = Duration::from_secs(120);

struct Candidate {
    held: watch::Receiver<bool>,
    link: Link,
    counts: Counts,
    stop: oneshot::Sender<()>,
    task: task::Task,
}

fn candidate(fake: &Fake, me: &str) -> Candidate {
    let lease = LeaseName { namespace: "istio-system".to_owned(), name: "ambit-leader".to_owned() };
    let (link, counts) = (Link::default(), Counts::default());
    let (held, seen) = watch::channel(false);
    let (stop, stopped) = oneshot::channel();
    let client = fake.client_over(link.clone());
    let run = run(client, lease, me.to_owned(), held, counts.clone(), async {
        let _ = stopped.await;
    });
    Candidate { held: seen, link, counts, stop, task: task::spawn("candidate", run) }
}

impl Candidate {
    async fn leads(&mut self, wanted: bool) -> Duration {
        let began = Instant::now();
        timeout(DEADLINE, self.held.wait_for(|held| *held == wanted)).await.unwrap().unwrap();
        began.elapsed()
    }

    fn leads_now(&self) -> bool {
        *self.held.borrow()
    }
}

fn holder(fake: &Fake) -> Value {
    fake.get(PATH).unwrap()["spec"]["holderIdentity"].clone()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_when_it_ends_another_does_at_once() {
    let fake = Fake::default();
    let mut first = candidate(&fake, "first");
    first.leads(true).await;
    let mut second = candidate(&fake, "second");
    sleep(Duration::from_secs(60)).await;
    assert!(first.leads_now() && !second.leads_now(), "renewed for a minute");
    first.stop.send(()).unwrap();
    let waited = second.leads(true).await;
    assert!(waited < Duration::from_secs(4), "it left the lease to others, not {waited:?}");
    first.task.await;
    assert!(!*first.held.borrow());
    assert_eq!(holder(&fake), "second");
    assert_eq!(fake.get(PATH).unwrap()["spec"]["leaseTransitions"], 2 - 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_gives_up_before_another_takes_over() {
    let fake = Fake::default();
    let mut first = candidate(&fake, "first");
    first.leads(true).await;
    let mut second = candidate(&fake, "second");
    sleep(Duration::from_secs(20)).await;
    first.link.cut();
    let cut = Instant::now();
    first.leads(false).await;
    let gave_up = cut.elapsed();
    assert!(gave_up <= Duration::from_secs(10), "it went on for {gave_up:?}");
    assert!(!second.leads_now());
    second.leads(true).await;
    assert!(cut.elapsed() >= Duration::from_secs(12), "it was not given its time: {:?}", cut.elapsed());
    assert_eq!(first.counts.transitions(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_few_failures_do_not_end_a_leadership() {
    let fake = Fake::default();
    let mut first = candidate(&fake, "first");
    first.leads(true).await;
    fake.fault("leases", 1, How::Answer(500, failure(500, "InternalError", "etcd has no leader")));
    fake.fault("PUT", 1, How::Answer(429, failure(429, "TooManyRequests", "later")));
    sleep(Duration::from_secs(20)).await;
    fake.fault("leases", 1, How::Hang);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(first.counts.transitions(), 1);
    assert!(first.leads_now());
}

#[tokio::test(start_paused = true)]
async fn whoever_writes_first_wins_a_free_lease() {
    let fake = Fake::default();
    // It was read as free, but when it is written another has it.
    fake.fault("POST", 1, How::Answer(409, failure(409, "AlreadyExists", "it is there")));
    let mut first = candidate(&fake, "first");
    sleep(Duration::from_secs(1)).await;
    assert!(!first.leads_now());
    first.leads(true).await;
    let mut taken = fake.get(PATH).unwrap();
    taken["spec"]["holderIdentity"] = json!("other");
    fake.put(PATH, taken);
    let waited = first.leads(false).await;
    assert!(waited < Duration::from_secs(4), "it saw it at its next look, not after {waited:?}");
    assert_eq!(holder(&fake), "other", "and did not write over it");
}

#[tokio::test(start_paused = true)]
async fn the_clocks_of_others_do_not_count() {
    for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let fake = Fake::default();
        fake.put(
            PATH,
            json!({
                "metadata": { "name": "ambit-leader", "namespace": "istio-system" },
                "spec": { "holderIdentity": "other", "leaseDurationSeconds": 15, "renewTime": renewed },
            }),
        );
        let mut first = candidate(&fake, "first");
        let waited = first.leads(true).await;
        let range = Duration::from_secs(15)..Duration::from_secs(19);
        assert!(range.contains(&waited), "{renewed}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_is_made_again() {
    let fake = Fake::default();
    let mut first = candidate(&fake, "first");
    first.leads(true).await;
    fake.remove(PATH);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(holder(&fake), "first");
    assert_eq!(first.counts.transitions(), 3, "in between, another could have had it");
    assert!(first.leads_now());
}
