//! The keys of issuers: those that are written in a policy, and those that are fetched, kept and fetched again.
//!
//! A fetched set is used until another has come: an identity provider that is down for a day locks nobody out. After
//! [`KEPT`] it is no longer believed. Where no set was ever had, no token of the issuer is believed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ambit_model::authn::{Keys, TokenRule};
use ambit_runtime::task;
use hashbrown::HashMap;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    fetch::Fetch,
    jwt::{InvalidKeys, KeySet},
};

/// How often keys are fetched again, as Istio does.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// How soon after a failure.
const AGAIN: Duration = Duration::from_secs(10);
/// How soon again because a token names a key that is not known: keys rotate, and tokens lie.
const ROTATED: Duration = Duration::from_secs(30);
/// How long keys are believed that could not be fetched again.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a request waits for the first fetch.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many sets are kept; a policy has one or two issuers.
const MOST: usize = 1024;

/// All sets of keys.
#[derive(Debug)]
pub struct KeyStore {
    fetch: Arc<Fetch>,
    inline: Mutex<HashMap<Box<str>, Parsed>>,
    remote: Mutex<HashMap<Published, Remote>>,
}

/// A set, or why there is none.
type Parsed = Result<Arc<KeySet>, InvalidKeys>;

/// Where a set is published.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Published {
    /// At this address.
    At(Box<str>),
    /// Where the OpenID configuration of this issuer says.
    By(Box<str>),
}

impl Published {
    /// `None`: it is written in the rule.
    fn of(rule: &TokenRule) -> Option<Self> {
        match &rule.keys {
            Keys::Inline(_) => None,
            Keys::At(url) => Some(Self::At(url.clone())),
            Keys::Discovered => Some(Self::By(rule.issuer.as_str().into())),
        }
    }

    async fn fetch(&self, fetch: &Fetch) -> Result<KeySet, InvalidKeys> {
        let json = match self {
            Self::At(url) => fetch.get(url).await?,
            Self::By(issuer) => {
                let page = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let configuration: Configuration = serde_json::from_str(&fetch.get(&page).await?)
                    .map_err(|error| InvalidKeys(format!("{page}: {error}")))?;
                fetch.get(&configuration.jwks_uri).await?
            }
        };
        KeySet::parse(&json)
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(url) => f.write_str(url),
            Self::By(issuer) => write!(f, "the issuer {issuer}"),
        }
    }
}

/// What is read of an issuer's OpenID configuration (OpenID Connect Discovery 1.0, 3).
#[derive(Deserialize)]
struct Configuration {
    jwks_uri: String,
}

/// A set that is fetched.
#[derive(Clone, Debug)]
struct Remote {
    fetched: watch::Receiver<Option<Fetched>>,
    wanted: Arc<Notify>,
}

#[derive(Clone, Debug)]
struct Fetched {
    keys: Parsed,
    at: Instant,
}

impl KeyStore {
    /// Fetches with `fetch`.
    pub fn new(fetch: Fetch) -> Self {
        Self { fetch: Arc::new(fetch), inline: Mutex::default(), remote: Mutex::default() }
    }

    /// The keys of an issuer, as they are known now.
    pub async fn get(&self, rule: &TokenRule) -> Parsed {
        if let Keys::Inline(json) = &rule.keys {
            return self.inline(json);
        }
        let Some(published) = Published::of(rule) else {
            return Err(InvalidKeys("they are nowhere".to_owned()));
        };
        let mut fetched = self.remote(&published)?.fetched;
        let came = timeout(PATIENCE, fetched.wait_for(Option::is_some)).await;
        let known = match came {
            Ok(Ok(known)) => known.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let known = known.ok_or_else(|| InvalidKeys(format!("{published} does not answer")))?;
        if known.at.elapsed() > KEPT {
            return Err(InvalidKeys(format!("{published} has not answered for {KEPT:?}")));
        }
        known.keys
    }

    /// A token named a key that is not in the set: maybe there is a new one.
    pub fn is_missing_a_key(&self, rule: &TokenRule) {
        let all = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = Published::of(rule).and_then(|published| all.get(&published)) {
            remote.wanted.notify_one();
        }
    }

    fn inline(&self, json: &str) -> Parsed {
        let mut all = self.inline.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(json) {
            return known.clone();
        }
        if all.len() >= MOST {
            all.clear();
        }
        let parsed = KeySet::parse(json).map(Arc::new);
        all.insert(json.into(), parsed.clone());
        parsed
    }

    fn remote(&self, published: &Published) -> Result<Remote, InvalidKeys> {
        let mut all = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(published) {
            return Ok(known.clone());
        }
        if all.len() >= MOST {
            return Err(InvalidKeys(format!("more than {MOST} addresses of keys")));
        }
        let (tell, fetched) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        task::spawn("keys", follow(published.clone(), self.fetch.clone(), tell, wanted.clone()));
        let remote = Remote { fetched, wanted };
        all.insert(published.clone(), remote.clone());
        Ok(remote)
    }
}

/// Keeps one set up to date.
async fn follow(
    published: Published,
    fetch: Arc<Fetch>,
    tell: watch::Sender<Option<Fetched>>,
    wanted: Arc<Notify>,
) {
    loop {
        let fetched = published.fetch(&fetch).await;
        let pause = match fetched {
            Ok(keys) => {
                tell.send_replace(Some(Fetched { keys: Ok(Arc::new(keys)), at: Instant::now() }));
                REFRESH
            }
            Err(error) => {
                tracing::warn!(keys = %published, %error, "Keys were not fetched; what is known of them stays in force");
                tell.send_if_modified(|known| match known {
                    Some(Fetched { keys: Ok(_), .. }) => false,
                    Some(Fetched { keys: Err(_), .. }) | None => {
                        *known = Some(Fetched { keys: Err(error), at: Instant::now() });
                        true
                    }
                });
                AGAIN
            }
        };
        let soonest = ROTATED.min(pause);
        tokio::time::sleep(soonest).await;
        tokio::select! {
            () = wanted.notified() => {}
            () = tokio::time::sleep(pause - soonest) => {}
        }
    }
}
