//! Watch: changes as JSON lines, as they concern the selection, with bookmarks.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::list::{ListQuery, revision, selection};
use super::table::{IncludeObject, render};
use super::{Api, Object, in_version, prefix};
use crate::kinds::{FieldError, Resource};
use crate::rest::{Query, Shape};
use crate::select::Selection;
use crate::status::Refusal;
use crate::store::{Event, RevisionError, Subscription};

/// How often a watcher that wants them gets a bookmark.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a timeout lasts at least so long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// Query of a watch.
#[derive(Clone, Debug)]
pub struct WatchQuery {
    selection: Selection,
    /// Where to go on; `None` starts with what is there.
    after: Option<u64>,
    bookmarks: bool,
    initial_events_end: bool,
    timeout: Duration,
    shape: Shape,
    include: IncludeObject,
}

impl WatchQuery {
    /// From a request's query.
    pub fn parse(resource: &Resource, query: &Query, shape: Shape) -> Result<WatchQuery, Refusal> {
        let seconds = query
            .non_empty("timeoutSeconds")
            .map(str::parse::<u64>)
            .transpose();
        let seconds = seconds.map_err(|_| Refusal::bad_request("timeoutSeconds: not a number of seconds"))?;
        // Spread over as much again, so that not all watchers come back at once.
        let spread = uuid::Uuid::new_v4().as_u128() % u128::from(DEFAULT_TIMEOUT.as_secs());
        let default = DEFAULT_TIMEOUT + Duration::from_secs(u64::try_from(spread).unwrap_or_default());
        let version = revision(query)?;
        let bookmarks = query.is_true("allowWatchBookmarks");
        let streamed = query.get("sendInitialEvents");
        let matching = query.non_empty("resourceVersionMatch");
        check_initial_events(streamed, matching)?;
        let from_now = streamed == Some("true") || (version == 0 && streamed.is_none());
        Ok(WatchQuery {
            selection: selection(resource, query)?,
            after: (!from_now).then_some(version),
            bookmarks,
            initial_events_end: bookmarks && streamed == Some("true"),
            timeout: seconds
                .filter(|seconds| *seconds > 0)
                .map_or(default, Duration::from_secs),
            shape,
            include: IncludeObject::parse(query.get("includeObject")),
        })
    }
}

fn check_initial_events(streamed: Option<&str>, matching: Option<&str>) -> Result<(), Refusal> {
    let refuse = |error: FieldError| {
        Err(Refusal {
            status: crate::kinds::invalid_status("meta.k8s.io", "ListOptions", "", &[error]),
        })
    };
    match (streamed, matching) {
        (Some(_), Some("NotOlderThan")) | (None, None) => Ok(()),
        (Some(_), _) => refuse(FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
        (None, Some(_)) => refuse(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
    }
}

/// A running watch; [`WatchStream::next`] yields chunks of JSON lines.
pub struct WatchStream {
    resource: Resource,
    query: WatchQuery,
    pending: VecDeque<Bytes>,
    /// `None` after an error, which is the last event.
    subscription: Option<Subscription>,
    deadline: Instant,
    bookmark: Instant,
    header_sent: bool,
}

impl Api {
    /// GET with `watch`.
    pub async fn watch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        query: WatchQuery,
    ) -> Result<WatchStream, Refusal> {
        let now = Instant::now();
        let (deadline, bookmark) = (now + query.timeout, now + BOOKMARK_EVERY);
        let mut stream = WatchStream {
            resource: resource.clone(),
            query,
            pending: VecDeque::new(),
            subscription: None,
            deadline,
            bookmark,
            header_sent: false,
        };
        let after = match stream.query.after {
            // A version that is yet to come may come soon: as Kubernetes, start now and wait for what is later.
            Some(after) => after,
            None => self.send_initial(&mut stream, namespace).await?,
        };
        match self.store.watch(&prefix(resource, namespace), after).await {
            Ok(subscription) => stream.subscription = Some(subscription),
            Err(error @ RevisionError::Compacted { .. }) => stream.push_error(&error.into()),
            Err(error) => return Err(error.into()),
        }
        Ok(stream)
    }

    /// What is there now, as additions; answers the revision it is true for.
    async fn send_initial(&self, stream: &mut WatchStream, namespace: Option<&str>) -> Result<u64, Refusal> {
        let query = ListQuery {
            selection: stream.query.selection.clone(),
            ..ListQuery::default()
        };
        let listed = self.list(&stream.resource.clone(), namespace, &query).await?;
        for object in &listed.items {
            stream.push("ADDED", object);
        }
        if stream.query.initial_events_end {
            stream.push_bookmark(listed.revision, true);
        }
        Ok(listed.revision)
    }
}

impl WatchStream {
    /// The next chunk; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.pending.is_empty() {
                return Some(self.drain());
            }
            let subscription = self.subscription.as_mut()?;
            tokio::select! {
                event = subscription.next() => match event {
                    Some(event) => self.offer(&event),
                    None => self.subscription = None,
                },
                () = tokio::time::sleep_until(self.bookmark), if self.query.bookmarks => self.mark(),
                () = tokio::time::sleep_until(self.deadline) => self.end(),
            }
        }
    }

    /// Everything pending as one chunk.
    fn drain(&mut self) -> Bytes {
        if self.pending.len() == 1 {
            return self.pending.pop_front().unwrap_or_default();
        }
        let mut out = BytesMut::new();
        for line in self.pending.drain(..) {
            out.put_slice(&line);
        }
        out.freeze()
    }

    /// What an event of the store means to this selection.
    fn offer(&mut self, event: &Event) {
        let now = in_version(&self.resource, &event.object);
        let before = event
            .before
            .as_ref()
            .map(|before| in_version(&self.resource, before));
        let selects = |object: &Object| self.query.selection.matches(&self.resource, object.value());
        let was = before.as_ref().is_some_and(selects);
        let is = !event.deleted && selects(&now);
        match (was, is) {
            (false, false) => {}
            (false, true) => self.push("ADDED", &now),
            (true, true) => self.push("MODIFIED", &now),
            (true, false) if event.deleted => self.push("DELETED", &now),
            // Out of the selection: the last selected state, at this revision.
            (true, false) => {
                let mut last = before.map(|before| before.value().clone()).unwrap_or_default();
                last["metadata"]["resourceVersion"] = event.revision.to_string().into();
                self.push("DELETED", &Object::Made(last));
            }
        }
    }

    fn push(&mut self, kind: &str, object: &Object) {
        let header = !std::mem::replace(&mut self.header_sent, true);
        let object = render(
            &self.resource,
            self.query.shape,
            self.query.include,
            object,
            header,
        );
        self.pending.push_back(line(kind, &object));
    }

    fn push_error(&mut self, refusal: &Refusal) {
        self.pending
            .push_back(line("ERROR", refusal.status.to_string().as_bytes()));
    }

    fn push_bookmark(&mut self, revision: u64, initial_end: bool) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = (self.resource.kind(), self.resource.api_version());
        let object: Value = match self.query.shape {
            Shape::Object => json!({"kind": kind, "apiVersion": version, "metadata": metadata}),
            Shape::Partial(version) => json!({
                "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
            }),
            Shape::Table(version) => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                "columnDefinitions": null, "rows": [],
            }),
        };
        self.pending
            .push_back(line("BOOKMARK", object.to_string().as_bytes()));
    }

    fn mark(&mut self) {
        self.bookmark = Instant::now() + BOOKMARK_EVERY;
        if let Some(revision) = self.subscription.as_mut().and_then(Subscription::progress) {
            self.push_bookmark(revision, false);
        }
    }

    fn end(&mut self) {
        if self.query.bookmarks {
            self.mark();
        }
        self.subscription = None;
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}
