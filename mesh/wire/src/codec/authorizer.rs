//! Whom a CUSTOM policy or a filter asks: `ambit.waypoint.v1.Authorizer`.

use std::time::Duration;

use ambit_model::authz::{
    Authorizer, AuthorizerParts, BodyForm, CheckProtocol, GrpcCheck, HttpCheck, InvalidAuthorizer, Longer,
    OnFailure, SharedBody, Text,
};
use ambit_proto::{security, waypoint as pb};
use http::{HeaderName, HeaderValue, StatusCode};

use super::{Interner, InvalidResource, authz::decode_text, authz::encode_text, decode_port, route::unset};

pub(super) fn decode(message: pb::Authorizer, names: &mut Interner) -> Result<Authorizer, InvalidResource> {
    use pb::authorizer::Protocol;
    let protocol = match message.protocol.ok_or_else(|| unset("protocol"))? {
        Protocol::Grpc(grpc) => {
            let list =
                grpc.request_headers.map(|list| decode_names("grpc.request_headers", list.names, names));
            CheckProtocol::Grpc(GrpcCheck { request_headers: list.transpose()? })
        }
        Protocol::Http(http) => {
            let http = decode_http(http, names).map_err(|error| error.within("http"))?;
            CheckProtocol::Http(Box::new(http))
        }
    };
    let parts = AuthorizerParts {
        namespace: names.name(&message.namespace),
        hostname: names.name(&message.hostname),
        port: decode_port("port", message.port)?,
        timeout: Duration::from_millis(message.timeout_ms),
        on_failure: decode_failure(message.fail_open, message.status_on_error)?,
        body: message.body.map(decode_body),
        protocol,
    };
    Authorizer::new(parts).map_err(|error| InvalidResource::field(field_of(&error), error))
}

fn decode_failure(fail_open: bool, status: u32) -> Result<OnFailure, InvalidResource> {
    if fail_open {
        return Ok(OnFailure::Allow);
    }
    let known = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let unknown = || InvalidResource::field("status_on_error", format!("{status} is not a status"));
    known.map(OnFailure::Deny).ok_or_else(unknown)
}

fn decode_body(message: pb::SharedBody) -> SharedBody {
    SharedBody {
        limit: message.limit,
        longer: if message.partial { Longer::Cut } else { Longer::Refused },
        form: if message.as_bytes { BodyForm::Bytes } else { BodyForm::Text },
    }
}

fn decode_http(message: pb::HttpCheck, names: &mut Interner) -> Result<HttpCheck, InvalidResource> {
    let mut texts = |field, list| decode_names(field, list, names);
    Ok(HttpCheck {
        path_prefix: message.path_prefix.into(),
        request_headers: texts("request_headers", message.request_headers)?,
        added_headers: message.added_headers.into_iter().map(decode_header).collect::<Result<_, _>>()?,
        upstream_on_allow: texts("upstream_on_allow", message.upstream_on_allow)?,
        downstream_on_allow: texts("downstream_on_allow", message.downstream_on_allow)?,
        downstream_on_deny: match message.downstream_on_deny {
            Some(list) => Some(texts("downstream_on_deny", list.names)?),
            None => None,
        },
    })
}

fn decode_names(
    field: &'static str,
    list: Vec<security::StringMatch>,
    names: &mut Interner,
) -> Result<Vec<Text>, InvalidResource> {
    list.into_iter().map(|one| decode_text(field, one, names)).collect()
}

fn decode_header(header: pb::Header) -> Result<(HeaderName, HeaderValue), InvalidResource> {
    let invalid =
        |what| InvalidResource::field("added_headers", format!("{:?} has no valid {what}", header.name));
    let name = HeaderName::try_from(&header.name).map_err(|_| invalid("name"))?;
    // The value may be a secret: it is not told.
    let mut value = HeaderValue::try_from(&header.value).map_err(|_| invalid("value"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn field_of(error: &InvalidAuthorizer) -> &'static str {
    match error {
        InvalidAuthorizer::Service => "hostname",
        InvalidAuthorizer::Port => "port",
        InvalidAuthorizer::Timeout => "timeout_ms",
        InvalidAuthorizer::Status => "status_on_error",
        InvalidAuthorizer::BodyLimit => "body.limit",
        InvalidAuthorizer::PathPrefix => "http.path_prefix",
        InvalidAuthorizer::AddedHeader(_) => "http.added_headers",
        InvalidAuthorizer::Headers => "http",
    }
}

pub(super) fn encode(authorizer: &Authorizer) -> pb::Authorizer {
    use pb::authorizer::Protocol;
    let parts = authorizer.parts();
    let (fail_open, status) = match parts.on_failure {
        OnFailure::Allow => (true, 0),
        OnFailure::Deny(status) => (false, status.as_u16()),
    };
    pb::Authorizer {
        namespace: parts.namespace.to_string(),
        hostname: parts.hostname.to_string(),
        port: parts.port.into(),
        timeout_ms: u64::try_from(parts.timeout.as_millis()).unwrap_or(u64::MAX),
        fail_open,
        status_on_error: status.into(),
        body: parts.body.map(|body| pb::SharedBody {
            limit: body.limit,
            partial: body.longer == Longer::Cut,
            as_bytes: body.form == BodyForm::Bytes,
        }),
        protocol: Some(match &parts.protocol {
            CheckProtocol::Grpc(grpc) => Protocol::Grpc(pb::GrpcCheck {
                request_headers: grpc.request_headers.as_deref().map(encode_list),
            }),
            CheckProtocol::Http(http) => Protocol::Http(encode_http(http)),
        }),
    }
}

fn encode_http(http: &HttpCheck) -> pb::HttpCheck {
    // What is not ASCII passed no door: it was read from a text.
    let header = |(name, value): &(HeaderName, HeaderValue)| pb::Header {
        name: name.to_string(),
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    pb::HttpCheck {
        path_prefix: http.path_prefix.to_string(),
        request_headers: encode_names(&http.request_headers),
        added_headers: http.added_headers.iter().map(header).collect(),
        upstream_on_allow: encode_names(&http.upstream_on_allow),
        downstream_on_allow: encode_names(&http.downstream_on_allow),
        downstream_on_deny: http.downstream_on_deny.as_deref().map(encode_list),
    }
}

fn encode_names(list: &[Text]) -> Vec<security::StringMatch> {
    list.iter().map(encode_text).collect()
}

fn encode_list(list: &[Text]) -> pb::HeaderList {
    pb::HeaderList { names: encode_names(list) }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{option, prelude::*, sample::select};

    use super::*;

    fn names() -> impl Strategy<Value = Vec<Text>> {
        let name = prop_oneof![
            "x-[a-z]{1,4}".prop_map(|text| Text::Exact(text.into())),
            "x-[a-z]{0,2}".prop_map(|text| Text::Prefix(text.into())),
            "-[a-z]{1,4}".prop_map(|text| Text::Suffix(text.into())),
            Just(Text::Presence),
        ];
        prop::collection::vec(name, 0..3)
    }

    fn http() -> impl Strategy<Value = HttpCheck> {
        let added = ("x-[a-z]{1,4}", "[a-z é]{0,4}").prop_map(|(name, value)| {
            let value = HeaderValue::try_from(value.trim()).expect("a value");
            (HeaderName::try_from(name).expect("a name"), value)
        });
        let lists = (names(), names(), names(), option::of(names()));
        (select(vec!["", "/check", "/a/b/"]), prop::collection::vec(added, 0..3), lists).prop_map(
            |(prefix, added_headers, lists)| {
                let (request_headers, upstream_on_allow, downstream_on_allow, downstream_on_deny) = lists;
                HttpCheck {
                    path_prefix: prefix.into(),
                    request_headers,
                    added_headers,
                    upstream_on_allow,
                    downstream_on_allow,
                    downstream_on_deny,
                }
            },
        )
    }

    /// Any authorizer that a waypoint may be told.
    pub(in crate::codec) fn authorizer() -> impl Strategy<Value = Authorizer> {
        let body = (1..1024_u32, any::<bool>(), any::<bool>()).prop_map(|(limit, cut, bytes)| SharedBody {
            limit,
            longer: if cut { Longer::Cut } else { Longer::Refused },
            form: if bytes { BodyForm::Bytes } else { BodyForm::Text },
        });
        let on_failure = prop_oneof![
            Just(OnFailure::Allow),
            (400..600_u16)
                .prop_map(|status| OnFailure::Deny(StatusCode::from_u16(status).expect("a status"))),
        ];
        let protocol = prop_oneof![
            option::of(names())
                .prop_map(|request_headers| CheckProtocol::Grpc(GrpcCheck { request_headers })),
            http().prop_map(|http| CheckProtocol::Http(Box::new(http))),
        ];
        let place = ("[a-z]{0,3}", "[a-z]{1,4}(\\.[a-z]{1,4}){0,2}", 1..=u16::MAX, 1..600_000_u64);
        (place, on_failure, option::of(body), protocol).prop_map(|(place, on_failure, body, protocol)| {
            let (namespace, hostname, port, timeout) = place;
            let parts = AuthorizerParts {
                namespace: namespace.into(),
                hostname: hostname.into(),
                port,
                timeout: Duration::from_millis(timeout),
                on_failure,
                body,
                protocol,
            };
            Authorizer::new(parts).expect("an authorizer")
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_same(authorizer in authorizer()) {
            prop_assert_eq!(decode(encode(&authorizer), &mut Interner::default()), Ok(authorizer));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_field() {
        fn with(change: impl FnOnce(&mut pb::Authorizer)) -> pb::Authorizer {
            let mut message = pb::Authorizer {
                hostname: "opa.shop".into(),
                port: 9000,
                timeout_ms: 1000,
                status_on_error: 403,
                protocol: Some(pb::authorizer::Protocol::Grpc(pb::GrpcCheck::default())),
                ..pb::Authorizer::default()
            };
            change(&mut message);
            message
        }
        fn http(change: impl FnOnce(&mut pb::HttpCheck)) -> pb::Authorizer {
            with(|message| {
                let mut http = pb::HttpCheck::default();
                change(&mut http);
                message.protocol = Some(pb::authorizer::Protocol::Http(http));
            })
        }
        let added = |name: &str, value: &str| {
            let header = pb::Header { name: name.into(), value: value.into() };
            http(|http| http.added_headers = vec![header])
        };
        assert!(decode(with(|_| ()), &mut Interner::default()).is_ok());
        for (field, message) in [
            ("protocol", with(|message| message.protocol = None)),
            ("hostname", with(|message| message.hostname.clear())),
            ("hostname", with(|message| message.hostname = "*.shop".into())),
            ("hostname", with(|message| message.namespace = "a/b".into())),
            ("port", with(|message| message.port = 0)),
            ("port", with(|message| message.port = 1 << 16)),
            ("timeout_ms", with(|message| message.timeout_ms = 0)),
            ("timeout_ms", with(|message| message.timeout_ms = u64::MAX)),
            ("status_on_error", with(|message| message.status_on_error = 0)),
            ("status_on_error", with(|message| message.status_on_error = 200)),
            ("status_on_error", with(|message| message.status_on_error = 1 << 20)),
            ("body.limit", with(|message| message.body = Some(pb::SharedBody::default()))),
            ("http.path_prefix", http(|http| http.path_prefix = "check?".into())),
            (
                "http.request_headers",
                http(|http| http.request_headers = vec![security::StringMatch::default()]),
            ),
            ("http.added_headers", added("a b", "")),
            ("http.added_headers", added("x-a", "\n")),
            ("http.added_headers", added("content-length", "9")),
            ("http", http(|http| http.request_headers = vec![encode_text(&Text::Presence); 1000])),
        ] {
            match decode(message, &mut Interner::default()) {
                Err(InvalidResource::Field { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
