//! A daemon's pages, asked for from outside its namespace. One request a connection, and nothing clever.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::netns::{Netns, NetnsError};

/// A page is made in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// A dump of ten thousand workloads has ten million bytes.
const LONGEST: u64 = 256 * 1024 * 1024;

/// Where a daemon has its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    netns: Netns,
    address: SocketAddr,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The status.
    pub status: u16,
    /// The text.
    pub body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Nobody answers, or not in HTTP.
    #[error("no answer from {address} in namespace {netns}: {source}; does the daemon run?")]
    Silent {
        /// Where.
        address: SocketAddr,
        /// The namespace.
        netns: String,
        /// Why.
        source: io::Error,
    },
}

impl Admin {
    pub(super) fn new(netns: &Netns, address: SocketAddr) -> Self {
        Self { netns: netns.clone(), address }
    }

    /// The namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The address in it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The page at that path.
    pub fn get(&self, path: &str) -> Result<Page, PageError> {
        self.ask("GET", path)
    }

    /// Has the page at that path do what it does.
    pub fn post(&self, path: &str) -> Result<Page, PageError> {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> Result<Page, PageError> {
        let silent =
            |source| PageError::Silent { address: self.address, netns: self.netns.name().to_owned(), source };
        let stream = self.netns.connect(self.address, LIMIT)?;
        stream.and_then(|stream| exchange(stream, method, path, LIMIT)).map_err(silent)
    }
}

/// Whether a page says that all is well, within `limit` for each step.
pub(crate) fn is_well(netns: &Netns, address: SocketAddr, path: &str, limit: Duration) -> bool {
    let stream = netns.connect(address, limit);
    let page = stream.map(|stream| stream.and_then(|stream| exchange(stream, "GET", path, limit)));
    page.is_ok_and(|page| page.is_ok_and(|page| (200..400).contains(&page.status)))
}

fn exchange(mut stream: TcpStream, method: &str, path: &str, limit: Duration) -> io::Result<Page> {
    stream.set_read_timeout(Some(limit))?;
    // In HTTP/1.0 an answer has one piece and ends with its connection.
    let request = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other("that is not HTTP"))
}

fn parse(answer: &[u8]) -> Option<Page> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut first = head.lines().next()?.split(' ');
    let is_http = first.next()?.starts_with("HTTP/1.");
    let status = first.next()?.parse().ok().filter(|_| is_http)?;
    Some(Page { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_text() {
        let page =
            parse(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 9\r\n\r\nnot ready").unwrap();
        assert_eq!(page, Page { status: 500, body: "not ready".to_owned() });
        assert_eq!(parse(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), None);
        assert_eq!(parse(b""), None);
    }
}
