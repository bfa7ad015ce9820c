//! Watches that begin anew when the API server has forgotten where they were.
//!
//! kube's watcher lists again when a watch says so in its stream. Said as the answer to the request (some servers and
//! proxies do), it would ask for the same forgotten version for ever.

use std::{fmt::Debug, future};

use futures_util::{Stream, StreamExt as _, stream, stream::BoxStream};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Error, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// What happens to objects; after a failure it waits a little, each time longer.
pub(super) fn objects<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<Event<K>, Error>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || watcher(api.clone(), config.clone()).boxed();
    let first = begin();
    let events = stream::unfold((first, begin), |(mut events, begin)| async move {
        let event = events.next().await?;
        if matches!(&event, Err(error) if is_forgotten(error)) {
            events = begin();
        }
        Some((event, (events, begin)))
    });
    events.boxed().default_backoff().boxed()
}

/// One object: as it is now, and later; `None` while there is none.
pub(super) fn object<K>(api: Api<K>, name: &str) -> impl Stream<Item = Result<Option<K>, Error>> + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = Config::default().fields(&format!("metadata.name={name}"));
    let states = objects(api, config).scan(false, |is_there, event| {
        let state = match event {
            Ok(Event::Init) => {
                *is_there = false;
                None
            }
            Ok(Event::InitApply(object)) => {
                *is_there = true;
                Some(Ok(Some(object)))
            }
            Ok(Event::InitDone) => (!*is_there).then_some(Ok(None)),
            Ok(Event::Apply(object)) => Some(Ok(Some(object))),
            Ok(Event::Delete(_)) => Some(Ok(None)),
            Err(error) => Some(Err(error)),
        };
        future::ready(Some(state))
    });
    states.filter_map(future::ready)
}

fn is_forgotten(error: &Error) -> bool {
    /// Gone.
    const FORGOTTEN: u16 = 410;
    matches!(
        error,
        Error::WatchStartFailed(kube::Error::Api(status)) | Error::WatchFailed(kube::Error::Api(status))
            if status.code == FORGOTTEN
    )
}
