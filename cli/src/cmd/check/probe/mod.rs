//! The check `probe`: a pod on one node calls a pod on another through the mesh, where plain text is refused. It makes a
//! namespace for that, and takes it away whatever comes of it.

mod judge;
mod objects;

use std::time::Duration;

use ambit_controller::probe::Report;
use anyhow::Context as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod, Secret};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

pub(crate) use self::judge::unasked;
use self::judge::{Call, Seen, Sight};
use self::objects::{Part, Places, Program};
use super::gather::Asker;
use super::verdict::{Check, Permission};
use crate::cmd::components::{self, Instance, selector};
use crate::cmd::playground::state::Kind;
use crate::objects::{escaped, list, plain};
use crate::stop::Stop;

/// For each of the pods: most of it is for an image that has to be pulled first.
const LIMIT: Duration = Duration::from_secs(180);
/// The API server is asked about one pod.
const EACH: Duration = Duration::from_millis(500);
/// What it takes to end two pods that need no time for it, and some more.
const GONE: Duration = Duration::from_secs(60);
/// No probe takes longer, so whoever made this is not there any more.
const STALE: time::Duration = time::Duration::minutes(15);
/// The log of a client is a line; of a tunnel, what it said last is enough.
const LINES: i64 = 2000;
const LOG_BYTES: i64 = 1 << 20;

/// Makes a probe, and says how it went.
pub(super) async fn check(asker: &Asker) -> Check {
    probe(asker).await.unwrap_or_else(|error| judge::broken(&error))
}

async fn probe(asker: &Asker) -> anyhow::Result<Check> {
    let missing = asker.missing(&NEEDED).await?;
    if !missing.is_empty() {
        return Ok(judge::forbidden(&missing));
    }
    let nodes: Vec<Node> = asker.list("/api/v1/nodes", "").await?;
    let Some(places) = objects::places(&nodes) else {
        return Ok(judge::impossible("no node is ready, open and Linux"));
    };
    let query = format!("labelSelector={}", escaped(selector(Kind::Controller)));
    let deployments: Vec<Deployment> = asker.list(&asker.within("apps/v1", "deployments"), &query).await?;
    let Some(program) = objects::program(&deployments) else {
        return Ok(judge::impossible("there is no controller, whose image it would take"));
    };
    sweep(&asker.client, asker.now).await?;

    let mut stop = Stop::listen()?;
    let namespace = create(&asker.client, None, objects::namespace()).await?.name_any();
    let probe = Probe { client: &asker.client, system: &asker.system, namespace, places, program };
    let told = tokio::select! {
        seen = probe.observe() => seen.map(|seen| judge::judge(&seen)),
        () = stop.requested() => Err(anyhow::anyhow!("it was interrupted")),
    };
    let removed = tokio::select! {
        removed = probe.remove() => removed,
        () = stop.requested() => Err(anyhow::anyhow!("its removal was not waited for")),
    };
    let check = told.unwrap_or_else(|error| judge::broken(&error));
    Ok(match removed {
        Ok(()) => check,
        Err(error) => judge::left_behind(check, &probe.namespace, &format!("{error:#}")),
    })
}

/// What it takes, in a namespace that is not there yet.
const NEEDED: [Permission; 11] = {
    const fn may(verb: &'static str, group: &'static str, resource: &'static str) -> Permission {
        Permission { verb, group, resource, namespaced: false }
    }
    [
        may("create", "", "namespaces"),
        may("get", "", "namespaces"),
        may("list", "", "namespaces"),
        may("delete", "", "namespaces"),
        may("create", "", "serviceaccounts"),
        may("create", "", "services"),
        may("create", "security.istio.io", "peerauthentications"),
        may("create", "", "pods"),
        may("get", "", "pods"),
        may("get", "", "pods/log"),
        may("list", "", "events"),
    ]
};

/// Takes away what probes left that were killed.
async fn sweep(client: &Client, now: OffsetDateTime) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let ours = ListParams::default().labels(&objects::selector());
    for left in plain(namespaces.list(&ours).await)? {
        let made = left.creation_timestamp().map_or(0, |at| at.0.as_second());
        if made + STALE.whole_seconds() < now.unix_timestamp() {
            let name = left.name_any();
            let deleted = plain(namespaces.delete(&name, &DeleteParams::default()).await);
            deleted.with_context(|| format!("an earlier probe left namespace {name}"))?;
        }
    }
    Ok(())
}

async fn create(client: &Client, namespace: Option<&str>, object: Value) -> anyhow::Result<DynamicObject> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("an object says what it is")?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
    let api = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let made = plain(api.create(&PostParams::default(), &object).await);
    made.with_context(|| format!("cannot create a {}", kind.kind))
}

/// A probe that has its namespace.
struct Probe<'a> {
    client: &'a Client,
    /// The namespace of the mesh.
    system: &'a str,
    namespace: String,
    places: Places,
    program: Program,
}

impl Probe<'_> {
    /// What becomes of it. An error is what the API server refuses; all else is for the judge.
    async fn observe(&self) -> anyhow::Result<Seen> {
        self.make(objects::ground()).await?;
        self.make(self.secrets().await?).await?;
        let places = self.places.clone();
        let server = self.run(Part::Server, Sight::is_serving).await?;
        if !server.is_serving() {
            return Ok(Seen { places, server, client: None });
        }
        let client = self.run(Part::Client, Sight::is_over).await?;
        let call = self.call(&client).await;
        Ok(Seen { places, server, client: Some((client, call)) })
    }

    async fn make(&self, objects: Vec<Value>) -> anyhow::Result<()> {
        for object in objects {
            create(self.client, Some(&self.namespace), object).await?;
        }
        Ok(())
    }

    /// The Secrets by which the mesh's images are pulled. Pods take them from their own namespace only.
    async fn secrets(&self) -> anyhow::Result<Vec<Value>> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), self.system);
        let mut copies = Vec::new();
        for name in &self.program.pull_secrets {
            let found = plain(secrets.get_opt(name).await);
            // Kubelet, too, does without one that is not there.
            copies.extend(
                found
                    .with_context(|| format!("cannot read the image pull Secret {name}"))?
                    .as_ref()
                    .map(objects::copied),
            );
        }
        Ok(copies)
    }

    /// Starts a pod, and looks at it until it is as it should be, or will not be any more.
    async fn run(&self, part: Part, is_enough: fn(&Sight) -> bool) -> anyhow::Result<Sight> {
        let pod = objects::pod(part, &self.namespace, self.places.of(part), &self.program);
        self.make(vec![pod]).await?;
        let deadline = Instant::now() + LIMIT;
        let mut sight = Sight::default();
        loop {
            sight = sight.then(plain(self.pods().get(part.name()).await)?);
            if is_enough(&sight) || sight.is_over() || Instant::now() >= deadline {
                break;
            }
            sleep(EACH).await;
        }
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let events: Vec<Event> = list(self.client, &path, "").await?.unwrap_or_default();
        sight.warnings = judge::warnings(&events, part);
        Ok(sight)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// How the client's call went, by its own word and by those of the tunnels.
    async fn call(&self, client: &Sight) -> Call {
        // What has not started has said nothing.
        let said = self.pods().logs(Part::Client.name(), &last_lines()).await.unwrap_or_default();
        let report: Option<Report> = said.lines().find_map(|line| serde_json::from_str(line).ok());
        match report {
            None => Call::Silent,
            Some(Report::Unresolved { why }) => Call::Unresolved { why },
            Some(Report::Unanswered { address, why }) => {
                let tunnel = self.complaint(client).await;
                Call::Unanswered { why: format!("{address}: {why}"), tunnel }
            }
            Some(Report::Answered { first_micros, round_trip_micros, .. }) => Call::Answered {
                first: Duration::from_micros(first_micros),
                round_trip: Duration::from_micros(round_trip_micros),
                client: self.principal().await.map_err(|error| format!("{error:#}")),
            },
        }
    }

    /// Which tunnel says why it let the client down, and why. That of the server knows policies, the other the way there.
    async fn complaint(&self, client: &Sight) -> Option<String> {
        for place in [&self.places.server, &self.places.client] {
            for tunnel in self.tunnels(&place.node).await.unwrap_or_default() {
                let pods = Api::<Pod>::namespaced(self.client.clone(), &tunnel.namespace);
                let log = pods.logs(&tunnel.pod, &last_lines()).await.unwrap_or_default();
                if let Some(why) = judge::complaint(&log, client.address()?) {
                    return Some(format!("{} says: {why}", place.node));
                }
            }
        }
        None
    }

    /// Whom the tunnel of the server's node took for the client.
    async fn principal(&self) -> anyhow::Result<Option<String>> {
        for tunnel in self.tunnels(&self.places.server.node).await? {
            let metrics = tunnel.target(self.client).metrics.get("/metrics").await?;
            if let Some(principal) = judge::principal(&metrics, &self.namespace) {
                return Ok(Some(principal));
            }
        }
        Ok(None)
    }

    /// Those of a node. While they are replaced, there are two.
    async fn tunnels(&self, node: &str) -> anyhow::Result<Vec<Instance>> {
        let all = components::instances(self.client, self.system).await?;
        let is_there = |one: &Instance| one.kind == Kind::Ztunnel && one.node.as_deref() == Some(node);
        Ok(all.into_iter().filter(is_there).collect())
    }

    /// Takes everything away, and waits until it is gone.
    async fn remove(&self) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        plain(namespaces.delete(&self.namespace, &DeleteParams::default()).await)?;
        let deadline = Instant::now() + GONE;
        while plain(namespaces.get_opt(&self.namespace).await)?.is_some() {
            anyhow::ensure!(Instant::now() < deadline, "it is still there after {GONE:?}");
            sleep(EACH).await;
        }
        Ok(())
    }
}

fn last_lines() -> LogParams {
    LogParams { tail_lines: Some(LINES), limit_bytes: Some(LOG_BYTES), ..LogParams::default() }
}
