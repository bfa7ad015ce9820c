//! Takes secrets out of text that is to be given away. Pure.
//!
//! What looks like a secret is one: rather a word too many is gone than one too few.

use serde_json::Value;

/// What stands in place of a secret.
const GONE: &str = "[redacted]";

/// Names that end so have values that nobody else should see.
const SECRET_NAMES: [&str; 14] = [
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "access-key",
    "privatekey",
    "private_key",
    "credentials",
];

/// Words that make the value of an environment variable secret.
const SECRET_WORDS: [&str; 7] = ["token", "passw", "passphrase", "secret", "key", "credential", "auth"];

/// Takes private keys, tokens, passwords and their like out of a text.
pub(super) fn redact(text: &str) -> String {
    let mut done = String::with_capacity(text.len());
    for line in without_keys(text).split_inclusive('\n') {
        done.push_str(&without_values(&without_userinfo(&without_jwts(&without_schemes(line)))));
    }
    done
}

/// The same for an object of Kubernetes: also values of environment variables whose names sound secret, and what kubectl
/// remembers of the object.
pub(super) fn redact_object(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("managedFields");
            if let Some(Value::Object(annotations)) = map.get_mut("annotations") {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
            let is_secret = map.get("name").and_then(Value::as_str).is_some_and(sounds_secret);
            if is_secret && let Some(value @ Value::String(_)) = map.get_mut("value") {
                *value = Value::String(GONE.to_owned());
            }
            for (name, value) in map {
                let is_secret = is_secret_name(&name.to_ascii_lowercase());
                if is_secret && value.as_str().is_some_and(|text| !text.is_empty()) {
                    *value = Value::String(GONE.to_owned());
                } else {
                    redact_object(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(redact_object),
        Value::String(text) => *text = redact(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret_name(lower: &str) -> bool {
    SECRET_NAMES.iter().any(|end| lower.ends_with(end))
}

fn sounds_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| lower.contains(word))
}

/// PEM blocks of private keys, also where line ends are written as `\n`. One without an end goes to the end of the text.
fn without_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    const DASHES: &str = "-----";
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(at);
        done.push_str(before);
        let label =
            block.strip_prefix(BEGIN).and_then(|after| after.split_once(DASHES)).map(|(label, _)| label);
        if !label.is_some_and(|label| label.len() < 64 && label.contains("PRIVATE KEY")) {
            done.push_str(BEGIN);
            rest = block.strip_prefix(BEGIN).unwrap_or_default();
            continue;
        }
        done.push_str("[redacted private key]");
        let after = block.split_once(END).and_then(|(_, end)| end.split_once(DASHES));
        rest = after.map_or("", |(_, after)| after);
    }
    done.push_str(rest);
    done
}

/// `Bearer x`, `Basic x`: what follows the scheme.
fn without_schemes(line: &str) -> String {
    let mut done = line.to_owned();
    for scheme in ["bearer ", "basic "] {
        let mut from = 0;
        // ASCII lower case keeps every place where it is.
        while let Some(at) = done.to_ascii_lowercase().get(from..).and_then(|rest| rest.find(scheme)) {
            let start = from + at + scheme.len();
            let rest = done.get(start..).unwrap_or_default();
            let end = start + rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            // `a basic test` is no credential; those are long.
            if end - start >= 8 {
                done.replace_range(start..end, GONE);
                from = start + GONE.len();
            } else {
                from = start;
            }
        }
    }
    done
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~' | '+' | '/' | '=')
}

/// Signed tokens, wherever they are: three parts in base64url, of which the first is a JSON object.
fn without_jwts(line: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut done = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("eyJ") {
        let (before, token) = rest.split_at(at);
        done.push_str(before);
        let (token, after) = token.split_at(token.find(|c| !is_part(c)).unwrap_or(token.len()));
        if token.matches('.').count() >= 2 {
            done.push_str(GONE)
        } else {
            done.push_str(token)
        }
        rest = after;
    }
    done.push_str(rest);
    done
}

/// `https://user:password@host`.
fn without_userinfo(line: &str) -> String {
    let mut done = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        done.push_str(before);
        done.push_str("://");
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?'))
            .unwrap_or(after.len());
        let (authority, after) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                done.push_str(GONE);
                done.push('@');
                done.push_str(host);
            }
            Some(_) | None => done.push_str(authority),
        }
        rest = after;
    }
    done.push_str(rest);
    done
}

/// `password=x`, `"token": "x"`, `--api-key=x`: the values of names that sound secret.
fn without_values(line: &str) -> String {
    let mut done = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find([':', '=']) {
        let (before, from) = rest.split_at(at);
        let (separator, after) = from.split_at(1);
        done.push_str(before);
        done.push_str(separator);
        rest = after;
        let name = before.trim_end_matches(['"', '\'', '\\', ' ']);
        let start = name.rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')));
        let name = name.get(start.map_or(0, |at| at + 1)..).unwrap_or(name).to_ascii_lowercase();
        let whole_line = name == "authorization" || name == "cookie" || name == "set-cookie";
        if !whole_line && !is_secret_name(&name) {
            continue;
        }
        let value = after.trim_start_matches([' ', '"', '\'', '\\']);
        let lead = after.len() - value.len();
        let ends = |c: char| {
            matches!(c, '"' | '\'' | '\\' | '\n' | '\r')
                || (!whole_line && (c.is_whitespace() || matches!(c, ',' | ';' | '&')))
        };
        let end = value.find(ends).unwrap_or(value.len());
        // A map or list follows, or nothing: its own names are looked at.
        if end == 0 || value.starts_with(['{', '[']) && !value.starts_with(GONE) || is_bare(value) {
            continue;
        }
        done.push_str(after.get(..lead).unwrap_or_default());
        done.push_str(GONE);
        rest = value.get(end..).unwrap_or_default();
    }
    done.push_str(rest);
    done
}

/// Whether a value of JSON follows that is no text, and so no secret: it stays, lest the document be broken.
fn is_bare(value: &str) -> bool {
    let end = value.find([',', '}', ']', '\n']).unwrap_or(value.len());
    matches!(value.get(..end).map(str::trim), Some("null" | "true" | "false"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";

    #[test]
    fn secrets_are_gone_and_the_rest_stays() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\nabc\n-----END EC PRIVATE KEY-----";
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        for (text, expected) in [
            (format!("a\n{key}\nb"), "a\n[redacted private key]\nb".to_owned()),
            (key.replace('\n', "\\n"), "[redacted private key]".to_owned()),
            ("x -----BEGIN PRIVATE KEY-----\nMHc".to_owned(), "x [redacted private key]".to_owned()),
            (certificate.to_owned(), certificate.to_owned()),
            (format!("{certificate}{key}"), format!("{certificate}[redacted private key]")),
            ("sent Bearer abcdefghij.k, then".to_owned(), "sent Bearer [redacted], then".to_owned()),
            ("Authorization: Basic dXNlcjpw\n".to_owned(), "Authorization: [redacted]\n".to_owned()),
            ("a basic test of bearer words".to_owned(), "a basic test of bearer words".to_owned()),
            (format!("token={JWT} ok"), "token=[redacted] ok".to_owned()),
            (format!("got {JWT}."), "got [redacted]".to_owned()),
            ("password: hunter2".to_owned(), "password: [redacted]".to_owned()),
            (r#"{"api_key":"abc","port":80}"#.to_owned(), r#"{"api_key":"[redacted]","port":80}"#.to_owned()),
            (
                r#"\"clientSecret\": \"abc\", x"#.to_owned(),
                r#"\"clientSecret\": \"[redacted]\", x"#.to_owned(),
            ),
            ("--db-password=a&x=1".to_owned(), "--db-password=[redacted]&x=1".to_owned()),
            (
                "https://u:p@host/x and http://host:80".to_owned(),
                "https://[redacted]@host/x and http://host:80".to_owned(),
            ),
            ("\"authorization\": null,\n".to_owned(), "\"authorization\": null,\n".to_owned()),
            ("{\"token\": true}".to_owned(), "{\"token\": true}".to_owned()),
            ("secretName: cacerts".to_owned(), "secretName: cacerts".to_owned()),
            ("token:\n  audience: istio-ca".to_owned(), "token:\n  audience: istio-ca".to_owned()),
            ("tokens: [a]".to_owned(), "tokens: [a]".to_owned()),
            (
                "src.identity=\"spiffe://cluster.local/ns/a\"".to_owned(),
                "src.identity=\"spiffe://cluster.local/ns/a\"".to_owned(),
            ),
        ] {
            let got = redact(&text);
            assert_eq!(got, expected, "{text}");
            assert_eq!(redact(&got), got, "what is redacted stays as it is: {got}");
        }
    }

    #[test]
    fn text_that_is_not_ascii_is_no_trouble() {
        let text = "größe: 3, paßwort: x, İ bearer abcdefghijk ✓ password=ü✓ -----BEGIN ✓";
        let got = redact(text);
        assert!(
            got.contains("größe: 3") && !got.contains("abcdefghijk") && !got.contains('ü')
                || got.contains("größe"),
            "{got}"
        );
        assert!(!got.contains("password=ü"), "{got}");
    }

    #[test]
    fn objects_lose_values_of_variables_and_their_history() {
        let mut object = json!({
            "metadata": {
                "name": "controller", "managedFields": [{}],
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "other": "x" },
            },
            "spec": { "containers": [{
                "env": [
                    { "name": "DB_PASSWORD", "value": "hunter2" },
                    { "name": "API_KEY", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } },
                    { "name": "LOG_LEVEL", "value": "info" },
                ],
                "args": ["--token=abc", "--log=debug"],
                "volumes": [{ "secret": { "secretName": "cacerts" } }],
            }] },
            "data": { "client-secret": "abc", "note": "Bearer abcdefghijk" },
        });
        redact_object(&mut object);
        insta::assert_snapshot!(serde_json::to_string_pretty(&object).unwrap());
    }
}
