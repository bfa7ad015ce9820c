//! The cluster that a command is about: how the operator names it, and how it is reached.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// A person waits. An API server that is up accepts connections within milliseconds.
const CONNECT: Duration = Duration::from_secs(10);

const REMEDY: &str = "name a kubeconfig with --kubeconfig or KUBECONFIG, and an entry of it with --context";

/// Which cluster, in kubectl's words.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "The cluster")]
pub(crate) struct ClusterArgs {
    /// The file that says how to reach it. Not given: KUBECONFIG, then ~/.kube/config, then the pod's own account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// The entry of that file. Not given: its current one.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

impl ClusterArgs {
    /// Connects nowhere yet: the first question does.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        ambit_wire::tls::install_provider().context("cannot set up TLS")?;
        Client::try_from(self.config().await?).context("cannot use the cluster's address and credentials")
    }

    /// Where the cluster is and who asks.
    pub(crate) async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let read = match (&self.kubeconfig, &self.context) {
            (Some(file), _) => {
                let file = Kubeconfig::read_from(file)
                    .with_context(|| format!("cannot read --kubeconfig {}", file.display()))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(anyhow::Error::from)
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(anyhow::Error::from),
            (None, None) => Config::infer().await.map_err(anyhow::Error::from),
        };
        let mut config = read.with_context(|| format!("no cluster to talk to; {REMEDY}"))?;
        config.connect_timeout = Some(CONNECT);
        Ok(config)
    }
}

/// What the API server said, without how it was said.
pub(crate) fn told(error: kube::Error) -> anyhow::Error {
    if let kube::Error::Api(status) = &error
        && !status.message.is_empty()
    {
        return anyhow::anyhow!("{}", status.message);
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "
apiVersion: v1
kind: Config
current-context: one
clusters:
- { name: one, cluster: { server: 'https://192.0.2.1:6443' } }
- { name: two, cluster: { server: 'https://192.0.2.2:6443' } }
contexts:
- { name: one, context: { cluster: one, user: me } }
- { name: two, context: { cluster: two, user: me, namespace: shop } }
users:
- { name: me, user: { token: secret } }
";

    async fn server(kubeconfig: &str, context: Option<&str>) -> anyhow::Result<String> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("config");
        std::fs::write(&file, kubeconfig)?;
        let args = ClusterArgs { kubeconfig: Some(file), context: context.map(str::to_owned) };
        Ok(args.config().await?.cluster_url.to_string())
    }

    #[tokio::test]
    async fn the_context_chooses_the_cluster() {
        assert_eq!(server(TWO, None).await.unwrap(), "https://192.0.2.1:6443/");
        assert_eq!(server(TWO, Some("two")).await.unwrap(), "https://192.0.2.2:6443/");
    }

    #[tokio::test]
    async fn what_does_not_lead_to_a_cluster_says_the_remedy() {
        let error = server(TWO, Some("three")).await.unwrap_err();
        assert!(format!("{error:#}").contains("--context"), "{error:#}");
        let args = ClusterArgs { kubeconfig: Some("/nowhere/config".into()), context: None };
        let error = format!("{:#}", args.config().await.unwrap_err());
        assert!(error.contains("/nowhere/config"), "{error}");
    }
}
