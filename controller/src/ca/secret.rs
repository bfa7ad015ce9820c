//! The two Secrets that may hold what signs, read and written. Pure: nothing here asks the API server.
//!
//! | Secret | holds |
//! |---|---|
//! | `cacerts` | a plugged-in authority in Istio's form: `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` (all roots to be trusted), `cert-chain.pem`, and perhaps `ca-crl.pem`; or in the form of `kubernetes.io/tls`: `tls.crt`, `tls.key`, `ca.crt` |
//! | `istio-ca-secret` | a root of our own, or of Istio's: `ca-cert.pem`, `ca-key.pem`. While one root follows another, the next one in `next-cert.pem` and `next-key.pem`, or the last one in `previous-cert.pem` and `previous-key.pem` |
//!
//! `ca-cert.pem` is always what signs, so Istio's control plane can take over at any moment.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use ambit_api::labels::{
    CA_ACTIVATE_FROM, CA_LONGEST_LIFE, CA_REFUSAL, CA_RETIRE_FROM, CA_ROTATION, CA_STAGE, MANAGED_BY,
    MANAGED_BY_AMBIT,
};
use ambit_model::identity::TrustDomain;
use ambit_wire::{
    cert::authority::{Authority, AuthorityError, Serial, SignError},
    tls::revoked::{self, NotLists},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{
    authority::starting,
    in_force::InForce,
    root::{ChainError, Origin, PLUGGED, REVOCATION_LISTS, proven, signer_first},
    rotation::{Moment, Refusal, State, Wish},
};

/// Istio's name for a plugged-in authority.
pub const CACERTS: &str = "cacerts";
/// Istio's name for a root that the control plane made.
pub const OWN: &str = "istio-ca-secret";
/// Its type.
const OWN_TYPE: &str = "istio.io/ca-root";

const CERTIFICATE: &str = PLUGGED.certificate;
const KEY: &str = PLUGGED.key;
const NEXT: (&str, &str) = ("next-cert.pem", "next-key.pem");
const PREVIOUS: (&str, &str) = ("previous-cert.pem", "previous-key.pem");
const TLS: (&str, &str, &str) = ("tls.crt", "tls.key", "ca.crt");

/// How roots are made, and what is believed of those that say nothing.
#[derive(Clone, Debug)]
pub struct Making {
    /// For whom.
    pub trust_domain: TrustDomain,
    /// How long a root lives.
    pub lifetime: Duration,
    /// The life that certificates have if nobody asks for another.
    pub usual: Duration,
    /// The longest life that anybody is granted.
    pub longest: Duration,
}

/// Reads `cacerts`.
pub fn plugged(secret: &Secret, now: SystemTime) -> Result<InForce, SecretError> {
    let read = Reader { secret, name: CACERTS };
    let (certificate, above, key, roots, names) = if read.has(CERTIFICATE) || read.has(KEY) {
        let above = read.optional(PLUGGED.chain)?.unwrap_or_default();
        let names = Names { chain: CERTIFICATE, key: KEY, roots: PLUGGED.roots };
        (read.required(CERTIFICATE)?, above, read.required(KEY)?, read.required(PLUGGED.roots)?, names)
    } else if read.has(TLS.0) {
        let names = Names { chain: TLS.0, key: TLS.1, roots: TLS.2 };
        (read.required(TLS.0)?, "", read.required(TLS.1)?, read.required(TLS.2)?, names)
    } else {
        return Err(read.missing(CERTIFICATE));
    };
    let unusable = |source| SecretError::unusable(CACERTS, &names, source);
    let chain = signer_first(certificate, above).map_err(unusable)?;
    let authority = Authority::from_pem(&chain, key, roots).map_err(unusable)?;
    let root = proven(authority, Origin::PluggedIn, now)
        .map_err(|problem| SecretError::Chain { secret: CACERTS, problem })?;
    let lists = read.optional(REVOCATION_LISTS)?.map(str::to_owned);
    if let Some(lists) = &lists {
        revoked::check(lists.as_bytes()).map_err(SecretError::Lists)?;
    }
    Ok(InForce { lists, ..InForce::steady(root) })
}

/// Reads `istio-ca-secret`.
pub fn own(secret: &Secret, making: &Making, now: SystemTime) -> Result<InForce, SecretError> {
    let read = Reader { secret, name: OWN };
    let (certificate, key) = (read.required(CERTIFICATE)?, read.required(KEY)?);
    let rotation = state(&read)?;
    let other = match rotation {
        State::Steady => None,
        State::Prepared { .. } => Some(NEXT),
        State::Active { .. } => Some(PREVIOUS),
    };
    let mut roots = certificate.to_owned();
    if let Some((certificate, key)) = other {
        let names = Names { chain: certificate, key, roots: certificate };
        let (certificate, key) = (read.required(certificate)?, read.required(key)?);
        Authority::from_pem(certificate, key, certificate)
            .map_err(|source| SecretError::unusable(OWN, &names, source))?;
        roots.push('\n');
        roots.push_str(certificate);
    }
    let names = Names { chain: CERTIFICATE, key: KEY, roots: CERTIFICATE };
    let authority = Authority::from_pem(certificate, key, &roots)
        .map_err(|source| SecretError::unusable(OWN, &names, source))?;
    let root = proven(authority, Origin::Kept, now)
        .map_err(|problem| SecretError::Chain { secret: OWN, problem })?;
    let longest = match read.annotation(CA_LONGEST_LIFE) {
        // Somebody else may have signed with it. Nobody is granted more than the most.
        None => making.longest,
        Some(text) => match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(SecretError::Annotation { name: CA_LONGEST_LIFE, form: "whole seconds" }),
        },
    };
    Ok(InForce { rotation, longest: Some(longest), ..InForce::steady(root) })
}

/// A Secret with a fresh root.
pub fn fresh(making: &Making, now: SystemTime) -> Result<Secret, SignError> {
    let (certificate, key) = root_pair(making, now)?;
    let mut secret = Secret { type_: Some(OWN_TYPE.to_owned()), ..Secret::default() };
    secret.metadata.name = Some(OWN.to_owned());
    secret.metadata.labels = Some([(MANAGED_BY.to_owned(), MANAGED_BY_AMBIT.to_owned())].into());
    put(&mut secret, CERTIFICATE, certificate);
    put(&mut secret, KEY, key);
    annotate(&mut secret, CA_LONGEST_LIFE, making.usual.as_secs().to_string());
    write_state(&mut secret, State::Steady);
    Ok(secret)
}

/// The same Secret, to be made again after somebody deleted it.
pub fn again(secret: &Secret) -> Secret {
    let mut again = secret.clone();
    again.metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
        name: Some(OWN.to_owned()),
        labels: secret.metadata.labels.clone(),
        annotations: secret.metadata.annotations.clone(),
        ..Default::default()
    };
    again
}

/// The step that somebody wishes for.
pub fn wish(secret: &Secret) -> Option<&str> {
    Reader { secret, name: OWN }.annotation(CA_ROTATION)
}

/// The Secret after a step.
pub fn stepped(
    secret: &Secret,
    in_force: &InForce,
    wish: Wish,
    making: &Making,
    now: SystemTime,
) -> Result<Secret, Refusal> {
    let longest = in_force.longest.unwrap_or(making.longest);
    let before = in_force.rotation;
    let after = before.after(wish, now, longest)?;
    let mut next = secret.clone();
    match (before, after) {
        (State::Steady, State::Prepared { .. }) => {
            let (certificate, key) =
                root_pair(making, now).map_err(|error| Refusal::Make(error.to_string()))?;
            put(&mut next, NEXT.0, certificate);
            put(&mut next, NEXT.1, key);
        }
        (State::Prepared { .. }, State::Active { .. }) => exchange(&mut next, NEXT, PREVIOUS),
        (State::Active { .. }, State::Prepared { .. }) => exchange(&mut next, PREVIOUS, NEXT),
        (_, State::Steady) => {
            let data = next.data.get_or_insert_default();
            for name in [NEXT.0, NEXT.1, PREVIOUS.0, PREVIOUS.1] {
                data.remove(name);
            }
        }
        (State::Steady, State::Active { .. })
        | (State::Prepared { .. }, State::Prepared { .. })
        | (State::Active { .. }, State::Active { .. }) => {
            return Err(Refusal::OutOfOrder { step: wish.step, stage: before.stage() });
        }
    }
    write_state(&mut next, after);
    let annotations = next.metadata.annotations.get_or_insert_default();
    annotations.remove(CA_ROTATION);
    annotations.remove(CA_REFUSAL);
    Ok(next)
}

/// The Secret after a step that is not taken.
pub fn refused(secret: &Secret, why: &impl fmt::Display) -> Secret {
    let mut next = secret.clone();
    annotate(&mut next, CA_REFUSAL, why.to_string());
    next.metadata.annotations.get_or_insert_default().remove(CA_ROTATION);
    next
}

/// What kind of stage the keys tell; the times are in annotations. Times that are not there are those of somebody who
/// waits as long as certificates can live.
fn state(read: &Reader<'_>) -> Result<State, SecretError> {
    let moment = |name: &'static str| match read.annotation(name) {
        None => Ok(None),
        Some(text) => text
            .parse::<Moment>()
            .map(|moment| Some(moment.0))
            .map_err(|_| SecretError::Annotation { name, form: "a time such as 2030-01-31T12:00:00Z" }),
    };
    let needed = |name| moment(name)?.ok_or(SecretError::NoMoment { name });
    match (read.has(NEXT.0) || read.has(NEXT.1), read.has(PREVIOUS.0) || read.has(PREVIOUS.1)) {
        (false, false) => Ok(State::Steady),
        (true, false) => Ok(State::Prepared {
            activate_from: needed(CA_ACTIVATE_FROM)?,
            next_in_use_until: moment(CA_RETIRE_FROM)?,
        }),
        (false, true) => Ok(State::Active {
            activate_from: needed(CA_ACTIVATE_FROM)?,
            previous_in_use_until: needed(CA_RETIRE_FROM)?,
        }),
        (true, true) => Err(SecretError::BothOthers),
    }
}

fn write_state(secret: &mut Secret, state: State) {
    annotate(secret, CA_STAGE, state.stage().word().to_owned());
    for (name, at) in [(CA_ACTIVATE_FROM, state.activate_from()), (CA_RETIRE_FROM, state.retire_from())] {
        match at {
            Some(at) => annotate(secret, name, Moment(at).to_string()),
            None => {
                secret.metadata.annotations.get_or_insert_default().remove(name);
            }
        }
    }
}

/// The root under `from` signs from now on, and what signed goes under `to`.
fn exchange(secret: &mut Secret, from: (&str, &str), to: (&str, &str)) {
    let data = secret.data.get_or_insert_default();
    for (signs, from, to) in [(CERTIFICATE, from.0, to.0), (KEY, from.1, to.1)] {
        if let Some(coming) = data.remove(from)
            && let Some(going) = data.insert(signs.to_owned(), coming)
        {
            data.insert(to.to_owned(), going);
        }
    }
}

fn root_pair(making: &Making, now: SystemTime) -> Result<(String, String), SignError> {
    let life = starting(now, making.lifetime);
    let authority = Authority::self_signed(&making.trust_domain, life, Serial::random()?)?;
    Ok((authority.roots().to_owned(), authority.key().to_pem()?))
}

fn put(secret: &mut Secret, name: &str, text: String) {
    secret.data.get_or_insert_default().insert(name.to_owned(), ByteString(text.into_bytes()));
}

fn annotate(secret: &mut Secret, name: &str, text: String) {
    secret.metadata.annotations.get_or_insert_default().insert(name.to_owned(), text);
}

struct Reader<'a> {
    secret: &'a Secret,
    name: &'static str,
}

impl<'a> Reader<'a> {
    /// Istio leaves empty keys where it has nothing to say.
    fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        let data: &BTreeMap<_, _> = self.secret.data.as_ref()?;
        data.get(key).map(|bytes| bytes.0.as_slice()).filter(|bytes| !bytes.is_empty())
    }

    fn has(&self, key: &str) -> bool {
        self.bytes(key).is_some()
    }

    fn optional(&self, key: &'static str) -> Result<Option<&'a str>, SecretError> {
        let text = self.bytes(key).map(std::str::from_utf8).transpose();
        text.map_err(|_| SecretError::NotText { secret: self.name, key })
    }

    fn required(&self, key: &'static str) -> Result<&'a str, SecretError> {
        self.optional(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &'static str) -> SecretError {
        SecretError::Missing { secret: self.name, key }
    }

    fn annotation(&self, name: &str) -> Option<&'a str> {
        self.secret.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// Under which keys the parts of an authority are.
struct Names {
    chain: &'static str,
    key: &'static str,
    roots: &'static str,
}

/// Why a Secret holds nothing that could sign. The daemon must not start, and must not make a root of its own instead.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Something is not there.
    #[error("Secret {secret} has no {key}; {remedy}", remedy = remedy(secret))]
    Missing {
        /// Which Secret.
        secret: &'static str,
        /// Which key.
        key: &'static str,
    },
    /// Something is not text.
    #[error("{key} of Secret {secret} is not text; put PEM there")]
    NotText {
        /// Which Secret.
        secret: &'static str,
        /// Which key.
        key: &'static str,
    },
    /// The parts do not make an authority.
    #[error("{key} of Secret {secret} cannot be used: {source}; {remedy}", remedy = remedy(secret))]
    Unusable {
        /// Which Secret.
        secret: &'static str,
        /// Which key.
        key: &'static str,
        /// Why.
        source: AuthorityError,
    },
    /// The signer does not lead to a root.
    #[error("the authority in Secret {secret} cannot be used: {problem}; {remedy}", remedy = remedy(secret))]
    Chain {
        /// Which Secret.
        secret: &'static str,
        /// Why.
        problem: ChainError,
    },
    /// The revocation lists are none.
    #[error(
        "ca-crl.pem of Secret cacerts is no revocation list: {0}; put PEM lists there, or take the key away"
    )]
    Lists(NotLists),
    /// An annotation says nothing.
    #[error("annotation {name} of Secret istio-ca-secret must be {form}")]
    Annotation {
        /// Which.
        name: &'static str,
        /// What it must be.
        form: &'static str,
    },
    /// An annotation is not there.
    #[error(
        "Secret istio-ca-secret holds a second root, but its annotation {name} is gone; write the time there that the \
         rotation has to wait for, such as 2030-01-31T12:00:00Z, or take the second root out"
    )]
    NoMoment {
        /// Which.
        name: &'static str,
    },
    /// Before and behind at once.
    #[error(
        "Secret istio-ca-secret holds next-cert.pem and previous-cert.pem at once; take out the one that nobody uses, \
         with its key"
    )]
    BothOthers,
}

impl SecretError {
    fn unusable(secret: &'static str, names: &Names, source: AuthorityError) -> Self {
        let key = match &source {
            AuthorityError::Chain | AuthorityError::NotAnAuthority | AuthorityError::Crypto(_) => names.chain,
            AuthorityError::Key | AuthorityError::KeyOfAnother => names.key,
            AuthorityError::Roots => names.roots,
        };
        Self::Unusable { secret, key, source }
    }
}

fn remedy(secret: &str) -> &'static str {
    if secret == CACERTS {
        "correct the Secret, or delete it to use a root that is made here"
    } else {
        "restore the Secret from a backup. (Deleted, a new root is made: then every workload needs a new certificate)"
    }
}

#[cfg(test)]
mod tests {
    use ambit_wire::cert::request::Request;
    use boring::{
        asn1::Asn1Time,
        bn::BigNum,
        hash::MessageDigest,
        pkey::PKey,
        rsa::Rsa,
        x509::{
            X509, X509NameBuilder,
            extension::{BasicConstraints, KeyUsage},
        },
    };

    use super::*;
    use crate::ca::rotation::Stage;

    const DAY: Duration = Duration::from_secs(86_400);

    fn making() -> Making {
        Making { trust_domain: TrustDomain::default(), lifetime: 3650 * DAY, usual: DAY, longest: 90 * DAY }
    }

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn read(secret: &Secret) -> Result<InForce, SecretError> {
        own(secret, &making(), now())
    }

    fn data(pairs: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        pairs.iter().for_each(|(name, text)| put(&mut secret, name, (*text).to_owned()));
        secret
    }

    fn text<'a>(secret: &'a Secret, name: &str) -> &'a str {
        std::str::from_utf8(&secret.data.as_ref().unwrap()[name].0).unwrap()
    }

    fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
        Reader { secret, name: OWN }.annotation(name)
    }

    fn take(secret: &Secret, word: &str) -> Secret {
        stepped(secret, &read(secret).unwrap(), word.parse().unwrap(), &making(), now()).unwrap()
    }

    /// A root as Istio makes it: RSA of 2048 bits, the key as PKCS#1 or PKCS#8.
    fn istios(pkcs8: bool) -> Secret {
        let rsa = Rsa::generate(2048).unwrap();
        let pkcs1 = rsa.private_key_to_pem().unwrap();
        let key = PKey::from_rsa(rsa).unwrap();
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("O", "cluster.local").unwrap();
        let name = name.build();
        let mut root = X509::builder().unwrap();
        root.set_version(2).unwrap();
        root.set_serial_number(&BigNum::from_u32(7).unwrap().to_asn1_integer().unwrap()).unwrap();
        root.set_subject_name(&name).unwrap();
        root.set_issuer_name(&name).unwrap();
        root.set_pubkey(&key).unwrap();
        root.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        root.set_not_after(&Asn1Time::days_from_now(3650).unwrap()).unwrap();
        root.append_extension(&KeyUsage::new().critical().key_cert_sign().build().unwrap()).unwrap();
        root.append_extension(&BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
        root.sign(&key, MessageDigest::sha256()).unwrap();
        let root = String::from_utf8(root.build().to_pem().unwrap()).unwrap();
        let pem = if pkcs8 { key.private_key_to_pem_pkcs8().unwrap() } else { pkcs1 };
        let key = String::from_utf8(pem).unwrap();
        let empty = [("cert-chain.pem", ""), ("key.pem", ""), ("root-cert.pem", "")];
        let mut secret = data(&empty);
        put(&mut secret, CERTIFICATE, root);
        put(&mut secret, KEY, key);
        secret
    }

    #[test]
    fn a_root_of_ours_is_read_as_it_was_made() {
        let secret = fresh(&making(), now()).unwrap();
        assert_eq!(secret.type_.as_deref(), Some("istio.io/ca-root"));
        assert_eq!(annotation(&secret, CA_STAGE), Some("steady"));
        let in_force = read(&secret).unwrap();
        assert_eq!(in_force.bundle(), text(&secret, CERTIFICATE));
        assert_eq!((in_force.longest, in_force.rotation), (Some(DAY), State::Steady));
        let made_again = again(&Secret {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                resource_version: Some("7".to_owned()),
                uid: Some("u".to_owned()),
                ..secret.metadata.clone()
            },
            ..secret.clone()
        });
        assert_eq!(made_again, secret);
    }

    #[test]
    fn a_root_of_istio_signs_for_us_too() {
        for pkcs8 in [false, true] {
            let secret = istios(pkcs8);
            let in_force = read(&secret).unwrap();
            assert_eq!(in_force.longest, Some(90 * DAY), "nobody knows what Istio signed");
            let identity = ambit_model::identity::Identity::new("cluster.local", "shop", "cart");
            let request = Request::new(&identity).unwrap();
            let life = starting(now(), DAY);
            let answer = in_force.authority().sign(&request.csr, &identity, life, Serial::new(1)).unwrap();
            let profile = ambit_wire::tls::Profile::new(
                ambit_wire::tls::Compliance::None,
                ambit_wire::tls::Versions::Tls13,
                revoked::Revocation::NotConfigured,
            );
            ambit_wire::cert::Certificate::from_response(
                &profile.unwrap(),
                Some(&identity),
                &answer,
                &request.key,
            )
            .unwrap();
        }
        // And it can be rotated.
        let mut secret = istios(false);
        let old = text(&secret, CERTIFICATE).to_owned();
        secret = take(&secret, "prepare");
        secret = take(&secret, "activate-now");
        assert_eq!(read(&secret).unwrap().rotation.stage(), Stage::Active);
        assert_eq!(text(&secret, PREVIOUS.0), old);
    }

    #[test]
    fn one_root_follows_another_and_both_are_trusted_in_between() {
        let steady = fresh(&making(), now()).unwrap();
        let old = read(&steady).unwrap();
        let prepared = take(&steady, "prepare");
        let both = read(&prepared).unwrap();
        assert!(both.bundle().starts_with(old.bundle()), "the old one signs");
        assert_eq!(both.authority().chain().unwrap(), old.authority().chain().unwrap());
        assert_eq!(annotation(&prepared, CA_STAGE), Some("prepared"));
        let new = text(&prepared, NEXT.0).to_owned();
        assert!(both.bundle().ends_with(&new));

        let active = take(&prepared, "activate-now");
        let in_force = read(&active).unwrap();
        assert_eq!(in_force.bundle(), format!("{new}{}", old.bundle()));
        assert_eq!(in_force.authority().chain().unwrap(), new);
        assert_eq!(text(&active, PREVIOUS.0), old.bundle());
        assert!(annotation(&active, CA_RETIRE_FROM).is_some());

        let back = take(&active, "rollback");
        assert_eq!(read(&back).unwrap().bundle(), both.bundle());
        assert_eq!(text(&back, KEY), text(&steady, KEY));
        assert!(
            stepped(&back, &read(&back).unwrap(), "rollback".parse().unwrap(), &making(), now()).is_err()
        );
        let undone = take(&back, "rollback-now");
        assert_eq!(undone.data, steady.data);
        assert_eq!(annotation(&undone, CA_RETIRE_FROM), None);

        let retired = take(&active, "retire-now");
        let in_force = read(&retired).unwrap();
        assert_eq!((in_force.bundle(), in_force.rotation), (new.as_str(), State::Steady));
        assert_eq!(retired.data.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_step_clears_the_wish_and_a_refusal_says_why() {
        let mut steady = fresh(&making(), now()).unwrap();
        annotate(&mut steady, CA_ROTATION, "retire".to_owned());
        assert_eq!(wish(&steady), Some("retire"));
        let refusal = "retire"
            .parse()
            .and_then(|wish| stepped(&steady, &read(&steady).unwrap(), wish, &making(), now()));
        let refused = refused(&steady, &refusal.unwrap_err());
        assert_eq!(wish(&refused), None);
        assert!(annotation(&refused, CA_REFUSAL).unwrap().contains("prepare"));
        assert_eq!(refused.data, steady.data);
        let prepared = take(&refused, "prepare");
        assert_eq!(annotation(&prepared, CA_REFUSAL), None);
    }

    #[test]
    fn a_secret_that_cannot_be_used_names_key_and_remedy() {
        let good = fresh(&making(), now()).unwrap();
        let other = fresh(&making(), now()).unwrap();
        let over = fresh(&Making { lifetime: DAY, ..making() }, now() - 2 * DAY).unwrap();
        let spoilt = |spoil: &dyn Fn(&mut Secret)| {
            let mut secret = good.clone();
            spoil(&mut secret);
            secret
        };
        let remove = |secret: &mut Secret, key: &str| drop(secret.data.as_mut().unwrap().remove(key));
        let key_of_other = text(&other, KEY).to_owned();
        let prepared = take(&good, "prepare");
        let mut both = prepared.clone();
        put(&mut both, PREVIOUS.0, text(&other, CERTIFICATE).to_owned());
        let mut timeless = prepared.clone();
        timeless.metadata.annotations = None;
        let mut half = prepared.clone();
        remove(&mut half, NEXT.1);
        for (secret, says) in [
            (spoilt(&|secret| remove(secret, KEY)), "no ca-key.pem"),
            (spoilt(&|secret| remove(secret, CERTIFICATE)), "no ca-cert.pem"),
            (spoilt(&|secret| put(secret, KEY, "garbage".to_owned())), "ca-key.pem"),
            (spoilt(&|secret| put(secret, KEY, key_of_other.clone())), "does not belong"),
            (spoilt(&|secret| put(secret, CERTIFICATE, "garbage".to_owned())), "ca-cert.pem"),
            (over, "expired"),
            (Secret::default(), "ca-cert.pem"),
            (half, "no next-key.pem"),
            (both, "at once"),
            (timeless, "ambit.io/ca-activate-from"),
            (spoilt(&|secret| annotate(secret, CA_LONGEST_LIFE, "long".to_owned())), "whole seconds"),
        ] {
            let error = read(&secret).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(OWN), "{error}");
            assert!(!error.contains("PRIVATE KEY"), "{error}");
        }
        let mut binary = good.clone();
        binary.data.as_mut().unwrap().insert(KEY.to_owned(), ByteString(vec![0xff, 0xfe]));
        assert!(read(&binary).unwrap_err().to_string().contains("not text"));
    }

    #[test]
    fn a_plugged_in_authority_in_either_form() {
        let root =
            Authority::self_signed(&"corp".into(), starting(now(), 100 * DAY), Serial::new(1)).unwrap();
        let mesh = root.intermediate("Mesh", starting(now(), 10 * DAY), Serial::new(2)).unwrap();
        let (chain, key) = (mesh.chain().unwrap(), mesh.key().to_pem().unwrap());
        let next = Authority::self_signed(&"next".into(), starting(now(), DAY), Serial::new(1)).unwrap();
        let roots = format!("{}{}", root.roots(), next.roots());
        let istios =
            [(CERTIFICATE, chain.as_str()), (KEY, &key), (PLUGGED.chain, &chain), (PLUGGED.roots, &roots)];
        let tls = [(TLS.0, chain.as_str()), (TLS.1, &key), (TLS.2, &roots)];
        for secret in [data(&istios), data(&tls)] {
            let in_force = plugged(&secret, now()).unwrap();
            assert!(in_force.is_plugged_in() && in_force.lists.is_none());
            assert_eq!(in_force.bundle(), roots, "both roots are trusted");
            assert_eq!(in_force.authority().chain().unwrap(), chain);
        }
        let number =
            ambit_wire::cert::crl::Edition { number: 1, this_update: now(), next_update: now() + DAY };
        let lists = root.revocation_list(&[Serial::new(9)], number).unwrap();
        let mut secret = data(&istios);
        put(&mut secret, REVOCATION_LISTS, lists.clone());
        assert_eq!(plugged(&secret, now()).unwrap().lists, Some(lists));
        put(&mut secret, REVOCATION_LISTS, "garbage".to_owned());
        assert!(plugged(&secret, now()).unwrap_err().to_string().contains("ca-crl.pem"));
        for (key, says) in [(KEY, "no ca-key.pem"), (PLUGGED.roots, "no root-cert.pem")] {
            let mut secret = data(&istios);
            secret.data.as_mut().unwrap().remove(key);
            let error = plugged(&secret, now()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(CACERTS), "{error}");
        }
        let stranger = data(&[(CERTIFICATE, chain.as_str()), (KEY, &key), (PLUGGED.roots, next.roots())]);
        assert!(plugged(&stranger, now()).unwrap_err().to_string().contains("does not lead"));
        assert!(plugged(&Secret::default(), now()).is_err());
    }
}
