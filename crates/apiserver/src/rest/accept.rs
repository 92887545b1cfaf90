//! What the client wants back: `Accept` with Kubernetes' `as`, `v` and `g` parameters.

use http::HeaderMap;
use http::header::ACCEPT;

/// The shape in which objects are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As they are.
    Object,
    /// As rows, in `meta.k8s.io/VERSION`.
    Table(&'static str),
    /// Metadata only, in `meta.k8s.io/VERSION`.
    Partial(&'static str),
}

/// The shape in which discovery is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryShape {
    /// One document per group version.
    Plain,
    /// Everything at once, in `apidiscovery.k8s.io/VERSION`.
    Aggregated(&'static str),
}

/// One media range of `Accept`.
#[derive(Debug)]
struct Range<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl Range<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }

    fn is_json(&self) -> bool {
        matches!(self.media, "application/json" | "application/*" | "*/*")
    }
}

fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let values = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut ranges: Vec<Range<'_>> = values
        .flat_map(|value| value.split(','))
        .filter_map(range)
        .collect();
    if ranges.is_empty() {
        ranges.push(Range {
            media: "*/*",
            parameters: Vec::new(),
        });
    }
    ranges
}

fn range(text: &str) -> Option<Range<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().filter(|media| !media.is_empty())?;
    let parameters = parts
        .filter_map(|part| part.split_once('='))
        .map(|(k, v)| (k.trim(), v.trim()))
        .collect();
    Some(Range { media, parameters })
}

/// The first acceptable shape of objects; `None` is a 406.
pub(super) fn shape(headers: &HeaderMap) -> Option<Shape> {
    ranges(headers)
        .iter()
        .filter(|range| range.is_json())
        .find_map(|range| {
            let version = match range.parameter("v") {
                Some("v1beta1") => "v1beta1",
                _ => "v1",
            };
            match (range.parameter("as"), range.parameter("g")) {
                (None, _) => Some(Shape::Object),
                (Some("Table"), Some("meta.k8s.io")) => Some(Shape::Table(version)),
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io")) => {
                    Some(Shape::Partial(version))
                }
                _ => None,
            }
        })
}

/// The first acceptable shape of discovery; `None` is a 406.
pub(super) fn discovery_shape(headers: &HeaderMap) -> Option<DiscoveryShape> {
    ranges(headers)
        .iter()
        .filter(|range| range.is_json())
        .find_map(
            |range| match (range.parameter("as"), range.parameter("g"), range.parameter("v")) {
                (None, ..) => Some(DiscoveryShape::Plain),
                (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => {
                    Some(DiscoveryShape::Aggregated("v2"))
                }
                (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => {
                    Some(DiscoveryShape::Aggregated("v2beta1"))
                }
                _ => None,
            },
        )
}

/// Whether the client asked for this media type by name.
pub(super) fn names(headers: &HeaderMap, media: &str) -> bool {
    ranges(headers).iter().any(|range| range.media == media)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        headers
    }

    #[test]
    fn first_acceptable_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(shape(&headers(kubectl)), Some(Shape::Table("v1")));
        assert_eq!(
            shape(&headers("application/vnd.kubernetes.protobuf, application/json")),
            Some(Shape::Object)
        );
        assert_eq!(shape(&headers("application/vnd.kubernetes.protobuf")), None);
        assert_eq!(shape(&HeaderMap::new()), Some(Shape::Object));
        let discovery =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(
            discovery_shape(&headers(discovery)),
            Some(DiscoveryShape::Aggregated("v2"))
        );
        assert_eq!(discovery_shape(&headers("*/*")), Some(DiscoveryShape::Plain));
    }
}
