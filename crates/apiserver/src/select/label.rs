//! The label selector syntax: `a=b,c!=d,e in (f, g),h notin (i),j,!k,l>3`.

use serde_json::Value;

/// A conjunction of requirements; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Above(i64),
    Below(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Equals,
    NotEquals,
    Above,
    Below,
    Not,
    Comma,
    Open,
    Close,
}

impl LabelSelector {
    /// Parses; the error is Kubernetes' text.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        let mut tokens = lex(text).into_iter().peekable();
        let mut requirements = Vec::new();
        while tokens.peek().is_some() {
            requirements.push(requirement(&mut tokens)?);
            match tokens.next() {
                None => break,
                Some(Token::Comma) if tokens.peek().is_some() => {}
                Some(Token::Comma) => return Err("found '', expected: identifier after ','".to_owned()),
                Some(other) => {
                    return Err(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
        Ok(LabelSelector(requirements))
    }

    /// Selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `metadata.labels` (an object or null) is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.0
            .iter()
            .all(|requirement| requirement.matches(labels.get(&requirement.key).and_then(Value::as_str)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(set) => value.is_some_and(|value| set.iter().any(|one| one == value)),
            Test::NotIn(set) => value.is_none_or(|value| set.iter().all(|one| one != value)),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::Above(limit) => number().is_some_and(|number| number > *limit),
            Test::Below(limit) => number().is_some_and(|number| number < *limit),
        }
    }
}

type Tokens = std::iter::Peekable<std::vec::IntoIter<Token>>;

fn requirement(tokens: &mut Tokens) -> Result<Requirement, String> {
    let negated = tokens.next_if_eq(&Token::Not).is_some();
    let key = word(tokens, "identifier")?;
    check_key(&key)?;
    if negated {
        return Ok(Requirement {
            key,
            test: Test::Missing,
        });
    }
    let test = match tokens.peek() {
        None | Some(Token::Comma) => Test::Exists,
        Some(Token::Equals) => {
            tokens.next();
            Test::In(vec![value(tokens)?])
        }
        Some(Token::NotEquals) => {
            tokens.next();
            Test::NotIn(vec![value(tokens)?])
        }
        Some(Token::Above) => {
            tokens.next();
            Test::Above(number(tokens)?)
        }
        Some(Token::Below) => {
            tokens.next();
            Test::Below(number(tokens)?)
        }
        Some(Token::Word(word)) if word == "in" => {
            tokens.next();
            Test::In(set(tokens)?)
        }
        Some(Token::Word(word)) if word == "notin" => {
            tokens.next();
            Test::NotIn(set(tokens)?)
        }
        Some(other) => {
            let found = other.text();
            return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt"));
        }
    };
    Ok(Requirement { key, test })
}

fn word(tokens: &mut Tokens, expected: &str) -> Result<String, String> {
    match tokens.next() {
        Some(Token::Word(word)) => Ok(word),
        Some(other) => Err(format!("found '{}', expected: {expected}", other.text())),
        None => Err(format!("found '', expected: {expected}")),
    }
}

/// The value after an operator; it may be empty.
fn value(tokens: &mut Tokens) -> Result<String, String> {
    match tokens.peek() {
        None | Some(Token::Comma) => Ok(String::new()),
        _ => {
            let value = word(tokens, "identifier")?;
            check_value(&value).map(|()| value)
        }
    }
}

fn number(tokens: &mut Tokens) -> Result<i64, String> {
    let text = word(tokens, "integer")?;
    text.parse()
        .map_err(|_| format!("for 'Gt', 'Lt' operators, the value must be an integer: {text:?}"))
}

fn set(tokens: &mut Tokens) -> Result<Vec<String>, String> {
    match tokens.next() {
        Some(Token::Open) => {}
        other => {
            let found = other.map(|token| token.text()).unwrap_or_default();
            return Err(format!("found '{found}' expected: '('"));
        }
    }
    let mut values = Vec::new();
    loop {
        match tokens.next() {
            Some(Token::Word(word)) => {
                check_value(&word)?;
                values.push(word);
                match tokens.next() {
                    Some(Token::Comma) => {}
                    Some(Token::Close) => return Ok(values),
                    other => {
                        let found = other.map(|token| token.text()).unwrap_or_default();
                        return Err(format!("found '{found}', expected: ',' or ')'"));
                    }
                }
            }
            Some(Token::Comma) => values.push(String::new()),
            Some(Token::Close) => {
                values.push(String::new());
                return Ok(values);
            }
            other => {
                let found = other.map(|token| token.text()).unwrap_or_default();
                return Err(format!("found '{found}', expected: ',', ')' or identifier"));
            }
        }
    }
}

impl Token {
    fn text(&self) -> String {
        match self {
            Token::Word(word) => word.clone(),
            Token::Equals => "=".into(),
            Token::NotEquals => "!=".into(),
            Token::Above => ">".into(),
            Token::Below => "<".into(),
            Token::Not => "!".into(),
            Token::Comma => ",".into(),
            Token::Open => "(".into(),
            Token::Close => ")".into(),
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '>' => (Token::Above, 1),
            '<' => (Token::Below, 1),
            '=' if rest.starts_with("==") => (Token::Equals, 2),
            '=' => (Token::Equals, 1),
            '!' if rest.starts_with("!=") => (Token::NotEquals, 2),
            '!' => (Token::Not, 1),
            _ => {
                let end = rest
                    .find(|c: char| c.is_whitespace() || "()=!<>,".contains(c))
                    .unwrap_or(rest.len());
                (Token::Word(rest[..end].to_owned()), end)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// A qualified name: `[prefix/]name`.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let subdomain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let good_prefix = prefix.is_none_or(|p| !p.is_empty() && p.len() <= 253 && p.chars().all(subdomain));
    if good_prefix && !name.is_empty() && name.len() <= 63 && is_label_text(name) {
        return Ok(());
    }
    Err(format!(
        "key: Invalid value: {key:?}: name part must consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    ))
}

fn check_value(value: &str) -> Result<(), String> {
    if value.len() <= 63 && is_label_text(value) {
        return Ok(());
    }
    Err(format!(
        "values[0][{value}]: Invalid value: {value:?}: a valid label must be an empty string or consist of \
         alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
         'MyValue',  or 'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    ))
}

fn is_label_text(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    edge(text.chars().next())
        && edge(text.chars().next_back())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn every_operator() {
        let labels = json!({"app": "web", "tier": "1", "empty": ""});
        for yes in [
            "",
            "app=web",
            "app==web",
            "app = web , tier=1",
            "app!=db",
            "none!=x",
            "app in (db, web)",
            "app notin (db)",
            "none notin (db)",
            "app",
            "!none",
            "tier>0",
            "tier<2",
            "empty=",
            "empty in ()",
            "empty in (,x)",
        ] {
            assert!(matches(yes, labels.clone()), "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "none",
            "!app",
            "none in (x)",
            "tier>1",
            "app>0",
            "app notin (web)",
            "none=",
        ] {
            assert!(!matches(no, labels.clone()), "{no}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for bad in [
            "=x", "a b", "a in x", "a in (x", "a,", "a!", "!", "a=b=c", "-a=b", "a=-b", "a>b", "x/y/z=1",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }
}
