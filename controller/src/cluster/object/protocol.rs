//! What a port carries, in the words of Kubernetes and Istio (protocols 11.6).

use ambit_model::service::AppProtocol;

/// By `appProtocol` if it is said, else by what the port's name begins with, up to a dash.
pub(super) fn of_port(app_protocol: Option<&str>, name: &str) -> Option<AppProtocol> {
    match app_protocol {
        Some("kubernetes.io/h2c") => Some(AppProtocol::Http2),
        Some("kubernetes.io/ws") => Some(AppProtocol::Http11),
        Some("kubernetes.io/wss") => Some(AppProtocol::Tls),
        Some(word) => of_word(word),
        None => of_word(name),
    }
}

/// By a word of Istio's, in any case; `None` for a word that says nothing.
fn of_word(word: &str) -> Option<AppProtocol> {
    let word = word.to_ascii_lowercase();
    if word == "grpc-web" || word.starts_with("grpc-web-") {
        return Some(AppProtocol::Http11);
    }
    match word.split('-').next().unwrap_or_default() {
        "http" => Some(AppProtocol::Http11),
        "http2" => Some(AppProtocol::Http2),
        "grpc" => Some(AppProtocol::Grpc),
        "https" | "tls" => Some(AppProtocol::Tls),
        "tcp" | "mongo" | "redis" | "mysql" => Some(AppProtocol::Tcp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_carries_what_is_said_and_else_what_its_name_says() {
        use AppProtocol::{Grpc, Http2, Http11, Tcp, Tls};
        for (said, name, expected) in [
            (None, "http", Some(Http11)),
            (None, "http-metrics", Some(Http11)),
            (None, "HTTP2-api", Some(Http2)),
            (None, "grpc", Some(Grpc)),
            (None, "grpc-web-x", Some(Http11)),
            (None, "https", Some(Tls)),
            (None, "redis-main", Some(Tcp)),
            (None, "metrics", None),
            (None, "httpx", None),
            (None, "", None),
            (Some("http"), "tcp-db", Some(Http11)),
            (Some("kubernetes.io/h2c"), "http", Some(Http2)),
            (Some("kubernetes.io/wss"), "http", Some(Tls)),
            (Some("example.com/own"), "http", None),
        ] {
            assert_eq!(of_port(said, name), expected, "{said:?} {name:?}");
        }
    }
}
