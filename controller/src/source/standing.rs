//! What of an object is in force, when what is written of it may make no sense. Pure, and the same for every source.
//!
//! | written | before | in force |
//! |---|---|---|
//! | is understood | – | what is written |
//! | is not | was understood | what it said before |
//! | is not | nothing, or not understood either | what stands in for it: of a policy of security the strictest that it can mean |

use super::Event;
use crate::cluster::object::{Key, Object, Parsed, Rejection};

/// What of one object is in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The object, or what stands in for it; none if it has no effect.
    pub object: Option<Object>,
    /// Whether it was understood, and nothing stands in for it.
    pub understood: bool,
}

/// What becomes of an object that was written anew.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is in force as it is written.
    Understood(Standing),
    /// Nobody here reads objects of this kind.
    Unknown,
    /// What it said before stays.
    Kept(Rejection),
    /// Something stands in for it.
    Replaced(Standing, Rejection),
}

/// Decides what is in force now.
pub fn judge(parsed: Parsed, before: Option<&Standing>) -> Verdict {
    match parsed {
        Parsed::Object(object) => Verdict::Understood(Standing { object: Some(object), understood: true }),
        Parsed::Unknown => Verdict::Unknown,
        Parsed::Bad { rejection, instead } => {
            let was_good = before.is_some_and(|before| before.understood && before.object.is_some());
            let in_force = match (was_good, &instead) {
                (true, _) => "what it last said stays in force",
                (false, Some(Object::Route(_) | Object::RateLimitPolicy(_) | Object::VirtualService(_))) => {
                    "until then it is not used"
                }
                (false, Some(_)) => "until then the strictest that it can mean is in force",
                (false, None) => "until then it is not used",
            };
            let Rejection { field, what, remedy } = rejection;
            let rejection = Rejection { field, what, remedy: format!("{remedy}; {in_force}") };
            if was_good {
                Verdict::Kept(rejection)
            } else {
                Verdict::Replaced(Standing { object: instead, understood: false }, rejection)
            }
        }
    }
}

/// What has to be told of a change. An object that got another name is gone under the old one.
pub fn difference(before: Option<&Object>, after: Option<&Object>) -> impl Iterator<Item = Event> + use<> {
    let (gone, come) = if before == after {
        (None, None)
    } else {
        let key = after.map(Object::key);
        let gone = before.map(Object::key).filter(|was: &Key| Some(was) != key.as_ref());
        (gone.map(Event::Delete), after.cloned().map(Event::Upsert))
    };
    gone.into_iter().chain(come)
}
