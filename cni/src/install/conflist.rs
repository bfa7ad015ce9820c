//! The runtime's network configurations as JSON in, JSON out. Pure.
//!
//! A runtime takes the first file of its directory, by name, that it can read. Our plugin has to stand in
//! the chain of that one: at its end, after those who make the pod's network.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

/// The plugin's name: its `type` in a chain, and the name of its program.
pub const PLUGIN: &str = "ambit-cni";

/// What the plugin has to be told, as its entry in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The agent's socket, as the node sees it.
    pub socket: String,
    /// Namespaces whose pods are never captured: the agent is not even asked.
    pub excluded: Vec<String>,
    /// The mesh's own namespace: its pods start even when no agent answers, or no agent ever could.
    pub system: String,
    /// How long the plugin waits for the agent.
    pub timeout_seconds: u64,
}

/// How our plugin gets into the way of a pod's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// It is put into the file of the primary plugin.
    Chained,
    /// A file of our own holds the whole chain. Other plugins rewrite theirs as they like, and no pod
    /// ever starts with the primary alone, not even after the node was started anew.
    Own,
}

/// The files of the runtime's directory, by name. A runtime reads no others.
pub type Files = BTreeMap<String, String>;

/// What to change in the directory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Files to write, in order. The second is the file whose permissions the new one gets.
    pub writes: Vec<Write>,
    /// Files to remove, after the writes.
    pub removals: Vec<String>,
    /// What is wrong with the directory.
    pub problems: Vec<String>,
    /// The file in which the runtime will find our plugin, if there is one.
    pub active: Option<String>,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
    /// Whose permissions it gets.
    pub like: String,
}

/// A configuration that no runtime could use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another shape.
    #[error("{0}")]
    Shape(&'static str),
}

impl Entry {
    /// As it stands in a chain.
    pub fn json(&self) -> Value {
        json!({
            "type": PLUGIN,
            "agent_socket": self.socket,
            "exclude_namespaces": self.excluded,
            "system_namespace": self.system,
            "timeout_seconds": self.timeout_seconds,
        })
    }
}

/// A chain of plugins: a list, or the single plugin of an older form made into one.
#[derive(Debug, Clone, PartialEq)]
struct Chain {
    fields: Map<String, Value>,
    plugins: Vec<Value>,
}

impl Chain {
    fn read(name: &str, text: &str) -> Result<Self, Unusable> {
        let Value::Object(mut fields) = serde_json::from_str(text)? else {
            return Err(Unusable::Shape("it is not an object"));
        };
        let filled =
            |value: Option<&Value>| value.and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        if !is_list(name) {
            if !filled(fields.get("type")) {
                return Err(Unusable::Shape("it names no plugin (`type`)"));
            }
            let mut list = Map::new();
            for shared in ["cniVersion", "name"] {
                if let Some(value) = fields.get(shared) {
                    list.insert(shared.to_owned(), value.clone());
                }
            }
            return Ok(Self { fields: list, plugins: vec![Value::Object(fields)] });
        }
        if !filled(fields.get("name")) {
            return Err(Unusable::Shape("it has no `name`"));
        }
        match fields.remove("plugins") {
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                Err(Unusable::Shape("its `plugins` is empty"))
            }
            Some(Value::Array(plugins)) if plugins.iter().all(|plugin| filled(plugin.get("type"))) => {
                Ok(Self { fields, plugins })
            }
            Some(_) => Err(Unusable::Shape("its `plugins` is not a list of plugins, each with a `type`")),
            None => Err(Unusable::Shape("it has no `plugins`")),
        }
    }

    fn has_ours(&self) -> bool {
        self.plugins.iter().any(is_ours)
    }

    fn with(&self, entry: &Entry) -> Self {
        let mut chain = self.without();
        chain.plugins.push(entry.json());
        chain
    }

    fn without(&self) -> Self {
        let plugins = self.plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
        Self { fields: self.fields.clone(), plugins }
    }

    fn text(&self) -> String {
        let mut fields = self.fields.clone();
        fields.insert("plugins".to_owned(), Value::Array(self.plugins.clone()));
        format!("{:#}\n", Value::Object(fields))
    }
}

/// What has to change so that no pod starts without our plugin.
pub fn install(files: &Files, ownership: Ownership, own: &str, entry: &Entry) -> Plan {
    let mut plan = Plan::default();
    let mut primary = None;
    for (name, text) in files.iter().filter(|(name, _)| name.as_str() != own) {
        match Chain::read(name, text) {
            // Nothing but us: not a network.
            Ok(chain) if chain.without().plugins.is_empty() => {}
            Ok(chain) => {
                primary.get_or_insert((name, chain));
            }
            Err(error) => plan.problems.push(format!("{name} cannot be used: {error}")),
        }
    }
    match ownership {
        Ownership::Chained => chained(&mut plan, files, own, primary, entry),
        Ownership::Own => owned(&mut plan, files, own, primary, entry),
    }
    plan
}

fn chained(plan: &mut Plan, files: &Files, own: &str, primary: Option<(&String, Chain)>, entry: &Entry) {
    let Some((name, chain)) = primary else {
        plan.problems.push(NO_PRIMARY.to_owned());
        return;
    };
    let with = chain.with(entry);
    let target = list_name(name);
    if target != *name {
        // Runtimes take the older form first, by name: it has to go.
        plan.removals.push(name.clone());
    }
    if target != *name || with != chain {
        plan.writes.push(Write { name: target.clone(), content: with.text(), like: name.clone() });
    }
    if files.contains_key(own) {
        plan.removals.push(own.to_owned());
    }
    plan.active = Some(target);
}

fn owned(plan: &mut Plan, files: &Files, own: &str, primary: Option<(&String, Chain)>, entry: &Entry) {
    let current = files.get(own).map(|text| Chain::read(own, text));
    let kept = match current {
        Some(Ok(chain)) => Some(chain),
        Some(Err(_)) | None => None,
    };
    let half_written = primary.as_ref().is_none_or(|(name, _)| {
        let before = files.range::<String, _>(..*name);
        before
            .filter(|(other, _)| other.as_str() != own)
            .any(|(other, text)| Chain::read(other, text).is_err())
    });
    let (wanted, like) = match (primary, &kept) {
        // Whoever writes in place leaves half a file for a moment: no reason to follow another network.
        (Some((name, chain)), None) => (chain.with(entry), name.clone()),
        (Some((name, chain)), Some(_)) if !half_written => (chain.with(entry), name.clone()),
        (_, Some(kept)) => (kept.with(entry), own.to_owned()),
        (None, None) => {
            plan.problems.push(NO_PRIMARY.to_owned());
            return;
        }
    };
    if kept.as_ref() != Some(&wanted) {
        plan.writes.push(Write { name: own.to_owned(), content: wanted.text(), like });
    }
    if let Some(first) = files.keys().find(|name| name.as_str() < own) {
        plan.problems.push(format!(
            "{first} comes before {own}, so the runtime uses it and starts pods without us; give our file a name that sorts first"
        ));
    } else {
        plan.active = Some(own.to_owned());
    }
}

/// The file that a runtime takes, and the plugins in it, in their order.
pub fn in_force(files: &Files) -> Option<(String, Vec<String>)> {
    let (name, chain) = files.iter().find_map(|(name, text)| Some((name, Chain::read(name, text).ok()?)))?;
    let types = chain.plugins.iter().filter_map(|plugin| plugin.get("type")?.as_str()).map(str::to_owned);
    Some((name.clone(), types.collect()))
}

/// What has to change so that nothing of ours is left.
pub fn uninstall(files: &Files, own: &str) -> Plan {
    let mut plan = Plan::default();
    for (name, text) in files {
        if name == own {
            plan.removals.push(name.clone());
            continue;
        }
        // What we could not read we did not write.
        let Ok(chain) = Chain::read(name, text) else { continue };
        if !chain.has_ours() {
            continue;
        }
        let without = chain.without();
        if without.plugins.is_empty() {
            plan.removals.push(name.clone());
        } else {
            plan.writes.push(Write { name: name.clone(), content: without.text(), like: name.clone() });
        }
    }
    plan
}

const NO_PRIMARY: &str =
    "there is no network configuration yet that the plugin could join; is the cluster's network installed?";

/// Whether a runtime would read a file of this name.
pub fn is_configuration(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    !name.starts_with('.') && matches!(ending, Some("conf" | "conflist" | "json"))
}

fn is_list(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "conflist")
}

fn list_name(name: &str) -> String {
    Path::new(name).with_extension("conflist").display().to_string()
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "02-ambit-cni.conflist";
    const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "net", "disableCheck": true, "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}, "unknown": [1, {"x": null}]},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn entry() -> Entry {
        Entry {
            socket: "/var/run/ambit-cni/agent.sock".into(),
            excluded: vec!["kube-system".into()],
            system: "istio-system".into(),
            timeout_seconds: 15,
        }
    }

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn chained(files: &Files) -> Plan {
        install(files, Ownership::Chained, OWN, &entry())
    }

    fn owned(files: &Files) -> Plan {
        install(files, Ownership::Own, OWN, &entry())
    }

    fn carried_out(files: &Files, plan: &Plan) -> Files {
        let mut after = files.clone();
        for write in &plan.writes {
            after.insert(write.name.clone(), write.content.clone());
        }
        for name in &plan.removals {
            after.remove(name);
        }
        after
    }

    fn types(text: &str) -> Vec<String> {
        let value: Value = serde_json::from_str(text).unwrap();
        value["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_entry() {
        insta::assert_snapshot!(format!("{:#}", entry().json()), @r#"
        {
          "agent_socket": "/var/run/ambit-cni/agent.sock",
          "exclude_namespaces": [
            "kube-system"
          ],
          "system_namespace": "istio-system",
          "timeout_seconds": 15,
          "type": "ambit-cni"
        }
        "#);
    }

    #[test]
    fn the_first_readable_file_gets_the_plugin_at_its_end_and_keeps_all_else() {
        let before =
            files(&[("05-broken.conflist", "{"), ("10-net.conflist", BRIDGE), ("20-other.conflist", BRIDGE)]);
        let plan = chained(&before);
        assert_eq!(plan.active.as_deref(), Some("10-net.conflist"));
        assert_eq!(plan.writes.len(), 1);
        assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
        let after = carried_out(&before, &plan);
        assert_eq!(types(&after["10-net.conflist"]), ["bridge", "portmap", PLUGIN]);
        let mut expected: Value = serde_json::from_str(BRIDGE).unwrap();
        expected["plugins"].as_array_mut().unwrap().push(entry().json());
        assert_eq!(serde_json::from_str::<Value>(&after["10-net.conflist"]).unwrap(), expected);
        assert_eq!(after["20-other.conflist"], BRIDGE);
        assert_eq!(chained(&after).writes, [], "once is enough");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_its_file_goes() {
        let conf = r#"{"cniVersion": "0.3.1", "name": "old", "type": "ptp", "mtu": 1400}"#;
        for name in ["10-old.conf", "10-old.json"] {
            let before = files(&[(name, conf)]);
            let plan = chained(&before);
            let after = carried_out(&before, &plan);
            assert_eq!(after.keys().collect::<Vec<_>>(), ["10-old.conflist"]);
            let list: Value = serde_json::from_str(&after["10-old.conflist"]).unwrap();
            assert_eq!((&list["name"], &list["cniVersion"]), (&"old".into(), &"0.3.1".into()));
            assert_eq!(list["plugins"][0]["mtu"], 1400);
            assert_eq!(plan.writes[0].like, name);
            assert_eq!(chained(&after).writes, []);
        }
    }

    #[test]
    fn an_entry_of_another_version_is_replaced_and_moved_to_the_end() {
        let old =
            BRIDGE.replace(r#"{"type": "portmap""#, r#"{"type": "ambit-cni", "old": 1}, {"type": "portmap""#);
        let before = files(&[("10-net.conflist", &old)]);
        let after = carried_out(&before, &chained(&before));
        assert_eq!(types(&after["10-net.conflist"]), ["bridge", "portmap", PLUGIN]);
        assert!(!after["10-net.conflist"].contains("\"old\""));
    }

    #[test]
    fn a_plugin_that_takes_precedence_is_joined_too_and_the_former_keeps_us() {
        let before = files(&[("10-net.conflist", BRIDGE)]);
        let mut after = carried_out(&before, &chained(&before));
        after.insert("00-new.conflist".into(), BRIDGE.replace("net", "new"));
        let plan = chained(&after);
        assert_eq!(plan.active.as_deref(), Some("00-new.conflist"));
        let after = carried_out(&after, &plan);
        assert_eq!(types(&after["10-net.conflist"]), ["bridge", "portmap", PLUGIN]);
        assert_eq!(types(&after["00-new.conflist"]), ["bridge", "portmap", PLUGIN]);
    }

    #[test]
    fn what_no_runtime_could_use_is_told_and_left_alone() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            "7",
            "\u{0}",
            r#"{"name": "x"}"#,
            r#"{"name": "", "plugins": [{"type": "a"}]}"#,
            r#"{"name": "x", "plugins": []}"#,
            r#"{"name": "x", "plugins": {}}"#,
            r#"{"name": "x", "plugins": [7]}"#,
            r#"{"name": "x", "plugins": [{"type": 7}]}"#,
            r#"{"plugins": [{"type": "a"}]}"#,
        ] {
            let before = files(&[("10-net.conflist", text)]);
            let plan = chained(&before);
            assert_eq!((plan.writes.len(), plan.removals.len(), plan.active), (0, 0, None), "{text}");
            assert_eq!(plan.problems.len(), 2, "{text}: {:?}", plan.problems);
            assert_eq!(uninstall(&before, OWN), Plan::default(), "{text}");
        }
        assert!(chained(&files(&[("10-net.conf", r#"{"name": "x"}"#)])).problems[0].contains("`type`"));
    }

    #[test]
    fn uninstalling_undoes_everything() {
        let before = files(&[("10-net.conflist", BRIDGE), ("20-other.conflist", BRIDGE)]);
        let mut after = carried_out(&before, &chained(&before));
        after.insert(OWN.into(), BRIDGE.into());
        after
            .insert("30-only.conflist".into(), r#"{"name": "x", "plugins": [{"type": "ambit-cni"}]}"#.into());
        let bare = carried_out(&after, &uninstall(&after, OWN));
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(bare.len(), 2);
        for (name, text) in &bare {
            assert_eq!(value(text), value(&before[name]));
        }
    }

    #[test]
    fn a_file_of_our_own_holds_the_whole_chain_and_follows_the_primary() {
        let mut all = files(&[("10-net.conflist", BRIDGE)]);
        let plan = owned(&all);
        assert_eq!((plan.writes[0].name.as_str(), plan.writes[0].like.as_str()), (OWN, "10-net.conflist"));
        all = carried_out(&all, &plan);
        assert_eq!(types(&all[OWN]), ["bridge", "portmap", PLUGIN]);
        assert!(all[OWN].contains("\"disableCheck\": true"));
        assert_eq!(all["10-net.conflist"], BRIDGE, "the primary's own file is its own");
        assert_eq!(owned(&all).writes, []);

        all.insert("10-net.conflist".into(), BRIDGE.replace("portmap", "bandwidth"));
        all = carried_out(&all, &owned(&all));
        assert_eq!(types(&all[OWN]), ["bridge", "bandwidth", PLUGIN]);

        // Half a file is no change of network, and one that is gone leaves ours in force.
        all.insert("10-net.conflist".into(), "{\"name\": ".into());
        all.insert("20-other.conflist".into(), BRIDGE.into());
        assert_eq!(owned(&all).writes, []);
        all.remove("10-net.conflist");
        all.remove("20-other.conflist");
        let plan = owned(&all);
        assert_eq!((plan.writes.len(), plan.active.as_deref()), (0, Some(OWN)));
    }

    #[test]
    fn a_file_of_our_own_that_comes_second_is_told() {
        let plan = owned(&files(&[("00-net.conflist", BRIDGE)]));
        assert_eq!(plan.active, None);
        assert!(plan.problems[0].contains("sorts first"), "{:?}", plan.problems);
    }

    #[test]
    fn the_chain_in_force_is_that_of_the_first_usable_file() {
        let ours_is_first =
            BRIDGE.replace(r#"{"type": "portmap""#, r#"{"type": "ambit-cni"}, {"type": "portmap""#);
        for (all, expected) in [
            (files(&[]), None),
            (files(&[("10-net.conflist", "{")]), None),
            (
                files(&[("05-broken.conflist", "{"), ("10-net.conflist", BRIDGE)]),
                Some(("10-net.conflist", "bridge portmap")),
            ),
            (
                files(&[("10-net.conflist", &ours_is_first)]),
                Some(("10-net.conflist", "bridge ambit-cni portmap")),
            ),
            (
                files(&[("00-one.conf", r#"{"name": "one", "type": "ptp"}"#), (OWN, BRIDGE)]),
                Some(("00-one.conf", "ptp")),
            ),
        ] {
            let got = in_force(&all).map(|(name, plugins)| (name, plugins.join(" ")));
            assert_eq!(
                got.as_ref().map(|(name, plugins)| (name.as_str(), plugins.as_str())),
                expected,
                "{all:?}"
            );
        }
    }

    #[test]
    fn going_back_to_the_chain_takes_our_own_file_away_last() {
        let before = files(&[("10-net.conflist", BRIDGE)]);
        let own = carried_out(&before, &owned(&before));
        let plan = chained(&own);
        assert_eq!((plan.writes.len(), plan.removals.as_slice()), (1, [OWN.to_owned()].as_slice()));
    }

    #[test]
    fn only_what_a_runtime_reads_is_looked_at() {
        for name in ["10-a.conf", "10-a.conflist", "a.json"] {
            assert!(is_configuration(name), "{name}");
        }
        for name in [".10-a.conflist", "10-a.conflist.tmp", "a.yaml", "conf", ".conf"] {
            assert!(!is_configuration(name), "{name}");
        }
    }
}
