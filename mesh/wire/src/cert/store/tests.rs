//! The store against an issuer that the test directs, in virtual time.

use std::{
    sync::atomic::AtomicUsize,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{task::JoinSet, time::Instant};

use super::*;
use crate::{
    cert::{
        Issued,
        authority::{Authority, Serial, Validity},
    },
    tls::{Compliance, Versions, revoked::Revocation},
};

const HOUR: Duration = Duration::from_secs(3600);

/// The wall clock of a test: runs with tokio's.
#[derive(Clone, Copy)]
struct TestClock(Instant);

impl TestClock {
    fn epoch() -> SystemTime {
        UNIX_EPOCH + 50 * 365 * 24 * HOUR
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        Self::epoch() + self.0.elapsed()
    }
}

/// A CA that takes a second for each answer, and remembers.
struct SlowCa {
    authority: Authority,
    clock: TestClock,
    life: Duration,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<Identity>>,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Signs,
    Refuses,
    Hangs,
    SignsForOthers,
}

impl SlowCa {
    fn asked_for(&self, identity: &Identity) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == identity).count()
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn sign(&self, request: &SigningRequest, identity: &Identity) -> Result<Issued, IssueError> {
        let not_before = self.clock.now();
        let validity = Validity { not_before, not_after: not_before + self.life };
        let chain = self.authority.sign(&request.csr, identity, validity, Serial::random().unwrap())?;
        Ok(Issued { chain })
    }
}

impl Issuer for SlowCa {
    fn issue(&self, request: SigningRequest) -> BoxFuture<'_, Result<Issued, IssueError>> {
        async move {
            self.asked.lock().unwrap().push(request.identity.clone());
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            self.busiest.fetch_max(busy, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.busy.fetch_sub(1, Ordering::SeqCst);
            let mood = *self.mood.lock().unwrap();
            match mood {
                Mood::Signs => self.sign(&request, &request.identity),
                Mood::Refuses => {
                    Err(IssueError::Refused { code: "PermissionDenied".into(), message: "no".into() })
                }
                Mood::Hangs => std::future::pending().await,
                Mood::SignsForOthers => self.sign(&request, &identity("someone-else")),
            }
        }
        .boxed()
    }
}

/// A store, its CA, and the renewal task, which ends with the test.
struct Fixture {
    store: Certificates,
    ca: Arc<SlowCa>,
    _task: JoinSet<()>,
}

fn start() -> Fixture {
    start_as(Naming::AsRequested)
}

fn start_as(naming: Naming) -> Fixture {
    let clock = TestClock(Instant::now());
    let always = Validity {
        not_before: TestClock::epoch() - 1000 * HOUR,
        not_after: TestClock::epoch() + 100_000 * HOUR,
    };
    let ca = Arc::new(SlowCa {
        authority: Authority::self_signed(&"cluster.local".into(), always, Serial::new(1)).unwrap(),
        clock,
        life: HOUR,
        mood: Mutex::new(Mood::Signs),
        asked: Mutex::default(),
        busy: AtomicUsize::new(0),
        busiest: AtomicUsize::new(0),
    });
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
    let issuer = Arc::<SlowCa>::clone(&ca);
    let (store, renewal) = Certificates::new(profile, naming, issuer, clock);
    let mut task = JoinSet::new();
    task.spawn(renewal.run(std::future::pending()));
    Fixture { store, ca, _task: task }
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

#[tokio::test(start_paused = true)]
async fn many_connections_ask_the_ca_once() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    let certificates = futures_util::future::join_all((0..100).map(|_| store.get(&cart))).await;
    let first = certificates[0].as_ref().unwrap();
    assert_eq!(first.identity(), Some(&cart));
    assert!(certificates.iter().all(|other| Arc::ptr_eq(other.as_ref().unwrap(), first)));
    assert_eq!(ca.asked_for(&cart), 1);
    let before = Instant::now();
    store.get(&cart).now_or_never().expect("a held certificate is not waited for").unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(store.metrics().fetched.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_eight_requests_are_outstanding() {
    let Fixture { store, ca, _task } = start();
    let started = Instant::now();
    let identities: Vec<_> = (0..32).map(|n| identity(&format!("sa-{n}"))).collect();
    for identity in &identities {
        store.prefetch(identity).unwrap();
    }
    for identity in &identities {
        store.get(identity).await.unwrap();
    }
    assert_eq!(ca.busiest.load(Ordering::SeqCst), OUTSTANDING);
    assert_eq!(started.elapsed().as_secs(), 4, "32 requests of a second, eight at once");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_before_who_may_come() {
    let Fixture { store, ca, _task } = start();
    for n in 0..40 {
        store.prefetch(&identity(&format!("later-{n}"))).unwrap();
    }
    // All slots are taken by the time the connection comes.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    let urgent = identity("later-39");
    store.get(&urgent).await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(2), "{:?}", started.elapsed());
    let place = ca.asked.lock().unwrap().iter().position(|asked| *asked == urgent);
    assert!(place < Some(16), "{place:?}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_its_life_and_followers_see_it() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    let first = store.get(&cart).await.unwrap();
    let mut status = store.subscribe(&cart).unwrap();
    status.mark_unchanged();
    tokio::time::sleep(HOUR * 44 / 100).await;
    assert_eq!(ca.asked_for(&cart), 1, "not before 45 % of its life");
    tokio::time::sleep(HOUR * 7 / 100).await;
    assert_eq!(ca.asked_for(&cart), 2);
    assert!(status.has_changed().unwrap());
    let second = store.get(&cart).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert!(second.not_after() > first.not_after());
}

#[tokio::test(start_paused = true)]
async fn the_last_good_certificate_is_served_until_it_expires() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    let first = store.get(&cart).await.unwrap();
    ca.set(Mood::Refuses);
    tokio::time::sleep(HOUR * 9 / 10).await;
    assert!(ca.asked_for(&cart) > 5, "it keeps asking");
    let still = store.get(&cart).now_or_never().expect("without waiting").unwrap();
    assert!(Arc::ptr_eq(&first, &still));
    let [state] = &store.snapshot()[..] else { panic!() };
    assert!(matches!(state.status, Status::Ready(_)));
    assert!(state.last_failure.as_ref().unwrap().to_string().contains("refused"));

    tokio::time::sleep(HOUR / 5).await;
    let error = store.get(&cart).await.unwrap_err();
    assert!(matches!(error, CertError::Unavailable { .. }), "{error}");

    ca.set(Mood::Signs);
    tokio::time::sleep(Duration::from_secs(200)).await;
    store.get(&cart).now_or_never().expect("it came back by itself").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_retry_happens_at_the_very_end_of_a_life() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    let first = store.get(&cart).await.unwrap();
    ca.set(Mood::Refuses);
    let expiry = first.not_after().duration_since(ca.clock.now()).unwrap();
    tokio::time::sleep(expiry - Duration::from_millis(10)).await;
    let before = ca.asked_for(&cart);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(ca.asked_for(&cart), before + 1);
}

#[tokio::test(start_paused = true)]
async fn callers_get_the_failure_at_once_while_the_ca_is_given_a_rest() {
    let Fixture { store, ca, _task } = start();
    ca.set(Mood::Refuses);
    let cart = identity("cart");
    let error = store.get(&cart).await.unwrap_err().to_string();
    assert!(error.contains("spiffe://cluster.local/ns/shop/sa/cart"), "{error}");
    assert!(error.contains("PermissionDenied"), "{error}");
    for _ in 0..50 {
        store.get(&cart).now_or_never().expect("known to have failed").unwrap_err();
    }
    assert_eq!(ca.asked_for(&cart), 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let asked = ca.asked_for(&cart);
    assert!((4..=6).contains(&asked), "backing off: {asked}");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_never_answers_is_given_up_and_asked_again() {
    let Fixture { store, ca, _task } = start();
    ca.set(Mood::Hangs);
    let cart = identity("cart");
    let started = Instant::now();
    let error = store.get(&cart).await.unwrap_err();
    assert_eq!(started.elapsed(), FETCH_LIMIT);
    assert!(error.to_string().contains("did not answer"), "{error}");
    ca.set(Mood::Signs);
    tokio::time::sleep(Duration::from_secs(3)).await;
    store.get(&cart).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_even_in_a_long_queue() {
    let Fixture { store, ca, _task } = start();
    ca.set(Mood::Hangs);
    for n in 0..100 {
        store.prefetch(&identity(&format!("sa-{n}"))).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let error = store.get(&identity("last")).await.unwrap_err();
    assert!(matches!(error, CertError::TooSlow { .. }), "{error}");
    assert_eq!(started.elapsed(), WAIT_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_someone_else_is_taken_only_where_the_ca_decides_who_we_are() {
    let Fixture { store, ca, _task } = start();
    ca.set(Mood::SignsForOthers);
    let error = store.get(&identity("cart")).await.unwrap_err().to_string();
    assert!(error.contains("someone-else"), "{error}");

    let Fixture { store, ca, _task } = start_as(Naming::AsIssued);
    ca.set(Mood::SignsForOthers);
    let certificate = store.get(&identity("cart")).await.unwrap();
    assert_eq!(certificate.identity(), Some(&identity("someone-else")));
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_not_renewed_and_its_waiters_are_told() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    store.get(&cart).await.unwrap();
    store.forget(&cart);
    assert!(store.snapshot().is_empty());
    tokio::time::sleep(HOUR).await;
    assert_eq!(ca.asked_for(&cart), 1);

    let waiter = store.get(&cart);
    tokio::pin!(waiter);
    assert!((&mut waiter).now_or_never().is_none());
    store.forget(&cart);
    assert!(matches!(waiter.await, Err(CertError::Forgotten { .. })));
}

#[tokio::test(start_paused = true)]
async fn forgotten_and_wanted_again_meanwhile_is_still_one_request() {
    let Fixture { store, ca, _task } = start();
    let cart = identity("cart");
    store.prefetch(&cart).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    store.forget(&cart);
    store.get(&cart).await.unwrap();
    assert_eq!(ca.asked_for(&cart), 1);
}

#[tokio::test(start_paused = true)]
async fn the_store_is_bounded() {
    let Fixture { store, .. } = start();
    for n in 0..MOST_IDENTITIES {
        store.prefetch(&identity(&format!("sa-{n}"))).unwrap();
    }
    assert!(matches!(store.prefetch(&identity("one-more")), Err(CertError::TooMany)));
    store.prefetch(&identity("sa-0")).unwrap();
}

#[tokio::test(start_paused = true)]
async fn renewal_ends_when_it_is_told_to() {
    let profile = Profile::new(Compliance::None, Versions::Tls13, Revocation::NotConfigured).unwrap();
    let Fixture { ca, .. } = start();
    let clock = ca.clock;
    let (store, renewal) = Certificates::new(profile, Naming::AsRequested, ca, clock);
    store.prefetch(&identity("cart")).unwrap();
    renewal.run(tokio::time::sleep(Duration::from_millis(10))).await;
    assert!(matches!(store.snapshot()[0].status, Status::Pending));
}
