//! What a page gets and gives: requests and responses whose bodies are whole.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

/// A request with its whole body.
#[derive(Debug, Clone)]
pub struct Request {
    inner: http::Request<Bytes>,
}

impl From<http::Request<Bytes>> for Request {
    fn from(inner: http::Request<Bytes>) -> Self {
        Self { inner }
    }
}

impl Request {
    /// The method.
    pub fn method(&self) -> &Method {
        self.inner.method()
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        self.inner.uri().path()
    }

    /// A parameter of the query, decoded. `?reset` has the value "".
    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = self.inner.uri().query()?.split('&');
        pairs.find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key) == name).then(|| decoded(value))
        })
    }

    /// A header, if it is there and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        self.inner.body()
    }
}

/// A response with its whole body.
#[derive(Debug, Clone)]
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    /// A body of the given type.
    pub fn bytes(content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status: StatusCode::OK, headers, body: body.into() }
    }

    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::bytes("text/plain; charset=utf-8", text.into())
    }

    /// A JSON document.
    pub fn json(document: impl Into<Bytes>) -> Self {
        Self::bytes("application/json", document)
    }

    /// An HTML document.
    pub fn html(document: impl Into<String>) -> Self {
        Self::bytes("text/html; charset=utf-8", document.into())
    }

    /// The same with another status; it starts as 200.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The same with a header more. A value that no header may have is left out.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// A header, if it is there and readable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub(super) fn into_http(self) -> http::Response<http_body_util::Full<Bytes>> {
        let mut response = http::Response::new(http_body_util::Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        headers.insert("cache-control", HeaderValue::from_static("no-store"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        response
    }
}

/// Undoes percent and plus encoding. What is not encoded properly stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        let escape = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, escape.and_then(hex_byte)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_byte(hex: &str) -> Option<u8> {
    // `from_str_radix` alone would take a sign.
    hex.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded() {
        let uri = "/logging?level=a::b%3atrace,info&reset&bad=%zz%+f%4&caf%C3%A9=1";
        let request = Request::from(http::Request::builder().uri(uri).body(Bytes::new()).unwrap());
        assert_eq!(request.path(), "/logging");
        assert_eq!(request.query("level").as_deref(), Some("a::b:trace,info"));
        assert_eq!(request.query("reset").as_deref(), Some(""));
        assert_eq!(request.query("bad").as_deref(), Some("%zz% f%4"));
        assert_eq!(request.query("café").as_deref(), Some("1"));
        assert_eq!(request.query("none"), None);
    }

    #[test]
    fn a_header_value_that_cannot_be_is_left_out() {
        let response = Response::text("x").with_header("allow", "a\nb").with_header("vary", "accept");
        assert_eq!((response.header("allow"), response.header("vary")), (None, Some("accept")));
    }
}
