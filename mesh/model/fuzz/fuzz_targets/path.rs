//! Paths of requests: one spelling, which is its own, and leads nowhere but down.
#![no_main]

use ambit_model::route::normal::normalize;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|path: &str| {
    let Ok(normal) = normalize(path) else { return };
    if path == "*" {
        assert_eq!(normal.path, path);
        return;
    }
    let inside = normal.path.strip_prefix('/').expect("a path begins with a slash");
    let mut segments: Vec<_> = inside.split('/').collect();
    // The last may be empty: a slash at the end.
    let last = segments.pop().expect("there is always one");
    assert!(segments.iter().all(|segment| !matches!(*segment, "" | "." | "..")), "{normal:?}");
    assert!(!matches!(last, "." | ".."), "{normal:?}");
    assert!(!inside.contains('\\'), "{normal:?}");
    let again = normalize(&normal.path).expect("what was made here");
    assert_eq!(again.path, normal.path);
    // What was ambiguous may have gone with the segment that `..` took back, and never comes.
    assert!(normal.is_ambiguous || !again.is_ambiguous, "{normal:?}");
});
