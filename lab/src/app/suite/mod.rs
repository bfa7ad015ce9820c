//! What the conformance tests of Gateway API ask of the pods of a mesh: a server that tells what reached it, and a client
//! that the tests start in a pod and whose output they read.
//!
//! They do so with the image of Istio's echo application. These are its arguments and its lines, as far as the tests
//! give the ones and read the others (`conformance/utils/echo` of the suite): `NAME=VALUE`, a line each, of which
//! `StatusCode`, `Hostname`, `RequestHeader` and `ResponseHeader` are looked at; an empty line ends an answer.

pub(crate) mod client;
pub(crate) mod grpc;
pub(crate) mod server;

use hyper::HeaderMap;

/// One line for each header, as name and value.
fn headers(title: &str, headers: &HeaderMap) -> String {
    let line = |(name, value): (&_, &hyper::header::HeaderValue)| {
        format!("{title}={name}:{}\n", String::from_utf8_lossy(value.as_bytes()))
    };
    headers.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use tokio::task::JoinSet;

    use super::client::Server;
    use super::*;
    use crate::serve::Identity;
    use crate::{Args, Command};

    /// The arguments of the pods in the suite's manifests.
    const SERVER: [&str; 7] = [
        "--tcp=9090",
        "--port=8080",
        "--grpc=7070",
        "--port=8443",
        "--tls=8443",
        "--crt=/cert.crt",
        "--key=/cert.key",
    ];

    fn parsed(words: &[&str]) -> Result<Command, clap::Error> {
        Args::try_parse_from([&["app"], words].concat()).map(|args| args.command)
    }

    /// What the client prints when it is started with `words` and the server is `web-1`.
    async fn said(words: &[&str]) -> String {
        let Ok(Command::SuiteClient(args)) = parsed(&[&["suite-client"], words].concat()) else {
            panic!("{words:?} are not understood");
        };
        let mut tasks = JoinSet::new();
        let (near, far) = tokio::io::duplex(1024);
        let identity = Identity { pod: "web-1".to_owned(), namespace: String::new() };
        tasks.spawn(async { drop(server::serve(far, 8080, Arc::new(identity)).await) });
        let mut server = Server::over(near, &args.url, &mut tasks).await.unwrap();
        let mut said = String::new();
        for number in 0..args.count {
            said.push_str(&server.ask(&args).await.unwrap().told(number, &args.url));
        }
        said
    }

    /// As the suite looks for it: the first `NAME=`, wherever it stands, and what follows on that line.
    fn field<'a>(said: &'a str, name: &str) -> Option<&'a str> {
        said.split_once(&format!("{name}=")).and_then(|(_, rest)| rest.lines().next())
    }

    /// As the suite looks for headers: every `TITLE=NAME:VALUE`.
    fn values<'a>(said: &'a str, title: &str, name: &str) -> Vec<&'a str> {
        let all = said.lines().filter_map(|line| line.split_once(&format!("{title}="))?.1.split_once(':'));
        all.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    #[test]
    fn the_arguments_of_the_manifests_are_understood() {
        let Ok(Command::SuiteServer(_)) = parsed(&[&["suite-server"], &SERVER[..]].concat()) else {
            panic!("not understood");
        };
    }

    #[tokio::test]
    async fn an_answer_is_told_in_the_lines_that_the_suite_reads() {
        let said =
            said(&["http://echo:8080/a?b=c", "--method=POST", "-H", "X-One:1: 2", "-H", "X-One:3"]).await;
        assert_eq!(field(&said, "StatusCode"), Some("200"));
        assert_eq!(field(&said, "Hostname"), Some("web-1"));
        assert_eq!(field(&said, "Host"), Some("echo:8080"));
        assert_eq!(field(&said, "URL"), Some("/a?b=c"));
        assert_eq!(field(&said, "Method"), Some("POST"));
        assert_eq!(field(&said, "ServicePort"), Some("8080"));
        assert_eq!(values(&said, "RequestHeader", "x-one"), ["1: 2", "3"]);
        assert_eq!(values(&said, "ResponseHeader", "content-type"), ["text/plain"]);
        assert!(values(&said, "ResponseHeader", "x-one").is_empty());
        assert!(said.starts_with("[0] Url=http://echo:8080/a?b=c\n"), "{said}");
        assert!(said.contains("[0 body] Hostname=web-1\n"), "{said}");
    }

    #[tokio::test]
    async fn a_host_that_is_given_stands_in_place_of_the_urls() {
        let said = said(&["http://echo/", "-H", "Host:other.example"]).await;
        assert_eq!(field(&said, "Host"), Some("other.example"));
        assert_eq!(values(&said, "RequestHeader", "host"), ["other.example"]);
    }

    #[tokio::test]
    async fn answers_are_parted_by_an_empty_line() {
        let said = said(&["http://echo/", "--count=3"]).await;
        let answers: Vec<_> = said.split("\n\n").filter(|answer| !answer.trim().is_empty()).collect();
        assert_eq!(answers.len(), 3, "{said}");
        assert!(answers.iter().all(|answer| field(answer, "Hostname") == Some("web-1")));
    }

    #[tokio::test]
    async fn a_call_of_grpc_is_told_like_a_request() {
        let said = said(&["grpc://echo:7070", "-H", "x-one:1", "--count=2"]).await;
        let answers: Vec<_> = said.split("\n\n").filter(|answer| !answer.trim().is_empty()).collect();
        assert_eq!(answers.len(), 2, "{said}");
        for answer in answers {
            assert_eq!(field(answer, "StatusCode"), Some("200"));
            assert_eq!(field(answer, "Hostname"), Some("web-1"));
            assert_eq!(field(answer, "Host"), Some("echo:7070"));
            assert_eq!(values(answer, "RequestHeader", "x-one"), ["1"]);
            assert_eq!(field(answer, "Echo"), Some("conformance"));
        }
    }
}
