//! Whom to ask: the components of the playground or of a cluster, or those named on the command line.

use anyhow::{Context as _, bail};

use super::components::{self, System};
use super::playground::state::{Component, Kind, Place};
use crate::cluster::ClusterArgs;
use crate::connect::Endpoint;

/// How far above the port of its admin page, usually 15000, a tunnel's other pages are. A tunnel that replaces another
/// has all three elsewhere.
const TUNNEL_METRICS: u16 = 20;
const TUNNEL_READINESS: u16 = 21;

/// Which mesh is asked.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sources {
    #[command(flatten)]
    place: Place,
    /// A tunnel's admin page, by its node: `node-a=10.0.0.1:15000`, `=unix:PATH`, `=netns:NAME/IP:PORT` or
    /// `=pod:NAMESPACE/NAME:PORT`. Again for each. Without any such flag, those of the playground if it is up, else
    /// those of the cluster.
    #[arg(long, value_name = "NODE=ADDRESS", value_parser = named, help_heading = "Whom to ask")]
    tunnel: Vec<(String, Endpoint)>,
    /// A node agent's admin page, likewise.
    #[arg(long, value_name = "NODE=ADDRESS", value_parser = named, help_heading = "Whom to ask")]
    agent: Vec<(String, Endpoint)>,
    /// The controller's admin page.
    #[arg(long, value_name = "ADDRESS", help_heading = "Whom to ask")]
    controller: Option<Endpoint>,
    #[command(flatten)]
    system: System,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// One component and its pages.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) node: Option<String>,
    pub(crate) admin: Endpoint,
    pub(crate) readiness: Endpoint,
    pub(crate) metrics: Endpoint,
    /// Which version it should be, by who started it.
    pub(crate) version: Option<String>,
    /// Since when it runs, by who started it.
    pub(crate) since: Option<String>,
}

impl Target {
    /// For messages and tables.
    pub(crate) fn title(&self) -> String {
        match &self.node {
            Some(node) => format!("{}/{node}", self.kind.word()),
            None => self.kind.word().to_owned(),
        }
    }
}

impl Sources {
    /// The playground, or the cluster.
    pub(crate) fn mesh(&self) -> (&Place, &ClusterArgs) {
        (&self.place, &self.cluster)
    }

    /// Every component.
    pub(crate) async fn all(&self) -> anyhow::Result<Vec<Target>> {
        let mut named = self.named();
        if named.is_empty() {
            return self.found().await;
        }
        if named.iter().any(|target| matches!(target.admin, Endpoint::Pod { .. })) {
            let client = self.cluster.client().await?;
            for target in &mut named {
                for page in [&mut target.admin, &mut target.readiness, &mut target.metrics] {
                    *page = page.clone().within(&client);
                }
            }
        }
        Ok(named)
    }

    /// Those of the playground if one is up, else those of the cluster.
    async fn found(&self) -> anyhow::Result<Vec<Target>> {
        let asks_cluster = self.cluster.kubeconfig.is_some() || self.cluster.context.is_some();
        let down = match self.place.state() {
            Ok(state) if !asks_cluster => return state.components.into_iter().map(of_playground).collect(),
            Ok(_) => None,
            Err(_) if asks_cluster => None,
            Err(down) => Some(down),
        };
        let client = match (self.cluster.client().await, down) {
            (Ok(client), _) => client,
            (Err(error), None) => return Err(error),
            (Err(error), Some(down)) => bail!("{down:#}; nor is there a cluster: {error:#}"),
        };
        let system = &self.system.system_namespace;
        let instances = components::instances(&client, system)
            .await
            .with_context(|| format!("cannot find the mesh in namespace {system}"))?;
        if instances.is_empty() {
            bail!(
                "there is no mesh in namespace {system}; name another with --system-namespace, or install it"
            );
        }
        Ok(instances.iter().map(|one| one.target(&client)).collect())
    }

    /// Those of the command line.
    fn named(&self) -> Vec<Target> {
        let of = |kind, node: Option<&String>, admin: &Endpoint| Target {
            kind,
            node: node.cloned(),
            readiness: match kind {
                Kind::Ztunnel => admin.above(TUNNEL_READINESS),
                Kind::Controller | Kind::Agent => admin.clone(),
            },
            metrics: match kind {
                Kind::Ztunnel => admin.above(TUNNEL_METRICS),
                Kind::Controller | Kind::Agent => admin.clone(),
            },
            admin: admin.clone(),
            version: None,
            since: None,
        };
        let controller = self.controller.iter().map(|admin| of(Kind::Controller, None, admin));
        let agents = self.agent.iter().map(|(node, admin)| of(Kind::Agent, Some(node), admin));
        let tunnels = self.tunnel.iter().map(|(node, admin)| of(Kind::Ztunnel, Some(node), admin));
        controller.chain(agents).chain(tunnels).collect()
    }

    /// The tunnels, or that of one node.
    pub(crate) async fn tunnels(&self, node: Option<&str>) -> anyhow::Result<Vec<Target>> {
        let all: Vec<_> =
            self.all().await?.into_iter().filter(|target| target.kind == Kind::Ztunnel).collect();
        let nodes: Vec<_> = all.iter().filter_map(|target| target.node.clone()).collect();
        let wanted = |target: &Target| node.is_none_or(|node| target.node.as_deref() == Some(node));
        let found: Vec<_> = all.into_iter().filter(wanted).collect();
        match (found.is_empty(), node) {
            (false, _) => Ok(found),
            (true, Some(node)) => bail!("no tunnel on node {node:?}; tunnels are on: {}", nodes.join(", ")),
            (true, None) => bail!("no tunnel is known; name one with --tunnel NODE=ADDRESS"),
        }
    }
}

fn of_playground(component: Component) -> anyhow::Result<Target> {
    Ok(Target {
        kind: component.kind,
        node: Some(component.node.clone()),
        admin: component.admin.parse()?,
        readiness: component.readiness.parse()?,
        metrics: component.metrics.parse()?,
        version: component.version,
        since: component.pid.map(|_| component.since),
    })
}

/// `NODE=ADDRESS`.
fn named(text: &str) -> Result<(String, Endpoint), String> {
    let (node, address) = text
        .split_once('=')
        .filter(|(node, _)| !node.is_empty())
        .ok_or_else(|| format!("{text:?} names no node; write NODE=ADDRESS"))?;
    Ok((node.to_owned(), address.parse().map_err(|err| format!("{err}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        sources: Sources,
    }

    fn read(flags: &[&str]) -> Result<Sources, String> {
        let line = Line::try_parse_from([&["x"], flags].concat()).map_err(|err| err.to_string())?;
        Ok(line.sources)
    }

    #[tokio::test]
    async fn tunnels_are_named_by_their_nodes() {
        let sources =
            read(&["--tunnel", "a=10.0.0.1:15000", "--tunnel", "b=netns:n/127.0.0.1:15000"]).unwrap();
        let tunnels = sources.tunnels(Some("b")).await.unwrap();
        assert_eq!(tunnels[0].title(), "ztunnel/b");
        assert_eq!(tunnels[0].readiness.to_string(), "netns:n/127.0.0.1:15021");
        let err = sources.tunnels(Some("c")).await.unwrap_err().to_string();
        assert!(err.contains("tunnels are on: a, b"), "{err}");
    }

    #[test]
    fn an_address_without_a_node_is_refused() {
        for flags in [["--tunnel", "10.0.0.1:15000"], ["--tunnel", "=x:1"], ["--agent", "a=nowhere"]] {
            let err = read(&flags).unwrap_err();
            assert!(err.contains("NODE=ADDRESS") || err.contains("HOST:PORT"), "{err}");
        }
    }
}
