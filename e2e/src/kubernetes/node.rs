//! A node: its own network, mounts, processes, host name and control groups, with a real containerd, kubelet and
//! kube-proxy in it. When its first process ends, the kernel ends all that runs on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_lab::process::{self, Output, Program};
use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::{self, Layout};
use super::daemon::Daemon;
use super::home::{CONTROL, Home, address, number, pods};
use super::network;
use super::pki::Pki;
use crate::wait::Stop;

const BOOT: &str = include_str!("boot.sh");
/// Puts itself into these control groups, then becomes what follows.
const JOIN: &str =
    r#"set -e; while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@""#;
/// As a node's own init system would start something: in the node's control groups, not in ours.
const ENTER: &str = r#"set -e; if [ -d /sys/fs/cgroup/daemons ]; then echo $$ >/sys/fs/cgroup/daemons/cgroup.procs
else for group in /sys/fs/cgroup/*; do echo $$ >"$group/cgroup.procs"; done; fi; exec "$@""#;
/// A node boots in half a second; a busy machine takes longer.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// An archive of a hundred megabytes is unpacked in some seconds.
const IMPORT_LIMIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(20);
/// The programs of the system lie in `sbin`, too, which a user's path may leave out.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A node that is up, or was.
#[derive(Debug)]
pub(super) struct Node {
    name: &'static str,
    home: Home,
    programs: PathBuf,
    init: Daemon,
    containerd: Option<Daemon>,
    daemons: Vec<Daemon>,
}

impl Node {
    /// Writes what is on the node's disk; nothing runs yet.
    pub(super) fn prepare(
        name: &'static str,
        home: &Home,
        programs: &Path,
        pki: &Pki,
    ) -> anyhow::Result<Self> {
        let disk = home.disk(name);
        let file = |path: &str, text: &str| {
            let path = disk.join(path);
            let dir = path.parent().map_or(Ok(()), fs::create_dir_all);
            dir.and_then(|()| fs::write(&path, text))
                .with_context(|| format!("cannot write {}", path.display()))
        };
        file("etc/resolv.conf", "nameserver 10.96.0.10\n")?;
        // Thirty-two hexadecimal digits, another for each node.
        file("etc/machine-id", &format!("{:032x}\n", u128::from(number(name))))?;
        file("etc/containerd/config.toml", CONTAINERD)?;
        file("etc/cni/net.d/10-bridge.conflist", &conflist(name))?;
        file("etc/kubernetes/kubelet.yaml", KUBELET)?;
        file("etc/kubernetes/proxy.yaml", &PROXY.replace("NODE", name))?;
        let own = disk.join("etc/kubernetes");
        for (from, to) in [
            ("ca.crt", "ca.crt"),
            (&format!("{name}.crt"), "kubelet.crt"),
            (&format!("{name}.key"), "kubelet.key"),
        ] {
            fs::copy(pki.file(from), own.join(to)).with_context(|| format!("cannot copy {from}"))?;
        }
        let server = format!("https://{}:6443", address(CONTROL));
        pki.kubeconfig(name, &server, &own.join("kubelet.kubeconfig"))?;
        pki.kubeconfig("proxy", &server, &own.join("proxy.kubeconfig"))?;
        let init = Daemon::new("", None, Program::new("true"), PathBuf::new());
        Ok(Self {
            name,
            home: home.clone(),
            programs: programs.to_owned(),
            init,
            containerd: None,
            daemons: Vec::new(),
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Boots it: its network, its namespaces, and containerd, with the images that are in the share. Kubelet and
    /// kube-proxy are started by [`Node::join`].
    pub(super) fn boot(&mut self, stop: &Stop) -> anyhow::Result<()> {
        network::make_node(&self.home, self.name)?;
        let layout = Layout::found()?;
        let groups = layout.make(&self.group())?;
        let disk = self.home.disk(self.name);
        fs::create_dir_all(&disk)?;
        let boot = self.home.dir().join("boot.sh");
        fs::write(&boot, BOOT)?;
        let netns = self.home.netns(self.name);
        // The groups first: `ip netns exec` hides those that the machine has.
        let program = Program::new("sh")
            .args(["-c", JOIN, "sh"])
            .args(groups)
            .args(["--", "ip", "netns", "exec", netns.name()])
            .args(["setpriv", "--pdeathsig", "KILL", "unshare"])
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child", "sh"])
            .arg(&boot)
            .arg(self.name)
            .arg(&disk)
            .arg(&self.programs)
            .arg(self.home.share())
            .args(layout.word().split(' '))
            .env("PATH", PATH);
        self.init = Daemon::new("init", None, program, self.log("init"));
        self.init.start()?;
        let what = format!("the boot of node {}", self.name);
        let pid = stop.until_every(PAUSE, BOOT_LIMIT, &what, || {
            let process = self.init.process().context("the node was stopped")?;
            if let Some(status) = process.ended() {
                bail!("node {} did not boot: {status}; it said: {}", self.name, process.said());
            }
            Ok(first_process(process.pid()).filter(|pid| seen(*pid, "run/booted").exists()))
        })?;
        fs::write(self.home.init(self.name), pid.to_string())?;
        let mut containerd = self.daemon("containerd", &["containerd"])?;
        containerd.start()?;
        self.containerd = Some(containerd);
        let socket = seen(pid, "run/containerd/containerd.sock");
        stop.until_every(PAUSE, BOOT_LIMIT, &format!("the start of containerd on {}", self.name), || {
            Ok(socket.exists().then_some(()))
        })?;
        Ok(())
    }

    /// Starts what makes it a node of the cluster.
    pub(super) fn join(&mut self) -> anyhow::Result<()> {
        let address = format!("--node-ip={}", address(self.name));
        let name = format!("--hostname-override={}", self.name);
        let kubelet = [
            "/run/kubelet",
            "--config=/etc/kubernetes/kubelet.yaml",
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
            &name,
            &address,
        ];
        let proxy = ["/programs/kubernetes", "kube-proxy", "--config=/etc/kubernetes/proxy.yaml"];
        self.daemons = vec![self.daemon("kubelet", &kubelet)?, self.daemon("kube-proxy", &proxy)?];
        self.daemons.iter_mut().try_for_each(|daemon| Ok(daemon.start()?))
    }

    /// Cuts the power: all that runs on it ends at once, and its network with it. The disk stays.
    pub(super) fn cut(&mut self) -> anyhow::Result<()> {
        // Nothing of the node may be started again meanwhile.
        self.daemons.clear();
        self.containerd = None;
        if let Ok(pid) = init(&self.home, self.name) {
            // When it is gone, so is every process of the node: the kernel waits for them.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(process) = self.init.process() {
            process.wait(BOOT_LIMIT)?;
        }
        self.init.kill();
        let _ = fs::remove_file(self.home.init(self.name));
        cgroup::remove(&self.group())?;
        network::remove_node(&self.home, self.name)
    }

    /// Starts again whatever ended by itself.
    pub(super) fn tend(&mut self) -> anyhow::Result<()> {
        self.containerd.iter_mut().chain(&mut self.daemons).try_for_each(|daemon| Ok(daemon.tend()?))
    }

    fn daemon(&self, name: &str, argv: &[&str]) -> anyhow::Result<Daemon> {
        let program = inside(&self.home, self.name, argv)?;
        Ok(Daemon::new(&format!("{name} of {}", self.name), None, program, self.log(name)))
    }

    fn group(&self) -> PathBuf {
        Path::new(&self.home.cgroup()).join(self.name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.home.logs().join(format!("{}.{name}.log", self.name))
    }
}

/// A command in all namespaces of a node, as its root.
pub(super) fn inside(home: &Home, node: &str, argv: &[&str]) -> anyhow::Result<Program> {
    let pid = init(home, node)?.to_string();
    Ok(Program::new("nsenter")
        .args(["--target", &pid, "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--"])
        .args(["/bin/sh", "-c", ENTER, "sh"])
        .args(argv)
        .env("PATH", PATH)
        .env("HOME", "/tmp"))
}

/// Runs a command on a node to its end.
pub(super) fn run(home: &Home, node: &str, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
    Ok(process::run(None, &inside(home, node, argv)?, limit)?)
}

/// Gives the node's containerd an image that lies in the share.
pub(super) fn import(home: &Home, node: &str, archive: &str) -> anyhow::Result<()> {
    let archive = format!("/share/{archive}");
    let argv = ["ctr", "--namespace", "k8s.io", "images", "import", &archive];
    run(home, node, &argv, IMPORT_LIMIT)?
        .ok()
        .with_context(|| format!("node {node} does not take {archive}"))?;
    Ok(())
}

fn init(home: &Home, node: &str) -> anyhow::Result<i32> {
    let path = home.init(node);
    let text = fs::read_to_string(&path).with_context(|| format!("node {node} is not up"))?;
    let pid = text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))?;
    ensure!(pid > 1, "{} holds no process id", path.display());
    Ok(pid)
}

/// The one child of the program that made the namespaces.
fn first_process(parent: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// A path as the node sees it.
fn seen(pid: i32, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(path)
}

/// Addresses are given out anew after a reboot (`dataDir`): nobody gives back those of pods that died with the node.
fn conflist(node: &str) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "bridge",
  "plugins": [
    {{
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
      "ipam": {{
        "type": "host-local", "dataDir": "/run/cni-addresses",
        "ranges": [[{{"subnet": "{}", "gateway": "10.244.{}.1"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        pods(node),
        number(node)
    )
}

/// `restrict_oom_score_adj`: a machine may withhold the right to lower it, as containers do.
const CONTAINERD: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/ambit/pause:dev"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#;

/// Nothing is evicted: the disk is that of the whole machine, and its state is not the cluster's to judge.
const KUBELET: &str = r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
readOnlyPort: 0
rotateCertificates: false
localStorageCapacityIsolation: false
volumePluginDir: /var/lib/kubelet/plugins-exec
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
"#;

/// The limits of connections tracked are the machine's, not the node's.
const PROXY: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /etc/kubernetes/proxy.kubeconfig}
mode: nftables
clusterCIDR: 10.244.0.0/16
hostnameOverride: NODE
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: 0
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_plugins_is_json_with_the_nodes_addresses() {
        let chain: serde_json::Value = serde_json::from_str(&conflist("n2")).unwrap();
        assert_eq!(chain["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.2.0/24");
    }
}
