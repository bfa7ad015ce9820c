//! The functions of Helm that our templates call, with Helm's meaning.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use gotmpl::{Result, Template, TemplateError, Value as Word};
use serde_json::Value;

/// Adds them to `template`. `include` executes what is defined in `parsed`.
pub(super) fn all(template: Template, parsed: &Arc<OnceLock<Template>>) -> Template {
    let parsed = Arc::clone(parsed);
    let include = move |args: &[Word]| {
        let [name, seen] = args else { return wrong("include", "a name and what it sees") };
        let name = name.as_str().unwrap_or_default();
        let parsed =
            parsed.get().ok_or_else(|| TemplateError::Exec("include: nothing is defined yet".to_owned()))?;
        parsed.execute_template_to_string(name, seen).map(Word::from)
    };
    template
        .func("include", include)
        .func("concat", concat)
        .func("default", default)
        .func("dict", dict)
        .func("dig", dig)
        .func("fromYaml", from_yaml)
        .func("join", join)
        .func("list", |args| Ok(Word::from(args.to_vec())))
        // There is no cluster to look at: what is there is sorted out when objects are applied.
        .func("lookup", |_| Ok(Word::from(BTreeMap::<String, Word>::new())))
        .func("merge", merge)
        .func("nindent", nindent)
        .func("quote", quote)
        .func("required", required)
        .func("ternary", ternary)
        .func("toString", |args| Ok(Word::from(args.first().map(text).unwrap_or_default())))
        .func("toYaml", to_yaml)
}

/// A value as templates see it.
pub(super) fn word(value: &Value) -> Word {
    match value {
        Value::Null => Word::Nil,
        Value::Bool(yes) => Word::Bool(*yes),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Word::Int(whole),
            (None, Some(number)) => Word::Float(number),
            (None, None) => Word::Nil,
        },
        Value::String(text) => Word::from(text.as_str()),
        Value::Array(list) => Word::from(list.iter().map(word).collect::<Vec<_>>()),
        Value::Object(map) => {
            Word::from(map.iter().map(|(key, value)| (key.clone(), word(value))).collect::<BTreeMap<_, _>>())
        }
    }
}

/// The reverse of [`word`].
fn value(word: &Word) -> Value {
    match word {
        Word::Bool(yes) => Value::Bool(*yes),
        Word::Int(whole) => Value::from(*whole),
        Word::Uint(whole) => Value::from(*whole),
        Word::Float(number) => Value::from(*number),
        Word::String(text) => Value::from(text.as_ref()),
        Word::List(list) => list.iter().map(value).collect(),
        Word::Map(map) => map.iter().map(|(key, one)| (key.to_string(), value(one))).collect(),
        Word::Nil | Word::Function(_) => Value::Null,
    }
}

fn wrong(name: &str, wants: &str) -> Result<Word> {
    Err(TemplateError::Exec(format!("{name} wants {wants}")))
}

fn text(word: &Word) -> String {
    if matches!(word, Word::Nil) { String::new() } else { word.to_string() }
}

fn concat(args: &[Word]) -> Result<Word> {
    let mut all = Vec::new();
    for arg in args {
        let Word::List(list) = arg else { return wrong("concat", "lists") };
        all.extend(list.iter().cloned());
    }
    Ok(Word::from(all))
}

fn default(args: &[Word]) -> Result<Word> {
    match args {
        [_, given] if given.is_truthy() => Ok(given.clone()),
        [otherwise] | [otherwise, _] => Ok(otherwise.clone()),
        _ => wrong("default", "what holds otherwise and what was given"),
    }
}

fn dict(args: &[Word]) -> Result<Word> {
    let mut map = BTreeMap::new();
    for pair in args.chunks(2) {
        let [key, value] = pair else { return wrong("dict", "pairs") };
        map.insert(text(key), value.clone());
    }
    Ok(Word::from(map))
}

/// `dig "a" "b" OTHERWISE MAP`.
fn dig(args: &[Word]) -> Result<Word> {
    let [keys @ .., otherwise, map] = args else {
        return wrong("dig", "keys, what holds otherwise, and a map");
    };
    let mut found = map;
    for key in keys {
        match found.field(&text(key)) {
            Some(below) => found = below,
            None => return Ok(otherwise.clone()),
        }
    }
    Ok(found.clone())
}

fn from_yaml(args: &[Word]) -> Result<Word> {
    let text = args.first().and_then(Word::as_str).unwrap_or_default();
    let read = serde_yaml_ng::from_str::<Value>(text);
    read.map(|value| word(&value)).map_err(|error| TemplateError::Exec(format!("fromYaml: {error}")))
}

fn join(args: &[Word]) -> Result<Word> {
    let [between, Word::List(list)] = args else { return wrong("join", "what stands between, and a list") };
    let words: Vec<_> = list.iter().map(text).collect();
    Ok(Word::from(words.join(&text(between))))
}

/// The first wins where both say something.
fn merge(args: &[Word]) -> Result<Word> {
    fn two(first: &Word, second: &Word) -> Word {
        let (Word::Map(first), Word::Map(second)) = (first, second) else { return first.clone() };
        let mut merged = second.as_ref().clone();
        for (key, value) in first.iter() {
            let value = merged.get(key).map_or_else(|| value.clone(), |other| two(value, other));
            merged.insert(Arc::clone(key), value);
        }
        Word::from(merged)
    }
    let Some((first, others)) = args.split_first() else { return wrong("merge", "maps") };
    Ok(others.iter().fold(first.clone(), |merged, other| two(&merged, other)))
}

fn nindent(args: &[Word]) -> Result<Word> {
    let [width, block] = args else { return wrong("nindent", "a width and a text") };
    let width = width.as_int().and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let margin = " ".repeat(width);
    let block = text(block);
    let lines: Vec<_> = block.split('\n').map(|line| format!("{margin}{line}")).collect();
    Ok(Word::from(format!("\n{}", lines.join("\n"))))
}

/// A JSON string is a YAML string.
fn quote(args: &[Word]) -> Result<Word> {
    let quoted: Vec<_> = args
        .iter()
        .filter(|arg| !matches!(arg, Word::Nil))
        .map(|arg| Value::from(text(arg)).to_string())
        .collect();
    Ok(Word::from(quoted.join(" ")))
}

fn required(args: &[Word]) -> Result<Word> {
    match args {
        [_, given] if !matches!(given, Word::Nil) && given.as_str() != Some("") => Ok(given.clone()),
        [why, _] => Err(TemplateError::Exec(text(why))),
        _ => wrong("required", "why, and a value"),
    }
}

fn ternary(args: &[Word]) -> Result<Word> {
    let [yes, no, condition] = args else { return wrong("ternary", "two values and a condition") };
    Ok(if condition.is_truthy() { yes.clone() } else { no.clone() })
}

fn to_yaml(args: &[Word]) -> Result<Word> {
    let [given] = args else { return wrong("toYaml", "a value") };
    let text = serde_yaml_ng::to_string(&value(given));
    let text = text.map_err(|error| TemplateError::Exec(format!("toYaml: {error}")))?;
    Ok(Word::from(text.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(source: &str) -> String {
        let parsed = Arc::default();
        let template = all(Template::new("t"), &parsed).parse(source).unwrap();
        let template = parsed.get_or_init(|| template);
        template.execute_to_string(&word(&json!({ "a": { "b": 1 }, "empty": "", "list": ["x", 2] }))).unwrap()
    }

    #[test]
    fn functions_mean_what_they_mean_in_helm() {
        for (source, expected) in [
            ("{{ .empty | default \"x\" }}{{ .a.b | default 2 }}", "x1"),
            ("{{ .none | default (list 1 2) | join \",\" }}", "1,2"),
            ("{{ true | quote }} {{ \"a\\\"b\" | quote }}", "\"true\" \"a\\\"b\""),
            ("a:{{ .a | toYaml | nindent 2 }}", "a:\n  b: 1"),
            ("{{ dig \"a\" \"b\" 0 . }}{{ dig \"a\" \"c\" 0 . }}", "10"),
            ("{{ ternary \"y\" \"n\" true }}{{ ternary \"y\" \"n\" false }}", "yn"),
            (
                "{{ (merge (dict \"x\" (dict \"y\" 1)) (dict \"x\" (dict \"y\" 2 \"z\" 3))) | toYaml }}",
                "x:\n  y: 1\n  z: 3",
            ),
            ("{{ len (concat (list 1) (list 2 3)) }}", "3"),
            ("{{ (fromYaml \"a: {b: 2}\").a.b }}", "2"),
            ("{{ define \"n\" }}<{{ . }}>{{ end }}{{ include \"n\" 3 }}", "<3>"),
            ("{{ if lookup \"v1\" \"Pod\" \"\" \"x\" }}there{{ end }}", ""),
            ("{{ .list | join \"-\" }}", "x-2"),
        ] {
            assert_eq!(rendered(source), expected, "{source}");
        }
    }

    #[test]
    fn what_is_required_says_why() {
        let template =
            all(Template::new("t"), &Arc::default()).parse("{{ required \"say it\" .x }}").unwrap();
        let error = template.execute_to_string(&word(&json!({}))).unwrap_err();
        assert!(error.to_string().contains("say it"), "{error}");
    }
}
