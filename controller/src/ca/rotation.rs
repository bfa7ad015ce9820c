//! How one root follows another without a connection refused. Pure: the clock is an argument.
//!
//! ```text
//!            prepare                 activate                  retire
//!   steady ───────────► prepared ───────────────► active ───────────────► steady, with the new root
//!      ▲                 │    ▲                     │
//!      └─────────────────┘    └─────────────────────┘
//!           rollback                  rollback
//! ```
//!
//! | stage | signs | trusted |
//! |---|---|---|
//! | steady | the root | the root |
//! | prepared | the old root | both |
//! | active | the new root | both |
//!
//! Peers learn whom to trust with their certificates, so a peer may go on knowing the old root only for as long as a
//! certificate that was signed before the new root was told of. Therefore two steps wait:
//!
//! - the new root may sign once every certificate that was signed without mention of it is over;
//! - a root may be forgotten once every certificate that it signed is over.
//!
//! Both times follow from the longest life that was ever granted under the root that signs (it is kept beside the root,
//! and written down before the first certificate of such a life is signed), and from the moment of the step. They are
//! kept in the Secret, so no replica has to be asked; how many certificates each replica signed is shown for the
//! curious, and decides nothing: a replica that is gone could not be counted.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use ambit_api::labels::{
    CA_ROTATION_ACTIVATE, CA_ROTATION_NOW, CA_ROTATION_PREPARE, CA_ROTATION_RETIRE, CA_ROTATION_ROLLBACK,
};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Replicas hear of a step, and kubelets of a new bundle, within a minute or two; and clocks differ.
pub const MARGIN: Duration = Duration::from_secs(180);

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// One root.
    Steady,
    /// The next root is trusted and does not sign.
    Prepared {
        /// From when everybody trusts it.
        activate_from: SystemTime,
        /// Until when certificates live that it signed before a rollback. `None`: it never signed.
        next_in_use_until: Option<SystemTime>,
    },
    /// The new root signs, the previous one is still trusted.
    Active {
        /// From when everybody trusts the new one.
        activate_from: SystemTime,
        /// Until when certificates live that the previous one signed.
        previous_in_use_until: SystemTime,
    },
}

/// The stage alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// One root.
    Steady,
    /// A second one is trusted.
    Prepared,
    /// The second one signs.
    Active,
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a new root, and trust it.
    Prepare,
    /// Sign with the new root.
    Activate,
    /// Forget the old root.
    Retire,
    /// Undo the last step.
    Rollback,
}

/// A step that an operator wishes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which.
    pub step: Step,
    /// Whether to wait until nobody can be hurt.
    pub haste: Haste,
}

/// Whether a step may be taken before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It is refused then.
    Patient,
    /// It is taken: a key was stolen, say.
    Now,
}

impl State {
    /// Which stage this is.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Steady => Stage::Steady,
            Self::Prepared { .. } => Stage::Prepared,
            Self::Active { .. } => Stage::Active,
        }
    }

    /// From when on the next root may sign.
    pub fn activate_from(&self) -> Option<SystemTime> {
        match self {
            Self::Steady => None,
            Self::Prepared { activate_from, .. } | Self::Active { activate_from, .. } => Some(*activate_from),
        }
    }

    /// From when on the root that does not sign may be forgotten.
    pub fn retire_from(&self) -> Option<SystemTime> {
        match self {
            Self::Steady => None,
            Self::Prepared { next_in_use_until, .. } => *next_in_use_until,
            Self::Active { previous_in_use_until, .. } => Some(*previous_in_use_until),
        }
    }

    /// Takes a step at `now`, when no certificate was signed for longer than `longest` under the root that signs.
    pub fn after(self, wish: Wish, now: SystemTime, longest: Duration) -> Result<Self, Refusal> {
        let over = now.checked_add(longest).and_then(|end| end.checked_add(MARGIN)).ok_or(Refusal::Clock)?;
        let due = |from: SystemTime| now >= from || wish.haste == Haste::Now;
        match (self, wish.step) {
            (Self::Steady, Step::Prepare) => {
                Ok(Self::Prepared { activate_from: over, next_in_use_until: None })
            }
            (Self::Prepared { activate_from, .. }, Step::Activate) => {
                if due(activate_from) {
                    Ok(Self::Active { activate_from, previous_in_use_until: over })
                } else {
                    Err(Refusal::NotTrustedYet { from: Moment(activate_from) })
                }
            }
            (Self::Prepared { next_in_use_until: in_use, .. }, Step::Rollback) => match in_use {
                Some(until) if !due(until) => Err(Refusal::InUse { step: wish.step, until: Moment(until) }),
                Some(_) | None => Ok(Self::Steady),
            },
            (Self::Active { previous_in_use_until: until, .. }, Step::Retire) => {
                if due(until) {
                    Ok(Self::Steady)
                } else {
                    Err(Refusal::InUse { step: wish.step, until: Moment(until) })
                }
            }
            (Self::Active { activate_from, .. }, Step::Rollback) => {
                Ok(Self::Prepared { activate_from, next_in_use_until: Some(over) })
            }
            (Self::Steady, Step::Activate | Step::Retire | Step::Rollback)
            | (Self::Prepared { .. }, Step::Prepare | Step::Retire)
            | (Self::Active { .. }, Step::Prepare | Step::Activate) => {
                Err(Refusal::OutOfOrder { step: wish.step, stage: self.stage() })
            }
        }
    }
}

impl Stage {
    /// In annotations, pages and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Prepared => "prepared",
            Self::Active => "active",
        }
    }

    /// What can be done from here.
    fn steps(self) -> &'static str {
        match self {
            Self::Steady => "prepare",
            Self::Prepared => "activate or rollback",
            Self::Active => "retire or rollback",
        }
    }
}

impl Step {
    /// In annotations and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Prepare => CA_ROTATION_PREPARE,
            Self::Activate => CA_ROTATION_ACTIVATE,
            Self::Retire => CA_ROTATION_RETIRE,
            Self::Rollback => CA_ROTATION_ROLLBACK,
        }
    }
}

impl FromStr for Wish {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (word, haste) = match text.strip_suffix(CA_ROTATION_NOW) {
            Some(word) => (word, Haste::Now),
            None => (text, Haste::Patient),
        };
        let step = match word {
            CA_ROTATION_PREPARE => Step::Prepare,
            CA_ROTATION_ACTIVATE => Step::Activate,
            CA_ROTATION_RETIRE => Step::Retire,
            CA_ROTATION_ROLLBACK => Step::Rollback,
            _ => return Err(Refusal::Unknown(text.chars().take(LONGEST_WORD).collect())),
        };
        Ok(Self { step, haste })
    }
}

/// More of what somebody wrote into an annotation is not repeated to him.
const LONGEST_WORD: usize = 40;

/// Why a step is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such step.
    #[error("{0:?} is no step of a rotation; write prepare, activate, retire or rollback")]
    Unknown(String),
    /// Not from this stage.
    #[error("{step} is not possible when {stage}; from here: {steps}", step = step.word(), stage = stage.word(), steps = stage.steps())]
    OutOfOrder {
        /// What was wished for.
        step: Step,
        /// Where the rotation stands.
        stage: Stage,
    },
    /// Somebody may not know the new root yet.
    #[error(
        "workloads may hold certificates until {from} that came without the new root; wait until then, or lose \
         their connections with activate-now"
    )]
    NotTrustedYet {
        /// From when on.
        from: Moment,
    },
    /// Somebody may show a certificate of the root that is to be forgotten.
    #[error(
        "certificates of the root that is to be forgotten may be in use until {until}; wait until then, or lose \
         their connections with {word}-now", word = step.word()
    )]
    InUse {
        /// What was wished for.
        step: Step,
        /// Until when.
        until: Moment,
    },
    /// The root is not ours.
    #[error(
        "Secret cacerts holds the authority in force; rotate it by replacing that Secret, with both roots in \
         root-cert.pem for as long as certificates of the old one live"
    )]
    PluggedIn,
    /// A time that cannot be written.
    #[error("the clock of the controller is beyond what certificates can say")]
    Clock,
    /// No new root.
    #[error("no new root could be made: {0}")]
    Make(String),
}

/// A time, in words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub SystemTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = OffsetDateTime::from(self.0);
        let whole = whole.replace_nanosecond(0).unwrap_or(whole);
        f.write_str(&whole.format(&Rfc3339).unwrap_or_default())
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Moment {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(|at| Self(at.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(3600);
    const HOUR_AND_MARGIN: u64 = 3600 + MARGIN.as_secs();

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn prepared(activate: u64, in_use: Option<u64>) -> State {
        State::Prepared { activate_from: at(activate), next_in_use_until: in_use.map(at) }
    }

    fn active(activate: u64, in_use: u64) -> State {
        State::Active { activate_from: at(activate), previous_in_use_until: at(in_use) }
    }

    fn take(state: State, word: &str, now: u64) -> Result<State, Refusal> {
        state.after(word.parse()?, at(now), LIFE)
    }

    #[test]
    fn every_step_from_every_stage() {
        let end = HOUR_AND_MARGIN;
        let stages = [State::Steady, prepared(100, None), prepared(100, Some(200)), active(100, 200)];
        // At 150, in the order of `stages`; `None`: refused.
        let table: [(&str, [Option<State>; 4]); 7] = [
            ("prepare", [Some(prepared(150 + end, None)), None, None, None]),
            ("activate", [None, Some(active(100, 150 + end)), Some(active(100, 150 + end)), None]),
            ("retire", [None, None, None, None]),
            ("rollback", [None, Some(State::Steady), None, Some(prepared(100, Some(150 + end)))]),
            ("activate-now", [None, Some(active(100, 150 + end)), Some(active(100, 150 + end)), None]),
            ("retire-now", [None, None, None, Some(State::Steady)]),
            (
                "rollback-now",
                [None, Some(State::Steady), Some(State::Steady), Some(prepared(100, Some(150 + end)))],
            ),
        ];
        for (word, expected) in table {
            for (state, expected) in stages.into_iter().zip(expected) {
                assert_eq!(take(state, word, 150).ok(), expected, "{word} from {state:?}");
            }
        }
    }

    #[test]
    fn a_step_before_its_time_is_refused_to_the_second() {
        for (state, word, due) in [
            (prepared(100, None), "activate", 100),
            (active(100, 200), "retire", 200),
            (prepared(100, Some(200)), "rollback", 200),
        ] {
            let early = take(state, word, due - 1).unwrap_err();
            let said = Moment(at(due)).to_string();
            assert!(early.to_string().contains(&said) && early.to_string().contains("-now"), "{early}");
            assert!(take(state, word, due).is_ok(), "{word}");
        }
    }

    #[test]
    fn a_whole_rotation_and_a_change_of_mind() {
        let prepared = take(State::Steady, "prepare", 0).unwrap();
        let known = HOUR_AND_MARGIN;
        let active = take(prepared, "activate", known).unwrap();
        assert_eq!((active.stage(), active.retire_from()), (Stage::Active, Some(at(2 * known))));
        assert_eq!(take(active, "retire", 2 * known), Ok(State::Steady));
        // Undone after an hour: what the new root has signed counts from the end of its signing.
        let back = take(active, "rollback", known + 3600).unwrap();
        assert_eq!(back.retire_from(), Some(at(2 * known + 3600)));
        assert!(take(back, "rollback", 2 * known).is_err());
        assert_eq!(take(back, "rollback", 2 * known + 3600), Ok(State::Steady));
        // Everybody knows the new root already, so it may sign again at once.
        assert_eq!(take(back, "activate", known + 3601).unwrap().stage(), Stage::Active);
    }

    #[test]
    fn a_refusal_says_what_is_possible() {
        for (state, word, says) in [
            (State::Steady, "retire", "from here: prepare"),
            (prepared(0, None), "prepare", "activate or rollback"),
            (active(0, 0), "activate", "retire or rollback"),
            (State::Steady, "rotate", "write prepare, activate, retire or rollback"),
            (State::Steady, "-now", "write prepare"),
        ] {
            let refusal = take(state, word, 1).unwrap_err().to_string();
            assert!(refusal.contains(says), "{refusal}");
        }
        let long = "x".repeat(10_000).parse::<Wish>().unwrap_err().to_string();
        assert!(long.len() < 200);
    }

    #[test]
    fn moments_are_read_as_they_are_written() {
        assert_eq!(Moment(at(1)).to_string().parse(), Ok(Moment(at(1))));
        assert!("tomorrow".parse::<Moment>().is_err());
    }
}
