//! How metrics are written down: which format and coding the reader wants, and Prometheus' older text format.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// The text format of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4: the default, as every reader knows it.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn accepted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or("*/*");
        let open = quality(accept, &["application/openmetrics-text"]);
        let text = quality(accept, &["text/plain", "text/*", "*/*"]);
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The `Content-Type` of a response in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The content coding of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// Compressed.
    Gzip,
}

impl Encoding {
    /// The coding that an `Accept-Encoding` header allows.
    pub fn accepted(accept: Option<&str>) -> Self {
        let gzip = accept.map_or(0.0, |accept| quality(accept, &["gzip", "x-gzip", "*"]));
        if gzip > 0.0 { Self::Gzip } else { Self::Identity }
    }

    /// Encodes a body; says which coding was really used.
    pub fn apply(self, body: Vec<u8>) -> (Vec<u8>, Self) {
        match self {
            Self::Identity => (body, Self::Identity),
            Self::Gzip => {
                // The fastest level: label sets repeat so much that the others gain little.
                let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
                match encoder.write_all(&body).and_then(|()| encoder.finish()) {
                    Ok(compressed) => (compressed, Self::Gzip),
                    Err(_) => (body, Self::Identity),
                }
            }
        }
    }
}

/// The quality of the first of `names` (most exact first) that the header mentions. A name that it gives twice, with
/// different parameters, counts with its best.
fn quality(header: &str, names: &[&str]) -> f32 {
    let best = |name: &&str| -> Option<f32> {
        let offers = header.split(',').filter_map(|offer| {
            let (offered, parameters) = offer.split_once(';').unwrap_or((offer, ""));
            offered.trim().eq_ignore_ascii_case(name).then(|| {
                let q = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
                q.map_or(1.0, |q| q.trim().parse().unwrap_or(0.0))
            })
        });
        offers.reduce(f32::max)
    };
    names.iter().find_map(best).unwrap_or(0.0)
}

/// Prometheus text from OpenMetrics text. They differ in what the descriptor of a counter or an info is called, in units,
/// exemplars, the word for no type, and the end mark.
pub(super) fn prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help: Option<&str> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest.split_once(' ').map_or("", |(_, help)| help));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some(help) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([without_exemplar(line), "\n"]);
        }
    }
    text
}

fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in sample.char_indices() {
        match c {
            '\\' if quoted && !escaped => {
                escaped = true;
                continue;
            }
            '"' if !escaped => quoted = !quoted,
            '#' if !quoted => return sample.get(..at).unwrap_or(sample).trim_end(),
            _ => {}
        }
        escaped = false;
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_format_follows_accept() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.1";
        let cases = [
            (None, Format::Prometheus),
            (Some("*/*"), Format::Prometheus),
            (Some("text/html"), Format::Prometheus),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("Application/OpenMetrics-Text; version=1.0.0"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Format::Prometheus),
            (Some("text/plain;q=0.9, application/openmetrics-text;q=0.3"), Format::Prometheus),
            (Some(prometheus_3), Format::OpenMetrics),
        ];
        for (accept, expected) in cases {
            assert_eq!(Format::accepted(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn gzip_is_used_when_allowed_and_only_then() {
        let cases = [
            (None, Encoding::Identity),
            (Some("identity"), Encoding::Identity),
            (Some("gzip;q=0"), Encoding::Identity),
            (Some("*;q=0.5, gzip;q=0"), Encoding::Identity),
            (Some("deflate, gzip"), Encoding::Gzip),
            (Some("GZIP;q=0.1"), Encoding::Gzip),
            (Some("*"), Encoding::Gzip),
        ];
        for (accept, expected) in cases {
            assert_eq!(Encoding::accepted(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn what_is_compressed_can_be_read_back() {
        let body = b"metric 1\n".repeat(1000);
        let (compressed, encoding) = Encoding::Gzip.apply(body.clone());
        assert_eq!(encoding, Encoding::Gzip);
        assert!(compressed.len() < body.len() / 10);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(compressed.as_slice()).read_to_end(&mut read).unwrap();
        assert_eq!(read, body);
    }

    #[test]
    fn prometheus_text_differs_in_descriptors_only() {
        let open_metrics = "# HELP a_b Help.\n# TYPE a_b counter\n# UNIT a_b bytes\n\
            a_b_total{x=\"# \\\" # {\"} 3 # {trace=\"1\"} 0.5\n\
            # HELP build Build.\n# TYPE build info\nbuild_info{tag=\"1\"} 1\n\
            # HELP u U.\n# TYPE u unknown\nu 1\n# HELP g G.\n# TYPE g gauge\ng 2\n# EOF\n";
        let expected = "# HELP a_b_total Help.\n# TYPE a_b_total counter\n\
            a_b_total{x=\"# \\\" # {\"} 3\n\
            # HELP build_info Build.\n# TYPE build_info gauge\nbuild_info{tag=\"1\"} 1\n\
            # HELP u U.\n# TYPE u untyped\nu 1\n# HELP g G.\n# TYPE g gauge\ng 2\n";
        assert_eq!(prometheus(open_metrics), expected);
    }
}
