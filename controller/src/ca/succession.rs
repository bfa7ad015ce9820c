//! Whether a plugged-in authority may follow what signed before. Pure.
//!
//! Whoever holds a certificate of the former root, and knows that root alone, is cut off by an authority that does not
//! know it. We cannot lead such a change: the Secret that held the former key is overwritten, and a root that somebody
//! took out on purpose must not come back. So the newcomer is not taken until its `root-cert.pem` holds the former
//! root, too, or the operator says by its fingerprint that the root is to be dropped at once (`ambit.io/ca-drop-root`).
//!
//! What counts is what the mesh is *told* (the ConfigMap `istio-ca-root-cert`): a root that is told no more is nobody's
//! to lose, so a replica that missed a step catches up, and one that starts knows what the others did.

use ambit_api::labels::CA_DROP_ROOT;
use boring::x509::X509;
use k8s_openapi::api::core::v1::Secret;

use super::{
    in_force::{Fingerprint, InForce},
    secret::CACERTS,
};

/// What the mesh is told to trust, and what of it the operator drops.
#[derive(Debug)]
pub struct Told {
    roots: Vec<X509>,
    dropped: Vec<String>,
}

impl Told {
    /// From the text of the ConfigMap; what is none tells nothing. `newcomer` is `cacerts`.
    pub fn read(pem: &str, newcomer: &Secret) -> Self {
        let dropped = newcomer.metadata.annotations.as_ref().and_then(|all| all.get(CA_DROP_ROOT));
        let dropped = dropped.map(String::as_str).unwrap_or_default().to_lowercase();
        Self {
            roots: X509::stack_from_pem(pem.as_bytes()).unwrap_or_default(),
            dropped: dropped.split([',', ' ']).map(str::to_owned).collect(),
        }
    }

    /// Whether `next` may sign after `current` did.
    pub fn allows(&self, current: &InForce, next: &InForce) -> Result<(), Abrupt> {
        // While nothing is told, somebody deleted the ConfigMap: that frees nobody from a root.
        let is_told = |root: &X509| self.roots.is_empty() || meet(&self.roots, [root]);
        let in_use = anchors(current).into_iter().filter(|root| is_told(root) && !self.drops(root));
        Self::keeps_one(&in_use.collect::<Vec<_>>(), next)
    }

    /// Whether `next` may be the first that this replica signs with.
    pub fn allows_first(&self, next: &InForce) -> Result<(), Abrupt> {
        let in_use = self.roots.iter().filter(|root| !self.drops(root));
        Self::keeps_one(&in_use.cloned().collect::<Vec<_>>(), next)
    }

    fn drops(&self, root: &X509) -> bool {
        Fingerprint::of(root).is_some_and(|own| self.dropped.contains(&own.to_string()))
    }

    fn keeps_one(in_use: &[X509], next: &InForce) -> Result<(), Abrupt> {
        if in_use.is_empty() || meet(in_use, &roots(next)) { Ok(()) } else { Err(Abrupt::of(in_use)) }
    }
}

/// The mesh would lose a root at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Secret {CACERTS} holds an authority whose root-cert.pem does not hold the root that certificates in use lead to \
     ({fingerprints}): their holders would be cut off. Add that root to root-cert.pem and take it out when they are \
     over; ConfigMap istio-ca-root-cert has it. Or, if its key was stolen, annotate Secret {CACERTS} with \
     {CA_DROP_ROOT}={fingerprints}"
)]
pub struct Abrupt {
    fingerprints: String,
}

impl Abrupt {
    fn of(roots: &[X509]) -> Self {
        let all: Vec<String> =
            roots.iter().filter_map(Fingerprint::of).map(|fingerprint| fingerprint.to_string()).collect();
        Self { fingerprints: all.join(",") }
    }
}

fn roots(authority: &InForce) -> Vec<X509> {
    X509::stack_from_pem(authority.bundle().as_bytes()).unwrap_or_default()
}

/// The trusted roots that what signs leads to.
fn anchors(authority: &InForce) -> Vec<X509> {
    let chain = authority.authority().chain().unwrap_or_default();
    let chain = X509::stack_from_pem(chain.as_bytes()).unwrap_or_default();
    let leads_to = |root: &X509| chain.iter().any(|one| is_same(root, one) || root.issued(one).is_ok());
    roots(authority).into_iter().filter(leads_to).collect()
}

fn meet<'a>(one: &[X509], other: impl IntoIterator<Item = &'a X509>) -> bool {
    other.into_iter().any(|root| one.iter().any(|known| is_same(known, root)))
}

/// A root that was renewed with its key is the same to whoever checks a chain.
fn is_same(one: &X509, other: &X509) -> bool {
    let (Ok(key), Ok(other_key)) = (one.public_key(), other.public_key()) else { return false };
    let name = |certificate: &X509| certificate.subject_name().to_der().ok();
    key.public_eq(&other_key) && name(one).is_some() && name(one) == name(other)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use ambit_wire::cert::authority::{Authority, Serial};

    use super::{
        super::{
            authority::starting,
            root::{Origin, Root},
        },
        *,
    };

    fn authority(name: &str) -> Authority {
        let life = starting(SystemTime::now(), Duration::from_secs(3600));
        Authority::self_signed(&name.into(), life, Serial::new(1)).unwrap()
    }

    /// Signed by `signer`, with `roots` trusted.
    fn in_force(signer: &Authority, roots: &[&Authority]) -> InForce {
        let roots: String = roots.iter().map(|root| root.roots()).collect();
        let life = starting(SystemTime::now(), Duration::from_secs(600));
        let mesh = signer.intermediate("Mesh", life, Serial::new(2)).unwrap();
        let authority =
            Authority::from_pem(&mesh.chain().unwrap(), &mesh.key().to_pem().unwrap(), &roots).unwrap();
        InForce::steady(Root { authority, origin: Origin::PluggedIn, expires: SystemTime::now() })
    }

    fn told(roots: &[&Authority]) -> Told {
        dropping(roots, String::new())
    }

    fn dropping(roots: &[&Authority], dropped: String) -> Told {
        let mut secret = Secret::default();
        secret.metadata.annotations = Some([(CA_DROP_ROOT.to_owned(), dropped)].into());
        Told::read(&roots.iter().map(|root| root.roots()).collect::<String>(), &secret)
    }

    #[test]
    fn an_authority_may_follow_if_it_knows_the_root_that_is_in_use() {
        let (old, new, other) = (authority("old"), authority("new"), authority("other"));
        let only_old = in_force(&old, &[&old]);
        for (what, told, current, next, allowed) in [
            ("abrupt", told(&[&old]), &only_old, in_force(&new, &[&new]), false),
            ("both trusted", told(&[&old]), &only_old, in_force(&new, &[&new, &old]), true),
            ("the first step", told(&[&old]), &only_old, in_force(&old, &[&old, &new]), true),
            ("the last", told(&[&old, &new]), &in_force(&new, &[&old, &new]), in_force(&new, &[&new]), true),
            (
                "one left out",
                told(&[&old, &new]),
                &in_force(&old, &[&old, &new]),
                in_force(&new, &[&new]),
                false,
            ),
            ("others went on", told(&[&new]), &only_old, in_force(&new, &[&new]), true),
            ("nothing told", told(&[]), &only_old, in_force(&new, &[&new]), false),
            ("another follows", told(&[&old]), &only_old, in_force(&new, &[&new, &other]), false),
        ] {
            assert_eq!(told.allows(current, &next).is_ok(), allowed, "{what}");
        }
    }

    #[test]
    fn one_that_starts_goes_by_what_the_mesh_is_told() {
        let (old, new) = (authority("old"), authority("new"));
        let next = in_force(&new, &[&new]);
        assert!(told(&[]).allows_first(&next).is_ok(), "a new mesh");
        assert!(told(&[&old, &new]).allows_first(&next).is_ok());
        let refusal = told(&[&old]).allows_first(&next).unwrap_err();
        let fingerprint = Fingerprint::of_signer(&old).unwrap().to_string();
        assert!(refusal.to_string().contains(&format!("{CA_DROP_ROOT}={fingerprint}")), "{refusal}");
    }

    #[test]
    fn a_root_is_dropped_by_its_name_alone() {
        let (old, new, other) = (authority("old"), authority("new"), authority("other"));
        let (current, next) = (in_force(&old, &[&old]), in_force(&new, &[&new]));
        for (root, allowed) in [(&old, true), (&other, false)] {
            let name = Fingerprint::of_signer(root).unwrap().to_string().to_uppercase();
            let told = dropping(&[&old], name);
            assert_eq!(told.allows(&current, &next).is_ok(), allowed);
            assert_eq!(told.allows_first(&next).is_ok(), allowed);
        }
    }

    #[test]
    fn a_renewed_root_is_the_same() {
        let old = authority("td");
        let life = starting(SystemTime::now(), Duration::from_secs(7200));
        let renewed = Authority::from_pem(old.roots(), &old.key().to_pem().unwrap(), old.roots()).unwrap();
        assert!(is_same(&roots(&in_force(&renewed, &[&renewed]))[0], &roots(&in_force(&old, &[&old]))[0]));
        let namesake = Authority::self_signed(&"td".into(), life, Serial::new(1)).unwrap();
        assert!(!is_same(&roots(&in_force(&namesake, &[&namesake]))[0], &roots(&in_force(&old, &[&old]))[0]));
    }
}
