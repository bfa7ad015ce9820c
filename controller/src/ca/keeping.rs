//! What signs, in Kubernetes: found in a Secret or made once, followed as the Secrets change, rotated when an operator
//! wishes so.
//!
//! | in the system namespace | what signs |
//! |---|---|
//! | `cacerts` | the plugged-in authority |
//! | `istio-ca-secret` | our root, or the one that Istio's control plane made |
//! | neither | a root is made and kept in `istio-ca-secret`; of replicas that start together one makes it |
//!
//! Every replica signs with it and follows both Secrets. One that cannot be used, or that would cut off whoever holds a
//! certificate ([`super::succession`]), stops the start; later, the last good one stays in force and the page says why.
//! Only the leader writes: it carries out steps of a rotation ([`super::rotation`]), and puts `istio-ca-secret` back if
//! somebody deletes it while it is in force, because a replica that starts would otherwise make another root.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use ambit_api::labels::CA_LONGEST_LIFE;
use ambit_runtime::backoff::Backoff;
use ambit_wire::cert::authority::SignError;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{error, info, warn};

use super::{
    distribute::ROOTS,
    in_force::InForce,
    lease::{self, Taken},
    rotation::Refusal,
    secret::{self, CACERTS, Making, OWN, SecretError},
    succession::{Abrupt, Told},
    watching,
};

/// An API server that restarts is back by then; after that the kubelet's back-off is kinder to it than ours.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long to wait for another replica that makes the root. Then it is made here: the Secret is created once only.
const MAKING_LIMIT: Duration = Duration::from_secs(30);
/// A request that hangs must not hold up the next one, nor a stop.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// What is not taken may be right later without a change of its own: the mesh may be told of its root by others.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the keeper needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the Secrets are.
    pub system_namespace: String,
    /// How roots are made.
    pub making: Making,
    /// This replica, as holder of a Lease.
    pub replica: String,
}

/// Keeps what signs.
pub struct Keeper {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    settings: Settings,
    in_force: watch::Sender<Arc<InForce>>,
    /// `istio-ca-secret` as it was when it was last of use.
    good: Option<Secret>,
    counts: Arc<Counts>,
}

/// What happened to Secrets.
#[derive(Debug, Default)]
pub struct Counts {
    /// Times that a changed Secret could not be used.
    pub rejected: AtomicU64,
    /// Steps of rotations that were carried out here.
    pub steps: AtomicU64,
    /// Steps that were refused here.
    pub refusals: AtomicU64,
    /// Writes that failed.
    pub failures: AtomicU64,
}

impl Keeper {
    /// Finds what signs, or makes it.
    pub async fn open(client: Client, settings: Settings) -> Result<Self, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.system_namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &settings.system_namespace);
        let limit = Instant::now() + START_LIMIT;
        let now = SystemTime::now();
        let (in_force, good) = match get(&secrets, CACERTS, limit).await? {
            Some(found) => {
                let next = secret::plugged(&found, now)?;
                let told = told_roots(&maps, &found, limit).await?;
                match told.allows_first(&next) {
                    Ok(()) => (next, None),
                    Err(abrupt) => {
                        // If we have what the mesh knows, it signs on.
                        let Some(found) = get(&secrets, OWN, limit).await? else { return Err(abrupt.into()) };
                        let own = secret::own(&found, &settings.making, now)?;
                        if told.allows_first(&own).is_err() {
                            return Err(abrupt.into());
                        }
                        error!(error = %abrupt, "The root that was made here stays in force");
                        (InForce { problem: Some(abrupt.to_string()), ..own }, Some(found))
                    }
                }
            }
            None => {
                let found = match get(&secrets, OWN, limit).await? {
                    Some(found) => found,
                    None => make(&client, &secrets, &settings, limit).await?,
                };
                (secret::own(&found, &settings.making, now)?, Some(found))
            }
        };
        let left = in_force.expires().duration_since(now).unwrap_or_default().as_secs();
        info!(ca.origin = ?in_force.root.origin, left_seconds = left, "Authority ready");
        let in_force = watch::Sender::new(Arc::new(in_force));
        Ok(Self { secrets, maps, settings, in_force, good, counts: Arc::default() })
    }

    /// What signs, now and later.
    pub fn in_force(&self) -> watch::Receiver<Arc<InForce>> {
        self.in_force.subscribe()
    }

    /// For whoever signs for longer than was ever signed for.
    pub fn lives(&self) -> Lives {
        Lives { secrets: Arc::new(self.secrets.clone()) }
    }

    /// What happened so far.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Follows both Secrets until `stop`. While it is the `leader` it writes them, too.
    pub async fn follow(mut self, mut leader: watch::Receiver<bool>, stop: impl Future<Output = ()> + Send) {
        let mut stop = pin!(stop);
        let mut plugged = pin!(watching::object(self.secrets.clone(), CACERTS));
        let mut own = pin!(watching::object(self.secrets.clone(), OWN));
        let mut seen = Seen::default();
        let mut waits = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut again: Option<Instant> = None;
        let mut leads = *leader.borrow_and_update();
        loop {
            let due = again;
            tokio::select! {
                () = &mut stop => return,
                Some(event) = plugged.next() => match event {
                    Ok(found) => seen.plugged = Some(found),
                    Err(error) => { not_followed(CACERTS, &error); continue }
                },
                Some(event) = own.next() => match event {
                    Ok(found) => seen.own = Some(found),
                    Err(error) => { not_followed(OWN, &error); continue }
                },
                // Without a leader's voice, nobody leads.
                Ok(()) = leader.changed() => leads = *leader.borrow_and_update(),
                () = async { match due { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
            }
            again = None;
            let (Some(plugged), Some(own)) = (&seen.plugged, &seen.own) else { continue };
            self.judge(plugged.as_ref(), own.as_ref()).await;
            if self.in_force.borrow().problem.is_some() {
                again = Some(Instant::now() + LOOK_AGAIN);
            }
            if !leads {
                continue;
            }
            match in_time(self.write(own.as_ref())).await {
                Ok(()) => waits.reset(),
                Err(error) => {
                    self.counts.failures.fetch_add(1, Relaxed);
                    warn!(secret.name = OWN, error = told(&error), "Secret not written, trying again");
                    again = Some(Instant::now() + waits.next(rand::random()));
                }
            }
        }
    }

    /// Puts in force what the Secrets say now, if that can be.
    async fn judge(&mut self, plugged: Option<&Secret>, own: Option<&Secret>) {
        let is_plugged_in = self.in_force.borrow().is_plugged_in();
        let mut problem = None;
        if let Some(found) = plugged {
            match self.newcomer(found).await {
                Ok(next) => return self.replace(next),
                Err(error) => {
                    self.object(&error);
                    problem = Some(error.to_string());
                }
            }
        }
        match own {
            _ if is_plugged_in && plugged.is_some() => {}
            _ if is_plugged_in => self.object(&Deleted(CACERTS)),
            // Ours signs on while the newcomer cannot, and is followed.
            Some(found) => match secret::own(found, &self.settings.making, SystemTime::now()) {
                Ok(next) => {
                    self.good = Some(found.clone());
                    self.replace(InForce { problem, ..next });
                }
                Err(error) => self.object(&error),
            },
            None => self.object(&Deleted(OWN)),
        }
    }

    /// What `cacerts` holds, if it may sign from now on.
    async fn newcomer(&self, found: &Secret) -> Result<InForce, KeepError> {
        let next = secret::plugged(found, SystemTime::now())?;
        let current = Arc::clone(&self.in_force.borrow());
        if !next.signs_as(&current) {
            // One attempt: what is in force stays so meanwhile.
            told_roots(&self.maps, found, Instant::now()).await?.allows(&current, &next)?;
        }
        Ok(next)
    }

    fn replace(&self, next: InForce) {
        let current = Arc::clone(&self.in_force.borrow());
        if is_same(&next, &current) {
            return;
        }
        if !next.signs_as(&current) {
            info!(ca.origin = ?next.root.origin, ca.stage = next.rotation.stage().word(), "Authority replaced");
        }
        self.in_force.send_replace(Arc::new(next));
    }

    /// What is in force stays so, and the reason is told.
    fn object(&self, problem: &dyn fmt::Display) {
        let problem = problem.to_string();
        let is_new = self.in_force.send_if_modified(|in_force| {
            let is_new = in_force.problem.as_ref() != Some(&problem);
            if is_new {
                let told = InForce { problem: Some(problem.clone()), ..InForce::clone(in_force) };
                *in_force = Arc::new(told);
            }
            is_new
        });
        if is_new {
            self.counts.rejected.fetch_add(1, Relaxed);
            error!(error = problem, "The authority that was in force stays in force");
        }
    }

    /// What only the leader does.
    async fn write(&self, own: Option<&Secret>) -> Result<(), kube::Error> {
        let current = Arc::clone(&self.in_force.borrow());
        let is_plugged = current.is_plugged_in();
        let Some(own) = own else {
            return match &self.good {
                Some(good) if !is_plugged => {
                    warn!(secret.name = OWN, "The Secret with the root was deleted; it is put back");
                    let made = self.secrets.create(&PostParams::default(), &secret::again(good)).await;
                    unless_conflict(made.map(drop))
                }
                Some(_) | None => Ok(()),
            };
        };
        let Some(word) = secret::wish(own) else { return Ok(()) };
        let now = SystemTime::now();
        let making = &self.settings.making;
        let step = || -> Result<Secret, NotTaken> {
            if is_plugged {
                return Err(Refusal::PluggedIn.into());
            }
            let in_force = secret::own(own, making, now)?;
            Ok(secret::stepped(own, &in_force, word.parse()?, making, now)?)
        };
        let (next, count) = match step() {
            Ok(next) => {
                info!(
                    ca.step = word,
                    ca.stage = current.rotation.stage().word(),
                    "Taking a step of the rotation"
                );
                (next, &self.counts.steps)
            }
            Err(why) => {
                warn!(ca.step = word, error = %why, "Step of the rotation refused");
                (secret::refused(own, &why), &self.counts.refusals)
            }
        };
        let written = self.secrets.replace(OWN, &PostParams::default(), &next).await;
        if written.is_ok() {
            count.fetch_add(1, Relaxed);
        }
        // Somebody else wrote it: we hear of that, and look again.
        unless_conflict(written.map(drop))
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Both Secrets, as far as they are known.
#[derive(Default)]
struct Seen {
    plugged: Option<Option<Secret>>,
    own: Option<Option<Secret>>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "Secret {0} was deleted; put it back. What it held stays in force until this controller starts again, and then \
     another root would be used"
)]
struct Deleted(&'static str);

#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Broken(#[from] SecretError),
}

/// Writes down the longest life that is signed for, before it is signed for. Cheap to clone.
#[derive(Clone)]
pub struct Lives {
    secrets: Arc<Api<Secret>>,
}

impl Lives {
    /// Raises what is written to `life` at least.
    pub async fn raise(&self, life: Duration) -> Result<(), LivesError> {
        /// As many replicas may want the same at once.
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            let found = self.secrets.get_metadata(OWN).await.map_err(|error| LivesError(told(&error)))?;
            let metadata = found.metadata;
            let written = metadata.annotations.as_ref().and_then(|all| all.get(CA_LONGEST_LIFE));
            let written = written.and_then(|text| text.parse().ok()).map(Duration::from_secs);
            if written.is_some_and(|written| written >= life) {
                return Ok(());
            }
            let change = json!({"metadata": {
                "resourceVersion": metadata.resource_version,
                "annotations": { CA_LONGEST_LIFE: life.as_secs().to_string() },
            }});
            match self.secrets.patch_metadata(OWN, &PatchParams::default(), &Patch::Merge(change)).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(LivesError(told(&error))),
            }
        }
        Err(LivesError("others write it all the time".to_owned()))
    }
}

impl fmt::Debug for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lives")
    }
}

/// It is not written down, so it must not be signed for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the life of this certificate cannot be written beside the root: {0}")]
pub struct LivesError(String);

/// What the mesh is told to trust now.
async fn told_roots(maps: &Api<ConfigMap>, newcomer: &Secret, limit: Instant) -> Result<Told, KeepError> {
    let map = get(maps, ROOTS.0, limit).await?;
    let data = map.and_then(|map| map.data).unwrap_or_default();
    Ok(Told::read(data.get(ROOTS.1).map_or("", String::as_str), newcomer))
}

async fn get<K>(api: &Api<K>, name: &'static str, limit: Instant) -> Result<Option<K>, KeepError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
{
    let kind = K::kind(&());
    let mut waits = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let error = match in_time(api.get_opt(name)).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let wait = waits.next(rand::random());
        if !is_passing(&error) || Instant::now() + wait > limit {
            return Err(KeepError::Read { kind, name, problem: told(&error) });
        }
        warn!(object.kind = %kind, object.name = name, %error, "Not read, trying again");
        sleep(wait).await;
    }
}

/// Makes the root, or takes the one that another replica made.
async fn make(
    client: &Client,
    secrets: &Api<Secret>,
    settings: &Settings,
    limit: Instant,
) -> Result<Secret, KeepError> {
    let (namespace, me) = (&settings.system_namespace, &settings.replica);
    let patience = Instant::now() + MAKING_LIMIT;
    let mut is_held = false;
    while Instant::now() < patience {
        match in_time(lease::take(client, namespace, me)).await {
            Ok(Taken::Ours) => {
                is_held = true;
                break;
            }
            Ok(Taken::Theirs) => {
                info!(lease.name = lease::NAME, "Another replica makes the root, waiting for it")
            }
            Err(error) if is_passing(&error) => warn!(lease.name = lease::NAME, %error, "Lease not taken"),
            Err(error) => {
                let error = told(&error);
                warn!(lease.name = lease::NAME, error, "Lease not taken; the root is made without it");
                break;
            }
        }
        sleep(Duration::from_secs(1)).await;
        if let Some(found) = get(secrets, OWN, limit).await? {
            return Ok(found);
        }
    }
    let made = create(secrets, settings, limit).await;
    if is_held {
        lease::give_back(client, namespace, me).await;
    }
    made
}

async fn create(secrets: &Api<Secret>, settings: &Settings, limit: Instant) -> Result<Secret, KeepError> {
    // Made while we waited for the Lease?
    if let Some(found) = get(secrets, OWN, limit).await? {
        return Ok(found);
    }
    let fresh = secret::fresh(&settings.making, SystemTime::now())?;
    let mut waits = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let error = match in_time(secrets.create(&PostParams::default(), &fresh)).await {
            Ok(made) => {
                info!(secret.name = OWN, "Root made");
                return Ok(made);
            }
            Err(error) => error,
        };
        // Another was faster; or an attempt of ours succeeded although its answer was lost. What is there counts.
        if let Some(found) = get(secrets, OWN, limit).await? {
            return Ok(found);
        }
        let wait = waits.next(rand::random());
        if !is_passing(&error) || Instant::now() + wait > limit {
            return Err(KeepError::Write { problem: told(&error) });
        }
        sleep(wait).await;
    }
}

/// A request that is not answered in time fails as one whose connection broke.
async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service(format!("no answer within {REQUEST_LIMIT:?}").into());
    timeout(REQUEST_LIMIT, request).await.map_err(late)?
}

/// Whether it may work in a moment.
fn is_passing(error: &kube::Error) -> bool {
    if let kube::Error::Api(status) = error {
        return matches!(status.code, 408 | 409 | 429 | 500..);
    }
    // Connections that fail. What is wrong with our own requests comes as other kinds.
    matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_))
}

/// An error for whoever must act on it.
pub(super) fn told(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else { return error.to_string() };
    if status.is_forbidden() {
        let why = &status.message;
        return format!("{why}; the roles of this controller do not allow it: install it again");
    }
    status.message.clone()
}

fn not_followed(name: &'static str, error: &kube::runtime::watcher::Error) {
    warn!(secret.name = name, %error, "Secret not followed for now; what is in force stays so");
}

fn unless_conflict(written: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match written {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other,
    }
}

fn is_same(one: &InForce, other: &InForce) -> bool {
    one.signs_as(other)
        && one.rotation == other.rotation
        && one.longest == other.longest
        && one.lists == other.lists
        && one.problem == other.problem
        && one.root.origin == other.root.origin
}

/// Why nothing can sign. The daemon must not start.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The Secret is there and cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It would cut off others.
    #[error(transparent)]
    Abrupt(#[from] Abrupt),
    /// Something cannot be read.
    #[error("{kind} {name} cannot be read: {problem}")]
    Read {
        /// Of which kind.
        kind: Cow<'static, str>,
        /// Which.
        name: &'static str,
        /// Why.
        problem: String,
    },
    /// It cannot be made.
    #[error("Secret istio-ca-secret with a new root cannot be created: {problem}")]
    Write {
        /// Why.
        problem: String,
    },
    /// No root.
    #[error("no root could be made: {0}")]
    Sign(#[from] SignError),
}
