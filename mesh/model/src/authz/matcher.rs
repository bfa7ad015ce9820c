//! The smallest parts of a policy: how one value is compared.

use std::fmt;

use serde::Serialize;

use crate::{
    identity::Identity,
    name::{Label, Namespace, ServiceAccount},
};

/// How a text is compared (protocols 6.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Text {
    /// Equal.
    Exact(Label),
    /// Begins so.
    Prefix(Label),
    /// Ends so.
    Suffix(Label),
    /// Not empty.
    Presence,
}

impl Text {
    /// Whether `text` is as asked.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact.as_str(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Presence => !text.is_empty(),
        }
    }

    /// The same, of bytes that may be no text.
    pub(super) fn matches_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => bytes == exact.as_str().as_bytes(),
            Self::Prefix(prefix) => bytes.starts_with(prefix.as_str().as_bytes()),
            Self::Suffix(suffix) => bytes.ends_with(suffix.as_str().as_bytes()),
            Self::Presence => !bytes.is_empty(),
        }
    }

    /// Whether `text` is as asked, in letters of any case.
    pub(super) fn matches_without_case(&self, text: &str) -> bool {
        let text = text.as_bytes();
        let is = |part: Option<&[u8]>, asked: &Label| {
            part.is_some_and(|part| part.eq_ignore_ascii_case(asked.as_str().as_bytes()))
        };
        match self {
            Self::Exact(exact) => is(Some(text), exact),
            Self::Prefix(prefix) => is(text.get(..prefix.as_str().len()), prefix),
            Self::Suffix(suffix) => {
                let begin = text.len().checked_sub(suffix.as_str().len());
                is(begin.and_then(|begin| text.get(begin..)), suffix)
            }
            Self::Presence => !text.is_empty(),
        }
    }

    /// Whether a peer's principal is as asked: its SPIFFE URI without the scheme, compared piece by
    /// piece so that no text is built for a connection. Without identity nothing matches.
    pub(super) fn matches_principal(&self, peer: Option<&Identity>) -> bool {
        peer.is_some_and(|peer| self.matches_pieces(&principal_pieces(peer)))
    }

    /// Whether the text of these pieces, one of them not empty, is as asked.
    pub(super) fn matches_pieces(&self, pieces: &[&str]) -> bool {
        match self {
            Self::Exact(exact) => strip_pieces(exact.as_str(), pieces) == Some(""),
            Self::Prefix(prefix) => begins(prefix.as_str(), pieces),
            Self::Suffix(suffix) => ends(suffix.as_str(), pieces),
            Self::Presence => true,
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => text.fmt(f),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

/// A service account, whatever the trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountMatch {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub service_account: ServiceAccount,
}

impl AccountMatch {
    pub(super) fn matches(&self, peer: Option<&Identity>) -> bool {
        peer.is_some_and(|peer| {
            peer.namespace == self.namespace && peer.service_account == self.service_account
        })
    }
}

fn principal_pieces(peer: &Identity) -> [&str; 5] {
    [peer.trust_domain.as_str(), "/ns/", peer.namespace.as_str(), "/sa/", peer.service_account.as_str()]
}

/// What is left of `text` after all pieces in order, if it begins with them.
fn strip_pieces<'t>(text: &'t str, pieces: &[&str]) -> Option<&'t str> {
    pieces.iter().try_fold(text, |rest, piece| rest.strip_prefix(piece))
}

/// Whether the pieces, joined, begin with `prefix`.
fn begins(prefix: &str, pieces: &[&str]) -> bool {
    let mut rest = prefix;
    for piece in pieces {
        match rest.strip_prefix(piece) {
            Some(after) => rest = after,
            None => return piece.starts_with(rest),
        }
    }
    rest.is_empty()
}

/// Whether the pieces, joined, end with `suffix`.
fn ends(suffix: &str, pieces: &[&str]) -> bool {
    let mut rest = suffix;
    for piece in pieces.iter().rev() {
        match rest.strip_suffix(piece) {
            Some(before) => rest = before,
            None => return piece.ends_with(rest),
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The piecewise comparison is an optimisation; the text is the definition.
        #[test]
        fn a_principal_is_compared_as_its_text(
            td in "[ab./]{1,3}", ns in "[ab]{1,3}", sa in "[ab]{1,3}",
            cut in any::<prop::sample::Index>(), other in "[abns/.]{0,12}",
        ) {
            let peer = Identity::new(td.as_str(), ns.as_str(), sa.as_str());
            let text = peer.principal().to_string();
            let at = cut.index(text.len() + 1);
            for pattern in [&text[..at], &text[at..], other.as_str(), text.as_str()] {
                for matcher in [
                    Text::Exact(pattern.into()), Text::Prefix(pattern.into()), Text::Suffix(pattern.into()),
                    Text::Presence,
                ] {
                    prop_assert_eq!(
                        matcher.matches_principal(Some(&peer)), matcher.matches(&text),
                        "{} against {}", matcher, text
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn case_is_overlooked_as_if_there_were_none(asked in "[aAbB]{0,3}", text in "[aAbB]{0,4}") {
            let lower = asked.to_ascii_lowercase();
            for kind in [Text::Exact, Text::Prefix, Text::Suffix] {
                let expected = kind(lower.as_str().into()).matches(&text.to_ascii_lowercase());
                prop_assert_eq!(kind(asked.as_str().into()).matches_without_case(&text), expected);
                let bytes = kind(asked.as_str().into()).matches_bytes(text.as_bytes());
                prop_assert_eq!(bytes, kind(asked.as_str().into()).matches(&text));
            }
        }
    }

    #[test]
    fn without_identity_every_predicate_is_false() {
        for matcher in
            [Text::Exact("".into()), Text::Prefix("".into()), Text::Suffix("".into()), Text::Presence]
        {
            assert!(!matcher.matches_principal(None), "{matcher:?}");
        }
    }
}
