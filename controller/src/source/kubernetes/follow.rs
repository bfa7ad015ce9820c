//! Follows one kind: which version is served, its list, its watch, and again after every failure.

use std::{ops::ControlFlow, time::Duration};

use ambit_runtime::backoff::Backoff;
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client,
    core::{PartialObjectMeta, Status},
    runtime::watcher,
};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{
    Telling,
    kinds::{Depth, Watched},
    raw::Raw,
    shelf::Shelf,
};

/// The waits between attempts: short enough that an API server that restarts is not missed, long enough that a
/// thousand replicas do not keep it down.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often it is asked whether a definition that was missing is there now.
const NOT_SERVED: Duration = Duration::from_secs(5);
/// What the API server asks for in a `Retry-After` is done, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long one watch lasts. Its end shows that the API server lives: one that died without a word is noticed five
/// seconds after it.
const WATCH_SECONDS: u32 = 60;
/// A question that is not a watch.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects a page, where lists are not streamed: what is in memory twice at most.
const PAGE: u32 = 500;

/// How the list comes at the start of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    /// As events of the watch: neither side ever holds all of it.
    Streamed,
    /// Page by page; an API server before 1.32, or one that is told not to stream.
    Paged,
}

/// Follows a kind until nobody listens.
pub(super) async fn follow(client: Client, watched: Watched, telling: Telling) {
    let mut follower = Follower {
        watched,
        client,
        telling,
        shelf: Shelf::new(watched),
        lists: Lists::Streamed,
        backoff: Backoff::new(FIRST_WAIT, LAST_WAIT),
    };
    while follower.round().await.is_continue() {}
}

struct Follower {
    watched: Watched,
    client: Client,
    telling: Telling,
    shelf: Shelf,
    lists: Lists,
    backoff: Backoff,
}

/// Nobody listens any more.
struct Unheard;

impl Follower {
    /// From the question which version is served to a failure that makes it come up again.
    async fn round(&mut self) -> ControlFlow<()> {
        let asked = timeout(ANSWER, served(&self.client, &self.watched)).await;
        let version = match asked.unwrap_or_else(|late| Err(kube::Error::Service(late.into()))) {
            Ok(Some(version)) => version,
            Ok(None) => {
                self.telling.well(self.watched);
                let told = self.shelf.absent(Instant::now().into_std());
                let complete = told.complete;
                if self.telling.tell(told, &self.shelf).await.is_err() {
                    return ControlFlow::Break(());
                }
                if complete {
                    self.telling.known(self.watched);
                }
                sleep(NOT_SERVED).await;
                return ControlFlow::Continue(());
            }
            Err(error) => {
                self.pause(&error).await;
                return ControlFlow::Continue(());
            }
        };
        self.shelf.read_at(version);
        match self.watch(version).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(Unheard) => ControlFlow::Break(()),
        }
    }

    /// Lists and watches until the kind must be looked up anew.
    async fn watch(&mut self, version: &'static str) -> Result<(), Unheard> {
        let mut events = self.events(version);
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    let told = self.shelf.take(event);
                    let complete = told.complete;
                    self.telling.tell(told, &self.shelf).await.map_err(|_| Unheard)?;
                    if complete {
                        self.telling.known(self.watched);
                    }
                    self.telling.well(self.watched);
                    self.backoff.reset();
                    continue;
                }
                Err(error) => error,
            };
            match status_of(&error).map(|status| status.code) {
                Some(404) if self.watched.is_optional() => return Ok(()),
                Some(400 | 422) if self.lists == Lists::Streamed => {
                    debug!(kind = self.watched.plural, %error, "Lists are not streamed here; they are read in pages");
                    self.lists = Lists::Paged;
                    return Ok(());
                }
                // The watch is too old. As an event the stream understands that; as the answer to a request it would ask
                // the same again for ever.
                Some(410) => {
                    sleep(self.backoff.next(rand::random())).await;
                    return Ok(());
                }
                Some(_) | None => self.pause(&error).await,
            }
        }
        Ok(())
    }

    fn events(&self, version: &str) -> BoxStream<'static, watcher::Result<watcher::Event<Raw>>> {
        let resource = self.watched.resource(version);
        let config = match self.lists {
            Lists::Streamed => watcher::Config::default().timeout(WATCH_SECONDS).streaming_lists(),
            Lists::Paged => watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE),
        };
        match self.watched.depth {
            Depth::Whole => watcher(Api::<Raw>::all_with(self.client.clone(), &resource), config).boxed(),
            Depth::Named(name) => {
                let config = config.fields(&format!("metadata.name={name}"));
                watcher(Api::<Raw>::all_with(self.client.clone(), &resource), config).boxed()
            }
            Depth::Metadata => {
                let api = Api::<PartialObjectMeta<Raw>>::all_with(self.client.clone(), &resource);
                bare(watcher(api, config)).boxed()
            }
        }
    }

    async fn pause(&mut self, error: &(dyn std::error::Error + Send + Sync + 'static)) {
        let status = status_of(error);
        self.telling.ill(self.watched, error, status.map(|status| status.code));
        let asked =
            status.and_then(|status| status.details.as_ref()).map(|details| details.retry_after_seconds);
        let asked = asked.map(|seconds| Duration::from_secs(seconds.into()));
        let wait = self.backoff.next(rand::random());
        sleep(asked.map_or(wait, |asked| asked.min(LONGEST_WAIT).max(wait))).await;
    }
}

/// Metadata as an object that has nothing else.
fn bare(
    events: impl Stream<Item = watcher::Result<watcher::Event<PartialObjectMeta<Raw>>>> + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<Raw>>> + Send {
    let object = |partial: PartialObjectMeta<Raw>| Raw::bare(partial.metadata);
    events.map(move |event| {
        Ok(match event? {
            watcher::Event::Apply(one) => watcher::Event::Apply(object(one)),
            watcher::Event::Delete(one) => watcher::Event::Delete(object(one)),
            watcher::Event::Init => watcher::Event::Init,
            watcher::Event::InitApply(one) => watcher::Event::InitApply(object(one)),
            watcher::Event::InitDone => watcher::Event::InitDone,
        })
    })
}

/// The best version of a kind that the API server serves.
async fn served(client: &Client, watched: &Watched) -> kube::Result<Option<&'static str>> {
    if !watched.is_optional() {
        return Ok(watched.versions.first().copied());
    }
    for version in watched.versions {
        match client.list_api_group_resources(&format!("{}/{version}", watched.group)).await {
            Ok(listed) if listed.resources.iter().any(|one| one.name == watched.plural) => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What the API server said, if it was it that said no.
fn status_of<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Status> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(watcher::Error::WatchError(status)) = error.downcast_ref() {
            return Some(status);
        }
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            return Some(status);
        }
        next = error.source();
    }
    None
}
