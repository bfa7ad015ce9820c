//! Objects of a cluster, as its API gives them: a page at a time, of any kind, by the path of their list.

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::{Request, StatusCode};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// As kubectl: large clusters answer in pieces that neither side has to hold twice.
const PAGE: usize = 500;
/// As many as the controller itself reads from a directory.
const MOST: usize = 100_000;

/// Every object at `path`, `/api/v1/pods`; `query` may narrow it, `labelSelector=app%3Dweb`. None if the cluster has
/// no such kind.
pub(crate) async fn list<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &str,
) -> anyhow::Result<Option<Vec<T>>> {
    let cannot = || format!("cannot list {path}");
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let mut page = format!("{path}?limit={PAGE}");
        for (word, value) in [("", query), ("continue=", from.as_str())] {
            if !value.is_empty() {
                page.push_str(&format!("&{word}{value}"));
            }
        }
        let Some(answer) = get(client, &page).await.with_context(cannot)? else { return Ok(None) };
        let Value::Object(mut answer) = answer else { bail!("{path} is no list") };
        let of_list = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (of_list("apiVersion"), of_list("kind"));
        let next = answer.get("metadata").and_then(|meta| meta.get("continue")).and_then(Value::as_str);
        let next = next.unwrap_or_default().to_owned();
        let Some(Value::Array(items)) = answer.remove("items") else { bail!("{path} is no list") };
        for mut item in items {
            // Items of a list are not told what they are.
            if let Value::Object(item) = &mut item {
                item.entry("apiVersion").or_insert_with(|| version.clone().into());
                item.entry("kind").or_insert_with(|| kind.strip_suffix("List").unwrap_or(&kind).into());
            }
            found.push(serde_path_to_error::deserialize(item).with_context(cannot)?);
        }
        if found.len() > MOST {
            bail!("{path} has more than {MOST} objects; narrow it to a namespace");
        }
        if next.is_empty() {
            return Ok(Some(found));
        }
        from = escaped(&next);
    }
}

/// The object or document at `path`; none if it is not there.
pub(crate) async fn get(client: &Client, path: &str) -> anyhow::Result<Option<Value>> {
    let request = Request::get(path).body(kube::client::Body::empty())?;
    let response = client.send(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let answer: Option<Value> = serde_json::from_slice(&body).ok();
    if !status.is_success() {
        let said = answer.as_ref().and_then(|answer| answer.get("message")?.as_str());
        bail!("the API server answers {status}: {}", said.unwrap_or("nothing more"));
    }
    answer.map(Some).with_context(|| format!("{path} is no JSON"))
}

/// What went wrong, in the API server's own words if it has any.
pub(crate) fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error { status.message.clone() } else { error.to_string() }
}

/// The same, as an error to go on with.
pub(crate) fn plain<T>(answer: Result<T, kube::Error>) -> anyhow::Result<T> {
    answer.map_err(|error| anyhow::Error::msg(said(&error)))
}

/// Text as a value of a query.
pub(crate) fn escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A client of an API server that answers each request with what `answer` says.
    fn client(answer: impl Fn(&str) -> (u16, Value) + Send + Sync + 'static) -> Client {
        let answer = Arc::new(answer);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (status, body) = answer(&request.uri().to_string());
            async move {
                hyper::Response::builder()
                    .status(status)
                    .body(http_body_util::Full::new(hyper::body::Bytes::from(body.to_string())))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_list_is_read_page_by_page_and_its_items_are_told_what_they_are() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let client = client(move |uri| {
            seen.lock().unwrap().push(uri.to_owned());
            let (name, next) = if uri.contains("continue") { ("b", "") } else { ("a", "x=") };
            let list = serde_json::json!({
                "apiVersion": "v1", "kind": "PodList", "metadata": { "continue": next },
                "items": [{ "metadata": { "name": name } }],
            });
            (200, list)
        });
        let found = list::<Value>(&client, "/api/v1/pods", "labelSelector=app").await.unwrap().unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((&found[1]["kind"], &found[1]["metadata"]["name"]), (&"Pod".into(), &"b".into()));
        let asked = asked.lock().unwrap().clone();
        assert_eq!(
            asked,
            [
                "/api/v1/pods?limit=500&labelSelector=app",
                "/api/v1/pods?limit=500&labelSelector=app&continue=x%3D"
            ]
        );
    }

    #[tokio::test]
    async fn a_kind_that_is_not_there_is_none_and_a_refusal_is_told_in_the_servers_words() {
        let gone = client(|_| (404, serde_json::json!({ "kind": "Status" })));
        assert!(list::<Value>(&gone, "/apis/x", "").await.unwrap().is_none());
        let forbidden = client(|_| (403, serde_json::json!({ "message": "pods is forbidden" })));
        let error = format!("{:#}", list::<Value>(&forbidden, "/api/v1/pods", "").await.unwrap_err());
        assert!(error.contains("pods is forbidden") && error.contains("/api/v1/pods"), "{error}");
    }
}
