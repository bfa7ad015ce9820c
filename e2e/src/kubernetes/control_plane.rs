//! The control plane: etcd, API server, controllers and scheduler, in a namespace beside the nodes that has routes to
//! them and to every pod. Webhooks are called at their pods' addresses: there is no kube-proxy here.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ambit_lab::process::{self, ProcessError, Program};
use anyhow::{Context as _, bail};

use super::daemon::Daemon;
use super::home::{CONTROL, Home, address};
use super::pki::Pki;
use crate::wait::Stop;

/// Four seconds, unless the machine is busy.
const READY_LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// The four daemons.
#[derive(Debug)]
pub(super) struct ControlPlane {
    home: Home,
    pki: Pki,
    etcd: Daemon,
    api_server: Daemon,
    /// Started when the API server has made its first roles: they give up otherwise.
    others: [Daemon; 2],
}

impl ControlPlane {
    /// The control plane of a cluster; nothing runs yet.
    pub(super) fn new(home: &Home, programs: &Path, pki: &Pki) -> anyhow::Result<Self> {
        let daemon = |name: &str, args: Vec<String>| {
            let program = Program::new(programs.join("kubernetes")).arg(name).args(args);
            Daemon::new(name, Some(home.netns(CONTROL)), program, home.logs().join(format!("{name}.log")))
        };
        let server = format!("https://{}:6443", address(CONTROL));
        for user in ["controllers", "scheduler"] {
            pki.kubeconfig(user, &server, &pki.file(&format!("{user}.kubeconfig")))?;
        }
        let etcd = vec![format!("--data-dir={}", home.dir().join("etcd").display())];
        Ok(Self {
            home: home.clone(),
            pki: pki.clone(),
            etcd: daemon("etcd", etcd),
            api_server: daemon("kube-apiserver", api_server(home, pki)?),
            others: [
                daemon("kube-controller-manager", controllers(pki)),
                daemon("kube-scheduler", clients(pki, "scheduler")),
            ],
        })
    }

    /// Starts all of it; returns when it serves.
    pub(super) fn start(&mut self, stop: &Stop) -> anyhow::Result<()> {
        self.etcd.start()?;
        self.start_api_server(stop)?;
        self.others.iter_mut().try_for_each(|daemon| Ok(daemon.start()?))
    }

    /// Starts the API server; returns when it serves.
    pub(super) fn start_api_server(&mut self, stop: &Stop) -> anyhow::Result<()> {
        self.api_server.start()?;
        stop.until_every(PAUSE, READY_LIMIT, "the start of the API server", || {
            let process = self.api_server.process().context("the API server was stopped")?;
            if let Some(status) = process.ended() {
                let said = process.said();
                let lines: Vec<_> = said.lines().rev().take(5).collect();
                bail!("the API server ended with {status}; it said at last: {}", lines.join("\n"));
            }
            Ok(self.ready()?.then_some(()))
        })
    }

    /// Ends the API server alone.
    pub(super) fn stop_api_server(&mut self) -> anyhow::Result<()> {
        Ok(self.api_server.stop()?)
    }

    /// Starts again whatever ended by itself.
    pub(super) fn tend(&mut self) -> anyhow::Result<()> {
        let all = [&mut self.etcd, &mut self.api_server].into_iter().chain(&mut self.others);
        all.into_iter().try_for_each(|daemon| Ok(daemon.tend()?))
    }

    fn ready(&self) -> anyhow::Result<bool> {
        let program = Program::new("curl")
            .args(["--silent", "--fail", "--max-time", "5", "--cacert"])
            .arg(self.pki.file("ca.crt"))
            .arg("--cert")
            .arg(self.pki.file("admin.crt"))
            .arg("--key")
            .arg(self.pki.file("admin.key"))
            .arg(format!("https://{}:6443/readyz", address(CONTROL)));
        match process::run(Some(&self.home.netns(CONTROL)), &program, ASK_LIMIT) {
            Ok(output) => Ok(output.status.success()),
            // A machine that has no time for the question has none to answer it; the wait has a limit of its own.
            Err(ProcessError::Timeout { .. }) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }
}

/// Who asked for what, of the accounts in the mesh's namespace: a story holds it against what they may do.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts:istio-system']}
- {level: None}
";

fn api_server(home: &Home, pki: &Pki) -> anyhow::Result<Vec<String>> {
    let policy = pki.file("audit.yaml");
    fs::write(&policy, AUDIT).with_context(|| format!("cannot write {}", policy.display()))?;
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.file(name).display());
    Ok(vec![
        file("audit-policy-file", "audit.yaml"),
        format!("--audit-log-path={}", home.audit().display()),
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={}", address(CONTROL)),
        "--secure-port=6443".to_owned(),
        file("tls-cert-file", "apiserver.crt"),
        file("tls-private-key-file", "apiserver.key"),
        file("client-ca-file", "ca.crt"),
        file("kubelet-certificate-authority", "ca.crt"),
        file("kubelet-client-certificate", "apiserver-kubelet.crt"),
        file("kubelet-client-key", "apiserver-kubelet.key"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        file("service-account-key-file", "sa.pub"),
        file("service-account-signing-key-file", "sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Endpoints instead of cluster addresses, for webhooks too.
        "--enable-aggregator-routing=true".to_owned(),
        "--profiling=false".to_owned(),
    ])
}

fn controllers(pki: &Pki) -> Vec<String> {
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.file(name).display());
    let own = [
        file("service-account-private-key-file", "sa.key"),
        file("root-ca-file", "ca.crt"),
        file("cluster-signing-cert-file", "ca.crt"),
        file("cluster-signing-key-file", "ca.key"),
        "--use-service-account-credentials=true".to_owned(),
        "--cluster-cidr=10.244.0.0/16".to_owned(),
        // A story takes the API server away for two minutes. Nodes that could not say so are alive all the same: taken
        // for dead, all their pods would be unready for a moment, in a mesh and without one.
        "--node-monitor-grace-period=10m".to_owned(),
    ];
    clients(pki, "controllers").into_iter().chain(own).collect()
}

fn clients(pki: &Pki, user: &str) -> Vec<String> {
    let kubeconfig = pki.file(&format!("{user}.kubeconfig"));
    let flags = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
    let flags = flags.iter().map(|flag| format!("--{flag}={}", kubeconfig.display()));
    flags.chain(["--leader-elect=false".to_owned(), "--profiling=false".to_owned()]).collect()
}
