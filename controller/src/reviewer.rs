//! Who calls, in Kubernetes: the API server is asked for each token (TokenReview), and what it says is believed for a
//! few seconds.
//!
//! A token counts if it is valid for the audience of the mesh and belongs to a service account (protocols 3.4). It
//! names the pod that it was given to; the node of a caller is the node of that pod, as the cluster has it, and only
//! if name, UID and account agree.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ambit_api::k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use ambit_model::{
    identity::{Identity, TrustDomain},
    name::Node,
};
use boring::sha::Sha256;
use kube::{Api, Client, api::PostParams};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::counter::ConstCounter};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::{Instant, timeout},
};
use tracing::debug;

use crate::{
    ca::caller::Caller,
    cluster::{Cluster, object::Name},
    engine::View,
    metrics::each,
};

/// How long a token that was found good is not asked for again. One that is taken back is refused after this.
const BELIEVED: Duration = Duration::from_secs(10);
/// How long a bad one is not: whoever guesses makes the API server work once a second at most.
const DISBELIEVED: Duration = Duration::from_secs(1);
/// Tokens that are remembered; the nodes of the largest clusters. When there are more, those that are not believed
/// any more are forgotten, then all.
const MOST_TOKENS: usize = 20_000;
/// Reviews under way. A caller beyond them waits for its turn.
const AT_ONCE: usize = 32;
/// Tunnels give an attempt eight seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// A longer token is no JWT that an API server signs.
const LONGEST_TOKEN: usize = 16 * 1024;

const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Asks the API server who callers are. Cheap to clone.
#[derive(Clone)]
pub struct Reviewer(Arc<Inner>);

struct Inner {
    client: Client,
    audiences: Vec<String>,
    trust_domain: TrustDomain,
    cluster: View,
    /// Tokens are remembered as hashes with a secret start, so that no memory of ours has one in it.
    salt: [u8; 32],
    remembered: Mutex<HashMap<[u8; 32], Review>>,
    turns: Semaphore,
    good: AtomicU64,
    bad: AtomicU64,
    unanswered: AtomicU64,
}

/// One token: its callers share one question.
#[derive(Clone)]
struct Review {
    begun: Instant,
    answer: Arc<OnceCell<Result<Account, Unreviewed>>>,
}

/// A service account, and the pod that its token was given to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    namespace: String,
    name: String,
    pod: Option<(String, String)>,
}

/// Why it is not known who calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreviewed {
    /// The API server does not vouch for it.
    #[error(
        "the token is not valid for the audience {audiences}: {said}; mount a service account token with that audience"
    )]
    NotValid {
        /// What it should be for.
        audiences: String,
        /// What the API server says.
        said: String,
    },
    /// It is a person's, or a node's.
    #[error("the token is that of {0:?}, which is no service account")]
    NotAnAccount(String),
    /// The API server did not answer, or not with yes or no.
    #[error("the API server could not be asked about the token: {0}; try again")]
    Unreachable(String),
    /// No random numbers for the salt.
    #[error("the crypto library has no random numbers")]
    Random,
}

impl Unreviewed {
    /// Whether the caller may be somebody all the same.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Random => true,
            Self::NotValid { .. } | Self::NotAnAccount(_) => false,
        }
    }
}

impl Reviewer {
    /// Callers are of `trust_domain` and show tokens for one of `audiences`. Where their pods are, `cluster` knows.
    pub fn new(
        client: Client,
        audiences: Vec<String>,
        trust_domain: TrustDomain,
        cluster: View,
    ) -> Result<Self, Unreviewed> {
        let mut salt = [0; 32];
        boring::rand::rand_bytes(&mut salt).map_err(|_| Unreviewed::Random)?;
        Ok(Self(Arc::new(Inner {
            client,
            audiences,
            trust_domain,
            cluster,
            salt,
            remembered: Mutex::default(),
            turns: Semaphore::new(AT_ONCE),
            good: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
        })))
    }

    /// Who shows this token.
    pub async fn identify(&self, token: &str) -> Result<Caller, Unreviewed> {
        let inner = &self.0;
        if token.len() > LONGEST_TOKEN {
            return Err(inner.not_valid("it is too long to be one"));
        }
        let digest = inner.digest(token);
        let review = inner.begin(digest, Instant::now());
        let answer = review.answer.get_or_init(|| inner.ask_and_count(token)).await.clone();
        match &answer {
            Ok(_) => {}
            // The next caller asks again at once.
            Err(why) if why.is_temporary() => inner.forget(digest, &review),
            Err(why) => debug!(error = %why, "Token refused"),
        }
        let account = answer?;
        let node = node_of(&inner.cluster.read(), &account);
        let identity =
            Identity::new(inner.trust_domain.as_str(), account.namespace.as_str(), account.name.as_str());
        Ok(Caller { identity, node })
    }
}

impl Collector for Reviewer {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = [("good", &self.0.good), ("bad", &self.0.bad), ("unanswered", &self.0.unanswered)];
        let counts =
            counts.map(|(outcome, count)| ([("outcome", outcome)], ConstCounter::new(count.load(Relaxed))));
        each(&mut to, "ambit_token_reviews", "Questions to the API server about tokens of callers", counts)
    }
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer").field("audiences", &self.0.audiences).finish_non_exhaustive()
    }
}

impl Inner {
    /// The question about a token: one that was asked a moment ago, or a new one.
    fn begin(&self, digest: [u8; 32], now: Instant) -> Review {
        let mut remembered = self.locked();
        if let Some(review) = remembered.get(&digest).filter(|review| review.holds(now)) {
            return review.clone();
        }
        if remembered.len() >= MOST_TOKENS {
            remembered.retain(|_, review| review.holds(now));
        }
        if remembered.len() >= MOST_TOKENS {
            remembered.clear();
        }
        let review = Review { begun: now, answer: Arc::default() };
        remembered.insert(digest, review.clone());
        review
    }

    fn forget(&self, digest: [u8; 32], review: &Review) {
        let mut remembered = self.locked();
        if remembered.get(&digest).is_some_and(|one| Arc::ptr_eq(&one.answer, &review.answer)) {
            remembered.remove(&digest);
        }
    }

    async fn ask_and_count(&self, token: &str) -> Result<Account, Unreviewed> {
        let answer = self.ask(token).await;
        let outcome = match &answer {
            Ok(_) => &self.good,
            Err(why) if why.is_temporary() => &self.unanswered,
            Err(_) => &self.bad,
        };
        outcome.fetch_add(1, Relaxed);
        answer
    }

    async fn ask(&self, token: &str) -> Result<Account, Unreviewed> {
        let unreachable = |error: &dyn fmt::Display| Unreviewed::Unreachable(error.to_string());
        let asked = async {
            let _turn = self.turns.acquire().await.map_err(|error| unreachable(&error))?;
            let question = TokenReview {
                spec: TokenReviewSpec { audiences: Some(self.audiences.clone()), token: token.to_owned() },
                ..TokenReview::default()
            };
            let api: Api<TokenReview> = Api::all(self.client.clone());
            api.create(&PostParams::default(), &question).await.map_err(|error| unreachable(&error))
        };
        let answer = timeout(PATIENCE, asked).await.map_err(|_| unreachable(&"it took too long"))??;
        account(answer.status.unwrap_or_default(), &self.audiences)
    }

    fn not_valid(&self, said: &str) -> Unreviewed {
        Unreviewed::NotValid { audiences: self.audiences.join(" or "), said: said.to_owned() }
    }

    fn digest(&self, token: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(&self.salt);
        hash.update(token.as_bytes());
        hash.finish()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<[u8; 32], Review>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Review {
    fn holds(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.begun);
        match self.answer.get() {
            // It is being asked.
            None => age < PATIENCE,
            Some(Ok(_)) => age < BELIEVED,
            Some(Err(_)) => age < DISBELIEVED,
        }
    }
}

/// The service account that a review names. An API server that does not know audiences names none: then the token was
/// not checked for ours.
fn account(status: TokenReviewStatus, audiences: &[String]) -> Result<Account, Unreviewed> {
    let not_valid =
        |said: &str| Unreviewed::NotValid { audiences: audiences.join(" or "), said: said.to_owned() };
    if status.authenticated != Some(true) {
        return Err(not_valid(status.error.as_deref().unwrap_or("the API server does not accept it")));
    }
    if !status.audiences.iter().flatten().any(|audience| audiences.contains(audience)) {
        return Err(not_valid("it is for somebody else"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.clone().unwrap_or_default();
    let is_account = user.groups.iter().flatten().any(|group| group == SERVICE_ACCOUNTS);
    let parts = name.strip_prefix(ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    match parts {
        Some((namespace, account)) if is_account && !namespace.is_empty() && !account.is_empty() => {
            Ok(Account {
                namespace: namespace.to_owned(),
                name: account.to_owned(),
                pod: extra(&user, POD_NAME).zip(extra(&user, POD_UID)),
            })
        }
        Some(_) | None => Err(Unreviewed::NotAnAccount(name)),
    }
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// The node of the pod that a token was given to. None if the cluster has no such pod (any more): then the caller is
/// itself, and nobody else.
fn node_of(cluster: &Cluster, account: &Account) -> Option<Node> {
    let (name, uid) = account.pod.as_ref()?;
    let pod = cluster.pods.get(&Name::new(account.namespace.as_str(), name.as_str()))?;
    let same = pod.meta.uid.as_str() == uid && pod.service_account.as_str() == account.name;
    (same && !pod.node.is_empty()).then(|| pod.node.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(status: Value) -> Result<Account, Unreviewed> {
        account(serde_json::from_value(status).unwrap(), &["istio-ca".to_owned()])
    }

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["istio-ca"],
            "user": {
                "username": "system:serviceaccount:istio-system:ztunnel",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "extra": {POD_NAME: ["ztunnel-x"], POD_UID: ["u1"]}
            }
        })
    }

    #[test]
    fn a_service_account_is_known_with_its_pod() {
        let account = read(good()).unwrap();
        assert_eq!((account.namespace.as_str(), account.name.as_str()), ("istio-system", "ztunnel"));
        assert_eq!(account.pod, Some(("ztunnel-x".to_owned(), "u1".to_owned())));
        let mut podless = good();
        podless["user"]["extra"].as_object_mut().unwrap().remove(POD_UID);
        assert_eq!(read(podless).unwrap().pod, None);
    }

    #[test]
    fn nobody_else_is_known() {
        let cases: [(&str, Value, &str); 8] = [
            ("/authenticated", json!(false), "not valid"),
            ("/authenticated", Value::Null, "not valid"),
            ("/audiences", json!([]), "somebody else"),
            ("/audiences", json!(["https://kubernetes.default.svc"]), "somebody else"),
            ("/user/groups", json!(["system:authenticated"]), "no service account"),
            ("/user/username", json!("system:node:n1"), "no service account"),
            ("/user/username", json!("system:serviceaccount::ztunnel"), "no service account"),
            ("/user/username", json!("system:serviceaccount:istio-system"), "no service account"),
        ];
        for (place, value, why) in cases {
            let mut status = good();
            *status.pointer_mut(place).unwrap() = value;
            let error = read(status.clone()).unwrap_err().to_string();
            assert!(error.contains(why), "{status}: {error}");
        }
    }

    #[test]
    fn what_is_believed_is_believed_for_a_while() {
        let now = Instant::now();
        let review = Review { begun: now, answer: Arc::default() };
        assert!(review.holds(now) && !review.holds(now + PATIENCE));
        review.answer.set(Err(Unreviewed::NotAnAccount("x".to_owned()))).unwrap();
        assert!(review.holds(now) && !review.holds(now + DISBELIEVED));
        let review = Review { begun: now, answer: Arc::default() };
        review.answer.set(read(good())).unwrap();
        assert!(review.holds(now + DISBELIEVED) && !review.holds(now + BELIEVED));
    }
}
