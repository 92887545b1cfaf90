//! The field selector syntax: `metadata.name=a,spec.nodeName!=b`, with `\` escaping `,`, `=` and itself.

use serde_json::Value;

use crate::kinds::Resource;

/// A conjunction of comparisons; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses, and checks that objects of `resource` can be selected by these fields.
    pub fn parse(text: &str, resource: &Resource) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for part in split(text).into_iter().filter(|part| !part.is_empty()) {
            let term = term(&part)
                .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            resource.check_field_label(&term.field)?;
            terms.push(term);
        }
        Ok(FieldSelector(terms))
    }

    /// Selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the object is selected.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.0.iter().all(|term| {
            resource
                .field_label(object, &term.field)
                .is_ok_and(|value| (value == term.value) == term.equal)
        })
    }

    /// The one name that is selected, if `metadata.name=` is among the terms.
    pub fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|term| term.equal && term.field == "metadata.name")
            .map(|term| term.value.as_str())
    }
}

/// At commas that are not escaped.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn term(part: &str) -> Option<Term> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    let (equal, value) = match rest {
        rest if rest.starts_with("!=") => (false, &rest[2..]),
        rest if rest.starts_with("==") => (true, &rest[2..]),
        rest if rest.starts_with('=') => (true, &rest[1..]),
        _ => return None,
    };
    Some(Term {
        field: field.trim().to_owned(),
        equal,
        value: unescape(value)?,
    })
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(chars.next().filter(|next| "\\,=".contains(*next))?),
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_and_escapes() {
        assert_eq!(
            term(r"spec.x!=a\,b\=c"),
            Some(Term {
                field: "spec.x".into(),
                equal: false,
                value: "a,b=c".into()
            })
        );
        assert_eq!(split(r"a=b\,c,d=e"), [r"a=b\,c", "d=e"]);
        assert_eq!(term("a"), None);
        assert_eq!(term("a=b=c"), None);
    }
}
