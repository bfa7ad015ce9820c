//! Container images made of files of this machine: programs with the libraries that they load, links, a few files. The
//! same content makes the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_lab::process::{self, Program};
use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const LIMIT: Duration = Duration::from_secs(60);
/// A debug build is mostly words about itself, which no container needs.
const STRIP_ABOVE: u64 = 8 << 20;

/// An image that can be written as an archive.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    user: String,
    env: Vec<String>,
}

#[derive(Debug, Clone)]
enum Entry {
    File { content: Content, mode: u32 },
    Link(PathBuf),
    Directory { mode: u32 },
}

#[derive(Debug, Clone)]
enum Content {
    At(PathBuf),
    Bytes(Vec<u8>),
}

impl Image {
    /// An empty image of that name, with a tag.
    pub fn new(name: &str) -> Self {
        let user = "65532:65532".to_owned();
        let image = Self {
            name: name.to_owned(),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            user,
            env: Vec::new(),
        };
        image.directory("/tmp", 0o1777)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name, as a file may bear it.
    pub(super) fn file_name(&self) -> String {
        self.name.replace(['/', ':'], "-")
    }

    /// Another when a file that it is made of was changed.
    pub(super) fn fingerprint(&self) -> anyhow::Result<String> {
        let mut told = format!("{} {} {:?} {:?}\n", self.name, self.user, self.entrypoint, self.env);
        for (path, entry) in &self.entries {
            if let Entry::File { content: Content::At(from), .. } = entry {
                let now = fs::metadata(from).with_context(|| format!("{} is missing", from.display()))?;
                told.push_str(&format!("{} {} {}.{} ", now.ino(), now.len(), now.mtime(), now.mtime_nsec()));
            }
            told.push_str(&format!("{} {entry:?}\n", path.display()));
        }
        digest(&mut told.as_bytes())
    }

    /// A file of this machine.
    #[must_use]
    pub fn copy(mut self, from: &Path, to: &str, mode: u32) -> Self {
        self.entries.insert(inside(to), Entry::File { content: Content::At(from.to_owned()), mode });
        self
    }

    /// A file of these bytes.
    #[must_use]
    pub fn file(mut self, to: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.entries.insert(inside(to), Entry::File { content: Content::Bytes(bytes.into()), mode });
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, at: &str, to: &str) -> Self {
        self.entries.insert(inside(at), Entry::Link(PathBuf::from(to)));
        self
    }

    /// An empty folder; those above files need not be named.
    #[must_use]
    pub fn directory(mut self, at: &str, mode: u32) -> Self {
        self.entries.insert(inside(at), Entry::Directory { mode });
        self
    }

    /// A program of this machine, with the libraries that it loads.
    pub fn program(self, from: &Path, to: &str) -> anyhow::Result<Self> {
        let real = from.canonicalize().with_context(|| format!("{} is missing", from.display()))?;
        let mut image = self.copy(&real, to, 0o755);
        for library in libraries(&real)? {
            let at = library.to_string_lossy().into_owned();
            if !image.entries.contains_key(&inside(&at)) {
                image = image.copy(&library, &at, 0o755);
            }
        }
        Ok(image)
    }

    /// Programs of the system, by name, each where a user's path finds it.
    pub fn system_programs(self, names: &[&str]) -> anyhow::Result<Self> {
        names.iter().try_fold(self, |image, name| {
            let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|dir| Path::new(dir).join(name));
            match places.iter().find(|path| path.exists()) {
                Some(path) => image.program(path, &format!("/usr/bin/{name}")),
                None => bail!("{name} is missing; `.ci/setup build cluster` installs it"),
            }
        })
    }

    /// What it runs.
    #[must_use]
    pub fn entrypoint(mut self, argv: &[&str]) -> Self {
        self.entrypoint = argv.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// As whom (`uid:gid`).
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Users that programs ask for by name, and a path to find programs.
    #[must_use]
    pub fn accounts(self) -> Self {
        self.env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .file(
                "/etc/passwd",
                "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/tmp:/bin/sh\n",
                0o644,
            )
            .file("/etc/group", "root:x:0:\nnonroot:x:65532:\n", 0o644)
            .file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0o644)
            .link("/bin", "usr/bin")
    }

    /// Writes it as an archive that `ctr images import` reads (an OCI layout in a tar).
    pub fn write(&self, to: &Path) -> anyhow::Result<()> {
        ensure!(self.name.contains(':'), "image {} has no tag", self.name);
        let scratch =
            tempfile::tempdir_in(to.parent().unwrap_or(Path::new("."))).context("no place for a layer")?;
        let layer = scratch.path().join("layer");
        let mut tar = Builder::new(BufWriter::new(File::create(&layer)?));
        for (path, entry) in self.with_folders() {
            self.append(&mut tar, &path, &entry, scratch.path())
                .with_context(|| format!("cannot put {} into image {}", path.display(), self.name))?;
        }
        tar.into_inner()?.flush()?;
        let layer_digest = digest(&mut File::open(&layer)?)?;
        let config = self.config(&layer_digest);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&mut config.as_bytes())?,
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer_digest, "size": fs::metadata(&layer)?.len(),
            }],
        })
        .to_string();
        let named = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&mut manifest.as_bytes())?,
            "size": manifest.len(),
            "annotations": {"io.containerd.image.name": self.name},
        });
        let index = json!({"schemaVersion": 2, "manifests": [named]}).to_string();
        let next = to.with_extension("next");
        let mut archive = Builder::new(BufWriter::new(File::create(&next)?));
        bytes(&mut archive, Path::new("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        bytes(&mut archive, Path::new("index.json"), index.as_bytes(), 0o644)?;
        for blob in [config.as_bytes(), manifest.as_bytes()] {
            bytes(&mut archive, &blob_path(&digest(&mut &*blob)?), blob, 0o644)?;
        }
        stream(&mut archive, &blob_path(&layer_digest), &layer, 0o644)?;
        archive.into_inner()?.flush()?;
        fs::rename(&next, to).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Every folder above an entry, too, in an order in which each comes before what is in it.
    fn with_folders(&self) -> BTreeMap<PathBuf, Entry> {
        let mut all = self.entries.clone();
        for path in self.entries.keys() {
            for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
                all.entry(above.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
            }
        }
        all
    }

    fn append(&self, tar: &mut Tar, path: &Path, entry: &Entry, scratch: &Path) -> anyhow::Result<()> {
        match entry {
            Entry::File { content: Content::Bytes(content), mode } => bytes(tar, path, content, *mode),
            Entry::File { content: Content::At(from), mode } => {
                stream(tar, path, &stripped(from, scratch)?, *mode)
            }
            Entry::Link(target) => {
                let mut header = header(EntryType::Symlink, 0, 0o777);
                tar.append_link(&mut header, path, target).map_err(Into::into)
            }
            Entry::Directory { mode } => {
                let mut header = header(EntryType::Directory, 0, *mode);
                tar.append_data(&mut header, path, io::empty()).map_err(Into::into)
            }
        }
    }

    fn config(&self, layer: &str) -> String {
        json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"User": self.user, "Env": self.env, "Entrypoint": self.entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [layer]},
        })
        .to_string()
    }
}

type Tar = Builder<BufWriter<File>>;

/// As container images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn inside(path: &str) -> PathBuf {
    PathBuf::from(path.trim_start_matches('/'))
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn bytes(tar: &mut Tar, path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let size = u64::try_from(content.len())?;
    tar.append_data(&mut header(EntryType::Regular, size, mode), path, content).map_err(Into::into)
}

fn stream(tar: &mut Tar, path: &Path, from: &Path, mode: u32) -> anyhow::Result<()> {
    let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let size = file.metadata()?.len();
    tar.append_data(&mut header(EntryType::Regular, size, mode), path, file).map_err(Into::into)
}

fn blob_path(digest: &str) -> PathBuf {
    Path::new("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

fn digest(from: &mut impl Read) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(from, &mut hasher)?;
    let hex: Vec<_> = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{}", hex.concat()))
}

/// A big program without what only a debugger reads.
fn stripped(from: &Path, scratch: &Path) -> anyhow::Result<PathBuf> {
    if fs::metadata(from)?.len() < STRIP_ABOVE {
        return Ok(from.to_owned());
    }
    let to = scratch.join("stripped");
    let program = Program::new("strip").arg("--strip-all").arg("-o").arg(&to).arg(from);
    process::run(None, &program, LIMIT)?.ok().context("is the package binutils installed?")?;
    Ok(to)
}

/// What the program's loader loads, and the loader itself.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = process::run(None, &Program::new("ldd").arg(program), LIMIT)?;
    if !output.status.success() {
        // Not dynamic, or a script: it needs none.
        return Ok(BTreeSet::new());
    }
    ensure!(
        !output.stdout.contains("not found"),
        "{} needs libraries that are missing: {}",
        program.display(),
        output.stdout
    );
    let words = output.stdout.split_whitespace();
    Ok(words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_content_makes_the_same_archive() {
        let dir = tempfile::tempdir().unwrap();
        let image = || Image::new("localhost/test:dev").accounts().file("/etc/motd", "hello", 0o644);
        let written = |image: &Image, name: &str| {
            let path = dir.path().join(name);
            image.write(&path).unwrap();
            fs::read(path).unwrap()
        };
        assert_eq!(written(&image(), "a.tar"), written(&image(), "b.tar"));
        assert_ne!(written(&image(), "a.tar"), written(&image().file("/x", "y", 0o644), "c.tar"));
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let image = Image::new("localhost/test:dev").file("/a/b/c", "", 0o644);
        let paths: Vec<_> = image.with_folders().into_keys().map(|path| path.display().to_string()).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "tmp"]);
    }

    #[test]
    fn a_program_brings_its_libraries() {
        let image = Image::new("localhost/test:dev").system_programs(&["sh"]).unwrap();
        assert!(image.entries.keys().any(|path| path.to_string_lossy().contains("libc.so")));
        assert!(image.system_programs(&["ambit-no-such"]).is_err());
    }
}
