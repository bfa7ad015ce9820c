//! What a verified token says of its bearer (RFC 7519).

use serde_json::{Map, Value};

/// Claims that are lists of words in one text (RFC 8693, 4.2; `permission` is treated so as Istio does).
const LISTS_OF_WORDS: [&str; 2] = ["scope", "permission"];

/// The claims of one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// What the payload of a token says.
    pub fn new(payload: Map<String, Value>) -> Self {
        Self(payload)
    }

    /// The claim at `path`, which goes into claims of claims.
    pub fn find<P: AsRef<str>>(&self, path: &[P]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let outermost = self.0.get(first.as_ref())?;
        rest.iter().try_fold(outermost, |value, name| value.as_object()?.get(name.as_ref()))
    }

    /// The texts that the claim at `path` has: itself, or the texts of its list. A value of another kind
    /// has none.
    pub fn texts<P: AsRef<str>>(&self, path: &[P]) -> impl Iterator<Item = &str> + Clone {
        let found = self.find(path);
        let text = found.and_then(Value::as_str);
        let has_words = match path {
            [name] => LISTS_OF_WORDS.contains(&name.as_ref()),
            _ => false,
        };
        let whole = text.filter(|_| !has_words).into_iter();
        let words = text.filter(|_| has_words).into_iter().flat_map(str::split_ascii_whitespace);
        let list = found.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        whole.chain(words).chain(list)
    }

    /// The principal of the bearer, `issuer/subject`, in pieces. `None`: one of them is not said, and the
    /// bearer has no name.
    pub fn principal(&self) -> Option<[&str; 3]> {
        let said = |name| self.find(&[name]).and_then(Value::as_str).filter(|text| !text.is_empty());
        Some([said("iss")?, "/", said("sub")?])
    }

    /// Everything that is said.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: Value) -> Claims {
        Claims::new(json.as_object().expect("an object").clone())
    }

    #[test]
    fn a_claim_is_a_text_or_a_list_of_texts_however_deep() {
        let claims = claims(serde_json::json!({
            "iss": "me", "aud": ["a", 1, "b"], "exp": 17, "scope": "read  write", "name": "two words",
            "realm": {"roles": ["admin"], "scope": "one text"}, "empty": [],
        }));
        let table: [(&[&str], &[&str]); 10] = [
            (&["iss"], &["me"]),
            (&["aud"], &["a", "b"]),
            (&["exp"], &[]),
            (&["scope"], &["read", "write"]),
            (&["name"], &["two words"]),
            (&["realm", "roles"], &["admin"]),
            (&["realm", "scope"], &["one text"]),
            (&["realm"], &[]),
            (&["iss", "roles"], &[]),
            (&[], &[]),
        ];
        for (path, texts) in table {
            assert_eq!(claims.texts(path).collect::<Vec<_>>(), texts, "{path:?}");
        }
    }

    #[test]
    fn a_principal_has_issuer_and_subject() {
        let principal = |json| claims(json).principal().map(|pieces| pieces.concat());
        assert_eq!(principal(serde_json::json!({"iss": "me", "sub": "you"})).as_deref(), Some("me/you"));
        for lacking in [
            serde_json::json!({"iss": "me"}),
            serde_json::json!({"sub": "you"}),
            serde_json::json!({"iss": "", "sub": "you"}),
            serde_json::json!({"iss": "me", "sub": 1}),
        ] {
            assert_eq!(principal(lacking.clone()), None, "{lacking}");
        }
    }
}
