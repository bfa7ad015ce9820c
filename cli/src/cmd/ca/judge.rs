//! How a rotation stands, by what controllers and tunnels say, and which step may be taken. Pure.

use std::collections::BTreeMap;

use ambit_api::labels;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::output::{age, few, moment};

/// The page of one controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Page {
    /// `authority` or `cert-manager`.
    pub(super) signer: String,
    /// `own` or `plugged-in`.
    pub(super) origin: String,
    pub(super) stage: String,
    pub(super) active: Option<Certificate>,
    /// When the first certificate of the signing chain ends.
    pub(super) expires: String,
    pub(super) trusted: Vec<Certificate>,
    pub(super) issued: Vec<Issued>,
    pub(super) activate_from: Option<String>,
    pub(super) retire_from: Option<String>,
    pub(super) problem: Option<String>,
}

/// A certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Certificate {
    pub(super) fingerprint: String,
    pub(super) subject: String,
    pub(super) not_after: String,
}

/// How many certificates of one signer are not over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Issued {
    pub(super) fingerprint: String,
    pub(super) count: u64,
    pub(super) until: String,
}

/// What all say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stand {
    /// That of the newest news; replicas hear of a step within seconds.
    pub(super) page: Page,
    /// Whether every replica that answers says the same.
    pub(super) agreed: bool,
    /// Certificates that are not over, by signer, over all replicas.
    pub(super) issued: BTreeMap<String, u64>,
    /// Identities that tunnels hold certificates for, by the root above them: `node: spiffe://…`.
    pub(super) held: BTreeMap<String, Vec<String>>,
    /// What could not be asked.
    pub(super) silent: Vec<String>,
}

impl Stand {
    /// Puts together what each controller said, and what tunnels hold.
    pub(super) fn of(
        pages: Vec<Page>,
        held: BTreeMap<String, Vec<String>>,
        silent: Vec<String>,
    ) -> Option<Self> {
        let first = pages.first()?.clone();
        let same = |page: &Page| page.stage == first.stage && page.active == first.active;
        let agreed = pages.iter().all(same);
        let mut issued = BTreeMap::new();
        for one in pages.iter().flat_map(|page| &page.issued) {
            *issued.entry(one.fingerprint.clone()).or_default() += one.count;
        }
        Some(Self { page: first, agreed, issued, held, silent })
    }

    /// Trusted roots that do not sign.
    pub(super) fn idle(&self) -> impl Iterator<Item = &Certificate> {
        let active = self.page.active.as_ref().map(|active| active.fingerprint.clone());
        self.page.trusted.iter().filter(move |one| Some(&one.fingerprint) != active.as_ref())
    }

    /// Who may still show certificates of roots that do not sign: how many are signed and not over, and who holds them.
    pub(super) fn users(&self) -> (u64, Vec<String>) {
        let counts = self.idle().filter_map(|one| self.issued.get(&one.fingerprint));
        let held = self.idle().filter_map(|one| self.held.get(&one.fingerprint));
        (counts.sum(), held.flatten().cloned().collect())
    }

    pub(super) fn value(&self) -> Value {
        let (signed, holders) = self.users();
        let one = |one: &Certificate| {
            json!({
                "fingerprint": one.fingerprint, "subject": one.subject, "notAfter": one.not_after,
                "issued": self.issued.get(&one.fingerprint).copied().unwrap_or(0),
                "heldByTunnels": self.held.get(&one.fingerprint).map_or(0, Vec::len),
            })
        };
        json!({
            "signer": self.page.signer,
            "origin": self.page.origin,
            "stage": self.page.stage,
            "agreed": self.agreed,
            "expires": self.page.expires,
            "active": self.page.active.as_ref().map(one),
            "trusted": self.page.trusted.iter().map(one).collect::<Vec<_>>(),
            "activateFrom": self.page.activate_from,
            "retireFrom": self.page.retire_from,
            "usersOfIdleRoots": { "issued": signed, "held": holders },
            "problem": self.page.problem,
            "silent": self.silent,
        })
    }
}

/// A step of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Stage {
    /// Makes a new root that everybody trusts; the old one goes on signing.
    Prepare,
    /// The new root signs; both are trusted.
    Activate,
    /// Forgets the old root.
    Retire,
    /// One step back.
    Rollback,
}

impl Stage {
    /// As it is asked for.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Prepare => labels::CA_ROTATION_PREPARE,
            Self::Activate => labels::CA_ROTATION_ACTIVATE,
            Self::Retire => labels::CA_ROTATION_RETIRE,
            Self::Rollback => labels::CA_ROTATION_ROLLBACK,
        }
    }

    /// What will be, for whoever is asked whether to go on.
    pub(super) fn means(self) -> &'static str {
        match self {
            Self::Prepare => "a new root is made and trusted by everybody; the old one goes on signing",
            Self::Activate => "the new root signs from now on; the old one is still trusted",
            Self::Retire => "the old root is forgotten: what shows a certificate of it is refused",
            Self::Rollback => "the last step is undone",
        }
    }

    /// The step that follows a stage.
    fn after(stage: &str) -> Option<Self> {
        match stage {
            "steady" => Some(Self::Prepare),
            "prepared" => Some(Self::Activate),
            "active" => Some(Self::Retire),
            _ => None,
        }
    }

    fn fits(self, stage: &str) -> bool {
        match self {
            Self::Rollback => matches!(stage, "prepared" | "active"),
            Self::Prepare | Self::Activate | Self::Retire => Self::after(stage) == Some(self),
        }
    }
}

/// Whether a step waits until nobody is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    Patient,
    Now,
}

/// What is to be asked of the controller, and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The annotation's value.
    pub(super) wish: String,
    pub(super) stage: Stage,
    /// What is lost by not waiting.
    pub(super) costs: Vec<String>,
}

/// The step to take, or why none is. The controller judges again.
pub(super) fn plan(
    stand: &Stand,
    wanted: Option<Stage>,
    haste: Haste,
    now: OffsetDateTime,
) -> Result<Plan, String> {
    let page = &stand.page;
    if page.origin != "own" {
        return Err(
            "Secret cacerts holds the authority in force: rotate it by replacing that Secret, with both \
                    roots in root-cert.pem for as long as certificates of the old one live"
                .to_owned(),
        );
    }
    if page.signer == "cert-manager" {
        return Err("cert-manager signs: rotate the root at its issuer".to_owned());
    }
    if !stand.agreed {
        return Err("the controllers do not agree yet how the rotation stands; wait a moment, and look at \
                    `ambit ca status`"
            .to_owned());
    }
    let next =
        Stage::after(&page.stage).ok_or_else(|| format!("stage {:?} is not known here", page.stage))?;
    let stage = wanted.unwrap_or(next);
    if !stage.fits(&page.stage) {
        let back = if page.stage == "steady" { "" } else { " or rollback" };
        return Err(format!(
            "{} is not possible when {}; from here: {}{back}",
            stage.word(),
            page.stage,
            next.word()
        ));
    }
    let mut costs = Vec::new();
    let forgets = stage == Stage::Retire || (stage == Stage::Rollback && page.stage == "prepared");
    let due = match stage {
        Stage::Prepare => None,
        Stage::Activate => page.activate_from.as_deref(),
        Stage::Retire => page.retire_from.as_deref(),
        Stage::Rollback if forgets => page.retire_from.as_deref(),
        Stage::Rollback => None,
    };
    if let Some(from) = due.and_then(moment).filter(|from| *from > now) {
        let wait = age(now, from);
        costs.push(match stage {
            Stage::Activate => format!(
                "for another {wait} some may not know the new root, and would refuse its certificates"
            ),
            Stage::Prepare | Stage::Retire | Stage::Rollback => {
                format!("for another {wait} certificates of the root that is to be forgotten may be in use")
            }
        });
    }
    if forgets {
        let (signed, holders) = stand.users();
        if signed > 0 {
            costs.push(format!("{signed} certificates of the root that is to be forgotten are not over"));
        }
        if !holders.is_empty() {
            costs.push(format!("{} identities are still under it: {}", holders.len(), few(&holders)));
        }
        if !stand.silent.is_empty() {
            costs.push(format!("not all could be asked: {}", few(&stand.silent)));
        }
    }
    let word = stage.word();
    if costs.is_empty() {
        return Ok(Plan { wish: word.to_owned(), stage, costs });
    }
    match haste {
        Haste::Now => Ok(Plan { wish: format!("{word}{}", labels::CA_ROTATION_NOW), stage, costs }),
        Haste::Patient => Err(format!(
            "{word} is too early: {}; wait, or lose those connections with --now",
            costs.join("; ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        moment("2026-06-01T12:00:00Z").unwrap()
    }

    fn certificate(fingerprint: &str) -> Certificate {
        Certificate { fingerprint: fingerprint.to_owned(), ..Certificate::default() }
    }

    fn page(stage: &str, from: Option<&str>) -> Page {
        Page {
            signer: "authority".to_owned(),
            origin: "own".to_owned(),
            stage: stage.to_owned(),
            active: Some(certificate("new")),
            trusted: vec![certificate("new"), certificate("old")],
            activate_from: from.map(str::to_owned),
            retire_from: from.map(str::to_owned),
            ..Page::default()
        }
    }

    fn stand(page: Page) -> Stand {
        Stand::of(vec![page], BTreeMap::new(), Vec::new()).unwrap()
    }

    fn wish(stand: &Stand, wanted: Option<Stage>, haste: Haste) -> Result<String, String> {
        plan(stand, wanted, haste, now()).map(|plan| plan.wish)
    }

    const EARLY: &str = "2026-06-01T13:00:00Z";
    const DUE: &str = "2026-06-01T11:00:00Z";

    #[test]
    fn every_stage_has_its_steps() {
        use Haste::{Now, Patient};
        for (stage, from, wanted, haste, expected) in [
            ("steady", None, None, Patient, Ok("prepare")),
            ("steady", None, Some(Stage::Retire), Now, Err("from here: prepare")),
            ("steady", None, Some(Stage::Rollback), Now, Err("from here: prepare")),
            ("prepared", Some(DUE), None, Patient, Ok("activate")),
            ("prepared", Some(EARLY), None, Patient, Err("another 1h00m")),
            ("prepared", Some(EARLY), None, Now, Ok("activate-now")),
            ("prepared", Some(DUE), Some(Stage::Rollback), Patient, Ok("rollback")),
            ("prepared", Some(DUE), Some(Stage::Retire), Patient, Err("activate or rollback")),
            ("active", Some(DUE), None, Patient, Ok("retire")),
            ("active", Some(EARLY), None, Patient, Err("--now")),
            ("active", Some(EARLY), None, Now, Ok("retire-now")),
            ("active", Some(EARLY), Some(Stage::Rollback), Patient, Ok("rollback")),
            ("odd", None, None, Now, Err("not known")),
        ] {
            let got = wish(&stand(page(stage, from)), wanted, haste);
            match (&got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{stage}"),
                (Err(got), Err(expected)) => assert!(got.contains(expected), "{stage}: {got}"),
                (_, _) => panic!("{stage} {wanted:?} {haste:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_root_in_use_is_not_forgotten_unless_it_is_insisted() {
        let mut signed = page("active", Some(DUE));
        signed.issued = vec![Issued { fingerprint: "old".to_owned(), count: 3, until: String::new() }];
        let two = Stand::of(vec![signed.clone(), signed], BTreeMap::new(), Vec::new()).unwrap();
        let refused = wish(&two, None, Haste::Patient).unwrap_err();
        assert!(refused.contains("6 certificates"), "{refused}");
        assert_eq!(wish(&two, None, Haste::Now).unwrap(), "retire-now");

        let held = BTreeMap::from([("old".to_owned(), vec!["n1: spiffe://x".to_owned()])]);
        let held = Stand { held, ..stand(page("active", Some(DUE))) };
        assert!(wish(&held, None, Haste::Patient).unwrap_err().contains("n1: spiffe://x"));
        // The one that signs may have as many users as there are.
        let new = BTreeMap::from([("new".to_owned(), vec!["n1: spiffe://x".to_owned()])]);
        let new = Stand { held: new, ..stand(page("active", Some(DUE))) };
        assert_eq!(wish(&new, None, Haste::Patient).unwrap(), "retire");

        let silent = Stand { silent: vec!["ztunnel/n2".to_owned()], ..stand(page("active", Some(DUE))) };
        assert!(wish(&silent, None, Haste::Patient).unwrap_err().contains("ztunnel/n2"));
    }

    #[test]
    fn what_is_not_ours_or_not_agreed_is_not_rotated() {
        let plugged = Page { origin: "plugged-in".to_owned(), ..page("steady", None) };
        assert!(wish(&stand(plugged), None, Haste::Now).unwrap_err().contains("cacerts"));
        let other = Page { signer: "cert-manager".to_owned(), ..page("steady", None) };
        assert!(wish(&stand(other), None, Haste::Now).unwrap_err().contains("issuer"));
        let two = vec![page("steady", None), page("prepared", Some(DUE))];
        let two = Stand::of(two, BTreeMap::new(), Vec::new()).unwrap();
        assert!(wish(&two, None, Haste::Now).unwrap_err().contains("do not agree"));
        assert_eq!(Stand::of(Vec::new(), BTreeMap::new(), Vec::new()), None);
    }

    #[test]
    fn the_page_is_read_as_controllers_write_it() {
        let text = r#"{ "signer": "authority", "origin": "own", "stage": "prepared",
            "active": { "fingerprint": "ab", "subject": "O=x", "notBefore": "a", "notAfter": "b", "key": "ECDSA 256" },
            "expires": "b", "trusted": [], "issued": [{ "fingerprint": "ab", "count": 2, "until": "c" }],
            "activateFrom": "d", "longestLifeSeconds": 86400, "revocationLists": false }"#;
        let page: Page = serde_json::from_str(text).unwrap();
        assert_eq!((page.stage.as_str(), page.issued[0].count), ("prepared", 2));
        assert_eq!(page.active.unwrap().not_after, "b");
    }
}
