//! The filters of routes: `ambit.waypoint.v1.Filter`.

use std::{sync::Arc, time::Duration};

use ambit_model::route::{
    Abort, Cors, CorsParts, Delay, ExternalAuth, Fault, Filter, Filters, Fraction, GrpcCode, HeaderEdit,
    InvalidFault, InvalidRewrite, Mirror, NewHost, NewPath, Redirect, RedirectStatus, Rewrite, Scheme, With,
};
use ambit_proto::waypoint as pb;
use http::{HeaderName, HeaderValue, StatusCode};

use super::{
    Interner, InvalidResource, authorizer, decode_each, decode_enum, decode_port,
    route::{decode_destination, encode_destination, millis, unset},
};

pub(super) fn decode_filters(
    list: Vec<pb::Filter>,
    names: &mut Interner,
) -> Result<Filters, InvalidResource> {
    let filters = decode_each("filters", list, |one| decode_filter(one, names))?;
    Filters::new(filters).map_err(|error| InvalidResource::field("filters", error))
}

pub(super) fn encode_filters(filters: &Filters) -> Vec<pb::Filter> {
    filters.as_slice().iter().map(encode_filter).collect()
}

fn decode_filter(message: pb::Filter, names: &mut Interner) -> Result<Filter, InvalidResource> {
    use pb::filter::Kind;
    let within = |field: &'static str| move |error: InvalidResource| error.within(field);
    match message.kind.ok_or_else(|| unset("kind"))? {
        Kind::RequestHeaders(edit) => decode_edit("request_headers", &edit).map(Filter::RequestHeaders),
        Kind::ResponseHeaders(edit) => decode_edit("response_headers", &edit).map(Filter::ResponseHeaders),
        Kind::Redirect(one) => decode_redirect(one).map(Filter::Redirect).map_err(within("redirect")),
        Kind::Rewrite(one) => decode_rewrite(one).map(Filter::Rewrite).map_err(within("rewrite")),
        Kind::Mirror(one) => decode_mirror(one, names).map(Filter::Mirror).map_err(within("mirror")),
        Kind::Cors(cors) => decode_cors(&cors).map(Filter::Cors),
        Kind::Fault(fault) => decode_fault(fault).map(Filter::Fault).map_err(within("fault")),
        Kind::ExternalAuth(auth) => {
            decode_auth(auth, names).map(Filter::ExternalAuth).map_err(within("external_auth"))
        }
    }
}

fn encode_filter(filter: &Filter) -> pb::Filter {
    use pb::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(edit) => Kind::RequestHeaders(encode_edit(edit)),
        Filter::ResponseHeaders(edit) => Kind::ResponseHeaders(encode_edit(edit)),
        Filter::Redirect(redirect) => Kind::Redirect(encode_redirect(redirect)),
        Filter::Rewrite(rewrite) => Kind::Rewrite(encode_rewrite(rewrite)),
        Filter::Mirror(mirror) => Kind::Mirror(encode_mirror(mirror)),
        Filter::Cors(cors) => Kind::Cors(encode_cors(cors)),
        Filter::Fault(fault) => Kind::Fault(encode_fault(fault)),
        Filter::ExternalAuth(auth) => Kind::ExternalAuth(encode_auth(auth)),
    };
    pb::Filter { kind: Some(kind) }
}

fn decode_edit(field: &'static str, message: &pb::HeaderEdit) -> Result<HeaderEdit, InvalidResource> {
    fn pairs(list: &[pb::Header]) -> Vec<(&str, &str)> {
        list.iter().map(|header| (&*header.name, &*header.value)).collect()
    }
    HeaderEdit::parse(&pairs(&message.set), &pairs(&message.add), &texts(&message.remove))
        .map_err(|error| InvalidResource::field(field, error))
}

fn encode_edit(edit: &HeaderEdit) -> pb::HeaderEdit {
    let header = |(name, value): &(HeaderName, HeaderValue)| pb::Header {
        name: name.to_string(),
        // It was read from a text, maybe with letters beyond ASCII.
        value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    pb::HeaderEdit {
        set: edit.set().iter().map(header).collect(),
        add: edit.add().iter().map(header).collect(),
        remove: edit.remove().iter().map(ToString::to_string).collect(),
    }
}

fn decode_redirect(message: pb::Redirect) -> Result<Redirect, InvalidResource> {
    let status = u16::try_from(message.status).ok().and_then(RedirectStatus::new);
    Ok(Redirect {
        scheme: match decode_enum("scheme", message.scheme)? {
            pb::Scheme::Unspecified => None,
            pb::Scheme::Http => Some(Scheme::Http),
            pb::Scheme::Https => Some(Scheme::Https),
        },
        host: decode_host(&message.host)?,
        port: Some(decode_port("port", message.port)?).filter(|port| *port != 0),
        path: message.path.map(decode_path).transpose()?,
        status: status.ok_or_else(|| {
            InvalidResource::field("status", format!("{} is not one to redirect with", message.status))
        })?,
    })
}

fn encode_redirect(redirect: &Redirect) -> pb::Redirect {
    pb::Redirect {
        scheme: match redirect.scheme {
            None => pb::Scheme::Unspecified,
            Some(Scheme::Http) => pb::Scheme::Http,
            Some(Scheme::Https) => pb::Scheme::Https,
        }
        .into(),
        host: encode_host(redirect.host.as_ref()),
        port: redirect.port.unwrap_or_default().into(),
        path: redirect.path.as_ref().map(encode_path),
        status: redirect.status.code().as_u16().into(),
    }
}

fn decode_rewrite(message: pb::Rewrite) -> Result<Rewrite, InvalidResource> {
    Ok(Rewrite { host: decode_host(&message.host)?, path: message.path.map(decode_path).transpose()? })
}

fn encode_rewrite(rewrite: &Rewrite) -> pb::Rewrite {
    pb::Rewrite { host: encode_host(rewrite.host.as_ref()), path: rewrite.path.as_ref().map(encode_path) }
}

fn decode_host(host: &str) -> Result<Option<NewHost>, InvalidResource> {
    let invalid = |error: InvalidRewrite| InvalidResource::field("host", error);
    (!host.is_empty()).then(|| NewHost::parse(host)).transpose().map_err(invalid)
}

fn encode_host(host: Option<&NewHost>) -> String {
    host.map(|host| host.as_str().to_owned()).unwrap_or_default()
}

fn decode_path(message: pb::NewPath) -> Result<NewPath, InvalidResource> {
    use pb::new_path::Kind;
    let (field, path) = match message.kind {
        Some(Kind::Full(path)) => ("path.full", NewPath::full(&path)),
        Some(Kind::Prefix(prefix)) => ("path.prefix", NewPath::prefix(&prefix)),
        None => return Err(unset("path")),
    };
    path.map_err(|error| InvalidResource::field(field, error))
}

fn encode_path(path: &NewPath) -> pb::NewPath {
    use pb::new_path::Kind;
    let text = path.as_str().to_owned();
    pb::NewPath { kind: Some(if path.replaces_prefix() { Kind::Prefix(text) } else { Kind::Full(text) }) }
}

fn decode_mirror(message: pb::Mirror, names: &mut Interner) -> Result<Mirror, InvalidResource> {
    Ok(Mirror {
        to: decode_destination(message.to, names)?,
        share: decode_share(message.numerator, message.denominator)?,
    })
}

fn decode_share(numerator: u32, denominator: u32) -> Result<Fraction, InvalidResource> {
    Fraction::new(numerator, denominator).map_err(|error| InvalidResource::field("denominator", error))
}

fn encode_mirror(mirror: &Mirror) -> pb::Mirror {
    let (numerator, denominator) = mirror.share.parts();
    pb::Mirror { to: Some(encode_destination(&mirror.to)), numerator, denominator }
}

fn decode_cors(message: &pb::Cors) -> Result<Cors, InvalidResource> {
    let parts = CorsParts {
        origins: &texts(&message.origins),
        credentials: message.credentials,
        methods: &texts(&message.methods),
        headers: &texts(&message.headers),
        exposed: &texts(&message.exposed),
        max_age: message.max_age_seconds,
    };
    Cors::parse(&parts).map_err(|error| InvalidResource::field("cors", error))
}

fn encode_cors(cors: &Cors) -> pb::Cors {
    pb::Cors {
        origins: cors.origins().collect(),
        credentials: cors.credentials(),
        methods: cors.methods().names().map(ToOwned::to_owned).collect(),
        headers: cors.headers().names().map(ToOwned::to_owned).collect(),
        exposed: cors.exposed().names().map(ToOwned::to_owned).collect(),
        max_age_seconds: Some(cors.max_age()),
    }
}

fn decode_fault(message: pb::Fault) -> Result<Fault, InvalidResource> {
    let delay = message.delay.map(|delay| {
        let share = decode_share(delay.numerator, delay.denominator)?;
        Ok::<_, InvalidResource>(Delay { share, time: Duration::from_millis(delay.ms) })
    });
    let abort = message.abort.map(|abort| {
        let share = decode_share(abort.numerator, abort.denominator)?;
        Ok::<_, InvalidResource>(Abort { share, with: decode_with(abort.with)? })
    });
    Fault::new(delay.transpose()?, abort.transpose()?).map_err(|error| {
        let field = match error {
            InvalidFault::Nothing | InvalidFault::Delay(_) => "delay",
            InvalidFault::Status(_) => "abort",
        };
        InvalidResource::field(field, error)
    })
}

fn decode_with(with: Option<pb::abort::With>) -> Result<With, InvalidResource> {
    let none = |field: &'static str, code: u32| InvalidResource::field(field, format!("{code} is no status"));
    match with {
        Some(pb::abort::With::Http(code)) => {
            let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            status.map(With::Http).ok_or_else(|| none("abort.http", code))
        }
        Some(pb::abort::With::Grpc(code)) => {
            GrpcCode::parse(&code.to_string()).map(With::Grpc).ok_or_else(|| none("abort.grpc", code))
        }
        None => Err(unset("abort.with")),
    }
}

fn encode_fault(fault: &Fault) -> pb::Fault {
    let delay = fault.delay().map(|Delay { share, time }| {
        let (numerator, denominator) = share.parts();
        pb::Delay { numerator, denominator, ms: millis(*time) }
    });
    let abort = fault.abort().map(|Abort { share, with }| {
        let (numerator, denominator) = share.parts();
        let with = match with {
            With::Http(status) => pb::abort::With::Http(status.as_u16().into()),
            With::Grpc(code) => pb::abort::With::Grpc(code.code()),
        };
        pb::Abort { numerator, denominator, with: Some(with) }
    });
    pb::Fault { delay, abort }
}

fn decode_auth(message: pb::ExternalAuth, names: &mut Interner) -> Result<ExternalAuth, InvalidResource> {
    use pb::external_auth::Who;
    match message.who.ok_or_else(|| unset("who"))? {
        Who::Asks(asked) => {
            let asked = authorizer::decode(asked, names).map_err(|error| error.within("asks"))?;
            Ok(ExternalAuth::Asks(Arc::new(asked)))
        }
        Who::Invalid(reason) => Ok(ExternalAuth::Nobody { reason: names.name(&reason) }),
    }
}

fn encode_auth(auth: &ExternalAuth) -> pb::ExternalAuth {
    use pb::external_auth::Who;
    let who = match auth {
        ExternalAuth::Asks(asked) => Who::Asks(authorizer::encode(asked)),
        ExternalAuth::Nobody { reason } => Who::Invalid(reason.to_string()),
    };
    pb::ExternalAuth { who: Some(who) }
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}
