//! What filters do together, and which do not go together.

use http::Request;
use proptest::{option, prelude::*, sample::select as one_of};

use super::*;
use crate::{name::ServiceKey, route::Destination};

const FRONT: Front = Front { scheme: Scheme::Http, port: 80 };

fn edit(set: &[(&str, &str)]) -> HeaderEdit {
    HeaderEdit::parse(set, &[], &[]).expect("an edit")
}

fn head(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
    let request = Request::builder().uri(uri).header("host", "web");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(()).expect("a request").into_parts().0
}

fn cors() -> Cors {
    let parts = CorsParts { origins: &["https://shop.example"], ..CorsParts::default() };
    Cors::parse(&parts).expect("a filter")
}

#[test]
fn filters_that_do_not_go_together_are_refused() {
    let rewrite = || Filter::Rewrite(Rewrite::default());
    let redirect = || Filter::Redirect(Redirect::default());
    let again = InvalidFilters::Repeated("URLRewrite");
    assert_eq!(Filters::new(vec![rewrite(), rewrite()]), Err(again));
    assert_eq!(Filters::new(vec![rewrite(), redirect()]), Err(InvalidFilters::RewriteAndRedirect));
    let edits = || vec![Filter::RequestHeaders(edit(&[])), Filter::ResponseHeaders(edit(&[]))];
    assert!(Filters::new(edits()).is_ok());
    assert!(Filters::new([edits(), edits()].concat()).is_err());
}

#[test]
fn a_redirect_has_what_its_rule_gives_to_responses() {
    let filters = Filters::new(vec![
        Filter::Redirect(Redirect::default()),
        Filter::Cors(cors()),
        Filter::ResponseHeaders(edit(&[("x-from", "waypoint")])),
    ]);
    let mut head = head("/a", &[("origin", "https://shop.example")]);
    let Step::Answer(answer) = filters.expect("filters").request(&mut head, None, FRONT) else {
        panic!("a redirect answers");
    };
    assert_eq!(answer.headers()["location"], "http://web/a");
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://shop.example");
    assert_eq!(answer.headers()["x-from"], "waypoint");
}

#[test]
fn nobody_is_asked_about_a_preflight_that_cors_answers() {
    let auth = Filter::ExternalAuth(ExternalAuth::Nobody { reason: "BackendNotFound".into() });
    let alone = Filters::new(vec![auth.clone()]).expect("filters");
    let both = Filters::new(vec![auth, Filter::Cors(cors())]).expect("filters");
    let origin = ("origin", "https://shop.example");
    let mut preflight = head("/a", &[origin, ("access-control-request-method", "GET")]);
    preflight.method = http::Method::OPTIONS;
    assert_eq!((alone.asks(&preflight).is_some(), both.asks(&preflight).is_some()), (true, false));
    let plain = head("/a", &[origin]);
    assert!(alone.asks(&plain).is_some() && both.asks(&plain).is_some());
    assert!(Filters::new(vec![Filter::Cors(cors())]).expect("filters").asks(&plain).is_none());
}

#[test]
fn a_path_that_becomes_too_long_is_answered() {
    let path = NewPath::prefix(&format!("/{}", "a".repeat(1000))).expect("a path");
    let rewrite = Rewrite { host: None, path: Some(path) };
    let filters = Filters::new(vec![Filter::Rewrite(rewrite)]).expect("filters");
    let mut head = head(&format!("/{}", "b".repeat(65_000)), &[]);
    match filters.request(&mut head, Some(&Prefix::default()), FRONT) {
        Step::Answer(answer) => assert_eq!(answer.status(), StatusCode::URI_TOO_LONG),
        Step::Continue(_) => panic!("no request line is that long"),
    }
}

#[test]
fn each_mirror_is_drawn_for_itself() {
    let mirror = |name: &str, share| {
        let to = Destination::Service { service: ServiceKey::new("shop", name), port: 80, subset: None };
        Filter::Mirror(Mirror { to, share })
    };
    let half = Fraction::new(1, 2).expect("a fraction");
    let filters = Filters::new(vec![mirror("a", Fraction::ALL), mirror("b", half), mirror("c", half)]);
    let filters = filters.expect("filters");
    let mut rolls = [0_u64, 1, 0].into_iter();
    let mut dice = |_: u64| rolls.next().unwrap_or(0);
    let names: Vec<_> = filters
        .mirrors(&mut dice)
        .map(|mirror| match &mirror.to {
            Destination::Service { service, .. } => service.hostname.to_string(),
            Destination::Invalid { .. } => "invalid".to_owned(),
        })
        .collect();
    assert_eq!(names, ["a", "c"]);
}

fn any_head() -> impl Strategy<Value = request::Parts> {
    let target =
        one_of(vec!["*", "/", "/a", "/a/b?c=d", "/a//b", "//a", "/%2e?", "http://web:8080/a", "web:443"]);
    let host = option::of(one_of(vec!["web", "web:8080", "[::1]:80", "user@web", "a b", "", ":80", "*"]));
    let origin = option::of(one_of(vec!["https://shop.example", "null", "", "https://", "://", "a"]));
    (target, host, origin).prop_map(|(target, host, origin)| {
        let method = if target == "web:443" { "CONNECT" } else { "OPTIONS" };
        let request = Request::builder().method(method).uri(target);
        let headers = [("host", host), ("origin", origin), ("access-control-request-method", origin)];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let request = headers.fold(request, |request, (name, value)| request.header(name, value));
        request.body(()).expect("a request").into_parts().0
    })
}

fn any_path() -> impl Strategy<Value = Option<NewPath>> {
    let path = one_of(vec!["", "/", "/b", "/b/c/"]);
    option::of((any::<bool>(), path).prop_map(|(full, path)| {
        let path = if full { NewPath::full(path) } else { NewPath::prefix(path) };
        path.expect("a path")
    }))
}

proptest! {
    #[test]
    fn whatever_is_asked_is_sent_on_or_answered(
        head in any_head(),
        path in any_path(),
        named in any::<bool>(),
        prefix in option::of(one_of(vec!["/", "/a"])),
        with_cors in any::<bool>(),
    ) {
        let prefix = prefix.map(|prefix| Prefix::parse(prefix).expect("a prefix"));
        let host = named.then(|| NewHost::parse("other.example").expect("a host"));
        let cors = || with_cors.then(|| Filter::Cors(cors()));
        let filters = |filter| Filters::new([filter].into_iter().chain(cors()).collect()).expect("filters");

        let mut rewritten = head.clone();
        let rewrite = Rewrite { host: host.clone(), path: path.clone() };
        match filters(Filter::Rewrite(rewrite)).request(&mut rewritten, prefix.as_ref(), FRONT) {
            Step::Continue(_) if head.uri.path().starts_with('/') => {
                prop_assert!(rewritten.uri.path().starts_with('/'));
                prop_assert_eq!(rewritten.uri.query(), head.uri.query());
            }
            Step::Continue(_) => prop_assert_eq!(rewritten.uri.path(), head.uri.path()),
            Step::Answer(answer) => prop_assert!(with_cors, "{answer:?}"),
        }
        let redirect = Redirect { host, path, ..Redirect::default() };
        match filters(Filter::Redirect(redirect)).request(&mut head.clone(), prefix.as_ref(), FRONT) {
            Step::Answer(answer) if answer.status() == StatusCode::FOUND => {
                let location = answer.headers()["location"].to_str().expect("text");
                let place = location.parse::<http::Uri>().expect("a place");
                prop_assert!(place.scheme().is_some() && place.host().is_some(), "{location}");
                prop_assert!(!named || place.host() == Some("other.example"), "{location}");
            }
            Step::Answer(answer) => {
                let refused = answer.status() == StatusCode::BAD_REQUEST && !named;
                prop_assert!(refused || with_cors, "{answer:?}");
            }
            Step::Continue(_) => prop_assert!(false, "a redirect answers"),
        }
    }
}
