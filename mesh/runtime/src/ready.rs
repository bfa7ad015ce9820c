//! Readiness: named tasks, each held by a guard. The process is ready when none is pending.

use std::sync::Arc;

use http::StatusCode;
use tokio::sync::watch;

use crate::admin::{Method, Pages, Response};

/// What has to happen before the process is ready. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ready {
    tasks: Arc<watch::Sender<Vec<Task>>>,
}

#[derive(Debug)]
struct Task {
    name: String,
    pending: bool,
}

impl Default for Ready {
    fn default() -> Self {
        Self::new()
    }
}

impl Ready {
    /// Nothing pending: register all tasks before the page is served.
    pub fn new() -> Self {
        Self { tasks: Arc::new(watch::Sender::new(Vec::new())) }
    }

    /// Adds a task, pending.
    pub fn task(&self, name: impl Into<String>) -> Pending {
        let mut index = 0;
        self.tasks.send_modify(|tasks| {
            index = tasks.len();
            tasks.push(Task { name: name.into(), pending: true });
        });
        Pending { ready: self.clone(), index }
    }

    /// The names of what is pending, in the order in which the tasks were added.
    pub fn pending(&self) -> Vec<String> {
        self.tasks.borrow().iter().filter(|task| task.pending).map(|task| task.name.clone()).collect()
    }

    /// Completes when nothing is pending, at once if so already.
    pub async fn wait(&self) {
        let mut tasks = self.tasks.subscribe();
        // We hold a sender ourselves, so it cannot be closed.
        let _ = tasks.wait_for(|tasks| tasks.iter().all(|task| !task.pending)).await;
    }

    /// The pages of a readiness server: `/healthz/ready` answers 200, or 500 with what is pending.
    pub fn pages(&self, pages: Pages) -> Pages {
        let ready = self.clone();
        pages.page(Method::GET, "/healthz/ready", "200 when ready, else 500 and what is pending", move |_| {
            ready.answer()
        })
    }

    fn answer(&self) -> Response {
        match self.pending().as_slice() {
            [] => Response::text("ready\n"),
            pending => Response::text(format!("not ready, pending: {}\n", pending.join(", ")))
                .with_status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// One task's side. What it says stays said: dropping it pending keeps the process unready, as whoever had
/// to do the task is gone without having done it.
#[derive(Debug)]
#[must_use = "dropped while pending, the task stays pending for ever"]
pub struct Pending {
    ready: Ready,
    index: usize,
}

impl Pending {
    /// The task is done.
    pub fn done(&self) {
        self.set(false);
    }

    /// The task has to be done again.
    pub fn again(&self) {
        self.set(true);
    }

    fn set(&self, pending: bool) {
        self.ready.tasks.send_if_modified(|tasks| match tasks.get_mut(self.index) {
            Some(task) if task.pending != pending => {
                task.pending = pending;
                true
            }
            Some(_) | None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Address, Server};
    use crate::task;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    #[tokio::test]
    async fn ready_means_that_nothing_is_pending() {
        let ready = Ready::new();
        let state = ready.task("state manager");
        let proxy = ready.task("workload proxy manager");
        assert_eq!(ready.pending(), ["state manager", "workload proxy manager"]);
        state.done();
        state.done();
        assert_eq!(ready.pending(), ["workload proxy manager"]);
        let waiter = ready.clone();
        let waiting = task::spawn("waiter", async move { waiter.wait().await });
        proxy.done();
        assert_eq!(timeout(Duration::from_secs(10), waiting).await, Ok(task::Ended::Finished));
        proxy.again();
        assert_eq!(ready.pending(), ["workload proxy manager"]);
        drop(proxy);
        drop(state);
        assert_eq!(ready.pending(), ["workload proxy manager"], "lost while pending, done while done");
    }

    #[tokio::test]
    async fn a_prober_sees_500_with_names_then_200() {
        let ready = Ready::new();
        let (state, proxy) = (ready.task("state manager"), ready.task("proxy"));
        let server = Server::bind(&["127.0.0.1:0".parse::<Address>().unwrap()]).await.unwrap();
        let address = server.local_addresses()[0];
        let pages = ready.pages(Pages::new("readiness"));
        let _serving = task::spawn("readiness", server.serve(pages, std::future::pending())).owned();
        let probe = || async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let before = probe().await;
        assert!(before.starts_with("HTTP/1.1 500 "), "{before}");
        assert!(before.ends_with("\r\n\r\nnot ready, pending: state manager, proxy\n"), "{before}");
        state.done();
        proxy.done();
        let after = probe().await;
        assert!(after.starts_with("HTTP/1.1 200 ") && after.ends_with("\r\n\r\nready\n"), "{after}");
    }
}
