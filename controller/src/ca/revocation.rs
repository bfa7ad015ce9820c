//! Revocation lists that the operator puts beside a plugged-in authority, passed on to tunnels as a file.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use ambit_wire::tls::revoked::{RevocationError, RevocationLists};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::file::{FileError, publish};

/// How often the lists are looked at. Tunnels take another three seconds to see what is passed on.
const LOOK: Duration = Duration::from_secs(1);
/// More than any list that a tunnel would read.
const LARGEST: u64 = 64 * 1024 * 1024;

/// From where to where lists are passed on.
#[derive(Clone, Debug)]
pub struct PassOn {
    from: PathBuf,
    to: PathBuf,
    /// What was looked at last, whether it was of use or not.
    seen: Option<Vec<u8>>,
}

impl PassOn {
    /// Passes on what is there now. Lists that are there and cannot be used stop the start.
    pub fn start(from: PathBuf, to: PathBuf) -> Result<Self, PassOnError> {
        let mut pass_on = Self { from, to, seen: None };
        if !pass_on.look()? {
            info!(crl.path = %pass_on.from.display(), "No revocation lists yet; they are passed on when they are there");
        }
        Ok(pass_on)
    }

    /// Passes on every new version until `stop`. One that cannot be used is reported, and not passed on.
    pub async fn follow(mut self, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let looked = spawn_blocking(move || {
                if let Err(error) = self.look() {
                    warn!(crl.path = %self.from.display(), %error, "New revocation lists not usable; the last good ones stay in force");
                }
                self
            });
            match looked.await {
                Ok(again) => self = again,
                Err(_) => return,
            }
        }
    }

    /// Whether there are lists. They are passed on if they are new.
    fn look(&mut self) -> Result<bool, PassOnError> {
        let Some(content) = read(&self.from)? else { return Ok(self.seen.is_some()) };
        if self.seen.as_ref() == Some(&content) {
            return Ok(true);
        }
        let checked = RevocationLists::load(&self.from).map(drop);
        self.seen = Some(content);
        checked?;
        if let Some(content) = &self.seen {
            publish(&self.to, content)?;
            info!(crl.path = %self.to.display(), "Revocation lists passed on");
        }
        Ok(true)
    }
}

/// The file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, PassOnError> {
    let unreadable = |source| PassOnError::File(FileError::read(path, source));
    match std::fs::metadata(path) {
        Ok(found) if found.len() > LARGEST => Err(PassOnError::TooLarge(path.to_owned())),
        Ok(_) => std::fs::read(path).map(Some).map_err(unreadable),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// Why lists are not passed on.
#[derive(Debug, thiserror::Error)]
pub enum PassOnError {
    /// They are not lists.
    #[error(transparent)]
    Lists(#[from] RevocationError),
    /// They cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// They are not lists either.
    #[error("{path} is larger than any revocation list; put the right file there", path = .0.display())]
    TooLarge(PathBuf),
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use ambit_model::identity::TrustDomain;
    use ambit_wire::cert::{
        authority::{Authority, Serial},
        crl::Edition,
    };

    use super::{super::authority::starting, *};

    fn list(number: u32) -> String {
        let now = SystemTime::now();
        let life = starting(now, Duration::from_secs(3600));
        let authority = Authority::self_signed(&TrustDomain::default(), life, Serial::new(1)).unwrap();
        let edition = Edition { number, this_update: now, next_update: now + Duration::from_secs(3600) };
        authority.revocation_list(&[Serial::new(7)], edition).unwrap()
    }

    #[test]
    fn lists_are_passed_on_as_they_change_and_bad_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("ca-crl.pem"), dir.path().join("out/crl.pem"));
        let mut pass_on = PassOn::start(from.clone(), to.clone()).unwrap();
        assert!(!to.exists());
        let good = list(1);
        fs::write(&from, &good).unwrap();
        assert!(pass_on.look().unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), good);
        fs::write(&from, "garbage").unwrap();
        assert!(pass_on.look().is_err());
        assert!(pass_on.look().unwrap(), "a mistake is reported once");
        assert_eq!(fs::read_to_string(&to).unwrap(), good);
        fs::remove_file(&from).unwrap();
        assert!(pass_on.look().unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), good, "what was revoked stays revoked");
        let next = list(2);
        fs::write(&from, &next).unwrap();
        assert!(pass_on.look().unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), next);
    }

    #[test]
    fn lists_that_cannot_be_used_stop_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("ca-crl.pem");
        fs::write(&from, "garbage").unwrap();
        let error = PassOn::start(from, dir.path().join("crl.pem")).unwrap_err().to_string();
        assert!(error.contains("ca-crl.pem"), "{error}");
    }
}
