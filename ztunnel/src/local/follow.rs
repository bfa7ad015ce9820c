//! Keeps the mesh as a file says, while the file changes.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use ambit_model::snapshot::{Removal, Update};
use ambit_wire::{discovery::Writer, tls::file::WatchedFile};

use super::{LocalError, parse};

/// How often the file is looked at, at the price of one `stat`. With the rest that a file must have had, a
/// change is in force within three seconds.
const LOOK: Duration = Duration::from_secs(1);

/// A file, and what the mesh has from it.
#[derive(Debug)]
pub struct Followed {
    file: WatchedFile,
    mesh: Writer,
    held: HashSet<Removal>,
}

impl Followed {
    pub(super) fn new(file: WatchedFile, mesh: Writer) -> Self {
        Self { file, mesh, held: HashSet::new() }
    }

    /// Follows the file until `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(LOOK) => self.look(SystemTime::now()),
            }
        }
    }

    fn look(&mut self, now: SystemTime) {
        let Some(changed) = self.file.changed(now) else { return };
        let path = self.file.path().to_owned();
        let read = changed.map_err(|error| LocalError::Read { path: path.clone(), error });
        match read.and_then(|content| self.replace(&content)) {
            Ok(()) => tracing::info!(local.path = %path.display(), "Local mesh replaced"),
            Err(error) => tracing::warn!(
                local.path = %path.display(), error = %error,
                "Local mesh not usable, keeping the last good one"
            ),
        }
    }

    /// The mesh is what `content` says, and nothing that an earlier content said, or it stays as it is.
    pub(super) fn replace(&mut self, content: &[u8]) -> Result<(), LocalError> {
        let updates = parse(std::str::from_utf8(content).map_err(|_| LocalError::NotText)?)?;
        let next: HashSet<_> = updates.iter().map(name).collect();
        let gone: Vec<_> = self.held.difference(&next).cloned().collect();
        self.mesh.apply(&gone, updates);
        self.held = next;
        Ok(())
    }
}

/// By what it would be removed.
fn name(update: &Update) -> Removal {
    match update {
        Update::Workload(workload) => Removal::Address(workload.uid.to_string()),
        Update::Service(service) => Removal::Address(service.key().to_string()),
        Update::Policy(policy) => Removal::Policy(policy.key.clone()),
        Update::Config(config) => Removal::Config(config.key().clone()),
    }
}

#[cfg(test)]
mod tests {
    use ambit_wire::{discovery::Mesh, tls::file::REST};

    use super::*;

    const BOTH: &str = "workloads: [{uid: a, name: a, namespace: n}, {uid: b, name: b, namespace: n}]\n\
                        policies: [{name: p, namespace: n, scope: Namespace, action: Deny, rules: [[[{}]]]}]";
    const ONE: &str = "workloads: [{uid: b, name: b, namespace: n}]";

    #[test]
    fn a_file_that_changes_is_followed_and_a_mistake_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let (mesh, discovery) = Mesh::new(None);
        std::fs::write(&path, BOTH).unwrap();
        let (file, content) = WatchedFile::open(&path).unwrap();
        let mut followed = Followed::new(file, discovery.writer());
        followed.replace(&content).unwrap();
        let known = || {
            let mesh = mesh.current();
            let workloads = ["a", "b"].map(|uid| mesh.workload(&uid.into()).is_some());
            (workloads, mesh.policies().count())
        };
        assert_eq!(known(), ([true, true], 1));

        for (content, expected) in
            [("workloads: [{", ([true, true], 1)), (ONE, ([false, true], 0)), (BOTH, ([true, true], 1))]
        {
            std::fs::write(&path, content).unwrap();
            followed.look(SystemTime::now() + REST);
            assert_eq!(known(), expected, "{content}");
        }
    }
}
