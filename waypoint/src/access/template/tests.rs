//! Templates: what is read of them, and what they write.

use std::time::UNIX_EPOCH;

use http::Request;
use proptest::prelude::*;

use super::*;

/// What Istio writes if nobody says otherwise.
const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
    %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
    \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% \
    %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% \
    %ROUTE_NAME%\\n";

/// The line of a request with these headers.
fn line(template: &str, headers: &[(&str, &str)]) -> String {
    let template: Template = template.parse().expect("a template");
    let mut request = Request::get("http://web/a?q=1");
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    let (head, ()) = request.body(()).expect("a request").into_parts();
    let (asked, peer) =
        (Target::Ip("10.1.0.1:80".parse().expect("an address")), Identity::new("", "shop", "client"));
    let taken = template.of_request(&head.headers);
    let facts = Facts {
        began: UNIX_EPOCH + Duration::from_millis(1_709_210_096_007),
        method: Some(&head.method),
        uri: Some(&head.uri),
        protocol: Some("HTTP/1.1"),
        status: 200,
        details: Some("via_upstream"),
        sent: 12,
        upstream: Some("10.0.0.2:8080".parse().expect("an address")),
        attempts: 1,
        service: Some("web.shop.svc.cluster.local"),
        client: Some("10.0.0.1:4000".parse().expect("an address")),
        asked: Some(&asked),
        route: Some("shop/web"),
        peer: Some(&peer),
        trace: TraceId::new(0xabc),
        request: &taken,
        ..Facts::new(Duration::from_micros(3_900), "-")
    };
    template.line(&facts)
}

fn mistake(template: &str) -> String {
    template.parse::<Template>().expect_err("no template").to_string()
}

#[test]
fn the_template_of_istio_is_read_and_filled() {
    let headers = [("x-forwarded-for", "10.0.0.1"), ("user-agent", "curl/8"), ("x-request-id", "id-1")];
    assert_eq!(
        line(ISTIO, &headers),
        "[2024-02-29T12:34:56.007Z] \"GET /a?q=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 12 3 - \"10.0.0.1\" \
         \"curl/8\" \"id-1\" \"web\" \"10.0.0.2:8080\" inbound-vip|80|http|web.shop.svc.cluster.local - 10.1.0.1:80 \
         10.0.0.1:4000 - shop/web"
    );
}

#[test]
fn operators_have_arguments_alternatives_and_lengths() {
    assert_eq!(line("%PATH(NQ)% %PATH(WQ)%", &[]), "/a /a?q=1");
    assert_eq!(line("%REQ(a?b)% %REQ(b?a)% %REQ(c?:METHOD)%", &[("a", "1")]), "1 1 GET");
    assert_eq!(line("%REQ(a):3%|%REQ(a):99%|%REQ(:AUTHORITY):1%", &[("a", "12345")]), "123|12345|w");
    assert_eq!(line("100%% %DURATION%ms %REQ(a)%%%", &[]), "100% 3ms -%");
    assert_eq!(line("%TRACE_ID% %SPAN_ID%", &[]), "00000000000000000000000000000abc -");
    assert_eq!(
        line(
            "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            &[]
        ),
        "spiffe://cluster.local/ns/shop/sa/client 10.0.0.1 1"
    );
    assert_eq!(line("", &[]), "");
}

#[test]
fn a_template_that_cannot_be_filled_names_what_is_wrong() {
    for (template, named) in [
        ("%FILTER_STATE(x)%", "%FILTER_STATE%"),
        ("%UPSTREAM_HOTS%", "%UPSTREAM_HOTS%"),
        ("%req(a)%", "%req%"),
        ("50% off", "\" off\""),
        ("%REQ%", "%REQ%: needs an argument"),
        ("%REQ(a%", "%REQ(a%: the bracket"),
        ("%REQ(a b)%", "no header"),
        ("%REQ(a?)%", "no header"),
        ("%REQ(a):x%", "no number"),
        ("%DURATION(ms)%", "takes no argument"),
        ("%START_TIME(%s)%", "%START_TIME("),
        ("%PATH(Q)%", "NQ, WQ"),
        ("%REQ(Authorization)%", "authorization is a secret"),
        ("%REQ(a?COOKIE)%", "cookie is a secret"),
        ("%RESP(SET-COOKIE)%", "set-cookie is a secret"),
    ] {
        assert!(mistake(template).contains(named), "{template}: {}", mistake(template));
    }
}

#[test]
fn a_template_that_is_json_stays_json() {
    let template = r#"{"path":"%REQ(:PATH)%","agent":"%REQ(USER-AGENT)%","code":%RESPONSE_CODE%}"#;
    let text = line(template, &[("user-agent", "a\"b\\c\td\u{e9}")]);
    let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&read["path"], &read["code"]), (&"/a?q=1".into(), &200.into()));
    assert!(read["agent"].as_str().expect("text").starts_with("a\"b\\c\td"), "{text}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[%A-Z_():?0-9a-z \\\\n]{0,60}") {
        if let Ok(template) = text.parse::<Template>() {
            template.line(&Facts::new(Duration::ZERO, "-"));
        }
    }

    #[test]
    fn no_header_forges_a_line_or_the_end_of_a_quotation(value in prop::collection::vec(any::<u8>(), 0..60)) {
        let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
        let template: Template = "\"%REQ(a)%\"".parse().expect("a template");
        let facts = Facts { request: &[Some(value)], ..Facts::new(Duration::ZERO, "-") };
        let line = template.line(&facts);
        prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        let inside = line.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect("quoted");
        let quoted = ["\"", inside, "\""].concat();
        prop_assert!(serde_json::from_str::<String>(&quoted).is_ok());
    }
}
