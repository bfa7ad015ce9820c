//! What is done to a request before it is sent, and to a response before it is given back.
//!
//! Filters do their work in the order in which they are written, but for CORS, which judges the request
//! as it came: a preflight must not depend on what becomes of the path. The filters of a rule come
//! before those of its backend; in the response, after them. A copy for a [`Mirror`] has all that the
//! filters of its rule made of the request, wherever the mirror stands among them. Whom [`ExternalAuth`]
//! names is asked before all of them, and about no preflight that CORS answers.

mod auth;
mod cors;
mod fault;
mod headers;
mod mirror;
mod origin;
mod redirect;
mod rewrite;

pub use auth::ExternalAuth;
pub use cors::{Allowed, Cors, CorsParts, Granted, InvalidCors};
pub use fault::{Abort, Delay, Fault, GrpcCode, Injected, InvalidFault, With};
pub use headers::{HeaderEdit, InvalidEdit};
use http::{Response, StatusCode, request, response};
pub use mirror::{Fraction, InvalidFraction, Mirror};
pub use redirect::{Front, Redirect, RedirectStatus, Scheme};
pub use rewrite::{InvalidRewrite, NewHost, NewPath, Rewrite};
use thiserror::Error;

use self::cors::Asked;
use super::Prefix;
use crate::balance::Dice;

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The request's headers are changed.
    RequestHeaders(HeaderEdit),
    /// The response's headers are changed.
    ResponseHeaders(HeaderEdit),
    /// The request's host or path is changed.
    Rewrite(Rewrite),
    /// The request is answered with another place.
    Redirect(Redirect),
    /// Some requests are also sent elsewhere.
    Mirror(Mirror),
    /// Pages of other origins may ask, or may not.
    Cors(Cors),
    /// Some requests are held back, or answered with a failure, on purpose. Whoever sends them asks for it before
    /// all else: a decision waits for nothing.
    Fault(Fault),
    /// Somebody else is asked whether a request may be. Whoever sends requests does so before all else, for the same
    /// reason.
    ExternalAuth(ExternalAuth),
}

/// The filters of a rule or a backend, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(Box<[Filter]>);

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Step {
    /// It goes on; the response will need this.
    Continue(Granted),
    /// It goes no further: this is the head of its response, whose body is empty.
    Answer(Response<()>),
}

impl Filters {
    /// Judges which filters go together: a mirror with everything and with other mirrors, of each other
    /// kind one; no rewrite beside a redirect.
    pub fn new(filters: Vec<Filter>) -> Result<Self, InvalidFilters> {
        let kind = |filter: &Filter| match filter {
            Filter::RequestHeaders(_) => Some("RequestHeaderModifier"),
            Filter::ResponseHeaders(_) => Some("ResponseHeaderModifier"),
            Filter::Rewrite(_) => Some("URLRewrite"),
            Filter::Redirect(_) => Some("RequestRedirect"),
            Filter::Cors(_) => Some("CORS"),
            Filter::Fault(_) => Some("Fault"),
            Filter::ExternalAuth(_) => Some("ExternalAuth"),
            Filter::Mirror(_) => None,
        };
        let mut kinds: Vec<_> = filters.iter().filter_map(kind).collect();
        kinds.sort_unstable();
        if let Some([kind, _]) = kinds.array_windows().find(|[one, next]| one == next) {
            return Err(InvalidFilters::Repeated(kind));
        }
        let all = Self(filters.into());
        if all.redirects() && all.0.iter().any(|filter| matches!(filter, Filter::Rewrite(_))) {
            return Err(InvalidFilters::RewriteAndRedirect);
        }
        Ok(all)
    }

    /// Whether nothing is done.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The filters, in order.
    pub fn as_slice(&self) -> &[Filter] {
        &self.0
    }

    /// Does to a request what is to be done. `prefix` is what [`Chosen::prefix`](super::Chosen::prefix)
    /// says, `front` how the client came.
    pub fn request(&self, head: &mut request::Parts, prefix: Option<&Prefix>, front: Front) -> Step {
        let granted = match self.cors().map(|cors| cors.judge(head)) {
            Some(Asked::Before(answer)) => return Step::Answer(answer),
            Some(Asked::Now(granted)) => granted,
            None => Granted::default(),
        };
        for filter in &self.0 {
            match filter {
                Filter::RequestHeaders(edit) => edit.apply(&mut head.headers),
                Filter::Rewrite(rewrite) => {
                    if rewrite.apply(head, prefix).is_err() {
                        return Step::Answer(answer(StatusCode::URI_TOO_LONG));
                    }
                }
                Filter::Redirect(redirect) => {
                    let (mut answer, ()) = redirect.answer(head, prefix, front).into_parts();
                    self.response(&mut answer, &granted);
                    return Step::Answer(Response::from_parts(answer, ()));
                }
                Filter::ResponseHeaders(_)
                | Filter::Mirror(_)
                | Filter::Cors(_)
                | Filter::Fault(_)
                | Filter::ExternalAuth(_) => {}
            }
        }
        Step::Continue(granted)
    }

    /// Does to a response what is to be done. `granted` is what [`request`](Self::request) said.
    pub fn response(&self, head: &mut response::Parts, granted: &Granted) {
        if self.cors().is_some() {
            granted.apply(&mut head.headers);
        }
        for filter in &self.0 {
            match filter {
                Filter::ResponseHeaders(edit) => edit.apply(&mut head.headers),
                Filter::RequestHeaders(_)
                | Filter::Rewrite(_)
                | Filter::Redirect(_)
                | Filter::Mirror(_)
                | Filter::Cors(_)
                | Filter::Fault(_)
                | Filter::ExternalAuth(_) => {}
            }
        }
    }

    /// To whom copies may go.
    pub fn destinations(&self) -> impl Iterator<Item = &super::Destination> {
        self.0.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.to),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Cors(_)
            | Filter::Fault(_)
            | Filter::ExternalAuth(_) => None,
        })
    }

    /// The mirrors that get a copy of one request.
    pub fn mirrors<'f>(&'f self, dice: &'f mut dyn Dice) -> impl Iterator<Item = &'f Mirror> {
        let mirrors = self.0.iter().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(mirror),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Cors(_)
            | Filter::Fault(_)
            | Filter::ExternalAuth(_) => None,
        });
        mirrors.filter(|mirror| mirror.share.draw(dice))
    }

    /// Whether a request is answered here.
    pub(super) fn redirects(&self) -> bool {
        self.0.iter().any(|filter| matches!(filter, Filter::Redirect(_)))
    }

    /// Whether the matched prefix is replaced.
    pub(super) fn replaces_prefix(&self) -> bool {
        self.0.iter().any(|filter| match filter {
            Filter::Rewrite(Rewrite { path, .. }) | Filter::Redirect(Redirect { path, .. }) => {
                path.as_ref().is_some_and(NewPath::replaces_prefix)
            }
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Mirror(_)
            | Filter::Cors(_)
            | Filter::Fault(_)
            | Filter::ExternalAuth(_) => false,
        })
    }

    fn cors(&self) -> Option<&Cors> {
        self.0.iter().find_map(|filter| match filter {
            Filter::Cors(cors) => Some(cors),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Mirror(_)
            | Filter::Fault(_)
            | Filter::ExternalAuth(_) => None,
        })
    }

    /// What is done to some requests on purpose.
    pub fn fault(&self) -> Option<&Fault> {
        self.0.iter().find_map(|filter| match filter {
            Filter::Fault(fault) => Some(fault),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Mirror(_)
            | Filter::Cors(_)
            | Filter::ExternalAuth(_) => None,
        })
    }

    /// Who is asked about a request, which has come as `head` says. About a preflight that CORS answers nobody is: a browser
    /// sends it without credentials, and it goes no further (Fetch, CORS-preflight).
    pub fn asks(&self, head: &request::Parts) -> Option<&ExternalAuth> {
        let auth = self.auth()?;
        let answered = self.cors().is_some_and(|cors| matches!(cors.judge(head), Asked::Before(_)));
        (!answered).then_some(auth)
    }

    /// Who is asked about requests.
    pub(super) fn auth(&self) -> Option<&ExternalAuth> {
        self.0.iter().find_map(|filter| match filter {
            Filter::ExternalAuth(auth) => Some(auth),
            Filter::RequestHeaders(_)
            | Filter::ResponseHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Mirror(_)
            | Filter::Cors(_)
            | Filter::Fault(_) => None,
        })
    }
}

/// A response of `status` and nothing else.
fn answer(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// Why filters do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidFilters {
    /// One kind stands there twice.
    #[error("{0} stands there twice")]
    Repeated(&'static str),
    /// The request cannot be changed and answered.
    #[error("URLRewrite does not go with RequestRedirect")]
    RewriteAndRedirect,
}

#[cfg(test)]
mod tests {
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
}
