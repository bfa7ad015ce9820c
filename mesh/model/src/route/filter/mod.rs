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
mod tests;
