//! Reads the environment once, by type, and reports every mistake together.
//!
//! ```
//! # use std::time::Duration;
//! # use ambit_runtime::env::Env;
//! let mut env = Env::new([("DRAIN".to_owned(), "10s".to_owned())]);
//! let drain = env.duration("DRAIN").or(Duration::from_secs(5));
//! env.finish()?;
//! assert_eq!(drain, Duration::from_secs(10));
//! # Ok::<(), ambit_runtime::env::EnvErrors>(())
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const FLAG: &str = "true or false (also 1, t, 0, f)";
const DURATION: &str = "a duration such as 24h, 1h30m, 10s, 500ms, or a number of seconds";

/// The environment of the process, and the mistakes found in it so far. Not `Debug`: it may hold secrets.
pub struct Env {
    variables: BTreeMap<String, String>,
    mistakes: Vec<Mistake>,
}

impl Env {
    /// An environment of the given variables; a later one replaces an earlier one of the same name.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { variables: variables.into_iter().collect(), mistakes: Vec::new() }
    }

    /// The environment of this process. Bytes that are not UTF-8 are kept as U+FFFD, so that a typed reader
    /// rejects them instead of the process dying on them.
    pub fn of_process() -> Self {
        Self::new(
            std::env::vars_os().map(|(name, value)| {
                (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            }),
        )
    }

    /// A string, as it is. An empty value is a value: it can mean "off".
    pub fn string(&mut self, name: &str) -> Field<'_, String> {
        self.parsed(name, |value| Ok::<_, std::convert::Infallible>(value.to_owned()))
    }

    /// A path. Like every reader but [`Env::string`] and [`Env::parsed`], it takes an empty value for an unset one.
    pub fn path(&mut self, name: &str) -> Field<'_, PathBuf> {
        self.typed(name, "a path", |value| Some(PathBuf::from(value)))
    }

    /// A truth value, in any spelling that Go or Rust would take.
    pub fn flag(&mut self, name: &str) -> Field<'_, bool> {
        self.typed(name, FLAG, flag)
    }

    /// A length of time: `24h`, `1h30m`, `1.5s`, `500ms`, or plain seconds.
    pub fn duration(&mut self, name: &str) -> Field<'_, Duration> {
        self.typed(name, DURATION, duration)
    }

    /// A number of any type that parses from a string.
    pub fn number<T: FromStr>(&mut self, name: &str) -> Field<'_, T>
    where
        T::Err: Display,
    {
        let accepted = format!("a number of type {}", std::any::type_name::<T>());
        self.typed(name, &accepted, |value| value.parse().ok())
    }

    /// Any other type. The parser's error says what is accepted.
    pub fn parsed<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Field<'_, T> {
        let found = match self.variables.get(name) {
            None => Found::Nothing,
            Some(value) => match parse(value) {
                Ok(parsed) => Found::Value(parsed),
                Err(error) => Found::Bad { value: value.clone(), why: Why::Error(error.to_string()) },
            },
        };
        Field { env: self, name: name.to_owned(), found }
    }

    /// All variables whose name starts with `prefix`, as (rest of the name, value), in order of name.
    pub fn prefixed(&self, prefix: &str) -> Vec<(String, String)> {
        self.variables
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?, value)))
            .filter(|(rest, _)| !rest.is_empty())
            .map(|(rest, value)| (rest.to_owned(), value.clone()))
            .collect()
    }

    /// Adds a mistake that only shows when several variables are seen together.
    pub fn reject(&mut self, name: &str, why: impl Display) {
        self.mistakes.push(Mistake { name: name.to_owned(), text: why.to_string() });
    }

    /// Ends the reading: an error that names every bad variable, if there was one.
    pub fn finish(self) -> Result<(), EnvErrors> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(EnvErrors { mistakes: self.mistakes }) }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        accepted: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Field<'_, T> {
        let found = match self.variables.get(name).map(|value| value.trim()) {
            None | Some("") => Found::Nothing,
            Some(value) => match parse(value) {
                Some(parsed) => Found::Value(parsed),
                None => Found::Bad { value: value.to_owned(), why: Why::Accepts(accepted.to_owned()) },
            },
        };
        Field { env: self, name: name.to_owned(), found }
    }
}

/// One variable that was looked up; say with [`Field::or`] or [`Field::optional`] what its absence means.
#[must_use = "a mistake in the variable is only recorded by `or` or `optional`"]
pub struct Field<'e, T> {
    env: &'e mut Env,
    name: String,
    found: Found<T>,
}

enum Found<T> {
    Nothing,
    Value(T),
    Bad { value: String, why: Why },
}

enum Why {
    /// What would have been accepted.
    Accepts(String),
    /// What a parser said; it may repeat the value.
    Error(String),
}

impl<T> Field<'_, T> {
    /// The value, or `default` when the variable is unset (or wrong, which [`Env::finish`] reports).
    pub fn or(self, default: T) -> T {
        self.optional().unwrap_or(default)
    }

    /// The value, or `None` when the variable is unset (or wrong, which [`Env::finish`] reports).
    pub fn optional(self) -> Option<T> {
        match self.found {
            Found::Nothing => None,
            Found::Value(value) => Some(value),
            Found::Bad { value, why } => {
                let text = match why {
                    Why::Accepts(accepted) => format!("is {value:?}; accepted: {accepted}"),
                    Why::Error(error) => format!("is {value:?}: {error}"),
                };
                self.env.mistakes.push(Mistake { name: self.name, text });
                None
            }
        }
    }

    /// Keeps the value, and whatever could repeat it, out of the error.
    pub fn secret(mut self) -> Self {
        if let Found::Bad { value, why } = &mut self.found {
            *value = "(hidden)".to_owned();
            if let Why::Error(error) = why {
                *error = "it has the wrong form (details hidden, they could repeat the value)".to_owned();
            }
        }
        self
    }
}

/// Every mistake found in the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct EnvErrors {
    mistakes: Vec<Mistake>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mistake {
    name: String,
    text: String,
}

impl EnvErrors {
    /// The names of the bad variables, in the order in which they were read.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.mistakes.iter().map(|mistake| mistake.name.as_str())
    }
}

impl Display for EnvErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the environment has mistakes; correct or unset these variables:")?;
        for Mistake { name, text } in &self.mistakes {
            write!(f, "\n  {name} {text}")?;
        }
        Ok(())
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's grammar without a sign, plus bare seconds. Exact: decimal digits are summed in nanoseconds.
fn duration(text: &str) -> Option<Duration> {
    let only_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if only_digits(text) {
        return text.parse().ok().map(Duration::from_secs);
    }
    let (mut rest, mut total) = (text, 0_u128);
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        total = total.checked_add(nanoseconds(number, unit)?)?;
        rest = next;
    }
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    let nanos = u32::try_from(total % 1_000_000_000).ok()?;
    (!text.is_empty()).then(|| Duration::new(seconds, nanos))
}

fn nanoseconds(number: &str, unit: &str) -> Option<u128> {
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<u128>().ok() };
    // Digits beyond the nanosecond of the largest unit change nothing.
    let fraction = fraction.get(..fraction.len().min(15))?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = digits(fraction)?.checked_mul(scale)? / divisor;
    digits(whole)?.checked_mul(scale)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env<const N: usize>(variables: [(&str, &str); N]) -> Env {
        Env::new(variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    #[test]
    fn unset_variables_take_their_default() {
        let mut env = env([]);
        assert_eq!(env.string("A").or("x".to_owned()), "x");
        assert_eq!(env.number::<u16>("B").optional(), None);
        assert_eq!(env.finish(), Ok(()));
    }

    #[test]
    fn an_empty_value_is_a_string_but_no_number_flag_duration_or_path() {
        let mut env = env([("X", "")]);
        assert_eq!(env.string("X").optional(), Some(String::new()));
        assert_eq!(env.number::<u16>("X").or(7), 7);
        assert!(env.flag("X").or(true));
        assert_eq!(env.duration("X").optional(), None);
        assert_eq!(env.path("X").optional(), None);
        assert_eq!(env.finish(), Ok(()));
    }

    #[test]
    fn every_mistake_is_reported_with_its_value_and_what_is_accepted() {
        let mut env =
            env([("PORT", "70000"), ("ON", "yes"), ("WAIT", "5 parsecs"), ("MODE", "x"), ("OK", "1")]);
        assert_eq!(env.number::<u16>("PORT").or(1), 1);
        assert!(!env.flag("ON").or(false));
        assert_eq!(env.duration("WAIT").or(Duration::ZERO), Duration::ZERO);
        assert_eq!(env.parsed("MODE", |_| Err::<(), _>("accepted: shared, dedicated")).optional(), None);
        assert_eq!(env.number::<u8>("OK").or(0), 1);
        env.reject("PAIR", "must not be set together with OK");
        let errors = env.finish().unwrap_err();
        assert_eq!(errors.names().collect::<Vec<_>>(), ["PORT", "ON", "WAIT", "MODE", "PAIR"]);
        let text = errors.to_string();
        for part in [
            "PORT is \"70000\"; accepted: a number of type u16",
            "ON is \"yes\"; accepted: true or false",
            "WAIT is \"5 parsecs\"; accepted: a duration such as 24h",
            "MODE is \"x\": accepted: shared, dedicated",
            "PAIR must not be set together with OK",
        ] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let mut env = env([("TOKEN", "hunter2"), ("PIN", "hunter3")]);
        env.parsed("TOKEN", |v| Err::<(), _>(format!("bad {v}"))).secret().optional();
        env.number::<u8>("PIN").secret().optional();
        let text = env.finish().unwrap_err().to_string();
        assert!(text.contains("TOKEN") && text.contains("PIN") && text.contains("type u8"), "{text}");
        assert!(!text.contains("hunter"), "{text}");
    }

    #[test]
    fn prefixed_variables_come_without_the_prefix_in_order() {
        let env =
            env([("XDS_HEADER_b", "2"), ("XDS_HEADER_A", "1"), ("XDS_HEADER_", "0"), ("CA_HEADER_c", "3")]);
        let found = env.prefixed("XDS_HEADER_");
        assert_eq!(found, [("A".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn flags_are_read_like_in_go_and_rust() {
        for (text, expected) in [("1", Some(true)), ("T", Some(true)), ("True", Some(true)), ("on", None)] {
            assert_eq!(flag(text), expected, "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(flag(text), Some(false), "{text}");
        }
    }

    #[test]
    fn durations_are_read_like_in_go() {
        let cases = [
            ("24h", Some(86_400_000)),
            ("1h30m", Some(5_400_000)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1_500)),
            (".5s", Some(500)),
            ("1m0.25s", Some(60_250)),
            ("2d", Some(172_800_000)),
            ("30", Some(30_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("-1s", None),
            ("1x", None),
            ("1s5", None),
            ("5 s", None),
            ("99999999999999999999999999999999999999999h", None),
        ];
        for (text, milliseconds) in cases {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
        assert_eq!(duration("7µs3ns"), Some(Duration::from_nanos(7_003)));
    }

    proptest! {
        #[test]
        fn any_text_is_a_duration_or_not_but_never_a_panic(text in "[0-9.a-zµ ]{0,40}") {
            let _ = duration(&text);
        }

        #[test]
        fn a_printed_duration_is_read_back(seconds in 0_u64..1_000_000_000, millis in 0_u32..1000) {
            let text = format!("{seconds}s{millis}ms");
            prop_assert_eq!(duration(&text), Some(Duration::new(seconds, millis * 1_000_000)));
        }
    }
}
