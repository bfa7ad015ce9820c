//! Who makes the root, when several replicas start together: whoever holds a Lease. It keeps them from making keys for
//! nothing; that there is one root only is seen to by the API server, which creates a Secret once.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use tracing::{debug, warn};

/// Under this name.
pub const NAME: &str = "ambit-ca-root";
/// A root is made in a second; whoever holds the Lease for longer is dead.
const DURATION: i32 = 15;

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is ours.
    Ours,
    /// Another has it.
    Theirs,
}

/// Tries to take the Lease for `me`, once.
pub async fn take(client: &Client, namespace: &str, me: &str) -> Result<Taken, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let now = Timestamp::now();
    let spec = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(DURATION),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..LeaseSpec::default()
    };
    let written = match leases.get_opt(NAME).await? {
        None => {
            let mut lease = Lease { spec: Some(spec), ..Lease::default() };
            lease.metadata.name = Some(NAME.to_owned());
            leases.create(&PostParams::default(), &lease).await
        }
        Some(lease) if is_free(&lease, me, now) => {
            let lease = Lease { spec: Some(spec), ..lease };
            leases.replace(NAME, &PostParams::default(), &lease).await
        }
        Some(_) => return Ok(Taken::Theirs),
    };
    match written {
        Ok(_) => Ok(Taken::Ours),
        // Another was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Taken::Theirs),
        Err(error) => Err(error),
    }
}

/// Gives the Lease back. If that fails it ends by itself.
pub async fn give_back(client: &Client, namespace: &str, me: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let given = async {
        let Some(lease) = leases.get_opt(NAME).await? else { return Ok(()) };
        if holder(&lease) != Some(me) {
            return Ok(());
        }
        let as_seen =
            Preconditions { resource_version: lease.metadata.resource_version, uid: lease.metadata.uid };
        let how = DeleteParams { preconditions: Some(as_seen), ..DeleteParams::default() };
        leases.delete(NAME, &how).await.map(drop)
    };
    // In a stop the process must not hang on a courtesy.
    match tokio::time::timeout(Duration::from_secs(5), given).await {
        Ok(Ok(())) => debug!(lease.name = NAME, "Lease given back"),
        Ok(Err(error)) => warn!(lease.name = NAME, %error, "Lease not given back; it ends by itself"),
        Err(_) => warn!(lease.name = NAME, "Lease not given back in time; it ends by itself"),
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn is_free(lease: &Lease, me: &str, now: Timestamp) -> bool {
    let Some(holder) = holder(lease) else { return true };
    if holder == me {
        return true;
    }
    let spec = lease.spec.as_ref();
    let length = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(DURATION);
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|renewed| renewed.0);
    renewed.is_none_or(|renewed| now.duration_since(renewed) > SignedDuration::from_secs(length.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_nobody_holds_it_or_its_holder_is_silent() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let lease = |holder: Option<&str>, age: i64| Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(now - SignedDuration::from_secs(age))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        for (holder, age, free) in [
            (None, 0, true),
            (Some(""), 0, true),
            (Some("me"), 0, true),
            (Some("other"), 0, false),
            (Some("other"), 15, false),
            (Some("other"), 16, true),
            (Some("other"), -60, false),
        ] {
            assert_eq!(is_free(&lease(holder, age), "me", now), free, "{holder:?} {age}");
        }
        assert!(is_free(&Lease::default(), "me", now));
    }
}
