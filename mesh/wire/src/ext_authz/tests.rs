//! What an authorizer is told, and what its answers mean.

use ambit_model::authz::{Denial, Text};
use ambit_proto::{envoy_core as core, envoy_type::HttpStatus, rpc_status as rpc};

use http::Request;

use super::*;

fn option(name: &str, value: &str, append: Option<bool>, action: HeaderAppendAction) -> HeaderValueOption {
    let header = core::HeaderValue { key: name.into(), value: value.into(), ..core::HeaderValue::default() };
    HeaderValueOption { header: Some(header), append, append_action: action.into() }
}

fn plain(name: &str, value: &str) -> HeaderValueOption {
    option(name, value, None, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn says(code: i32, http_response: Option<HttpResponse>) -> Result<Answer, InvalidAnswer> {
    let status = Some(rpc::Status { code, ..rpc::Status::default() });
    answer_of(CheckResponse { status, http_response })
}

fn allows(change: impl FnOnce(&mut OkHttpResponse)) -> Result<Answer, InvalidAnswer> {
    let mut allowed = OkHttpResponse::default();
    change(&mut allowed);
    says(0, Some(HttpResponse::OkResponse(allowed)))
}

fn denies(change: impl FnOnce(&mut DeniedHttpResponse)) -> Result<Answer, InvalidAnswer> {
    let mut denied = DeniedHttpResponse::default();
    change(&mut denied);
    says(7, Some(HttpResponse::DeniedResponse(denied)))
}

fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}

fn value(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}

#[test]
fn an_answer_without_details_is_yes_or_403() {
    assert_eq!(says(0, None), Ok(Answer::Allowed(Changes::default())));
    let denial = Denial { status: StatusCode::FORBIDDEN, headers: Vec::new(), body: Vec::new() };
    for code in [7, 16, 2, -1] {
        assert_eq!(says(code, None), Ok(Answer::Denied(denial.clone())), "{code}");
    }
    assert_eq!(denies(|_| ()), Ok(Answer::Denied(denial)));
}

#[test]
fn headers_change_as_envoy_has_it() {
    use HeaderAppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    use HeaderChange::{Append, Set, SetIfAbsent, SetIfPresent};
    type Make = fn(HeaderName, HeaderValue) -> HeaderChange;
    let table: [(_, _, Make, Make); 6] = [
        (None, AppendIfExistsOrAdd, Set, Append),
        (None, AddIfAbsent, SetIfAbsent, SetIfAbsent),
        (None, OverwriteIfExistsOrAdd, Set, Set),
        (None, OverwriteIfExists, SetIfPresent, SetIfPresent),
        (Some(true), OverwriteIfExists, Append, Append),
        (Some(false), AppendIfExistsOrAdd, Set, Set),
    ];
    for (append, action, of_request, of_response) in table {
        let got = allows(|allowed| {
            allowed.headers.push(option("X-A", "1", append, action));
            allowed.response_headers_to_add.push(option("x-b", "2", append, action));
        });
        let want = Changes {
            request: vec![of_request(name("x-a"), value("1"))],
            response: vec![of_response(name("x-b"), value("2"))],
        };
        assert_eq!(got, Ok(Answer::Allowed(want)), "{append:?} {action:?}");
    }
    let removed = allows(|allowed| allowed.headers_to_remove.push("Cookie".into()));
    let want = Changes { request: vec![HeaderChange::Remove(header::COOKIE)], response: Vec::new() };
    assert_eq!(removed, Ok(Answer::Allowed(want)));
}

#[test]
fn a_denial_says_what_the_client_is_told() {
    let got = denies(|denied| {
        denied.status = Some(HttpStatus { code: 302 });
        denied.headers.push(plain("location", "/login"));
        denied.body = "log in".into();
    });
    let want = Denial {
        status: StatusCode::FOUND,
        headers: vec![HeaderChange::Set(header::LOCATION, value("/login"))],
        body: b"log in".to_vec(),
    };
    assert_eq!(got, Ok(Answer::Denied(want)));
}

#[test]
fn an_answer_that_makes_no_sense_is_none() {
    let parameter = || core::QueryParameter { key: "a".into(), value: "b".into() };
    let strange = HeaderValueOption { append_action: 9, ..plain("x-a", "1") };
    let many = MOST_CHANGES + 1;
    for (what, answer) in [
        ("no status", answer_of(CheckResponse::default())),
        ("yes and no", says(0, Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default())))),
        ("no and yes", says(7, Some(HttpResponse::OkResponse(OkHttpResponse::default())))),
        ("a pseudo-header", allows(|one| one.headers.push(plain(":path", "/admin")))),
        ("a line break", allows(|one| one.headers.push(plain("x-a", "1\r\nx-b: 2")))),
        ("no name", allows(|one| one.response_headers_to_add.push(plain("", "1")))),
        ("a name that is none", allows(|one| one.headers_to_remove.push("x a".into()))),
        ("no header", allows(|one| one.headers.push(HeaderValueOption::default()))),
        ("an unknown action", allows(|one| one.headers.push(strange))),
        ("a query", allows(|one| one.query_parameters_to_set.push(parameter()))),
        ("no query", allows(|one| one.query_parameters_to_remove.push("a".into()))),
        ("too many headers", allows(|one| one.headers = vec![plain("x-a", "1"); many])),
        ("an interim status", denies(|one| one.status = Some(HttpStatus { code: 101 }))),
        ("a status beyond", denies(|one| one.status = Some(HttpStatus { code: 700 }))),
        ("a status below", denies(|one| one.status = Some(HttpStatus { code: -1 }))),
        ("a long body", denies(|one| one.body = "a".repeat(LARGEST_DENIAL + 1))),
        ("a bad header of a denial", denies(|one| one.headers.push(plain("x\n", "1")))),
    ] {
        assert!(answer.is_err(), "{what}: {answer:?}");
    }
}

fn head() -> request::Parts {
    let request = Request::post("http://shop.example:8080/items?x=1")
        .header("x-request-id", "17")
        .header("content-length", "5")
        .header("accept", "a")
        .header("accept", "b")
        .header("x-envoy-auth-partial-body", "false");
    request.body(()).expect("a request").into_parts().0
}

fn told(form: Option<(BodyForm, bool)>) -> AttributeContext {
    told_of(form, &GrpcCheck::default())
}

fn told_of(form: Option<(BodyForm, bool)>, told: &GrpcCheck) -> AttributeContext {
    let (head, bytes) = (head(), Bytes::from_static(b"a\xff"));
    let client = Identity::new("cluster.local", "shop", "client");
    let check = Check {
        source: "10.0.0.1:4000".parse().expect("an address"),
        principal: Some(&client),
        destination: "10.1.0.1:80".parse().expect("an address"),
        own: &Identity::new("cluster.local", "shop", "gate"),
        service: "web.shop.svc.cluster.local",
        head: &head,
        told,
        version: Version::HTTP_11,
        time: SystemTime::UNIX_EPOCH,
        body: form.map(|(form, is_whole)| Shown { bytes: &bytes, form, is_whole }),
    };
    request_of(&check).attributes.expect("attributes")
}

#[test]
fn of_headers_those_are_told_that_are_named() {
    let named = GrpcCheck { request_headers: Some(vec![Text::Exact("Accept".into())]) };
    let http = told_of(None, &named).request.and_then(|request| request.http).expect("HTTP");
    let mut names: Vec<_> = http.headers.into_keys().collect();
    names.sort_unstable();
    assert_eq!(names, [":authority", ":method", ":path", ":scheme", "accept"]);
}

#[test]
fn an_authorizer_is_told_who_asks_whom_for_what() {
    let attributes = told(None);
    let (source, destination) = (attributes.source.expect("one"), attributes.destination.expect("one"));
    assert_eq!(source.principal, "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!(source.address, Some(address_of("10.0.0.1:4000".parse().expect("an address"))));
    assert_eq!(destination.principal, "spiffe://cluster.local/ns/shop/sa/gate");
    assert_eq!(destination.service, "web.shop.svc.cluster.local");
    let http = attributes.request.and_then(|request| request.http).expect("HTTP");
    let facts = [http.method, http.path, http.host, http.scheme, http.id, http.protocol];
    assert_eq!(facts, ["POST", "/items?x=1", "shop.example:8080", "http", "17", "HTTP/1.1"]);
    assert_eq!(http.size, 5);
    let header = |name: &str| http.headers.get(name).map(String::as_str);
    assert_eq!((header("accept"), header(":path")), (Some("a,b"), Some("/items?x=1")));
    assert_eq!(header("x-envoy-auth-partial-body"), None, "a client does not say it");
    assert!(http.body.is_empty() && http.raw_body.is_empty());
}

#[test]
fn a_body_is_shown_as_it_was_asked_for() {
    for (form, is_whole, text, raw, partial) in [
        (BodyForm::Text, true, "a\u{fffd}", &b""[..], "false"),
        (BodyForm::Bytes, false, "", b"a\xff", "true"),
    ] {
        let http = told(Some((form, is_whole))).request.and_then(|request| request.http).expect("HTTP");
        assert_eq!((http.body.as_str(), &http.raw_body[..]), (text, raw));
        assert_eq!(http.headers.get("x-envoy-auth-partial-body").map(String::as_str), Some(partial));
    }
}
