//! List: consistent pages, by selectors, now or at a revision.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Api, Object, in_version, prefix};
use crate::kinds::{FieldError, Resource};
use crate::rest::Query;
use crate::select::{FieldSelector, LabelSelector, Selection};
use crate::status::Refusal;
use crate::store::RevisionError;

/// Query of a list or a collection delete.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Which objects.
    pub selection: Selection,
    /// At most so many; 0 for all.
    pub limit: usize,
    /// Where the page before ended.
    pub continue_from: Option<Token>,
    /// List as of exactly this revision.
    pub exactly: Option<u64>,
    /// The list must not be older than this revision.
    pub not_before: u64,
}

/// The opaque `continue` token: where to go on, at which revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// `None`: at whatever revision there is.
    revision: Option<u64>,
    /// The last key of the page before.
    after: String,
}

/// A page of a list.
#[derive(Debug)]
pub struct Listed {
    /// The list's resourceVersion.
    pub revision: u64,
    /// The objects.
    pub items: Vec<Object>,
    /// How to get the next page.
    pub next: Option<Token>,
    /// How many are left, when that is known.
    pub remaining: Option<usize>,
}

impl Token {
    /// As the client gets it.
    pub fn encode(&self) -> String {
        let revision = self.revision.map_or(json!(-1), Value::from);
        URL_SAFE_NO_PAD
            .encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": self.after}).to_string())
    }

    fn decode(text: &str) -> Option<Token> {
        let json: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let revision = json["rv"].as_i64()?;
        Some(Token {
            revision: u64::try_from(revision).ok(),
            after: json["start"].as_str()?.to_owned(),
        })
    }
}

/// The selectors of a request.
pub(crate) fn selection(resource: &Resource, query: &Query) -> Result<Selection, Refusal> {
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
        .map_err(|error| Refusal::bad_request(format!("unable to parse requirement: {error}")))?;
    let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default(), resource)
        .map_err(Refusal::bad_request)?;
    Ok(Selection { labels, fields })
}

/// A resourceVersion; empty is 0.
pub(crate) fn revision(query: &Query) -> Result<u64, Refusal> {
    let text = query.get("resourceVersion").unwrap_or_default();
    match text {
        "" => Ok(0),
        text => text.parse().map_err(|_| {
            let error = FieldError::invalid(
                "resourceVersion",
                text,
                format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
            );
            Refusal {
                status: crate::kinds::invalid_status("meta.k8s.io", "ListOptions", "", &[error]),
            }
        }),
    }
}

impl ListQuery {
    /// From a request's query.
    pub fn parse(resource: &Resource, query: &Query) -> Result<ListQuery, Refusal> {
        let selection = selection(resource, query)?;
        let limit = query.non_empty("limit").map(|text| text.parse::<i64>());
        let limit = limit
            .transpose()
            .map_err(|_| Refusal::bad_request("limit: not a number"))?
            .unwrap_or_default();
        let limit = usize::try_from(limit).unwrap_or_default();
        let continue_from = match query.non_empty("continue") {
            Some(text) => Some(Token::decode(text).ok_or_else(|| {
                Refusal::bad_request(
                    "invalid continue token: continue key is not valid: incorrect encoded start key",
                )
            })?),
            None => None,
        };
        let version = revision(query)?;
        let given = query.non_empty("resourceVersion").is_some();
        let matching = query.non_empty("resourceVersionMatch");
        let forbid = |detail: &str| {
            let error = FieldError::forbidden("resourceVersionMatch", detail);
            Err(Refusal {
                status: crate::kinds::invalid_status("meta.k8s.io", "ListOptions", "", &[error]),
            })
        };
        let mut parsed = ListQuery {
            selection,
            limit,
            continue_from,
            exactly: None,
            not_before: 0,
        };
        match matching {
            Some(_) if !given => {
                return forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            Some(_) if parsed.continue_from.is_some() => {
                return forbid("resourceVersionMatch is forbidden when continue is provided");
            }
            Some("Exact") if version == 0 => {
                return forbid("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"");
            }
            Some("Exact") => parsed.exactly = Some(version),
            Some("NotOlderThan") => parsed.not_before = version,
            Some(other) => {
                let supported = ["Exact", "NotOlderThan", ""];
                let error = FieldError::not_supported("resourceVersionMatch", other, &supported);
                return Err(Refusal {
                    status: crate::kinds::invalid_status("meta.k8s.io", "ListOptions", "", &[error]),
                });
            }
            // Without a match rule a limited list is exact, any other is not older.
            None if version > 0 && limit > 0 && parsed.continue_from.is_none() => {
                parsed.exactly = Some(version)
            }
            None => parsed.not_before = version,
        }
        if parsed.continue_from.is_some() && version != 0 {
            return Err(Refusal::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(parsed)
    }
}

impl Api {
    /// GET of a collection.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        query: &ListQuery,
    ) -> Result<Listed, Refusal> {
        let at = query
            .continue_from
            .as_ref()
            .and_then(|token| token.revision)
            .or(query.exactly);
        let prefix = prefix(resource, namespace);
        let listing = match self.store.list(&prefix, at).await {
            Ok(listing) => listing,
            Err(error @ RevisionError::Compacted { .. }) => return Err(expired(query, error)),
            Err(error) => return Err(error.into()),
        };
        if listing.revision < query.not_before {
            let error = RevisionError::Future {
                asked: query.not_before,
                current: listing.revision,
            };
            return Err(error.into());
        }
        let after = query.continue_from.as_ref().map(|token| token.after.as_str());
        let from = after.map_or(0, |after| {
            listing
                .items
                .partition_point(|stored| stored.key.as_str() <= after)
        });
        let mut listed = Listed {
            revision: listing.revision,
            items: Vec::new(),
            next: None,
            remaining: None,
        };
        let everything = query.selection.is_everything();
        let mut last = "";
        for (at, stored) in listing.items.iter().enumerate().skip(from) {
            let object = in_version(resource, stored);
            if !everything && !query.selection.matches(resource, object.value()) {
                continue;
            }
            if query.limit > 0 && listed.items.len() == query.limit {
                listed.next = Some(Token {
                    revision: Some(listing.revision),
                    after: last.to_owned(),
                });
                listed.remaining = everything.then_some(listing.items.len() - at);
                break;
            }
            last = &stored.key;
            listed.items.push(object);
        }
        Ok(listed)
    }
}

/// 410; a continued list is told how to go on without consistency.
fn expired(query: &ListQuery, error: RevisionError) -> Refusal {
    let Some(token) = &query.continue_from else {
        return Refusal::expired("The resourceVersion for the provided list is too old.");
    };
    tracing::debug!(%error, "a continued list has expired");
    let mut refusal = Refusal::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    let inconsistent = Token {
        revision: None,
        after: token.after.clone(),
    };
    refusal.status["metadata"]["continue"] = inconsistent.encode().into();
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        for revision in [None, Some(7)] {
            let token = Token {
                revision,
                after: "core/pods/a/b".into(),
            };
            assert_eq!(Token::decode(&token.encode()), Some(token));
        }
        assert_eq!(Token::decode("x"), None);
    }
}
