//! The house rules that no compiler keeps: names, directions, purity, documents. Needs no cluster and no root.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "clippy exempts only functions marked #[test], not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Names that tell nothing about what is behind them.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helpers", "misc", "types", "core", "manager"];
/// The two files that may leave the compiler's protection.
const UNSAFE_FILES: [&str; 2] = ["ztunnel/src/socket.rs", "mesh/wire/src/zds/socket.rs"];
/// Who may say `ambit_proto`.
const PROTOBUF: [&str; 2] = ["mesh/wire/", "proto/"];
/// Who may say `kube` and `k8s_openapi`.
const KUBERNETES: [&str; 6] = ["controller/", "cni/", "cli/", "e2e/", "mesh/api/", "lab/"];
/// What the model must not even reach through others.
const IMPURE: [&str; 7] = ["tokio", "tonic", "prost", "rustls", "kube", "kube-core", "k8s-openapi"];

/// Which crates of ours a crate may use, outside its tests.
const DIRECTIONS: [(&str, &[&str]); 15] = [
    ("ambit-proto", &[]),
    ("ambit-model", &[]),
    ("ambit-api", &[]),
    ("ambit-runtime", &[]),
    ("ambit-proxy", &["ambit-model", "ambit-wire", "ambit-runtime"]),
    ("ambit-wire", &["ambit-proto", "ambit-model"]),
    ("ambit-fixtures", &["ambit-model", "ambit-wire"]),
    ("ambit-ztunnel", &["ambit-model", "ambit-wire", "ambit-runtime", "ambit-proxy"]),
    ("ambit-waypoint", &["ambit-model", "ambit-wire", "ambit-runtime", "ambit-proxy"]),
    ("ambit-controller", &["ambit-model", "ambit-wire", "ambit-runtime", "ambit-api"]),
    ("ambit-cni", &["ambit-model", "ambit-wire", "ambit-runtime", "ambit-api"]),
    ("ambit-lab", &["ambit-api"]),
    // `ambit analyze` judges with the controller's own parsers: another reading of a policy would be another policy.
    (
        "ambit-cli",
        &["ambit-model", "ambit-wire", "ambit-runtime", "ambit-api", "ambit-lab", "ambit-controller"],
    ),
    ("ambit-e2e", &["ambit-model", "ambit-wire", "ambit-api", "ambit-lab"]),
    // It measures everything.
    (
        "ambit-benches",
        &[
            "ambit-model",
            "ambit-wire",
            "ambit-runtime",
            "ambit-fixtures",
            "ambit-ztunnel",
            "ambit-cni",
            "ambit-controller",
            "ambit-lab",
        ],
    ),
];

/// Crates from outside that a crate of ours must not use, even in its tests.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("ambit-model", &IMPURE),
    ("ambit-api", &["tokio", "kube", "kube-client", "hyper"]),
    ("ambit-wire", &["kube", "kube-core", "k8s-openapi"]),
    ("ambit-runtime", &["kube", "kube-core", "k8s-openapi", "tonic", "prost", "rustls"]),
    ("ambit-ztunnel", &["kube", "kube-core", "k8s-openapi"]),
    ("ambit-waypoint", &["kube", "kube-core", "k8s-openapi"]),
];

#[test]
fn modules_have_names_that_tell_something() {
    let offences = rust().into_iter().filter_map(|source| {
        let path = Path::new(&source.path);
        let names = path.iter().filter_map(|part| Path::new(part).file_stem()?.to_str());
        let inline = source.words_after("mod");
        let bad = names.chain(inline.iter().map(String::as_str)).find(|name| EMPTY_NAMES.contains(name));
        bad.map(|name| format!("{}: a module named `{name}` says nothing; name what it does", source.path))
    });
    none(offences);
}

#[test]
fn imports_name_what_they_import() {
    none(each_line(|_, code| code.contains("use crate::*").then_some("import names, not everything")));
}

#[test]
fn two_files_are_unsafe() {
    none(each_line(|path, code| {
        let unsafe_here = has_word(code, "unsafe") && !UNSAFE_FILES.contains(&path);
        unsafe_here.then_some("`unsafe` outside the two socket files")
    }));
}

#[test]
fn protobuf_is_spoken_in_wire_alone() {
    none(each_line(|path, code| {
        let says = has_word(code, "ambit_proto") && !PROTOBUF.iter().any(|place| path.starts_with(place));
        says.then_some("only mesh/wire knows protobuf; use the types of ambit-model")
    }));
}

#[test]
fn kubernetes_is_spoken_where_it_is_read() {
    none(each_line(|path, code| {
        let says =
            ["kube", "kube_core", "k8s_openapi"].iter().any(|name| code.contains(&format!("{name}::")));
        (says && !KUBERNETES.iter().any(|place| path.starts_with(place)))
            .then_some("this crate must compile without Kubernetes")
    }));
}

#[test]
fn crates_depend_downwards() {
    let allowed: BTreeMap<_, _> = DIRECTIONS.into_iter().collect();
    let forbidden: BTreeMap<_, _> = FORBIDDEN.into_iter().collect();
    let mut offences = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let Some(may) = allowed.get(name) else {
            offences.push(format!("crate {name} is not in this test's table: add it, with what it may use"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            let in_tests = dependency["kind"] == "dev";
            if allowed.contains_key(other) && !in_tests && !may.contains(&other) {
                offences.push(format!("{name} must not use {other}"));
            }
            if forbidden.get(name).is_some_and(|never| never.contains(&other)) {
                offences.push(format!("{name} must never use {other}"));
            }
        }
    }
    none(offences);
}

#[test]
fn fixtures_are_for_tests_and_benches() {
    none(packages().iter().flat_map(|package| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let linked = dependencies.filter(|one| one["name"] == "ambit-fixtures" && one["kind"] != "dev");
        let linked = linked.filter(|_| package["name"] != "ambit-benches");
        linked.map(move |_| format!("{} links ambit-fixtures outside its tests", package["name"]))
    }));
}

#[test]
fn the_model_reaches_no_outside_world() {
    let tree = cargo(&["tree", "--offline", "-p", "ambit-model", "-e", "normal,build", "--prefix", "none"]);
    let reached: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(reached.contains("ambit-model"), "cargo tree says nothing of ambit-model:\n{tree}");
    none(
        IMPURE.iter().filter(|name| reached.contains(**name)).map(|name| format!("ambit-model links {name}")),
    );
}

#[test]
fn decisions_wait_for_nothing() {
    none(each_line(|path, code| {
        let file = path.rsplit('/').next().unwrap_or(path);
        let decides = path.starts_with("mesh/model/src/")
            || path.contains("/src/translate/")
            || (path.contains("/src/") && ["plan.rs", "rules.rs", "roster.rs"].contains(&file));
        (decides && (has_word(code, "async") || code.contains(".await")))
            .then_some("a decision is a function of values: no `async` here")
    }));
}

#[test]
fn files_say_what_they_are_for() {
    none(
        rust().into_iter().filter(|source| !source.text.starts_with("//! ")).map(|source| {
            format!("{}: begin with a line `//! …` that says what the file is for", source.path)
        }),
    );
}

#[test]
fn nothing_is_left_for_later() {
    // In two halves, or this file would be the first offence.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let comments = text_lines(is_source, |line| {
        marks.iter().any(|mark| line.contains(mark)).then_some("done, or an issue; not a note in the code")
    });
    let code = each_line(|_, code| {
        let left = ["todo!", "unimplemented!", "#[ignore"].iter().any(|word| code.contains(word));
        left.then_some("finish it, or leave it out")
    });
    none(comments.into_iter().chain(code));
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    none(packages().iter().filter_map(|package| {
        let manifest = package["manifest_path"].as_str().unwrap();
        let text = fs::read_to_string(manifest).unwrap();
        let lints =
            text.split_once("[lints]").map(|(_, rest)| rest.trim_start().starts_with("workspace = true"));
        (lints != Some(true)).then(|| format!("{}: add `[lints]` with `workspace = true`", package["name"]))
    }));
}

#[test]
fn decisions_are_recorded_in_one_form() {
    let pages = tracked().into_iter().filter(|path| path.starts_with("docs/decisions/"));
    none(pages.flat_map(|path| {
        let text = read(&path);
        let name = path.rsplit('/').next().unwrap_or_default();
        let number = name.get(..4).unwrap_or_default().to_owned();
        let mut wrong = Vec::new();
        if !(number.bytes().all(|byte| byte.is_ascii_digit())
            && name.get(4..5) == Some("-")
            && name.ends_with(".md"))
        {
            wrong.push(format!("{path}: the name is `NNNN-what-was-decided.md`"));
        }
        let title = text.lines().next().unwrap_or_default();
        if title.strip_prefix(&format!("# {number} ")).is_none_or(str::is_empty) {
            wrong.push(format!("{path}: the first line is `# {number} Title`"));
        }
        let sections: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        for section in ["Context", "Choice", "Given up"] {
            if !sections.contains(&section) {
                wrong.push(format!("{path}: the section `## {section}` is missing"));
            }
        }
        wrong
    }));
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let places = [concat!("/ro", "ot"), concat!("/ho", "me"), concat!("/wo", "rk")];
    // Where Google's nodes keep their plugins is no secret of ours.
    let of_others = "install/platforms/gke.yaml";
    none(text_lines(
        |path| path != of_others,
        |line| {
            places
                .iter()
                .any(|place| names_path(line, place))
                .then_some("a path of one machine; write it relative")
        },
    ));
}

#[test]
fn documents_name_paths_that_exist() {
    let tracked = tracked();
    let folders: BTreeSet<_> =
        tracked.iter().flat_map(|path| Path::new(path).ancestors().skip(1)).map(Path::to_owned).collect();
    let files: BTreeSet<_> = tracked.iter().map(String::as_str).collect();
    let tops: BTreeSet<_> =
        tracked.iter().filter_map(|path| path.split_once('/')).map(|(top, _)| top).collect();
    let names: BTreeSet<_> = tracked.iter().filter_map(|path| path.rsplit('/').next()).collect();
    let exists = |path: &str| {
        let path = path.trim_end_matches('/');
        files.contains(path)
            || folders.contains(Path::new(path))
            || (!path.contains('/') && names.contains(path))
            // A family: what it has in common must exist.
            || path.split_once('*').is_some_and(|(before, _)| files.iter().any(|file| file.starts_with(before)))
    };
    let mut offences = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        if !files.contains(document) {
            offences.push(format!("{document} is missing"));
            continue;
        }
        for word in backticked(&read(document)) {
            let first = word.split('/').next().unwrap_or_default();
            let source = [".rs", ".toml", ".md", ".proto"].iter().any(|ending| word.ends_with(ending));
            let path_like = word.chars().all(|c| c.is_ascii_alphanumeric() || "_./-{},*".contains(c));
            if path_like && (source || (word.contains('/') && tops.contains(first))) {
                let missing = braces(&word).into_iter().filter(|path| !exists(path));
                offences.extend(missing.map(|path| format!("{document}: `{path}` does not exist")));
            }
        }
    }
    none(offences);
}

/// Fails with all offences at once.
fn none(offences: impl IntoIterator<Item = String>) {
    let offences: Vec<_> = offences.into_iter().collect();
    assert!(offences.is_empty(), "{} against the house rules:\n  {}", offences.len(), offences.join("\n  "));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(args).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The members of the workspace, as cargo sees them.
fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--offline", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// What git has, or would have with the next commit.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).unwrap();
    let paths: BTreeSet<_> = listed.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    paths.into_iter().filter(|path| root().join(path).is_file()).collect()
}

struct Source {
    path: String,
    text: String,
    /// The text without comments, strings and characters; as many lines.
    code: String,
}

impl Source {
    fn words_after(&self, keyword: &str) -> Vec<String> {
        let words: Vec<_> = self
            .code
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .collect();
        let pairs = words.windows(2).filter(|pair| pair[0] == keyword);
        pairs.map(|pair| pair[1].to_owned()).collect()
    }
}

fn rust() -> Vec<Source> {
    let paths = tracked().into_iter().filter(|path| path.ends_with(".rs"));
    paths
        .map(|path| {
            let text = read(&path);
            Source { code: code_of(&text), text, path }
        })
        .collect()
}

/// Judges each line of code.
fn each_line(judge: impl Fn(&str, &str) -> Option<&'static str>) -> Vec<String> {
    let mut offences = Vec::new();
    for source in rust() {
        for (number, code) in source.code.lines().enumerate() {
            if let Some(why) = judge(&source.path, code) {
                offences.push(format!("{}:{}: {why}", source.path, number + 1));
            }
        }
    }
    offences
}

/// Judges each line of text, comments and all.
fn text_lines(which: impl Fn(&str) -> bool, judge: impl Fn(&str) -> Option<&'static str>) -> Vec<String> {
    let mut offences = Vec::new();
    for path in tracked().into_iter().filter(|path| which(path)) {
        // What is no text has no lines.
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(why) = judge(line) {
                offences.push(format!("{path}:{}: {why}", number + 1));
            }
        }
    }
    offences
}

fn is_source(path: &str) -> bool {
    [".rs", ".toml", ".md", ".sh", ".yaml", ".proto"].iter().any(|ending| path.ends_with(ending))
        || path.starts_with(".ci/")
        || path == "Makefile"
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|found| found == word)
}

/// Whether `line` names a path that begins with `place`, and not one that merely contains it.
fn names_path(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + place.len()..].chars().next();
        let inside = before.is_some_and(|c| c.is_alphanumeric() || "_-.})>]*$".contains(c));
        !inside && after.is_none_or(|c| !(c.is_alphanumeric() || "_-.:".contains(c)))
    })
}

/// What stands between backticks on one line, code blocks left out.
fn backticked(text: &str) -> Vec<String> {
    let mut inside = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    prose.flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// `a/{b,c}.rs` is `a/b.rs` and `a/c.rs`.
fn braces(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((choices, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    choices.split(',').flat_map(|choice| braces(&format!("{before}{}{after}", choice.trim()))).collect()
}

/// Blanks what is not code: comments, strings, characters. Lines stay lines.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string_length(rest),
            'r' | 'b' | 'c' if !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') => raw_length(rest),
            '\'' => character_length(rest),
            _ => 0,
        };
        if length == 0 {
            code.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            let (skipped, after) = rest.split_at(length);
            code.extend(skipped.chars().filter(|c| *c == '\n'));
            code.push(' ');
            rest = after;
        }
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `r"…"`, `br#"…"#` and their like; 0 for a plain word.
fn raw_length(text: &str) -> usize {
    let prefix = text.find(|c: char| !"rbc".contains(c)).unwrap_or(0);
    let hashes = text[prefix..].chars().take_while(|c| *c == '#').count();
    let open = prefix + hashes;
    if !text[open..].starts_with('"') || prefix > 2 {
        return 0;
    }
    if !text[..prefix].contains('r') {
        return prefix + string_length(&text[prefix..]);
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |end| open + 1 + end + close.len())
}

/// `'a'` and `'\n'`; 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            text[escaped + 1..].find('\'').map_or(0, |end| escaped + end + 2)
        }
        (Some(_), Some((close, '\''))) => close + 1,
        _ => 0,
    }
}

#[test]
fn code_is_told_from_words_about_it() {
    let text = "let a = \"unsafe \\\" x\"; // unsafe\nlet b = r#\"unsafe \" \"#; /* unsafe\n */ let 'c: char = '\\''; f::<'a>('\"'); end";
    let code = code_of(text);
    assert!(!has_word(&code, "unsafe"), "{code}");
    assert_eq!(code.lines().count(), 3);
    assert!(has_word(&code, "end") && has_word(&code, "b") && has_word(&code, "a"), "{code}");
}

#[test]
fn a_path_is_told_from_a_part_of_one() {
    let place = concat!("/wo", "rk");
    let named = |before: &str, after: &str| names_path(&format!("{before}{place}{after}"), place);
    assert!(named("", "") && named("cd ", "/main") && named("\"", "\""));
    assert!(!named("istio", "/x") && !named("a", "load.rs") && !named("", "load.rs"));
}

#[test]
fn braces_are_many_paths() {
    assert_eq!(braces("a/{b,c}/{d,e}.rs"), ["a/b/d.rs", "a/b/e.rs", "a/c/d.rs", "a/c/e.rs"]);
    assert_eq!(backticked("see `a/b`, `c`\n```\n`d`\n```\n`e`"), ["a/b", "c", "e"]);
}
