//! What every object has: a name, labels, annotations, an age. And how labels are selected.

use std::collections::BTreeMap;

use ambit_api::k8s_openapi::apimachinery::pkg::apis::meta::v1 as k8s;
use ambit_model::name::{Label, Namespace};

use super::{Name, Rejection};

/// The label that every namespace has, whoever wrote it.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its namespace and name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// When it was made, in microseconds since 1970. Absent sorts first: it has been there for ever.
    pub created: Option<i64>,
    /// The version of its spec.
    pub generation: Option<i64>,
    /// Tells it from others that had its name before; empty where nobody gives out such ids.
    pub uid: Label,
}

impl Meta {
    pub(super) fn parse(namespace: Namespace, meta: k8s::ObjectMeta) -> Self {
        Self {
            name: Name { namespace, name: meta.name.unwrap_or_default().into() },
            labels: Labels(meta.labels.unwrap_or_default()),
            annotations: Labels(meta.annotations.unwrap_or_default()),
            created: meta.creation_timestamp.map(|time| time.0.as_microsecond()),
            generation: meta.generation,
            uid: meta.uid.unwrap_or_default().into(),
        }
    }

    /// Sorts the oldest object first; equal ages by name, so that everybody chooses the same.
    pub fn age(&self) -> (Option<i64>, Name) {
        (self.created, self.name.clone())
    }
}

/// Labels or annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// The labels of a namespace that has no object of its own.
    pub fn of_bare_namespace(name: &Namespace) -> Self {
        let mut labels = Self::default();
        labels.name_namespace(name);
        labels
    }

    pub(super) fn name_namespace(&mut self, name: &Namespace) {
        self.0.insert(NAMESPACE_NAME.to_owned(), name.to_string());
    }

    /// The value of a label that is there and not empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Every label with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a value, such as `ambient`, is among those of a comma list.
    pub fn lists(&self, key: &str, word: &str) -> bool {
        self.get(key).is_some_and(|list| list.split(',').any(|one| one.trim() == word))
    }
}

/// Labels that must all be there; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    first: (String, String),
    rest: Vec<(String, String)>,
}

impl Selector {
    /// A selector of these labels; none when there are none, which everywhere means "no selector".
    pub fn new(labels: BTreeMap<String, String>) -> Option<Self> {
        let mut labels = labels.into_iter();
        Some(Self { first: labels.next()?, rest: labels.collect() })
    }

    /// Whether these labels have all that is asked.
    pub fn matches(&self, labels: &Labels) -> bool {
        std::iter::once(&self.first).chain(&self.rest).all(|(key, value)| labels.0.get(key) == Some(value))
    }

    /// One of the labels asked for, by which an index can find the selector.
    pub fn first(&self) -> (&str, &str) {
        (&self.first.0, &self.first.1)
    }
}

/// A Kubernetes label selector. An empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these must hold.
    pub expressions: Vec<Expression>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// The label has one of these values.
    In(String, Vec<String>),
    /// The label is missing, or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is missing.
    DoesNotExist(String),
}

impl LabelSelector {
    pub(super) fn parse(field: &str, selector: k8s::LabelSelector) -> Result<Self, Rejection> {
        let equal = selector
            .match_labels
            .into_iter()
            .flatten()
            .map(|(key, value)| Ok(Expression::In(key, vec![value])));
        let others = selector.match_expressions.into_iter().flatten().map(|one| {
            let values = one.values.unwrap_or_default();
            match one.operator.as_str() {
                "In" => Ok(Expression::In(one.key, values)),
                "NotIn" => Ok(Expression::NotIn(one.key, values)),
                "Exists" => Ok(Expression::Exists(one.key)),
                "DoesNotExist" => Ok(Expression::DoesNotExist(one.key)),
                other => Err(Rejection::new(
                    format!("{field}.matchExpressions"),
                    format!("{other:?} is not an operator"),
                    "write In, NotIn, Exists or DoesNotExist",
                )),
            }
        });
        Ok(Self { expressions: equal.chain(others).collect::<Result<_, _>>()? })
    }

    /// Whether these labels are as asked.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.expressions.iter().all(|expression| match expression {
            Expression::In(key, values) => labels.0.get(key).is_some_and(|value| values.contains(value)),
            Expression::NotIn(key, values) => labels.0.get(key).is_none_or(|value| !values.contains(value)),
            Expression::Exists(key) => labels.0.contains_key(key),
            Expression::DoesNotExist(key) => !labels.0.contains_key(key),
        })
    }
}

/// Reads a boolean in the spellings that Istio's annotations allow.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn expressions_are_judged_as_kubernetes_judges_them() {
        let (key, values) = ("a".to_owned(), vec!["1".to_owned(), "2".to_owned()]);
        for (expression, with_1, with_3, without) in [
            (Expression::In(key.clone(), values.clone()), true, false, false),
            (Expression::NotIn(key.clone(), values), false, true, true),
            (Expression::Exists(key.clone()), true, true, false),
            (Expression::DoesNotExist(key), false, false, true),
        ] {
            let selector = LabelSelector { expressions: vec![expression] };
            let got = [&[("a", "1")][..], &[("a", "3")], &[]].map(|pairs| selector.matches(&labels(pairs)));
            assert_eq!(got, [with_1, with_3, without], "{selector:?}");
        }
    }

    #[test]
    fn a_selector_without_labels_is_no_selector() {
        assert_eq!(Selector::new(BTreeMap::new()), None);
    }
}
