//! Values, laid over each other as Helm does.

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use super::charts::Chart;

/// Lays `over` on `under`: maps are merged, all else is replaced. A `null` stays: it is meant for what charts say.
pub(crate) fn overlay(under: &mut Value, over: &Value) {
    let (Value::Object(under), Value::Object(over)) = (&mut *under, over) else {
        *under = over.clone();
        return;
    };
    for (key, value) in over {
        match under.get_mut(key) {
            Some(place) if place.is_object() && value.is_object() => overlay(place, value),
            Some(_) | None => drop(under.insert(key.clone(), value.clone())),
        }
    }
}

/// Lays what was said over what a chart says by itself: `null` takes that away.
fn say(values: &mut Value, said: &Value) {
    let (Value::Object(values), Value::Object(said)) = (&mut *values, said) else {
        *values = said.clone();
        return;
    };
    for (key, value) in said {
        match values.get_mut(key) {
            Some(_) if value.is_null() => drop(values.remove(key)),
            Some(place) if place.is_object() && value.is_object() => say(place, value),
            // Also what is `null`: it may be a part's to hear.
            Some(_) | None => drop(values.insert(key.clone(), value.clone())),
        }
    }
}

/// What the templates of `chart` see: its own values, under what `said` says of it.
pub(crate) fn of_chart(chart: &Chart, said: &Value) -> Value {
    let mut values = chart.values.clone();
    say(&mut values, said);
    values
}

/// What the templates of a part see: its own values, under those of the whole that stand under its name, and the settings
/// that all parts share.
pub(crate) fn of_part(part: &Chart, whole: &Value) -> Value {
    let nothing = Value::Null;
    let own = whole.get(&part.name).unwrap_or(&nothing);
    let mut values = part.values.clone();
    if own.is_object() {
        say(&mut values, own);
    }
    if let Some(shared) = whole.get("global") {
        say(&mut values, &json!({ "global": shared }));
    }
    values
}

/// Whether the value at `path`, `cni.enabled`, switches something on. What is not said does not switch off.
pub(crate) fn switched_on(values: &Value, path: &str) -> bool {
    let found = path.split('.').try_fold(values, |value, key| value.get(key));
    found.is_none_or(|value| value != &Value::Bool(false))
}

/// How a word of `--set` is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// `true`, `3` and `null` are what they look like.
    AsItLooks,
    /// All is text.
    AsText,
}

/// Lays `a.b=1,c[0].d=x,e={x,y}` on `values`. A backslash takes the meaning away from the character behind it.
pub(crate) fn set(values: &mut Value, said: &str, taken: Taken) -> anyhow::Result<()> {
    for assignment in split(said, ',') {
        let Some((path, value)) = cut(&assignment, '=') else {
            bail!("{assignment:?} sets nothing; write path=value");
        };
        let path = steps(&path).with_context(|| format!("in {assignment:?}"))?;
        put(values, &path, word(&value, taken)).with_context(|| format!("in {assignment:?}"))?;
    }
    Ok(())
}

/// A step on the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Place(usize),
}

/// More would only be a slip of the hand, and would be kept in memory.
const MOST_PLACES: usize = 1024;

fn steps(path: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for part in split(path, '.') {
        let (key, mut places) = match cut(&part, '[') {
            Some((key, rest)) => (key, Some(rest)),
            None => (part, None),
        };
        if key.is_empty() {
            bail!("a name is missing");
        }
        steps.push(Step::Key(unescaped(&key)));
        while let Some(rest) = places {
            let (place, after) = rest.split_once(']').context("a ']' is missing")?;
            let place = place.parse().ok().filter(|place| *place < MOST_PLACES);
            steps.push(Step::Place(place.context("between [ and ] stands a number below 1024")?));
            places = after.strip_prefix('[').map(str::to_owned);
            if places.is_none() && !after.is_empty() {
                bail!("after ']' comes '.' or '='");
            }
        }
    }
    Ok(steps)
}

fn put(values: &mut Value, path: &[Step], value: Value) -> anyhow::Result<()> {
    let Some((step, rest)) = path.split_first() else {
        *values = value;
        return Ok(());
    };
    match step {
        Step::Key(key) => {
            if !values.is_object() {
                *values = Value::Object(Map::new());
            }
            let map = values.as_object_mut().context("a map")?;
            put(map.entry(key.clone()).or_insert(Value::Null), rest, value)
        }
        Step::Place(place) => {
            if !values.is_array() {
                *values = Value::Array(Vec::new());
            }
            let list = values.as_array_mut().context("a list")?;
            if list.len() <= *place {
                list.resize(place + 1, Value::Null);
            }
            put(list.get_mut(*place).context("a place")?, rest, value)
        }
    }
}

fn word(text: &str, taken: Taken) -> Value {
    if let Some(list) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let words = split(list, ',').into_iter().filter(|word| !word.is_empty());
        return words.map(|one| word(&one, taken)).collect();
    }
    let text = unescaped(text);
    if taken == Taken::AsText {
        return Value::String(text);
    }
    match text.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        "0" => json!(0),
        // 007 is a name.
        number if !number.starts_with('0') => number.parse::<i64>().map_or(Value::String(text), Value::from),
        _ => Value::String(text),
    }
}

/// Splits where `at` stands, outside of braces and not behind a backslash. Backslashes stay.
fn split(text: &str, at: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut escaped, mut depth) = (false, 0_usize);
    for c in text.chars() {
        if c == at && !escaped && depth == 0 {
            parts.push(String::new());
            continue;
        }
        match c {
            '{' if !escaped => depth += 1,
            '}' if !escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// What stands before and behind the first `at` that has its meaning.
fn cut(text: &str, at: char) -> Option<(String, String)> {
    let mut escaped = false;
    for (place, c) in text.char_indices() {
        if c == at && !escaped {
            let (before, after) = text.split_at(place);
            return Some((before.to_owned(), after.chars().skip(1).collect()));
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        plain.push(c);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(said: &[&str]) -> Value {
        let mut values = json!({});
        for said in said {
            set(&mut values, said, Taken::AsItLooks).unwrap();
        }
        values
    }

    #[test]
    fn words_are_what_helm_takes_them_for() {
        for (said, expected) in [
            ("a=1", json!({ "a": 1 })),
            ("a=true,b=null", json!({ "a": true, "b": null })),
            ("a.b.c=x", json!({ "a": { "b": { "c": "x" } } })),
            ("a={x,2}", json!({ "a": ["x", 2] })),
            ("a={}", json!({ "a": [] })),
            ("a[1].b=x", json!({ "a": [null, { "b": "x" }] })),
            ("a=x\\,y", json!({ "a": "x,y" })),
            ("a\\.b=c", json!({ "a.b": "c" })),
            ("a=", json!({ "a": "" })),
            ("a=007", json!({ "a": "007" })),
            ("a=b=c", json!({ "a": "b=c" })),
            ("a=1.5", json!({ "a": "1.5" })),
        ] {
            assert_eq!(after(&[said]), expected, "{said}");
        }
        assert_eq!(after(&["a.b=1", "a.c=2"]), json!({ "a": { "b": 1, "c": 2 } }));
        let mut text = json!({});
        set(&mut text, "a=1,b=true", Taken::AsText).unwrap();
        assert_eq!(text, json!({ "a": "1", "b": "true" }));
    }

    #[test]
    fn mistakes_are_told() {
        for (said, why) in [
            ("a", "path=value"),
            ("a..b=1", "a name is missing"),
            ("a[x]=1", "a number"),
            ("a[99999999]=1", "a number below"),
            ("a[1=1", "']' is missing"),
        ] {
            let error = set(&mut json!({}), said, Taken::AsItLooks).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }

    #[test]
    fn what_is_laid_over_wins() {
        let mut values = json!({ "a": { "b": 1, "c": 2 }, "d": [1, 2], "e": 3 });
        overlay(&mut values, &json!({ "a": { "b": null, "x": 4 }, "d": [3], "e": { "f": 1 } }));
        assert_eq!(values, json!({ "a": { "b": null, "c": 2, "x": 4 }, "d": [3], "e": { "f": 1 } }));
    }

    #[test]
    fn null_takes_away_what_charts_say_by_themselves() {
        let mut values = json!({ "a": { "b": 1, "c": 2 }, "d": 3 });
        say(&mut values, &json!({ "a": { "b": null }, "d": null, "part": { "x": null } }));
        assert_eq!(values, json!({ "a": { "c": 2 }, "part": { "x": null } }));
    }

    #[test]
    fn only_false_switches_off() {
        let values = json!({ "cni": { "enabled": false }, "base": {} });
        assert!(!switched_on(&values, "cni.enabled"));
        assert!(switched_on(&values, "base.enabled") && switched_on(&values, "ztunnel.enabled"));
    }
}
