//! The judgments of what the mesh trusts: certificates and their ends, roots in agreement, what the webhooks show. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::pem::Pem;

use super::verdict::Check;
use crate::output::{few, moment};

/// One certificate that has to live on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dated {
    /// `root CN=x`, `intermediate CN=y`.
    pub(crate) whose: String,
    pub(crate) ends: OffsetDateTime,
}

/// A time to look at it, to plan it, and to do it.
const DAYS: [i64; 3] = [60, 30, 7];

/// How long roots and intermediates live on.
pub(super) fn expiry(certificates: &[Dated], now: OffsetDateTime) -> Check {
    const NAME: &str = "certificates";
    const REMEDY: &str =
        "rotate: `ambit ca rotate --stage prepare` (with Secret cacerts: replace the Secret)";
    let Some(first) = certificates.iter().min_by_key(|one| one.ends) else {
        return Check::failure(
            NAME,
            "no root is told to the mesh: ConfigMap istio-ca-root-cert is empty",
            "look into the controllers' logs",
        );
    };
    let days = (first.ends - now).whole_days();
    let [look, plan, act] = DAYS;
    let reason = format!("{} ends in {days} days", first.whose);
    if first.ends <= now {
        return Check::failure(NAME, format!("{} is over", first.whose), REMEDY);
    }
    if days < act {
        return Check::failure(NAME, reason, REMEDY);
    }
    if days < plan {
        return Check::warning(NAME, format!("{reason}: rotate now"), REMEDY);
    }
    if days < look {
        return Check::warning(NAME, format!("{reason}: plan a rotation"), REMEDY);
    }
    Check::pass(NAME, reason)
}

/// Certificates in a PEM text; what is none is an error.
pub(crate) fn dated(kind: &str, pem: &str) -> Result<Vec<Dated>, String> {
    Pem::iter_from_buffer(pem.as_bytes())
        .map(|block| {
            let block = block.map_err(|error| error.to_string())?;
            let certificate = block.parse_x509().map_err(|error| error.to_string())?;
            let ends = certificate.validity().not_after.timestamp();
            Ok(Dated {
                whose: format!("{kind} {}", certificate.subject()),
                ends: OffsetDateTime::from_unix_timestamp(ends).map_err(|error| error.to_string())?,
            })
        })
        .collect()
}

/// Whether every namespace trusts what the system namespace trusts. `told` is what each namespace's ConfigMap says.
pub(super) fn roots(system: &str, namespaces: &[String], told: &BTreeMap<String, String>) -> Check {
    const NAME: &str = "roots";
    const REMEDY: &str =
        "the leading controller writes them: look into its log, and whether someone else writes them too";
    let Some(right) = told.get(system) else {
        return Check::failure(
            NAME,
            format!("namespace {system} has no ConfigMap istio-ca-root-cert"),
            REMEDY,
        );
    };
    let missing: Vec<_> = namespaces.iter().filter(|one| !told.contains_key(*one)).cloned().collect();
    let other: Vec<_> = namespaces
        .iter()
        .filter(|one| told.get(*one).is_some_and(|root| root.trim() != right.trim()))
        .cloned()
        .collect();
    match (missing.is_empty(), other.is_empty()) {
        (_, false) => Check::failure(NAME, format!("other roots than in {system}: {}", few(&other)), REMEDY),
        (false, true) => Check::failure(NAME, format!("no roots in {}", few(&missing)), REMEDY),
        (true, true) => Check::pass(NAME, format!("the same in {} namespaces", namespaces.len())),
    }
}

/// A webhook of ours, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Webhook {
    pub(super) name: String,
    /// What the API server trusts when it calls.
    pub(super) bundle: String,
    /// Whether objects are refused when it does not answer.
    pub(super) fails_closed: bool,
}

/// Whether the API server can call the validating webhooks.
pub(super) fn webhooks(webhooks: &[Webhook], roots: Option<&str>, now: OffsetDateTime) -> Check {
    const NAME: &str = "webhooks";
    const REMEDY: &str = "the leading controller writes caBundle: look into its log";
    if webhooks.is_empty() {
        return Check::warning(
            NAME,
            "no validating webhook: mistakes are found only after objects are written",
            "ambit install",
        );
    }
    for webhook in webhooks {
        let certificates = match dated("root", &webhook.bundle) {
            Ok(certificates) if !certificates.is_empty() => certificates,
            Ok(_) => return Check::failure(NAME, format!("{} has no caBundle", webhook.name), REMEDY),
            Err(error) => {
                return Check::failure(
                    NAME,
                    format!("{}: caBundle is no PEM: {error}", webhook.name),
                    REMEDY,
                );
            }
        };
        if certificates.iter().all(|one| one.ends <= now) {
            return Check::failure(NAME, format!("{}: caBundle is over", webhook.name), REMEDY);
        }
        if let Some(roots) = roots
            && !blocks(&webhook.bundle).iter().any(|block| blocks(roots).contains(block))
        {
            let reason = format!("{}: caBundle is none of the mesh's roots", webhook.name);
            return Check::failure(NAME, reason, REMEDY);
        }
    }
    let closed = webhooks.iter().filter(|one| one.fails_closed).count();
    Check::pass(NAME, format!("{} can be called; {closed} of them refuse when they cannot", webhooks.len()))
}

/// The certificates of a PEM text, without what stands around them.
fn blocks(pem: &str) -> BTreeSet<Vec<u8>> {
    Pem::iter_from_buffer(pem.as_bytes()).flatten().map(|block| block.contents).collect()
}

/// A certificate's last day, from a tunnel's dump: intermediates of the chains that its pods show.
pub(super) fn intermediates(dump: &Value) -> Vec<Dated> {
    let certificates = dump.get("certificates").and_then(Value::as_array).into_iter().flatten();
    let mut found: Vec<_> = certificates
        .filter_map(|one| one.get("certChain")?.as_array())
        // The first is the workload's own, which lives for a day and renews itself.
        .flat_map(|chain| chain.iter().skip(1))
        .filter_map(|one| {
            let serial = one.get("serialNumber").and_then(Value::as_str).unwrap_or("?");
            let ends = moment(one.get("expirationTime")?.as_str()?)?;
            Some(Dated { whose: format!("intermediate with serial number {serial}"), ends })
        })
        .collect();
    found.sort_by(|a, b| (a.ends, &a.whose).cmp(&(b.ends, &b.whose)));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Verdict::{Failure, Pass, Warning};
    use super::*;
    use serde_json::json;

    const ONE: &str = include_str!("testdata/one.pem");
    const OTHER: &str = include_str!("testdata/other.pem");

    fn at(text: &str) -> OffsetDateTime {
        moment(text).unwrap()
    }

    fn now() -> OffsetDateTime {
        at("2026-06-01T12:00:00Z")
    }

    #[test]
    fn certificates_are_told_of_in_time() {
        let root = dated("root", ONE).unwrap();
        assert_eq!(root[0].whose, "root O=cluster.local, CN=One");
        for (now, verdict) in [
            ("2026-06-01T00:00:00Z", Pass),
            ("2026-11-01T00:00:00Z", Pass),
            ("2026-11-03T12:00:00Z", Warning),
            ("2026-12-15T00:00:00Z", Warning),
            ("2026-12-28T00:00:00Z", Failure),
            ("2027-02-01T00:00:00Z", Failure),
        ] {
            assert_eq!(expiry(&root, at(now)).verdict, verdict, "{now}");
        }
        assert_eq!(expiry(&[], now()).verdict, Failure);
        assert!(dated("root", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }

    #[test]
    fn every_namespace_has_the_same_roots() {
        let namespaces = ["istio-system", "shop"].map(str::to_owned);
        let told = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(namespace, root)| ((*namespace).to_owned(), (*root).to_owned())).collect()
        };
        for (list, verdict) in [
            (&[("istio-system", ONE), ("shop", ONE)][..], Pass),
            (&[("istio-system", ONE), ("shop", OTHER)], Failure),
            (&[("istio-system", ONE)], Failure),
            (&[("shop", ONE)], Failure),
        ] {
            assert_eq!(roots("istio-system", &namespaces, &told(list)).verdict, verdict, "{list:?}");
        }
    }

    #[test]
    fn webhooks_are_called_with_a_root_of_the_mesh() {
        let hook = |bundle: &str| Webhook {
            name: "ambit-validator".to_owned(),
            bundle: bundle.to_owned(),
            fails_closed: true,
        };
        let both = format!("{ONE}{OTHER}");
        for (list, root, verdict) in [
            (vec![], Some(ONE), Warning),
            (vec![hook(ONE)], Some(ONE), Pass),
            (vec![hook(ONE)], Some(both.as_str()), Pass),
            (vec![hook(ONE)], None, Pass),
            (vec![hook(OTHER)], Some(ONE), Failure),
            (vec![hook("")], Some(ONE), Failure),
        ] {
            assert_eq!(webhooks(&list, root, now()).verdict, verdict, "{list:?}");
        }
        assert_eq!(webhooks(&[hook(ONE)], Some(ONE), at("2028-01-01T00:00:00Z")).verdict, Failure);
    }

    #[test]
    fn a_dump_tells_of_intermediates_once() {
        let chain = json!([
            { "serialNumber": "1", "expirationTime": "2026-06-02T00:00:00Z" },
            { "serialNumber": "2", "expirationTime": "2026-07-01T00:00:00Z" },
        ]);
        let dump = json!({ "certificates": [{ "certChain": chain }, { "certChain": chain }] });
        let found = intermediates(&dump);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].whose, "intermediate with serial number 2");
    }
}
