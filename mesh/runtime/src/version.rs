//! Which build this is.

/// The version of the project; all daemons are released together.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision that the build was given as `AMBIT_REVISION`, if any.
pub const REVISION: Option<&str> = option_env!("AMBIT_REVISION");

/// One line for `--version`, the log and the admin page: `0.1.0` or `0.1.0 (revision)`.
pub fn line() -> String {
    written(VERSION, REVISION)
}

fn written(version: &str, revision: Option<&str>) -> String {
    match revision {
        Some(revision) => format!("{version} ({revision})"),
        None => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_is_shown_when_known() {
        assert_eq!(written("1.2.3", None), "1.2.3");
        assert_eq!(written("1.2.3", Some("abc")), "1.2.3 (abc)");
        assert!(line().starts_with(VERSION));
    }
}
