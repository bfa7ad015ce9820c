//! Asks a cluster what the checks are about. Each question that is not answered becomes a check that says so.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use hyper::Request;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::timeout;

use super::chain;
use super::health::{self, Held};
use super::trust::{self, Dated, Webhook};
use super::verdict::{self, Check, Definition, Permission};
use crate::cmd::components::{self, Instance, selector};
use crate::cmd::playground::state::Kind;
use crate::cmd::version;
use crate::objects::{self, escaped};

/// A page by the API server and a kubelet is there within a second or two.
const PATIENCE: Duration = Duration::from_secs(5);

const ROOTS: &str = "istio-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";

/// Where is asked, and as of when.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) client: Client,
    pub(super) system: String,
    pub(super) now: OffsetDateTime,
}

impl Asker {
    /// The checks that tell whether the mesh can be installed.
    pub(super) async fn before(&self) -> anyhow::Result<Vec<Check>> {
        // If even this fails, there is no cluster to talk of.
        let version =
            objects::plain(self.client.apiserver_version().await).context("no API server answers")?;
        let minor = version.minor.trim_end_matches('+').parse().ok();
        let definitions = self.definitions().await;
        let mut checks = vec![verdict::api_version(&version.major, &version.minor), self.permissions().await];
        match self.list::<Node>("/api/v1/nodes", "").await {
            Ok(nodes) => checks.extend([
                verdict::systems(&nodes),
                verdict::kernels(&nodes),
                verdict::kubelets(&nodes, minor),
            ]),
            Err(error) => checks.push(Check::skipped("node-systems", format!("{error:#}"))),
        }
        checks.push(match self.pod_security().await {
            Ok(enforced) => verdict::pod_security(&self.system, enforced.as_deref()),
            Err(error) => Check::skipped("pod-security", format!("{error:#}")),
        });
        checks.push(verdict::clocks(self.clock().await));
        match definitions {
            Ok(definitions) => {
                checks.push(verdict::gateway_api(&definitions));
                checks.push(verdict::istio_kinds(&definitions));
            }
            Err(error) => checks.push(Check::skipped("gateway-api", format!("{error:#}"))),
        }
        checks.push(match self.istio().await {
            Ok(found) => verdict::existing_istio(&found),
            Err(error) => Check::skipped("existing-istio", format!("{error:#}")),
        });
        Ok(checks)
    }

    /// The checks of a mesh that is installed.
    pub(super) async fn after(&self) -> anyhow::Result<Vec<Check>> {
        let instances = components::instances(&self.client, &self.system).await?;
        let nodes: Vec<Node> = self.list("/api/v1/nodes", "").await?;
        let mut checks = Vec::new();
        let controllers = format!("labelSelector={}", escaped(selector(Kind::Controller)));
        let deployments: Vec<Deployment> =
            self.list(&self.within("apps/v1", "deployments"), &controllers).await?;
        checks.push(health::controllers(&deployments));
        checks.push(self.leader(&deployments).await);
        for (name, set, kind) in
            [("ztunnel", "ztunnel", Kind::Ztunnel), ("node-agent", "ambit-cni-node", Kind::Agent)]
        {
            let sets: Vec<DaemonSet> = self.list(&self.within("apps/v1", "daemonsets"), "").await?;
            let set = sets.iter().find(|one| one.metadata.name.as_deref() == Some(set));
            checks.push(health::everywhere(name, set, &nodes, &instances, kind));
        }
        checks.push(health::taints(&nodes));
        let (tunnels, intermediates) = self.tunnels(&instances).await;
        checks.push(health::tunnels(&tunnels));
        checks.extend(self.agents(&instances).await);
        checks.extend(self.trust(intermediates).await);
        let mut versions = Vec::new();
        for one in &instances {
            let target = one.target(&self.client);
            versions.push((one.title(), version::version(&target).await));
        }
        checks.push(health::versions(version::CLIENT, &versions));
        checks.push(self.dns().await);
        Ok(checks)
    }

    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str, query: &str) -> anyhow::Result<Vec<T>> {
        Ok(objects::list(&self.client, path, query).await?.unwrap_or_default())
    }

    /// The list of a kind in the system namespace.
    pub(super) fn within(&self, group_version: &str, plural: &str) -> String {
        format!("/apis/{group_version}/namespaces/{}/{plural}", self.system)
    }

    async fn permissions(&self) -> Check {
        let mut asked = Vec::new();
        for permission in verdict::needed() {
            match self.allowed(permission).await {
                Ok(allowed) => asked.push((permission, allowed)),
                Err(error) => return Check::skipped("permissions", format!("cannot be asked for: {error}")),
            }
        }
        verdict::permissions(&asked)
    }

    /// What of these is not allowed.
    pub(super) async fn missing(&self, needed: &[Permission]) -> anyhow::Result<Vec<Permission>> {
        let mut missing = Vec::new();
        for permission in needed {
            let allowed = self.allowed(*permission).await.map_err(anyhow::Error::msg);
            if !allowed.context("cannot ask what you may do")? {
                missing.push(*permission);
            }
        }
        Ok(missing)
    }

    async fn allowed(&self, permission: Permission) -> Result<bool, String> {
        let Permission { verb, group, resource, namespaced } = permission;
        let namespace = namespaced.then_some(&self.system);
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {},
            "spec": { "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": part, "namespace": namespace,
            } },
        });
        let review: SelfSubjectAccessReview =
            serde_json::from_value(review).map_err(|error| error.to_string())?;
        let answer = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| error.to_string())?.status;
        Ok(status.is_some_and(|status| status.allowed))
    }

    async fn pod_security(&self) -> anyhow::Result<Option<String>> {
        let found = Api::<Namespace>::all(self.client.clone()).get_opt(&self.system).await;
        let labels = objects::plain(found)?.and_then(|namespace| namespace.metadata.labels);
        Ok(labels.and_then(|mut labels| labels.remove("pod-security.kubernetes.io/enforce")))
    }

    /// How many seconds the API server's clock and ours are apart.
    async fn clock(&self) -> Option<u64> {
        let request = Request::get("/version").body(kube::client::Body::empty()).ok()?;
        let response = self.client.send(request).await.ok()?;
        let date = response.headers().get("date")?.to_str().ok()?.replace("GMT", "+0000");
        let said = OffsetDateTime::parse(&date, &Rfc2822).ok()?;
        let apart = (OffsetDateTime::now_utc() - said).whole_seconds().unsigned_abs();
        // The answer is read, so that the connection can be used again.
        let _ = response.into_body().collect().await;
        Some(apart)
    }

    async fn definitions(&self) -> anyhow::Result<Vec<Definition>> {
        let all: Vec<Value> =
            self.list("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "").await?;
        Ok(all.iter().filter_map(definition).collect())
    }

    /// Workloads of an Istio.
    async fn istio(&self) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        let istiod = format!("labelSelector={}", escaped("app=istiod"));
        let agent = format!("labelSelector={}", escaped("k8s-app=istio-cni-node"));
        let deployments: Vec<Deployment> = self.list("/apis/apps/v1/deployments", &istiod).await?;
        let sets: Vec<DaemonSet> = self.list("/apis/apps/v1/daemonsets", &agent).await?;
        found.extend(deployments.iter().map(|one| title("Deployment", &one.metadata)));
        found.extend(sets.iter().map(|one| title("DaemonSet", &one.metadata)));
        Ok(found)
    }

    async fn leader(&self, deployments: &[Deployment]) -> Check {
        let path = self.within("coordination.k8s.io/v1", "leases");
        let leases: Vec<Lease> = match self.list(&path, "").await {
            Ok(leases) => leases,
            Err(error) => return Check::skipped("leader", format!("{error:#}")),
        };
        // The lease of a revision that was taken away may be left.
        let held: Vec<_> = deployments
            .iter()
            .map(|deployment| {
                let name = lease_of(deployment);
                let lease = leases.iter().find(|lease| lease.metadata.name.as_deref() == Some(&name));
                lease.map_or_else(|| Held { lease: name.clone(), ..Held::default() }, held)
            })
            .collect();
        health::leader(&held, self.now)
    }

    /// What each tunnel says of its connection, and the intermediates that one of them shows.
    async fn tunnels(&self, instances: &[Instance]) -> (Vec<(String, Result<Value, String>)>, Vec<Dated>) {
        let mut asked = Vec::new();
        let mut intermediates = Vec::new();
        for one in instances.iter().filter(|one| one.kind == Kind::Ztunnel) {
            asked.push((one.title(), self.page(one, "/debug/sync").await));
            if intermediates.is_empty()
                && let Ok(dump) = self.page(one, "/config_dump").await
            {
                intermediates = trust::intermediates(&dump);
            }
        }
        (asked, intermediates)
    }

    /// What the agents say of their pods, and of the plugins of their nodes.
    async fn agents(&self, instances: &[Instance]) -> Vec<Check> {
        let mut late = Vec::new();
        let mut answered = 0;
        let mut plugins = Vec::new();
        for one in instances.iter().filter(|one| one.kind == Kind::Agent) {
            if let Ok(Value::Array(pods)) = self.page(one, "/debug/pods").await {
                answered += 1;
                late.extend(pods.iter().filter_map(pending));
            }
            let list = self.page(one, "/debug/cni").await.ok().and_then(|page| {
                let list = page.get("plugins")?.as_array()?;
                Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            });
            plugins.push((one.place().to_owned(), list));
        }
        vec![health::enrolment(&late, answered), chain::plugins(&plugins)]
    }

    /// Roots, certificates and webhooks.
    async fn trust(&self, intermediates: Vec<Dated>) -> Vec<Check> {
        let query = format!("fieldSelector={}", escaped(&format!("metadata.name={ROOTS}")));
        let maps: Vec<ConfigMap> = match self.list("/api/v1/configmaps", &query).await {
            Ok(maps) => maps,
            Err(error) => return vec![Check::skipped("roots", format!("{error:#}"))],
        };
        let told: BTreeMap<_, _> = maps
            .into_iter()
            .filter_map(|map| Some((map.metadata.namespace?, map.data?.remove(ROOT_KEY)?)))
            .collect();
        let namespaces = self.namespaces().await;
        let own = told.get(&self.system);
        let mut checks = Vec::new();
        match own.map_or(Ok(Vec::new()), |pem| trust::dated("root", pem)) {
            Ok(mut dated) => {
                dated.extend(intermediates);
                checks.push(trust::expiry(&dated, self.now));
            }
            Err(error) => checks.push(Check::failure(
                "certificates",
                format!("ConfigMap {ROOTS} holds no certificates: {error}"),
                "look into the controllers' logs",
            )),
        }
        checks.push(match namespaces {
            Ok(namespaces) => trust::roots(&self.system, &namespaces, &told),
            Err(error) => Check::skipped("roots", format!("{error:#}")),
        });
        checks.push(match self.webhooks().await {
            Ok(webhooks) => trust::webhooks(&webhooks, own.map(String::as_str), self.now),
            Err(error) => Check::skipped("webhooks", format!("{error:#}")),
        });
        checks
    }

    /// All that are not being deleted: nothing can be written into those.
    async fn namespaces(&self) -> anyhow::Result<Vec<String>> {
        let all: kube::core::ObjectList<PartialObjectMeta<Namespace>> = objects::plain(
            Api::<Namespace>::all(self.client.clone()).list_metadata(&ListParams::default()).await,
        )?;
        let living = all.items.into_iter().filter(|one| one.meta().deletion_timestamp.is_none());
        Ok(living.filter_map(|one| one.metadata.name).collect())
    }

    async fn webhooks(&self) -> anyhow::Result<Vec<Webhook>> {
        let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
        let all: Vec<ValidatingWebhookConfiguration> = self.list(path, "").await?;
        let ours = all.into_iter().filter(|one| {
            one.metadata.name.as_deref().is_some_and(|name| name.starts_with("ambit-validator"))
        });
        let hooks = ours.flat_map(|one| {
            let name = one.metadata.name.unwrap_or_default();
            one.webhooks.into_iter().flatten().map(move |hook| Webhook {
                name: name.clone(),
                bundle: hook
                    .client_config
                    .ca_bundle
                    .map(|bundle| String::from_utf8_lossy(&bundle.0).into_owned())
                    .unwrap_or_default(),
                fails_closed: hook.failure_policy.as_deref() != Some("Ignore"),
            })
        });
        Ok(hooks.collect())
    }

    async fn dns(&self) -> Check {
        let path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
        let query = format!("labelSelector={}", escaped("kubernetes.io/service-name=kube-dns"));
        let slices: Vec<EndpointSlice> = match self.list(path, &query).await {
            Ok(slices) => slices,
            Err(error) => return Check::skipped("dns", format!("{error:#}")),
        };
        let ready = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
        });
        health::dns((!slices.is_empty()).then(|| ready.count()))
    }

    async fn page(&self, instance: &Instance, path: &str) -> Result<Value, String> {
        let text = timeout(PATIENCE, instance.admin(&self.client).get(path)).await;
        let text = text.map_err(|_| format!("no answer within {PATIENCE:?}"))?;
        let text = text.map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| format!("{path} is no JSON: {error}"))
    }
}

fn title(kind: &str, meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> String {
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    format!("{kind} {}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

fn definition(value: &Value) -> Option<Definition> {
    let annotation = |name: &str| {
        let annotations = value.pointer("/metadata/annotations")?;
        annotations.get(name)?.as_str().map(str::to_owned)
    };
    let label = |name: &str| value.pointer("/metadata/labels")?.get(name)?.as_str();
    Some(Definition {
        name: value.pointer("/metadata/name")?.as_str()?.to_owned(),
        bundle: annotation("gateway.networking.k8s.io/bundle-version"),
        channel: annotation("gateway.networking.k8s.io/channel"),
        of_istio: label("chart") == Some("istio")
            || label("release") == Some("istio")
            || label("app.kubernetes.io/part-of") == Some("istio"),
    })
}

/// The lease for which the replicas of a deployment stand: `ambit-leader`, with a revision `ambit-leader-REVISION`.
fn lease_of(deployment: &Deployment) -> String {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    format!("ambit-leader{}", name.strip_prefix("ambit-controller").unwrap_or_default())
}

fn held(lease: &Lease) -> Held {
    let spec = lease.spec.clone().unwrap_or_default();
    let renewed = spec.renew_time.and_then(|at| OffsetDateTime::from_unix_timestamp(at.0.as_second()).ok());
    Held {
        lease: lease.metadata.name.clone().unwrap_or_default(),
        holder: spec.holder_identity,
        renewed,
        duration: spec.lease_duration_seconds,
    }
}

/// A pod that its agent wants in the mesh and has not got there, with what failed.
fn pending(pod: &Value) -> Option<String> {
    let text = |field: &str| pod.get(field).and_then(Value::as_str).unwrap_or_default();
    let waits = text("state") == "pending" && !text("reason").is_empty();
    waits.then(|| format!("{}/{}: {}", text("namespace"), text("name"), text("reason")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_says_where_it_is_from() {
        let gateway = json!({ "metadata": { "name": "gateways.gateway.networking.k8s.io",
            "annotations": { "gateway.networking.k8s.io/bundle-version": "v1.3.0" } } });
        assert_eq!(definition(&gateway).unwrap().bundle.as_deref(), Some("v1.3.0"));
        let istio =
            json!({ "metadata": { "name": "sidecars.networking.istio.io", "labels": { "chart": "istio" } } });
        assert!(definition(&istio).unwrap().of_istio);
        assert_eq!(definition(&json!({})), None);
    }

    #[test]
    fn only_pods_that_failed_are_late() {
        let pod = |state: &str, reason: &str| json!({ "namespace": "shop", "name": "web", "state": state, "reason": reason });
        assert_eq!(pending(&pod("pending", "no tunnel")).as_deref(), Some("shop/web: no tunnel"));
        // It has only just come.
        assert_eq!(pending(&pod("pending", "")), None);
        assert_eq!(pending(&pod("outside", "opts out")), None);
    }

    #[test]
    fn every_revision_has_a_lease_of_its_own() {
        for (name, lease) in
            [("ambit-controller", "ambit-leader"), ("ambit-controller-v2", "ambit-leader-v2")]
        {
            let deployment =
                json!({ "metadata": { "name": name }, "spec": { "selector": {}, "template": {} } });
            assert_eq!(lease_of(&serde_json::from_value(deployment).unwrap()), lease);
        }
    }

    #[test]
    fn a_lease_is_read_with_its_time() {
        let lease: Lease = serde_json::from_value(json!({
            "metadata": { "name": "ambit-leader" },
            "spec": { "holderIdentity": "a", "renewTime": "2026-06-01T12:00:00.000000Z", "leaseDurationSeconds": 15 },
        }))
        .unwrap();
        let held = held(&lease);
        assert_eq!((held.holder.as_deref(), held.duration), (Some("a"), Some(15)));
        assert_eq!(held.renewed, crate::output::moment("2026-06-01T12:00:00Z"));
    }
}
