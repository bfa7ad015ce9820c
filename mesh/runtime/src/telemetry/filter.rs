//! What is logged: a level for everything, and levels for scopes. Pure.

use std::collections::BTreeMap;
use std::fmt;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

/// Libraries that say much at `info`, or whose `debug` drowns ours. Named in a change, they speak.
const NOISY: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"];

/// A level for everything, and others for some scopes (module paths or targets, and all below them).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    everything: LevelFilter,
    scopes: BTreeMap<String, LevelFilter>,
}

impl Default for Filter {
    fn default() -> Self {
        let scopes = NOISY.map(|scope| (scope.to_owned(), LevelFilter::WARN));
        Self { everything: LevelFilter::INFO, scopes: scopes.into() }
    }
}

impl Filter {
    /// This filter with a change: parts separated by commas, each a level, `scope:level` or `scope=level`.
    pub fn with(&self, change: &str) -> Result<Self, InvalidFilter> {
        let mut filter = self.clone();
        for part in change.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let invalid = || InvalidFilter { part: part.to_owned() };
            match part.rsplit_once(['=', ':']) {
                None => filter.everything = level(part).ok_or_else(invalid)?,
                Some((scope, word)) => {
                    let level = level(word).filter(|_| is_scope(scope)).ok_or_else(invalid)?;
                    filter.scopes.insert(scope.to_owned(), level);
                }
            }
        }
        Ok(filter)
    }

    pub(super) fn targets(&self) -> Targets {
        let scopes = self.scopes.iter().map(|(scope, level)| (scope.clone(), *level));
        Targets::new().with_default(self.everything).with_targets(scopes)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.everything)?;
        self.scopes.iter().try_for_each(|(scope, level)| write!(f, ",{scope}={level}"))
    }
}

/// A part of a change cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?} is not a log level; accepted: off, error, warn, info, debug or trace, \
     also for a scope as scope:level, several separated by commas"
)]
pub struct InvalidFilter {
    part: String,
}

fn level(word: &str) -> Option<LevelFilter> {
    match word.trim().to_ascii_lowercase().as_str() {
        "off" | "none" => Some(LevelFilter::OFF),
        "error" => Some(LevelFilter::ERROR),
        "warn" | "warning" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        _ => None,
    }
}

fn is_scope(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && text.split("::").all(|segment| !segment.is_empty() && segment.chars().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn both_spellings_are_read() {
        let filter = Filter::default().with("debug, a::b:trace,c=error,H2=off,").unwrap();
        let text = filter.to_string();
        assert!(text.starts_with("debug,H2=off,a::b=trace,c=error,h2=warn,"), "{text}");
        assert_eq!(Filter::default().with(&text), Ok(filter));
        assert_eq!(Filter::default().with(""), Ok(Filter::default()));
    }

    #[test]
    fn the_part_that_is_wrong_is_named() {
        for part in ["loud", "a:loud", "a::b", ":info", "=info", "a b:info", "[span]=info", "a:::info", "a="]
        {
            let error = Filter::default().with(&format!("info,{part}")).unwrap_err();
            assert_eq!(error.part, part);
        }
    }

    #[test]
    fn a_scope_decides_for_all_below_it() {
        let targets = Filter::default().with("a=debug,a::b=off").unwrap().targets();
        let cases = [
            ("a", Level::DEBUG, true),
            ("a::x", Level::DEBUG, true),
            ("a::b::c", Level::ERROR, false),
            ("z", Level::DEBUG, false),
            ("z", Level::INFO, true),
            ("hyper::proto", Level::INFO, false),
        ];
        for (scope, level, enabled) in cases {
            assert_eq!(targets.would_enable(scope, &level), enabled, "{scope} {level}");
        }
    }
}
