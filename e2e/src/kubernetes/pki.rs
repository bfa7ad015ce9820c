//! The cluster's certificates and the configurations that carry them. They live as long as the cluster does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_lab::process::{self, Program};
use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::home::{CONTROL, Home, NODES, address};

/// One key is made in a hundredth of a second.
const LIMIT: Duration = Duration::from_secs(30);
/// A cluster is thrown away long before.
const DAYS: &str = "365";

/// A folder of keys and certificates, signed by one authority.
#[derive(Debug, Clone)]
pub(super) struct Pki {
    dir: PathBuf,
}

/// Whom the API server knows by certificate: file name, groups, user.
const USERS: [(&str, &str, &str); 5] = [
    ("admin", "system:masters", "admin"),
    ("apiserver-kubelet", "system:masters", "apiserver-kubelet"),
    ("controllers", "", "system:kube-controller-manager"),
    ("scheduler", "", "system:kube-scheduler"),
    ("proxy", "", "system:kube-proxy"),
];

impl Pki {
    /// Makes all that the cluster needs.
    pub(super) fn make(home: &Home) -> anyhow::Result<Self> {
        let dir = home.pki();
        fs::DirBuilder::new().mode(0o700).create(&dir).context("cannot make a folder for certificates")?;
        let pki = Self { dir };
        pki.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days {DAYS} -keyout ca.key -out ca.crt \
             -subj /CN=kubernetes-ca"
        ))?;
        let names = [
            format!("IP:{}", address(CONTROL)),
            "IP:10.96.0.1,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default".to_owned(),
            "DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local".to_owned(),
        ];
        pki.leaf("apiserver", "/CN=kube-apiserver", &names.join(","))?;
        for (file, group, user) in USERS {
            let group = if group.is_empty() { String::new() } else { format!("/O={group}") };
            pki.leaf(file, &format!("{group}/CN={user}"), &format!("DNS:{file}"))?;
        }
        for node in NODES {
            let names = format!("IP:{},DNS:{node}", address(node));
            pki.leaf(node, &format!("/O=system:nodes/CN=system:node:{node}"), &names)?;
        }
        pki.openssl("ecparam -genkey -name prime256v1 -noout -out sa.key")?;
        pki.openssl("ec -in sa.key -pubout -out sa.pub")?;
        Ok(pki)
    }

    /// The path of one of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the configuration with which `user` reaches the API server at `server`.
    pub(super) fn kubeconfig(&self, user: &str, server: &str, to: &Path) -> anyhow::Result<()> {
        let data = |name: String| -> anyhow::Result<String> {
            let path = self.file(&name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(STANDARD.encode(bytes))
        };
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "ambit", "cluster": {
                "server": server, "certificate-authority-data": data("ca.crt".to_owned())?,
            }}],
            "users": [{"name": user, "user": {
                "client-certificate-data": data(format!("{user}.crt"))?,
                "client-key-data": data(format!("{user}.key"))?,
            }}],
            "contexts": [{"name": "ambit", "context": {"cluster": "ambit", "user": user}}],
            "current-context": "ambit",
        });
        write_secret(to, &format!("{text:#}\n"))
    }

    fn leaf(&self, file: &str, subject: &str, names: &str) -> anyhow::Result<()> {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {file}.key -out {file}.csr -subj {subject}"
        ))?;
        let extensions = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
        fs::write(self.file("extensions"), extensions).context("cannot write a certificate's extensions")?;
        self.openssl(&format!(
            "x509 -req -in {file}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {DAYS} -out {file}.crt \
             -extfile extensions"
        ))
    }

    fn openssl(&self, line: &str) -> anyhow::Result<()> {
        let program = Program::new("openssl").args(line.split_whitespace()).dir(&self.dir);
        process::run(None, &program, LIMIT)?.ok().context("is the package openssl installed?")?;
        Ok(())
    }
}

/// Writes a file that is for root alone, whatever was there before.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let unusable = || format!("cannot write {}", path.display());
    let next = path.with_extension("next");
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&next)
        .with_context(unusable)?;
    file.write_all(text.as_bytes()).with_context(unusable)?;
    fs::rename(&next, path).with_context(unusable)
}
