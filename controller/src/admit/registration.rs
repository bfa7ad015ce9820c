//! Keeps the registration of the webhook: the API server must know its root, and should insist on its answer.
//!
//! The chart makes the ValidatingWebhookConfiguration without roots. The leader writes the root into every webhook of
//! it, and again whenever the root changes.
//!
//! A configuration that says `failurePolicy: Ignore`, so that objects can be written before anything answers, is not
//! left so: the leader asks the API server, as a dry run, to create a policy that this webhook must refuse. When it
//! was refused by a webhook of this configuration, answers come through, and the policy becomes `Fail`: from then on
//! nothing passes unjudged. Whoever sets `Ignore` again is overruled at the next look.

use std::{convert::Infallible, future::Future, time::Duration};

use ambit_api::{CustomKind as _, authorization_policy::AuthorizationPolicy};
use ambit_runtime::backoff::Backoff;
use k8s_openapi::{ByteString, api::admissionregistration::v1::ValidatingWebhookConfiguration};
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams, PostParams, Request},
};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

/// How often a registration that is in order is looked at: what a chart overwrites is in order again a minute later.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The waits while something is missing: the chart, the service's endpoints, the API server.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// All requests of one look.
const LOOK: Duration = Duration::from_secs(30);
/// The policy that must be refused. It is never stored: it is only asked for as a dry run.
const PROBE: &str = "ambit-webhook-probe";
/// Whose changes these are.
const MANAGER: &str = "ambit-webhook";

/// What is registered.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The name of the ValidatingWebhookConfiguration.
    pub name: String,
    /// The namespace in which the policy is asked for that must be refused.
    pub namespace: String,
    /// The roots that the webhook's certificate is verified by, PEM.
    pub bundle: watch::Receiver<String>,
    /// Whether this controller leads.
    pub leader: watch::Receiver<bool>,
}

/// Keeps the registration while this controller leads, until `stop` completes.
pub async fn keep_registered(
    client: Client,
    registration: Registration,
    stop: impl Future<Output = ()> + Send,
) {
    tokio::select! {
        () = stop => {}
        never = keep(&client, registration) => match never {},
    }
}

async fn keep(client: &Client, mut registration: Registration) -> Infallible {
    loop {
        let mut leader = registration.leader.clone();
        if leader.wait_for(|leads| *leads).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            never = follow(client, &mut registration) => match never {},
            _ = leader.wait_for(|leads| !*leads) => {}
        }
    }
}

async fn follow(client: &Client, registration: &mut Registration) -> Infallible {
    let mut backoff = Backoff::new(WAIT.0, WAIT.1);
    let mut told = None;
    loop {
        let bundle = registration.bundle.borrow_and_update().clone();
        let found = match timeout(LOOK, look(client, registration, &bundle)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Found::Wrong(error.to_string()),
            Err(_) => Found::Wrong("no answer in time".to_owned()),
        };
        let wait = if found == Found::InOrder {
            backoff.reset();
            LOOK_AGAIN
        } else {
            backoff.next(rand::random())
        };
        if told.as_ref() != Some(&found) {
            found.tell(&registration.name);
        }
        told = Some(found);
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = registration.bundle.changed() => {}
        }
    }
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// The API server knows the root and insists on answers.
    InOrder,
    /// There is no such configuration, or no root yet.
    Nothing,
    /// The root is written, but an object that must be refused is not.
    Unanswered(String),
    /// It could not be found out.
    Wrong(String),
}

impl Found {
    fn tell(&self, name: &str) {
        match self {
            Self::InOrder => info!(webhook = name, "Objects are validated"),
            Self::Nothing => debug!(webhook = name, "There is no webhook configuration to keep"),
            Self::Unanswered(what) => warn!(
                webhook = name,
                reason = what,
                "The API server does not get answers from the webhook; until it does, objects are refused or pass unjudged, as failurePolicy says. Is port 15017 reachable from it?"
            ),
            Self::Wrong(error) => warn!(webhook = name, error, "The webhook configuration cannot be kept"),
        }
    }
}

async fn look(client: &Client, registration: &Registration, bundle: &str) -> Result<Found, Error> {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let Some(configuration) = api.get_opt(&registration.name).await? else { return Ok(Found::Nothing) };
    if bundle.is_empty() {
        return Ok(Found::Nothing);
    }
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    if let Some(patch) = with_roots(&configuration, bundle) {
        api.patch(&registration.name, &params, &Patch::Strategic(patch)).await?;
        info!(webhook = registration.name, "The API server was told the root of the webhook");
    }
    let Some(patch) = insisting(&configuration) else { return Ok(Found::InOrder) };
    match probe(client, &registration.namespace, &configuration).await {
        Ok(()) => {
            api.patch(&registration.name, &params, &Patch::Strategic(patch)).await?;
            Ok(Found::InOrder)
        }
        Err(what) => Ok(Found::Unanswered(what)),
    }
}

/// What gives every webhook of a configuration the roots; `None` if each has them.
fn with_roots(configuration: &ValidatingWebhookConfiguration, bundle: &str) -> Option<Value> {
    let roots = ByteString(bundle.as_bytes().to_vec());
    let lacking = configuration.webhooks.iter().flatten();
    let lacking = lacking.filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&roots));
    let lacking: Vec<Value> = lacking
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": roots } }))
        .collect();
    (!lacking.is_empty()).then(|| json!({ "webhooks": lacking }))
}

/// What has the API server insist on answers of every webhook; `None` if it does.
fn insisting(configuration: &ValidatingWebhookConfiguration) -> Option<Value> {
    let lenient = configuration.webhooks.iter().flatten();
    let lenient = lenient.filter(|webhook| webhook.failure_policy.as_deref() != Some("Fail"));
    let lenient: Vec<Value> =
        lenient.map(|webhook| json!({ "name": webhook.name, "failurePolicy": "Fail" })).collect();
    (!lenient.is_empty()).then(|| json!({ "webhooks": lenient }))
}

/// Asks for what must be refused.
async fn probe(
    client: &Client,
    namespace: &str,
    configuration: &ValidatingWebhookConfiguration,
) -> Result<(), String> {
    let (group, version) = (AuthorizationPolicy::GROUP, "v1");
    // Nothing that a schema would refuse already.
    let policy = json!({
        "apiVersion": format!("{group}/{version}"),
        "kind": AuthorizationPolicy::KIND,
        "metadata": { "name": PROBE, "namespace": namespace },
        "spec": {
            "selector": { "matchLabels": { PROBE: "nobody" } },
            "rules": [{ "from": [{ "source": { "ipBlocks": ["nowhere"] } }] }],
        },
    });
    let path = format!("/apis/{group}/{version}/namespaces/{namespace}/{}", AuthorizationPolicy::PLURAL);
    let params = PostParams { dry_run: true, field_manager: Some(MANAGER.to_owned()) };
    let body = serde_json::to_vec(&policy).map_err(|error| error.to_string())?;
    let request = Request::new(path).create(&params, body).map_err(|error| error.to_string())?;
    match client.request::<IgnoredAny>(request).await {
        Ok(_) => Err("an object that must be refused was not".to_owned()),
        Err(Error::Api(status)) if refused_by_us(&status.message, configuration) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The API server says which webhook refused: it may have been another one, or not have answered.
fn refused_by_us(message: &str, configuration: &ValidatingWebhookConfiguration) -> bool {
    let mut names = configuration.webhooks.iter().flatten().map(|webhook| &webhook.name);
    names.any(|name| message.contains(&format!("{name:?} denied the request")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(webhooks: Value) -> ValidatingWebhookConfiguration {
        let webhooks: Vec<_> = webhooks
            .as_array()
            .unwrap()
            .iter()
            .map(|webhook| {
                let mut webhook = webhook.clone();
                webhook["admissionReviewVersions"] = json!(["v1"]);
                webhook["sideEffects"] = json!("None");
                webhook
            })
            .collect();
        serde_json::from_value(json!({ "metadata": { "name": "w" }, "webhooks": webhooks })).unwrap()
    }

    #[test]
    fn only_webhooks_that_lack_something_are_changed() {
        // "root" in base64.
        let known = json!({ "caBundle": "cm9vdA==", "service": { "name": "istiod", "namespace": "n" } });
        let found = configuration(json!([
            { "name": "a", "clientConfig": known, "failurePolicy": "Fail" },
            { "name": "b", "clientConfig": { "caBundle": "b2xk" }, "failurePolicy": "Ignore" },
            { "name": "c", "clientConfig": {} },
        ]));
        assert_eq!(
            with_roots(&found, "root"),
            Some(json!({ "webhooks": [
                { "name": "b", "clientConfig": { "caBundle": "cm9vdA==" } },
                { "name": "c", "clientConfig": { "caBundle": "cm9vdA==" } },
            ] }))
        );
        assert_eq!(
            insisting(&found),
            Some(json!({ "webhooks": [
                { "name": "b", "failurePolicy": "Fail" },
                { "name": "c", "failurePolicy": "Fail" },
            ] }))
        );
        let good = configuration(json!([{ "name": "a", "clientConfig": known, "failurePolicy": "Fail" }]));
        assert_eq!((with_roots(&good, "root"), insisting(&good)), (None, None));
        assert!(with_roots(&good, "other").is_some());
    }

    #[test]
    fn a_refusal_by_others_is_no_answer() {
        let ours = configuration(json!([{ "name": "v.ambit.io", "clientConfig": {} }]));
        for (message, expected) in [
            (r#"admission webhook "v.ambit.io" denied the request: spec.rules[0]..."#, true),
            (r#"admission webhook "policy.example" denied the request: no"#, false),
            (r#"failed calling webhook "v.ambit.io": dial tcp: connection refused"#, false),
            ("authorizationpolicies.security.istio.io is forbidden", false),
        ] {
            assert_eq!(refused_by_us(message, &ours), expected, "{message}");
        }
    }
}
