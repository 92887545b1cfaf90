//! Label selectors in objects of podnet's own kinds.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{LabelTest, Requirement, Selector};

/// `matchLabels` and `matchExpressions`, as the API has them.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct SelectorObject {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RequirementObject>,
}

#[derive(Debug, Clone, Deserialize)]
struct RequirementObject {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

/// The selector that an object asks for in `field`; none where it has none.
pub(super) fn selector(field: &str, object: Option<SelectorObject>) -> Result<Option<Selector>, String> {
    let Some(object) = object else { return Ok(None) };
    let labels = object.match_labels.into_iter();
    let mut tests: Vec<(String, LabelTest)> = labels
        .map(|(key, value)| (key, LabelTest::In([value].into())))
        .collect();
    for RequirementObject {
        key,
        operator,
        values,
    } in object.match_expressions
    {
        let values = values.into_iter().collect();
        let test = match operator.as_str() {
            "In" => LabelTest::In(values),
            "NotIn" => LabelTest::NotIn(values),
            "Exists" => LabelTest::Exists,
            "DoesNotExist" => LabelTest::Missing,
            _ => {
                return Err(format!(
                    "{field}: operator {operator:?} is none of In, NotIn, Exists and DoesNotExist"
                ));
            }
        };
        tests.push((key, test));
    }
    let requirements: Result<Vec<Requirement>, _> = tests
        .into_iter()
        .map(|(key, test)| Requirement::new(key, test))
        .collect();
    requirements
        .map(|requirements| Some(Selector::new(requirements)))
        .map_err(|error| format!("{field}: {error}"))
}
