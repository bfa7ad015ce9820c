//! Where traces and logs go: OpenTelemetry's own variables, as its specification has them ("Environment Variable
//! Specification", "OTLP Exporter Configuration").
//!
//! Nothing is exported, and no span made, unless an endpoint is set.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use ambit_model::trace::{Ratio, Sampler};
use ambit_runtime::{env::Env, version};
use ambit_wire::{
    channel::{ChannelSettings, RootSource, TokenSource},
    otlp::{Limits, Resource},
};

use super::Own;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What may wait if nothing is said, as in OpenTelemetry. A span is 2 KiB with usual paths, 4 KiB at most: 8 MiB.
const QUEUE: usize = 2048;
/// More than this is memory that the proxy needs for its work.
const LARGEST_QUEUE: usize = 65_536;

/// Where traces and logs go.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// The traces, and which; `None`: there are none.
    pub traces: Option<(Sampler, Export)>,
    /// The access log; `None`: it goes to standard output alone.
    pub logs: Option<Export>,
    /// Who tells.
    pub resource: Resource,
}

/// How something is exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// The collector.
    pub collector: ChannelSettings,
    /// What is bounded.
    pub limits: Limits,
}

impl Telemetry {
    /// Reads it. Variables are read whether they are needed or not, so that a mistake shows when it is made.
    pub fn read(env: &mut Env, own: &Own) -> Self {
        let disabled = env.flag("OTEL_SDK_DISABLED").or(false);
        let sampler = sampler(env);
        let resource = resource(env, own);
        let traces = export(env, "TRACES", "BSP", Choice::ByEndpoint);
        let logs = export(env, "LOGS", "BLRP", Choice::WhenNamed);
        if disabled {
            return Self { resource, ..Self::default() };
        }
        Self { traces: traces.map(|export| (sampler, export)), logs, resource }
    }
}

/// When something is exported of which nothing is said.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// If there is somewhere to send it.
    ByEndpoint,
    /// Never.
    WhenNamed,
}

/// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
fn sampler(env: &mut Env) -> Sampler {
    let ratio = given(env, "OTEL_TRACES_SAMPLER_ARG", Ratio::from_str).unwrap_or(Ratio::ALL);
    let read = |name: &str| {
        let (heeds_caller, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let ratio = match kind {
            "always_on" => Ratio::ALL,
            "always_off" => Ratio::NONE,
            "traceidratio" => ratio,
            _ => {
                return Err(
                    "accepted: always_on, always_off, traceidratio, each also with parentbased_ before it",
                );
            }
        };
        Ok(Sampler { heeds_caller, ratio })
    };
    given(env, "OTEL_TRACES_SAMPLER", read).unwrap_or(Sampler { heeds_caller: true, ratio: Ratio::ALL })
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, over what the proxy knows of itself.
fn resource(env: &mut Env, own: &Own) -> Resource {
    let mut all = BTreeMap::new();
    let mut known = |key: &str, value: &str| {
        if !value.is_empty() {
            all.insert(key.to_owned(), value.to_owned());
        }
    };
    let name = own.identity.as_ref().map(|id| format!("{}.{}", id.service_account, id.namespace));
    known("service.name", name.as_deref().unwrap_or("ambit"));
    known("service.version", &version::line());
    known("service.instance.id", &own.info.pod_name);
    known("k8s.pod.name", &own.info.pod_name);
    known("k8s.namespace.name", &own.info.pod_namespace);
    known("k8s.node.name", &own.info.node_name);
    known("k8s.cluster.name", own.cluster.as_str());
    all.extend(given(env, "OTEL_RESOURCE_ATTRIBUTES", pairs).unwrap_or_default());
    let name = env.string("OTEL_SERVICE_NAME").optional().filter(|name| !name.is_empty());
    all.extend(name.map(|name| ("service.name".to_owned(), name)));
    Resource(all.into_iter().collect())
}

/// What is exported of one signal; `batches` is what its batch processor is called.
fn export(env: &mut Env, signal: &str, batches: &str, choice: Choice) -> Option<Export> {
    let chooser = format!("OTEL_{signal}_EXPORTER");
    let named = given(env, &chooser, |name| match name {
        "otlp" => Ok(true),
        "none" => Ok(false),
        _ => Err("accepted: otlp, none"),
    });
    let mut of_both = Both { env, signal };
    let endpoint = of_both.given("ENDPOINT", endpoint);
    of_both.given("PROTOCOL", |name| if name == "grpc" { Ok(()) } else { Err("accepted: grpc") });
    let timeout = of_both.given("TIMEOUT", milliseconds).unwrap_or(Duration::from_secs(10));
    let is_compressed = of_both.given("COMPRESSION", |name| match name {
        "gzip" => Ok(true),
        "none" => Ok(false),
        _ => Err("accepted: gzip, none"),
    });
    let roots = of_both.given("CERTIFICATE", |path| Ok::<_, &str>(RootSource::File(path.into())));
    let headers = of_both.secret("HEADERS", headers);
    let queue = count(env, &format!("OTEL_{batches}_MAX_QUEUE_SIZE"), QUEUE);
    let batch = count(env, &format!("OTEL_{batches}_MAX_EXPORT_BATCH_SIZE"), QUEUE / 4).min(queue);
    let delay = given(env, &format!("OTEL_{batches}_SCHEDULE_DELAY"), milliseconds);
    // OpenTelemetry's own: long for traces, which come late anyway, short for logs, which people follow.
    let usual = Duration::from_secs(if choice == Choice::ByEndpoint { 5 } else { 1 });
    let wanted = named.unwrap_or(choice == Choice::ByEndpoint && endpoint.is_some());
    if wanted && endpoint.is_none() {
        env.reject(
            &chooser,
            format!("is otlp, and {ENDPOINT} does not say where to; set it to http://host:4317"),
        );
    }
    let address = endpoint.filter(|_| wanted)?;
    let collector = ChannelSettings {
        address,
        roots: roots.unwrap_or(RootSource::System),
        alt_hostname: None,
        token: TokenSource::None,
        cluster_id: String::new(),
        headers: headers.unwrap_or_default(),
    };
    let is_compressed = is_compressed.unwrap_or(false);
    let limits = Limits { queue, batch, delay: delay.unwrap_or(usual), timeout, is_compressed };
    Some(Export { collector, limits })
}

/// Variables of an exporter, each also for one signal alone.
struct Both<'e, 's> {
    env: &'e mut Env,
    signal: &'s str,
}

impl Both<'_, '_> {
    fn given<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let of_all = given(self.env, &format!("OTEL_EXPORTER_OTLP_{name}"), &parse);
        given(self.env, &format!("OTEL_EXPORTER_OTLP_{}_{name}", self.signal), &parse).or(of_all)
    }

    fn secret<T, E: std::fmt::Display>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let mut read =
            |name: String| self.env.parsed(&name, |text| unless_empty(text, &parse)).secret().optional();
        let of_all = read(format!("OTEL_EXPORTER_OTLP_{name}")).flatten();
        read(format!("OTEL_EXPORTER_OTLP_{}_{name}", self.signal)).flatten().or(of_all)
    }
}

/// A variable; empty is as if it were not set (the specification, "Parsing empty value").
fn given<T, E: std::fmt::Display>(
    env: &mut Env,
    name: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    env.parsed(name, |text| unless_empty(text, &parse)).optional().flatten()
}

fn unless_empty<T, E>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Option<T>, E> {
    let text = text.trim();
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

fn endpoint(text: &str) -> Result<String, &'static str> {
    let wrong = "accepted: http://host:port or https://host:port, without a path";
    let uri = http::Uri::from_str(text).map_err(|_| wrong)?;
    let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let has_path = uri.path_and_query().is_some_and(|path| path.as_str() != "/");
    if has_scheme && has_host && is_plain && !has_path { Ok(text.to_owned()) } else { Err(wrong) }
}

fn milliseconds(text: &str) -> Result<Duration, &'static str> {
    let wrong = "accepted: a number of milliseconds, at least 1";
    match text.parse() {
        Ok(0) | Err(_) => Err(wrong),
        Ok(count) => Ok(Duration::from_millis(count)),
    }
}

fn count(env: &mut Env, name: &str, default: usize) -> usize {
    let read = given(env, name, |text| match text.parse() {
        Ok(count @ 1..=LARGEST_QUEUE) => Ok(count),
        Ok(_) | Err(_) => Err(format!("accepted: a number from 1 to {LARGEST_QUEUE}")),
    });
    read.unwrap_or(default)
}

/// `key=value,key=value`, values with `%` escapes (W3C Baggage).
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let wrong = "accepted: key=value, several separated by commas";
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or(wrong)?;
        let value = unescaped(value.trim()).ok_or("has a % that begins no escape, or one of no text")?;
        if key.trim().is_empty() { Err(wrong) } else { Ok((key.trim().to_owned(), value)) }
    };
    text.split(',').filter(|one| !one.trim().is_empty()).map(pair).collect()
}

fn headers(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut all = pairs(text)?;
    for (name, value) in &mut all {
        name.make_ascii_lowercase();
        let is_header =
            http::HeaderName::from_str(name).is_ok() && http::HeaderValue::from_str(value).is_ok();
        if !is_header {
            return Err("is no header");
        }
    }
    Ok(all)
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit =
                || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (high, low) = (digit()?, digit()?);
            bytes.push(high << 4 | low);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use ambit_wire::xds::node::NodeKind;

    use super::{super::ProxyConfig, *};

    fn read(variables: &[(&str, &str)]) -> (Telemetry, Vec<String>) {
        let own = [("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "gate"), ("POD_NAME", "gate-1")];
        let all = own.iter().chain(variables);
        let mut env = Env::new(all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let own = Own::read(&mut env, &ProxyConfig::default(), NodeKind::Waypoint);
        let telemetry = Telemetry::read(&mut env, &own);
        let mistakes = env.finish().err();
        (telemetry, mistakes.map(|all| all.names().map(str::to_owned).collect()).unwrap_or_default())
    }

    const AT: (&str, &str) = (ENDPOINT, "http://collector:4317");

    #[test]
    fn nothing_is_exported_unless_somebody_says_where_to() {
        let (telemetry, mistakes) = read(&[("OTEL_TRACES_SAMPLER", "always_on")]);
        assert!(telemetry.traces.is_none() && telemetry.logs.is_none() && mistakes.is_empty());
        let (telemetry, _) = read(&[(ENDPOINT, "")]);
        assert!(telemetry.traces.is_none());
        let (telemetry, _) = read(&[AT]);
        let (sampler, export) = telemetry.traces.unwrap();
        assert_eq!(sampler, Sampler { heeds_caller: true, ratio: Ratio::ALL });
        assert_eq!((export.limits.queue, export.limits.batch), (2048, 512));
        assert_eq!((export.limits.delay.as_secs(), export.limits.timeout.as_secs()), (5, 10));
        assert!(telemetry.logs.is_none());
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(read(&[AT, off]).0.traces.is_none(), "{off:?}");
        }
    }

    #[test]
    fn logs_are_exported_when_they_are_named_and_may_go_elsewhere() {
        let logs = ("OTEL_LOGS_EXPORTER", "otlp");
        let elsewhere = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs:4317/");
        let (telemetry, mistakes) =
            read(&[AT, logs, elsewhere, ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip")]);
        assert_eq!(mistakes, Vec::<String>::new());
        let export = telemetry.logs.unwrap();
        assert_eq!(
            (export.collector.address.as_str(), export.limits.is_compressed),
            ("https://logs:4317/", true)
        );
        assert!(!telemetry.traces.unwrap().1.limits.is_compressed);
        assert_eq!(read(&[logs]).1, ["OTEL_LOGS_EXPORTER"]);
    }

    #[test]
    fn roots_are_sampled_by_ratio_and_callers_are_heeded() {
        let sampler = |name, arg| {
            let read = read(&[AT, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", arg)]);
            read.0.traces.unwrap().0
        };
        let ratio = "0.25".parse().unwrap();
        assert_eq!(sampler("parentbased_traceidratio", "0.25"), Sampler { heeds_caller: true, ratio });
        assert_eq!(sampler("traceidratio", "0.25"), Sampler { heeds_caller: false, ratio });
        assert_eq!(sampler("always_off", "0.25"), Sampler { heeds_caller: false, ratio: Ratio::NONE });
        assert_eq!(sampler("parentbased_traceidratio", "").ratio, Ratio::ALL);
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named() {
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BLRP_SCHEDULE_DELAY", "soon"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_SDK_DISABLED", "maybe"),
            ("OTEL_RESOURCE_ATTRIBUTES", "novalue"),
        ] {
            assert!(read(&[(name, value)]).1.contains(&name.to_owned()), "{name}={value}");
        }
    }

    #[test]
    fn headers_are_secret_and_escaped() {
        let name = "OTEL_EXPORTER_OTLP_HEADERS";
        let (telemetry, _) = read(&[AT, (name, "Api-Key=a%20b, x=1")]);
        let headers = telemetry.traces.unwrap().1.collector.headers;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(headers, [pair("api-key", "a b"), pair("x", "1")]);
        for bad in ["hunter2", "a=hunter2%", "a b=hunter2"] {
            assert!(read(&[(name, bad)]).1.contains(&name.to_owned()), "{bad}");
        }
    }

    #[test]
    fn the_process_says_who_it_is() {
        let name = |variables: &[(&str, &str)]| {
            let (telemetry, _) = read(variables);
            let found = telemetry.resource.0.into_iter().find(|(key, _)| key == "service.name");
            found.map(|(_, value)| value).unwrap_or_default()
        };
        assert_eq!(name(&[]), "gate.shop");
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,team=a%2Cb");
        assert_eq!(name(&[attributes]), "other");
        assert_eq!(name(&[attributes, ("OTEL_SERVICE_NAME", "mine")]), "mine");
        assert!(read(&[attributes]).0.resource.0.contains(&("team".to_owned(), "a,b".to_owned())));
    }
}
