//! How the story of a connection ended, in the words of the outside.

use ambit_wire::copy::End;

use crate::refusal::Refusal;

/// Why a connection did not end well; `None` when it did. A peer that goes away is daily life
/// (protocols 4.7).
pub(crate) fn outcome(copied: &Result<End, Refusal>) -> Option<Refusal> {
    match copied {
        Ok(End::Complete | End::Left(_)) => None,
        Ok(End::Failed(_, error)) => Some(Refusal::Broken(error.to_string())),
        Err(refusal) => Some(refusal.clone()),
    }
}
