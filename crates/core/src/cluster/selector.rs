//! Labels and label selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The label that every namespace carries with its own name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A label selector: a conjunction of requirements in canonical order. Without any it selects everything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Selector(BTreeSet<Requirement>);

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    key: String,
    test: LabelTest,
}

/// What is asked of a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelTest {
    /// It is there with one of these values.
    In(BTreeSet<String>),
    /// It is not there, or with none of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    Missing,
}

/// Why a selector is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A key that no label can have.
    #[error(
        "{0:?} is no label key: use [prefix/]name of letters, digits, '-', '_' and '.', 63 characters at most"
    )]
    Key(String),
    /// A value that no label can have.
    #[error("{0:?} is no label value: use letters, digits, '-', '_' and '.', 63 characters at most")]
    Value(String),
    /// `In` and `NotIn` need something to compare with.
    #[error("the operators In and NotIn of {0:?} need at least one value")]
    NoValues(String),
    /// Text that is no requirement.
    #[error("{0:?} is no requirement such as app=web, app in (a,b), app or !app")]
    Text(String),
}

impl Requirement {
    /// A requirement from its parts.
    pub fn new(key: impl Into<String>, test: LabelTest) -> Result<Self, SelectorError> {
        let key = key.into();
        if !is_key(&key) {
            return Err(SelectorError::Key(key));
        }
        if let LabelTest::In(values) | LabelTest::NotIn(values) = &test {
            if values.is_empty() {
                return Err(SelectorError::NoValues(key));
            }
            if let Some(bad) = values.iter().find(|value| !is_value(value)) {
                return Err(SelectorError::Value(bad.clone()));
            }
        }
        Ok(Requirement { key, test })
    }

    /// The label's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What is asked of it.
    pub fn test(&self) -> &LabelTest {
        &self.test
    }

    fn admits(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.test {
            LabelTest::In(values) => value.is_some_and(|value| values.contains(value)),
            LabelTest::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            LabelTest::Exists => value.is_some(),
            LabelTest::Missing => value.is_none(),
        }
    }
}

impl Selector {
    /// The selector that selects everything.
    pub fn everything() -> Self {
        Selector::default()
    }

    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        Selector(requirements.into_iter().collect())
    }

    /// The namespace of that name, by the label that every namespace has.
    pub fn namespace(name: &str) -> Self {
        Selector::new([Requirement {
            key: NAMESPACE_NAME.into(),
            test: LabelTest::In([name.to_owned()].into()),
        }])
    }

    /// Its requirements.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }

    /// Whether it has no requirement.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it selects an object of these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.admits(labels))
    }

    /// Whether everything that `other` selects is selected by this one, as far as the requirements tell it.
    pub fn covers(&self, other: &Selector) -> bool {
        self.0.is_subset(&other.0)
    }

    /// The one name that a selector of namespaces asks for, if it does.
    pub fn namespace_name(&self) -> Option<&str> {
        self.0.iter().find_map(|requirement| match &requirement.test {
            LabelTest::In(values) if requirement.key == NAMESPACE_NAME && values.len() == 1 => {
                values.first().map(String::as_str)
            }
            _ => None,
        })
    }
}

fn is_name(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && text.chars().all(inner) && ends(text.chars().next()) && ends(text.chars().last())
}

fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => super::NodeName::new(prefix).is_ok() && is_name(name),
        None => is_name(text),
    }
}

fn is_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let list = |values: &BTreeSet<String>| {
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            values.join(",")
        };
        match &self.test {
            LabelTest::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            LabelTest::In(values) => write!(f, "{key} in ({})", list(values)),
            LabelTest::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
            LabelTest::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            LabelTest::Exists => f.write_str(key),
            LabelTest::Missing => write!(f, "!{key}"),
        }
    }
}

impl FromStr for Requirement {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let text = text.trim();
        let bad = || SelectorError::Text(text.to_owned());
        let one = |value: &str| BTreeSet::from([value.to_owned()]);
        if let Some(inner) = text.strip_suffix(')') {
            let (head, values) = inner.split_once('(').ok_or_else(bad)?;
            let (key, word) = head.trim().rsplit_once(' ').ok_or_else(bad)?;
            let values = values.split(',').map(|value| value.trim().to_owned()).collect();
            return match word {
                "in" => Requirement::new(key.trim(), LabelTest::In(values)),
                "notin" => Requirement::new(key.trim(), LabelTest::NotIn(values)),
                _ => Err(bad()),
            };
        }
        if let Some(key) = text.strip_prefix('!') {
            Requirement::new(key, LabelTest::Missing)
        } else if let Some((key, value)) = text.split_once("!=") {
            Requirement::new(key, LabelTest::NotIn(one(value)))
        } else if let Some((key, value)) = text.split_once('=') {
            Requirement::new(key, LabelTest::In(one(value)))
        } else {
            Requirement::new(text, LabelTest::Exists)
        }
    }
}

/// As `kubectl --selector` takes it; `*` for everything.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        let requirements: Vec<_> = self.0.iter().map(Requirement::to_string).collect();
        f.write_str(&requirements.join(","))
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.trim() == "*" {
            return Ok(Selector::everything());
        }
        let mut depth = 0_usize;
        let separates = |c: char| {
            match c {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            c == ',' && depth == 0
        };
        text.split(separates)
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn selectors_select_as_the_api_says() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        for (text, with, without) in [
            ("*", true, true),
            ("app=web", true, false),
            ("app in (db,web)", true, false),
            ("app=web,tier=back", false, false),
            ("app!=web", false, true),
            ("app notin (db,dns)", true, true),
            ("app", true, false),
            ("!app", false, true),
        ] {
            let selector: Selector = text.parse().unwrap();
            assert_eq!(selector.matches(&web), with, "{text}");
            assert_eq!(selector.matches(&Labels::new()), without, "{text} of no labels");
            assert_eq!(selector.to_string().parse::<Selector>().unwrap(), selector);
        }
    }

    #[test]
    fn fewer_requirements_cover_more() {
        let of = |text: &str| text.parse::<Selector>().unwrap();
        assert!(of("*").covers(&of("app=web")));
        assert!(of("app=web").covers(&of("app=web,tier")));
        assert!(!of("app=web,tier").covers(&of("app=web")));
    }

    #[test]
    fn what_is_no_selector_says_why() {
        for text in [
            "app in ()x",
            "a b",
            "app=we b",
            "-a=b",
            "a/b/c",
            "app within (a)",
            "",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
        assert!(Requirement::new("a", LabelTest::In(BTreeSet::new())).is_err());
    }
}
