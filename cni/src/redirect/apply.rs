//! Puts the rules of [`super::rules`] into a pod's namespace, sees whether they are still there, and
//! takes them out.
//!
//! Everything here may be done twice. The table is replaced in one transaction, so no packet sees half
//! of it, and connections that were captured before keep what conntrack knows about them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use tracing::debug;

use super::rules::{self, Families, Redirect, TABLE};
use crate::{
    command::{self, CommandError},
    netns::{Netns, NetnsError},
    outside::{self, Cookie},
};

/// Rules that are in force in one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The families that were found there.
    pub families: Families,
    /// The table as the kernel lists it, without its counters.
    listing: String,
}

/// A pod whose traffic is captured from now on.
#[derive(Debug)]
pub struct Captured {
    /// The rules.
    pub applied: Applied,
    /// The connections that it had. None if that is not known, as when something of ours was there before: some may
    /// be captured ones.
    pub older: Option<BTreeSet<Cookie>>,
}

/// Rules that could not be put in, looked at, or taken out.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// `nft` or `ip` failed.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Captures the pod's traffic, replacing whatever rules of ours were there. With `ipv6` off, or in a pod
/// without it, IPv6 goes its own way.
pub async fn apply(
    netns: &Netns,
    redirect: Redirect,
    ipv6: rules::Capture,
) -> Result<Applied, RedirectError> {
    Ok(apply_by(netns, redirect, ipv6, PathBuf::from("/proc")).await?.applied)
}

/// As [`apply`], where settings of the kernel are changed through another `/proc`: in a container its own cannot
/// be written to.
pub async fn apply_by(
    netns: &Netns,
    redirect: Redirect,
    ipv6: rules::Capture,
    proc: PathBuf,
) -> Result<Captured, RedirectError> {
    netns.inside(move || put_in(&redirect, ipv6, &proc)).await?
}

/// Whether settings of pods' networks can be changed through this `/proc`.
pub fn can_change_settings(proc: &Path) -> bool {
    fs::File::options().write(true).open(proc.join(MIGRATION)).is_ok()
}

/// Whether the rules are still as they were applied. Routes that are missing are put back on the way.
pub async fn intact(netns: &Netns, applied: Applied) -> Result<bool, RedirectError> {
    netns
        .inside(move || {
            route(&rules::routing(applied.families), EXISTS)?;
            Ok(list()?.is_some_and(|listing| listing == applied.listing))
        })
        .await?
}

/// Stops capturing anything new; what was captured is still translated.
pub async fn release(netns: &Netns) -> Result<(), RedirectError> {
    netns
        .inside(|| {
            let ruleset = rules::draining(families(rules::Capture::On));
            // A pod that was never captured must not be given a table now.
            if list()?.is_some() {
                command::demand("nft", &["-f", "-"], &ruleset)?;
            }
            Ok(())
        })
        .await?
}

/// Takes table and routes out. Connections that were captured lose their translation.
pub async fn remove(netns: &Netns) -> Result<(), RedirectError> {
    netns
        .inside(|| {
            command::demand("nft", &["-f", "-"], &rules::removal())?;
            route(&rules::routing_removal(families(rules::Capture::On)), MISSING)?;
            Ok(())
        })
        .await?
}

fn put_in(redirect: &Redirect, ipv6: rules::Capture, proc: &Path) -> Result<Captured, RedirectError> {
    let families = families(ipv6);
    // Routes first: a captured connection needs them from its first packet.
    let routed = route(&rules::routing(families), EXISTS)?;
    command::demand("nft", &["-f", "-"], &rules::ruleset(redirect, families))?;
    let older = match routed {
        Routed::Anew => connections(families),
        Routed::Before => None,
    };
    migrate_waiting_connections(proc);
    let listing =
        list()?.ok_or_else(|| command::failed("nft", "the table vanished as soon as it was made"))?;
    Ok(Captured { applied: Applied { families, listing }, older })
}

/// Those that are there when the rules have just come into force. A look that fails keeps no pod out of the mesh.
fn connections(families: Families) -> Option<BTreeSet<Cookie>> {
    let found = outside::established(families);
    found
        .inspect_err(|error| debug!(%error, "It is not known which connections stay outside of the mesh"))
        .ok()
}

/// A pod has IPv6 if its loopback interface has: the tunnel needs both ends of it.
fn families(ipv6: rules::Capture) -> Families {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    match (ipv6, disabled) {
        (rules::Capture::On, Ok(disabled)) if disabled.trim() == "0" => Families::Dual,
        (rules::Capture::On | rules::Capture::Off, Ok(_) | Err(_)) => Families::Ipv4,
    }
}

/// While a tunnel is replaced, two listen on each port; connections that wait in the old one's queue
/// when it closes are handed to the new one instead of being reset.
fn migrate_waiting_connections(proc: &Path) {
    if let Err(error) = fs::write(proc.join(MIGRATION), "1") {
        debug!(%error, "Waiting connections will not be handed to a new tunnel");
    }
}

/// The table without its counters; `None` if there is none.
fn list() -> Result<Option<String>, CommandError> {
    let listed = command::run("nft", &["-s", "list", "table", "inet", TABLE], "")?;
    if listed.content {
        Ok(Some(listed.out))
    } else if listed.err.contains("No such file or directory") {
        Ok(None)
    } else {
        Err(command::failed("nft", &listed.err))
    }
}

/// Which namespace it is in depends on who opens it, not on where `/proc` is.
const MIGRATION: &str = "sys/net/ipv4/tcp_migrate_req";

/// What `ip` says of something that is there already.
const EXISTS: &[&str] = &["File exists"];
/// What `ip` says of something that is not there.
const MISSING: &[&str] = &["No such process", "No such file or directory", "FIB table does not exist"];

/// Whether routes had to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routed {
    /// None was as it should be.
    Anew,
    /// Some were.
    Before,
}

/// Runs batches to their ends, and fails if anything but the forgiven went wrong.
fn route(batches: &[rules::Batch], forgiven: &[&str]) -> Result<Routed, CommandError> {
    let mut routed = Routed::Anew;
    for rules::Batch { family, commands } in batches {
        let done = command::run("ip", &[family, "-force", "-batch", "-"], commands)?;
        let serious = |line: &&str| {
            !line.is_empty()
                && !line.starts_with("Command failed -:")
                && !forgiven.iter().any(|said| line.contains(said))
        };
        match done.err.lines().find(serious) {
            Some(line) => return Err(command::failed("ip", line)),
            None if !done.content && done.err.trim().is_empty() => {
                return Err(command::failed("ip", "it ended early"));
            }
            None if !done.err.trim().is_empty() => routed = Routed::Before,
            None => {}
        }
    }
    Ok(routed)
}
