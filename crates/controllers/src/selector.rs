//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Labels or a plain selector.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` has everything that `wanted` has. An empty selector selects everything.
pub fn has_all(wanted: &Labels, labels: Option<&Labels>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

/// Whether `selector` selects `labels`. An empty selector selects everything; an operator that is not known selects
/// nothing.
pub fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(|wanted| has_all(wanted, labels))
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|requirement| meets(requirement, labels))
}

fn meets(requirement: &LabelSelectorRequirement, labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|l| l.get(&requirement.key));
    let listed = |value: &String| requirement.values.iter().flatten().any(|v| v == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            match_labels: None,
        }
    }

    #[test]
    fn selects_as_kubernetes_does() {
        let labels: Labels = [("a".into(), "1".into())].into();
        let cases = [
            (requirement("a", "In", &["1", "2"]), true, false),
            (requirement("a", "In", &["2"]), false, false),
            (requirement("a", "NotIn", &["1"]), false, true),
            (requirement("a", "Exists", &[]), true, false),
            (requirement("a", "DoesNotExist", &[]), false, true),
            (requirement("a", "Like", &["1"]), false, false),
            (LabelSelector::default(), true, true),
        ];
        for (selector, with, without) in cases {
            assert_eq!(selects(&selector, Some(&labels)), with, "{selector:?}");
            assert_eq!(selects(&selector, None), without, "{selector:?} without labels");
        }
    }
}
