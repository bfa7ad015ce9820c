//! cert-manager as the one that signs for workloads: a CertificateRequest for each certificate, deleted when it is
//! answered.
//!
//! cert-manager signs what a request says, so a request is passed on only if it says exactly what the caller may have
//! ([`super::exact`]), and what comes back is compared with it. This controller's own certificate stays with its own
//! authority, so workloads are told to trust both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ambit_api::labels::{CERTIFICATE_IDENTITY, MANAGED_BY, MANAGED_BY_AMBIT};
use ambit_model::identity::Identity;
use ambit_runtime::task;
use ambit_wire::cert::authority::SignError;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use boring::x509::{X509, X509Req};
use futures_util::StreamExt as _;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tonic::Status;
use tracing::{debug, info, warn};

use super::{exact, keeping::told, watching};

/// Each holds a watch at the API server. More callers wait for their turn, and give up before the tunnels' next attempt.
const AT_ONCE: usize = 32;
const TURN_LIMIT: Duration = Duration::from_secs(5);
/// An issuer in the cluster answers within a second or two; one that needs longer is not one for workloads that wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Requests of ours that are older were left behind by a replica that died.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_secs(600);
/// A reason of cert-manager is repeated to callers up to this length.
const LONGEST_REASON: usize = 300;

/// Whom cert-manager is to let sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// Its name.
    pub name: String,
    /// `Issuer`, `ClusterIssuer`, or a kind of others.
    pub kind: String,
    /// The kind's group.
    pub group: String,
}

/// What asking cert-manager needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where requests are created, and where an `Issuer` is.
    pub namespace: String,
    /// Who signs.
    pub issuer: Issuer,
    /// Its roots, PEM, for issuers that do not tell them.
    pub roots: Option<String>,
}

/// Asks cert-manager.
pub struct CertManager {
    requests: Api<DynamicObject>,
    kind: ApiResource,
    settings: Settings,
    turns: Semaphore,
    counts: Counts,
}

/// What became of requests.
#[derive(Debug, Default)]
pub struct Counts {
    /// Signed.
    pub signed: AtomicU64,
    /// Denied, invalid or failed, says cert-manager.
    pub refused: AtomicU64,
    /// Not answered in time, or not even asked for.
    pub unanswered: AtomicU64,
    /// Answered with something that is not what was asked.
    pub unusable: AtomicU64,
}

impl CertManager {
    /// Asks through `client`.
    pub fn new(client: Client, settings: Settings) -> Self {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("cert-manager.io", "v1", "CertificateRequest"),
            "certificaterequests",
        );
        let requests = Api::namespaced_with(client, &settings.namespace, &kind);
        Self { requests, kind, settings, turns: Semaphore::new(AT_ONCE), counts: Counts::default() }
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Has a certificate signed. The answer has the form of our own authority's: the leaf, intermediates, and all roots,
    /// with `own_roots` among them.
    pub async fn issue(
        self: &Arc<Self>,
        csr: &str,
        identity: &Identity,
        life: Duration,
        own_roots: &str,
    ) -> Result<Vec<String>, NotIssued> {
        let request = exact::request(csr, identity)?;
        let (answer, answered) = oneshot::channel();
        // What was checked is what is sent: the caller's text may hold more than one request.
        let csr = request.to_pem().map_err(|_| NotIssued::NotAsked("it cannot be written".to_owned()))?;
        let csr = String::from_utf8_lossy(&csr).into_owned();
        let (asking, identity) = (Arc::clone(self), identity.clone());
        let own_roots = own_roots.to_owned();
        // A task of its own: callers leave, and the request must be deleted all the same.
        task::spawn("certificate request", async move {
            let issued = asking.ask(&csr, &identity, life).await;
            let chain = issued.and_then(|issued| asking.chain(issued, &request, &identity, &own_roots));
            asking.count(&chain);
            let _ = answer.send(chain);
        });
        answered.await.map_err(|_| NotIssued::Interrupted)?
    }

    /// Deletes what replicas that died left behind.
    pub async fn sweep(&self) {
        let ours = ListParams::default().labels(&format!("{MANAGED_BY}={MANAGED_BY_AMBIT}"));
        let left = match self.requests.list_metadata(&ours).await {
            Ok(left) => left,
            Err(error) => return warn!(error = told(&error), "Old certificate requests not listed"),
        };
        for request in left {
            let made = request.metadata.creation_timestamp.map(|made| made.0);
            let is_old = made.is_some_and(|made| Timestamp::now().duration_since(made) > LEFT_BEHIND);
            if let Some(name) = request.metadata.name.filter(|_| is_old) {
                self.delete(&name).await;
            }
        }
    }

    async fn ask(&self, csr: &str, identity: &Identity, life: Duration) -> Result<Issued, NotIssued> {
        let turn = timeout(TURN_LIMIT, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| NotIssued::Busy)?.map_err(|_| NotIssued::Interrupted)?;
        let (how, request) = (PostParams::default(), self.request(csr, identity, life));
        let asked = timeout(ANSWER_LIMIT, self.requests.create(&how, &request));
        let made = asked.await.map_err(|_| NotIssued::Late)?;
        let made = made.map_err(|error| NotIssued::NotAsked(told(&error)))?;
        let name = made.metadata.name.ok_or_else(|| NotIssued::NotAsked("it has no name".to_owned()))?;
        debug!(request.name = name, certificate.identity = %identity, "cert-manager asked");
        let answer = timeout(ANSWER_LIMIT, self.answer(&name)).await.unwrap_or(Err(NotIssued::Late));
        self.delete(&name).await;
        answer
    }

    fn request(&self, csr: &str, identity: &Identity, life: Duration) -> DynamicObject {
        let Issuer { name, kind, group } = &self.settings.issuer;
        let mut request = DynamicObject::new("", &self.kind).data(json!({"spec": {
            "request": STANDARD.encode(csr),
            "duration": format!("{}s", life.as_secs()),
            "isCA": false,
            "usages": ["digital signature", "key encipherment", "server auth", "client auth"],
            "issuerRef": { "name": name, "kind": kind, "group": group },
        }}));
        request.metadata.name = None;
        request.metadata.generate_name = Some("ambit-".to_owned());
        request.metadata.labels = Some([(MANAGED_BY.to_owned(), MANAGED_BY_AMBIT.to_owned())].into());
        request.metadata.annotations = Some([(CERTIFICATE_IDENTITY.to_owned(), identity.to_string())].into());
        request
    }

    async fn answer(&self, name: &str) -> Result<Issued, NotIssued> {
        let mut states = std::pin::pin!(watching::object(self.requests.clone(), name));
        let mut seen = false;
        while let Some(state) = states.next().await {
            match state {
                Ok(Some(request)) => {
                    seen = true;
                    if let Some(answer) = judge(&request.data)? {
                        return Ok(answer);
                    }
                }
                Ok(None) if seen => {
                    return Err(NotIssued::Refused("somebody deleted the request".to_owned()));
                }
                // The list may come from a cache that does not know the request yet.
                Ok(None) => {}
                Err(error) => debug!(request.name = name, %error, "Certificate request not followed for now"),
            }
        }
        Err(NotIssued::Late)
    }

    async fn delete(&self, name: &str) {
        match timeout(ANSWER_LIMIT, self.requests.delete(name, &DeleteParams::default())).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {}
            Ok(Err(error)) => {
                info!(request.name = name, error = told(&error), "Certificate request not deleted")
            }
            Err(_) => {
                info!(request.name = name, "Certificate request not deleted in time; it is swept up later")
            }
        }
    }

    fn chain(
        &self,
        issued: Issued,
        request: &X509Req,
        identity: &Identity,
        own_roots: &str,
    ) -> Result<Vec<String>, NotIssued> {
        let stack =
            |pem: &str, why| X509::stack_from_pem(pem.as_bytes()).map_err(|_| NotIssued::Unusable(why));
        let chain = stack(&issued.chain, "its certificate is not PEM")?;
        let leaf = chain.first().ok_or(NotIssued::Unusable("it has no certificate"))?;
        exact::certificate(leaf, request, identity).map_err(NotIssued::Unusable)?;
        let theirs = self.settings.roots.as_deref().or(issued.roots.as_deref()).ok_or(NotIssued::NoRoots)?;
        let theirs = stack(theirs, "its ca is not PEM")?;
        if theirs.is_empty() {
            return Err(NotIssued::NoRoots);
        }
        let mut roots: Vec<Vec<u8>> = Vec::new();
        let mut bundle = String::new();
        for root in theirs.iter().chain(&stack(own_roots, "our own roots are not PEM")?) {
            let (der, pem) = encoded(root)?;
            if !roots.contains(&der) {
                bundle.push_str(&pem);
                roots.push(der);
            }
        }
        let mut answer = Vec::with_capacity(chain.len() + 1);
        for certificate in &chain {
            let (der, pem) = encoded(certificate)?;
            // Peers have the roots.
            if !roots.contains(&der) {
                answer.push(pem);
            }
        }
        answer.push(bundle);
        Ok(answer)
    }

    fn count(&self, answer: &Result<Vec<String>, NotIssued>) {
        let count = match answer {
            Ok(_) => &self.counts.signed,
            Err(NotIssued::Request(_) | NotIssued::Refused(_)) => &self.counts.refused,
            Err(NotIssued::Unusable(_) | NotIssued::NoRoots) => &self.counts.unusable,
            Err(NotIssued::Busy | NotIssued::NotAsked(_) | NotIssued::Late | NotIssued::Interrupted) => {
                &self.counts.unanswered
            }
        };
        count.fetch_add(1, Relaxed);
    }
}

impl std::fmt::Debug for CertManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertManager").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What cert-manager answered.
#[derive(Debug)]
struct Issued {
    chain: String,
    roots: Option<String>,
}

/// What of a CertificateRequest is of interest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    conditions: Vec<Condition>,
    certificate: Option<String>,
    ca: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
}

/// The answer, if there is one. Pure.
fn judge(request: &serde_json::Value) -> Result<Option<Issued>, NotIssued> {
    let Some(status) = request.get("status") else { return Ok(None) };
    let answer = Answer::deserialize(status).map_err(|_| NotIssued::Unusable("its status cannot be read"))?;
    for condition in &answer.conditions {
        let refused = match (condition.kind.as_str(), condition.status.as_str()) {
            ("Denied" | "InvalidRequest", "True") => true,
            ("Ready", "False") => matches!(condition.reason.as_str(), "Failed" | "Denied"),
            _ => false,
        };
        if refused {
            let reason = format!("{}: {}", condition.reason, condition.message);
            return Err(NotIssued::Refused(reason.chars().take(LONGEST_REASON).collect()));
        }
    }
    let is_ready = answer.conditions.iter().any(|one| one.kind == "Ready" && one.status == "True");
    let pem = |text: Option<String>, why| {
        let decoded = text.filter(|text| !text.is_empty()).map(|text| STANDARD.decode(text));
        let decoded = decoded.transpose().map_err(|_| NotIssued::Unusable(why))?;
        decoded.map(String::from_utf8).transpose().map_err(|_| NotIssued::Unusable(why))
    };
    if !is_ready {
        return Ok(None);
    }
    let chain = pem(answer.certificate, "its certificate is not PEM")?;
    let roots = pem(answer.ca, "its ca is not PEM")?;
    chain.map(|chain| Some(Issued { chain, roots })).ok_or(NotIssued::Unusable("it has no certificate"))
}

fn encoded(certificate: &X509) -> Result<(Vec<u8>, String), NotIssued> {
    let encode = || Ok::<_, boring::error::ErrorStack>((certificate.to_der()?, certificate.to_pem()?));
    let (der, pem) = encode().map_err(SignError::from)?;
    Ok((der, String::from_utf8_lossy(&pem).into_owned()))
}

/// Why cert-manager did not sign.
#[derive(Debug, thiserror::Error)]
pub enum NotIssued {
    /// It was not asked: the request is not in order.
    #[error(transparent)]
    Request(#[from] SignError),
    /// Many others ask.
    #[error("cert-manager has more to sign than it can; try again")]
    Busy,
    /// It could not be asked.
    #[error("no CertificateRequest could be made: {0}")]
    NotAsked(String),
    /// It said no.
    #[error("cert-manager did not sign: {0}; look at the issuer, and at who approves its requests")]
    Refused(String),
    /// It said nothing.
    #[error(
        "cert-manager did not sign within {ANSWER_LIMIT:?}; is it running, does the issuer exist, and does anybody \
         approve its requests?"
    )]
    Late,
    /// It signed something else.
    #[error("what cert-manager signed cannot be used: {0}; look at the issuer")]
    Unusable(&'static str),
    /// Nobody could trust it.
    #[error("the issuer does not tell its root; give it with --ca-issuer-roots")]
    NoRoots,
    /// The process ends.
    #[error("the controller is ending; try again")]
    Interrupted,
}

impl NotIssued {
    /// In the log and in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Busy => "busy",
            Self::NotAsked(_) => "not_asked",
            Self::Refused(_) => "issuer_refused",
            Self::Late => "issuer_late",
            Self::Unusable(_) => "issuer_unusable",
            Self::NoRoots => "issuer_roots",
            Self::Interrupted => "ending",
        }
    }

    /// What the caller is told.
    pub fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Request(SignError::Request(_)) => Status::invalid_argument(text),
            Self::Refused(_) => Status::permission_denied(text),
            Self::Request(_) | Self::Unusable(_) | Self::NoRoots => Status::internal(text),
            Self::Busy | Self::NotAsked(_) | Self::Late | Self::Interrupted => Status::unavailable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(conditions: &[(&str, &str, &str)], certificate: Option<&str>) -> serde_json::Value {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, reason)| json!({"type": kind, "status": status, "reason": reason, "message": "m"}))
            .collect();
        json!({"status": { "conditions": conditions, "certificate": certificate }})
    }

    #[test]
    fn a_request_is_answered_when_it_is_ready_or_refused() {
        let signed = STANDARD.encode("pem");
        let word = |request: &serde_json::Value| match judge(request) {
            Ok(None) => "waits",
            Ok(Some(_)) => "signed",
            Err(why) => why.word(),
        };
        for (conditions, certificate, expected) in [
            (&[][..], None, "waits"),
            (&[("Approved", "True", "x")], None, "waits"),
            (&[("Approved", "True", "x"), ("Ready", "False", "Pending")], None, "waits"),
            (&[("Approved", "True", "x"), ("Ready", "True", "Issued")], Some(signed.as_str()), "signed"),
            (&[("Ready", "True", "Issued")], None, "issuer_unusable"),
            (&[("Ready", "True", "Issued")], Some("%"), "issuer_unusable"),
            (&[("Denied", "True", "Policy")], Some(signed.as_str()), "issuer_refused"),
            (&[("Denied", "False", "Policy")], None, "waits"),
            (&[("InvalidRequest", "True", "x")], None, "issuer_refused"),
            (&[("Ready", "False", "Failed")], None, "issuer_refused"),
            (&[("Ready", "False", "Denied")], None, "issuer_refused"),
        ] {
            assert_eq!(word(&request(conditions, certificate)), expected, "{conditions:?}");
        }
        assert_eq!(word(&json!({})), "waits");
        assert_eq!(word(&json!({"status": {"conditions": "?"}})), "issuer_unusable");
    }

    #[test]
    fn a_long_reason_is_cut() {
        let long = "x".repeat(100_000);
        let Err(NotIssued::Refused(why)) = judge(&request(&[("Denied", "True", &long)], None)) else {
            panic!()
        };
        assert!(why.len() <= LONGEST_REASON);
    }
}
