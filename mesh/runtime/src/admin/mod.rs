//! Small HTTP servers for operators: a page is a method, a path and a closure. Also used for metrics and readiness.

mod message;
mod server;

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use http::StatusCode;
use http::header::{HOST, ORIGIN};

pub use http::Method;

pub use self::message::{Request, Response};
pub use self::server::{Address, BindError, InvalidAddress, Server};

type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// What a server offers. Besides its pages it has an index at `/`, and helps those who ask for what is not there.
#[derive(Clone)]
pub struct Pages {
    title: String,
    pages: Vec<Page>,
}

#[derive(Clone)]
struct Page {
    method: Method,
    path: String,
    about: String,
    handler: Handler,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.pages.iter().map(|page| (&page.method, &page.path))).finish()
    }
}

impl Pages {
    /// No pages yet. The title heads the index.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), pages: Vec::new() }
    }

    /// Adds a page that is answered at once. `about` is its line in the index.
    pub fn page<F>(self, method: Method, path: &str, about: &str, answer: F) -> Self
    where
        F: Fn(Request) -> Response + Send + Sync + 'static,
    {
        self.slow_page(method, path, about, move |request| ready(answer(request)))
    }

    /// Adds a page whose answer has to be waited for.
    pub fn slow_page<F, A>(mut self, method: Method, path: &str, about: &str, answer: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(answer(request)));
        self.pages.push(Page { method, path: path.to_owned(), about: about.to_owned(), handler });
        self
    }

    /// Answers one request, with no server around it.
    pub async fn answer(&self, request: Request) -> Response {
        if is_cross_site(&request) {
            return Response::text("refused: a page of another site sent this request\n")
                .with_status(StatusCode::FORBIDDEN);
        }
        match self.find(request.method(), request.path()) {
            Found::Page(handler) => handler(request).await,
            Found::Index => Response::html(self.index()),
            Found::OtherMethod(allowed) => {
                let help = format!("{} takes {allowed}: curl -X {allowed} …\n", request.path());
                Response::text(help)
                    .with_status(StatusCode::METHOD_NOT_ALLOWED)
                    .with_header("allow", allowed.as_str())
            }
            Found::Nothing => Response::text(self.help()).with_status(StatusCode::NOT_FOUND),
        }
    }

    fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        let mut there = self.pages.iter().filter(|page| page.path == path).peekable();
        let other = there.peek().map(|page| &page.method);
        match (there.find(|page| page.method == *wanted), other) {
            (Some(page), _) => Found::Page(&page.handler),
            (None, Some(allowed)) => Found::OtherMethod(allowed),
            (None, None) if path == "/" && wanted == Method::GET => Found::Index,
            (None, None) if path == "/" => Found::OtherMethod(&Method::GET),
            (None, None) => Found::Nothing,
        }
    }

    fn help(&self) -> String {
        let lines =
            self.pages.iter().map(|page| format!("  {} {}  {}\n", page.method, page.path, page.about));
        format!("There is no such page. These are there:\n{}", lines.collect::<String>())
    }

    fn index(&self) -> String {
        let rows = self.pages.iter().map(|page| {
            let (path, about) = (escaped(&page.path), escaped(&page.about));
            // Only what can be fetched without effect is a link.
            let name = if page.method == Method::GET {
                format!("<a href=\"{path}\">{path}</a>")
            } else {
                format!("{} {path}", page.method)
            };
            format!("<tr><td>{name}</td><td>{about}</td></tr>\n")
        });
        let title = escaped(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
             <body><h1>{title}</h1>\n<table>\n{}</table></body></html>\n",
            rows.collect::<String>()
        )
    }
}

enum Found<'p> {
    Page(&'p Handler),
    Index,
    OtherMethod(&'p Method),
    Nothing,
}

/// Did a browser send this on behalf of another site? Such a site could not read the answer, but it could end the process
/// that an operator has forwarded a port to. Programs send neither header.
fn is_cross_site(request: &Request) -> bool {
    match (request.header("sec-fetch-site"), request.header(ORIGIN.as_str())) {
        (Some(site), _) if site != "same-origin" && site != "none" => true,
        (_, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host);
            host.is_none() || host != request.header(HOST.as_str())
        }
        (_, None) => false,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn pages() -> Pages {
        Pages::new("tunnel <1>")
            .page(Method::GET, "/dump", "all & everything", |_| Response::text("dumped"))
            .page(Method::POST, "/quit", "ends", |request| {
                Response::text(format!("bye {}", request.query("to").unwrap_or_default()))
            })
            .slow_page(Method::GET, "/slow", "takes a while", |request| async move {
                tokio::task::yield_now().await;
                Response::text(request.path().to_owned())
            })
    }

    fn request(method: Method, uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Request::from(request.body(Bytes::new()).unwrap())
    }

    async fn ask(method: Method, uri: &str) -> (u16, String) {
        let response = pages().answer(request(method, uri, &[])).await;
        (response.status().as_u16(), String::from_utf8(response.body().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn pages_answer_at_once_or_later() {
        assert_eq!(ask(Method::GET, "/dump").await, (200, "dumped".to_owned()));
        assert_eq!(ask(Method::HEAD, "/dump").await, (200, "dumped".to_owned()));
        assert_eq!(ask(Method::GET, "/slow").await, (200, "/slow".to_owned()));
        assert_eq!(ask(Method::POST, "/quit?to=all+of%20you").await, (200, "bye all of you".to_owned()));
    }

    #[tokio::test]
    async fn who_asks_wrongly_is_helped() {
        let (status, text) = ask(Method::GET, "/nothing").await;
        assert_eq!(status, 404);
        assert!(text.contains("GET /dump  all & everything") && text.contains("POST /quit"), "{text}");
        let (status, text) = ask(Method::GET, "/quit").await;
        assert_eq!(status, 405);
        assert!(text.contains("curl -X POST"), "{text}");
        assert_eq!(ask(Method::DELETE, "/").await.0, 405);
    }

    #[tokio::test]
    async fn the_index_links_what_can_be_fetched() {
        let (status, html) = ask(Method::GET, "/").await;
        assert_eq!(status, 200);
        assert!(html.contains("<a href=\"/dump\">/dump</a></td><td>all &amp; everything"), "{html}");
        assert!(html.contains("<td>POST /quit</td>") && html.contains("tunnel &lt;1&gt;"), "{html}");
    }

    #[tokio::test]
    async fn requests_of_other_sites_are_refused() {
        let cases: &[(&[(&str, &str)], u16)] = &[
            (&[], 200),
            (&[("host", "localhost:15000")], 200),
            (&[("host", "localhost:15000"), ("origin", "http://localhost:15000")], 200),
            (&[("sec-fetch-site", "same-origin")], 200),
            (&[("sec-fetch-site", "none")], 200),
            (&[("sec-fetch-site", "cross-site")], 403),
            (&[("sec-fetch-site", "same-site")], 403),
            (&[("host", "localhost:15000"), ("origin", "https://evil.example")], 403),
            (&[("host", "localhost:15000"), ("origin", "null")], 403),
            (&[("origin", "https://evil.example")], 403),
        ];
        for (headers, status) in cases {
            let response = pages().answer(request(Method::POST, "/quit", headers)).await;
            assert_eq!(response.status().as_u16(), *status, "{headers:?}");
        }
    }
}
