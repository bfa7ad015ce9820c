//! The status of a route: a list with an entry for each parent and controller; and of a policy of Gateway API's form,
//! which has the same for each ancestor. Pure.
//!
//! The list has no keys, so whoever writes it writes all of it: what others wrote is kept as it was read, under the
//! version of the object that it was read from.

use serde_json::{Value, json};

use super::{api::read, board::Carried};
use crate::translate::route_status::CONTROLLER;

/// Such a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    /// Where it is in the status.
    pub field: &'static str,
    /// Where an entry says whom it is about.
    reference: &'static str,
}

/// Of routes (RouteStatus).
pub(super) const PARENTS: List = List { field: "parents", reference: "parentRef" };
/// Of policies (PolicyStatus).
pub(super) const ANCESTORS: List = List { field: "ancestors", reference: "ancestorRef" };

impl List {
    /// What an object carries of ours.
    pub(super) fn ours(&self, status: &Value) -> Vec<Carried> {
        let entries = self.entries(status).iter().filter(|entry| is_ours(entry));
        let conditions = entries.flat_map(|entry| {
            let parent = entry.get(self.reference);
            let conditions = entry.get("conditions").and_then(Value::as_array).into_iter().flatten();
            conditions.filter_map(move |one| Some(Carried { parent: parent.cloned(), told: read(one)? }))
        });
        conditions.collect()
    }

    /// The list with `ours` in place of what it has of ours.
    pub(super) fn merged(&self, status: &Value, ours: &[Carried]) -> Vec<Value> {
        let mut merged: Vec<_> =
            self.entries(status).iter().filter(|entry| !is_ours(entry)).cloned().collect();
        let mut rest = ours;
        while let Some(first) = rest.first() {
            let others = rest.iter().position(|one| one.parent != first.parent).unwrap_or(rest.len());
            let (of_parent, after) = rest.split_at(others);
            let conditions: Vec<_> = of_parent.iter().map(|one| &one.told).collect();
            merged.push(json!({
                self.reference: first.parent,
                "controllerName": CONTROLLER,
                "conditions": conditions,
            }));
            rest = after;
        }
        merged
    }

    fn entries<'v>(&self, status: &'v Value) -> &'v [Value] {
        status.get(self.field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

fn is_ours(entry: &Value) -> bool {
    entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(controller: &str, service: &str, status: &str) -> Value {
        json!({
            "parentRef": { "group": "", "kind": "Service", "name": service },
            "controllerName": controller,
            "conditions": [
                { "type": "Accepted", "status": status, "reason": "Accepted", "message": "m",
                  "lastTransitionTime": "2026-01-02T03:04:05Z" },
                { "type": "ResolvedRefs", "status": status, "reason": "ResolvedRefs", "message": "m",
                  "lastTransitionTime": "2026-01-02T03:04:05Z" },
            ],
        })
    }

    #[test]
    fn what_others_wrote_stays_as_it_is() {
        let mut foreign = entry("example.com/gateway", "web", "False");
        foreign["conditions"][0]["unknown"] = json!(7);
        let status = json!({ "parents": [entry(CONTROLLER, "old", "False"), foreign] });
        let new = json!({ "parents": [entry(CONTROLLER, "web", "True"), entry(CONTROLLER, "api", "True")] });
        let mut expected = vec![foreign.clone()];
        expected.extend(PARENTS.entries(&new).to_vec());
        assert_eq!(PARENTS.merged(&status, &PARENTS.ours(&new)), expected);
        assert_eq!(PARENTS.merged(&status, &[]), [foreign]);
        assert_eq!(PARENTS.merged(&json!({}), &[]), Vec::<Value>::new());
    }

    #[test]
    fn a_policy_has_the_same_for_its_ancestors() {
        let status = json!({ "parents": [entry(CONTROLLER, "web", "True")] });
        let ours = PARENTS.ours(&status);
        let written = json!({ "ancestors": ANCESTORS.merged(&json!({}), &ours) });
        assert_eq!(written["ancestors"][0]["ancestorRef"]["name"], "web");
        assert_eq!(ANCESTORS.ours(&written), ours);
    }

    #[test]
    fn ours_is_read_as_it_was_written() {
        let status = json!({ "parents": [entry("example.com/gateway", "web", "True"), entry(CONTROLLER, "web", "True")] });
        let ours = PARENTS.ours(&status);
        let types: Vec<_> = ours.iter().map(|one| one.told.type_.as_str()).collect();
        assert_eq!(types, ["Accepted", "ResolvedRefs"]);
        assert!(ours.iter().all(|one| one.parent.as_ref().unwrap()["name"] == "web"));
    }
}
