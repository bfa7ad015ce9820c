//! Asking in HTTP: by a request like the one that is asked about.

use ambit_model::authz::{self, Answer, HttpCheck};
use ambit_wire::ext_authz::PARTIAL_BODY;
use http::{HeaderValue, Request, Uri, Version as Spoken, header, request::Parts};

use super::{Asking, Authorizers, Failure, Question};
use crate::{body::Beginning, plan::version};

impl Authorizers {
    pub(super) async fn http(
        &self,
        asking: &Asking<'_>,
        question: &Question<'_>,
        check: &HttpCheck,
    ) -> Result<Answer, Failure> {
        let head = head(check, question.head, asking.shown.as_ref())?;
        let version = version(&asking.exchange.goal, Spoken::HTTP_11, &head);
        let body = asking.shown.as_ref().map(|beginning| beginning.bytes.clone()).unwrap_or_default();
        let request = Request::from_parts(head, body);
        let answer = self.upstream.inquire(&asking.exchange, version, request).await?;
        let (head, body) = answer.into_parts();
        Ok(Answer::of_http(check, head.status, &head.headers, body.to_bytes().into())?)
    }
}

/// The head of the question. Pure.
fn head(check: &HttpCheck, asked: &Parts, shown: Option<&Beginning>) -> Result<Parts, http::Error> {
    let path = asked.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut uri = asked.uri.clone().into_parts();
    uri.path_and_query = Some(format!("{}{path}", check.path_prefix).parse()?);
    let mut request = Request::new(());
    *request.method_mut() = asked.method.clone();
    *request.uri_mut() = Uri::from_parts(uri)?;
    let headers = request.headers_mut();
    let told = asked.headers.iter().filter(|(name, _)| check.shows(name) || **name == header::AUTHORIZATION);
    for (name, value) in told.filter(|(name, _)| authz::may_be_told(name)) {
        headers.append(name, value.clone());
    }
    for (name, value) in &check.added_headers {
        headers.insert(name, value.clone());
    }
    // An authorizer may want it of every question, as Envoy and Gateway API have it.
    let length = shown.map_or(0, |beginning| beginning.bytes.len());
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.remove(PARTIAL_BODY);
    if let Some(beginning) = shown {
        let partial = if beginning.is_whole { "false" } else { "true" };
        headers.insert(PARTIAL_BODY, HeaderValue::from_static(partial));
    }
    Ok(request.into_parts().0)
}

#[cfg(test)]
mod tests {
    use ambit_model::authz::Text;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_question_has_of_the_request_what_is_named_and_nothing_that_frames_it() {
        let asked = Request::post("http://shop.example/items?x=1")
            .header("authorization", "Bearer t")
            .header("cookie", "a=b")
            .header("x-team", "blue")
            .header("x-secret", "no")
            .header("x-mesh", "forged")
            .header("content-length", "5")
            .header("transfer-encoding", "chunked")
            .header("x-envoy-auth-partial-body", "false");
        let asked = asked.body(()).expect("a request").into_parts().0;
        let text = |text: &str| Text::Exact(text.into());
        let check = HttpCheck {
            path_prefix: "/check".into(),
            request_headers: vec![
                text("Cookie"),
                Text::Prefix("x-t".into()),
                text("content-length"),
                text("transfer-encoding"),
                text("x-envoy-auth-partial-body"),
            ],
            added_headers: vec![("x-mesh".parse().expect("a name"), HeaderValue::from_static("ours"))],
            ..HttpCheck::default()
        };
        let got = head(&check, &asked, None).expect("a head");
        assert_eq!(
            (got.method.as_str(), got.uri.to_string().as_str()),
            ("POST", "http://shop.example/check/items?x=1")
        );
        let mut names: Vec<_> = got.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-length", "cookie", "x-mesh", "x-team"]);
        assert_eq!(got.headers["content-length"], "0", "its own, not the request's");
        assert_eq!(got.headers.get("x-mesh").map(HeaderValue::as_bytes), Some(&b"ours"[..]));
        let beginning = Beginning { bytes: Bytes::from_static(b"a"), is_whole: false };
        let got = head(&check, &asked, Some(&beginning)).expect("a head");
        assert_eq!(got.headers.get(PARTIAL_BODY).map(HeaderValue::as_bytes), Some(&b"true"[..]));
        assert_eq!(got.headers["content-length"], "1");
    }
}
