//! Domain names (RFC 1035, section 3.1).

use std::fmt;
use std::str::FromStr;

/// Why a text is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainNameError {
    /// RFC 1035 allows labels of 1 to 63 characters.
    #[error("{0:?} is no domain name: between its dots stand 1 to 63 characters each")]
    Label(String),
    /// RFC 1035 allows names of 255 bytes, dots and the end included.
    #[error("{0:?} is no domain name: it is longer than 253 characters")]
    Length(String),
}

/// An absolute domain name, with the case it was written in.
///
/// It is kept as it travels: every label behind its length, and a zero at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Box<[u8]>);

impl DomainName {
    /// The root.
    pub fn root() -> Self {
        DomainName(Box::new([0]))
    }

    /// The name that these bytes are, as it travels; `None` when they are none, or more than one.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let mut rest = wire;
        while let Some((&length @ 1..64, after)) = rest.split_first() {
            rest = after.get(usize::from(length)..)?;
        }
        (rest == [0] && wire.len() <= 255).then(|| DomainName(wire.into()))
    }

    /// As it travels: labels behind their lengths, and a zero at the end.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The same without the zero at the end: what stands before another name.
    pub fn labels(&self) -> &[u8] {
        &self.0[..self.0.len() - 1]
    }

    /// The same name in lower case.
    pub fn to_lower(&self) -> Self {
        // No length of a label (63 at most) is a letter.
        DomainName(self.0.to_ascii_lowercase().into())
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    /// A dot at the end changes nothing; there are no escapes.
    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        let labels = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(labels.len() + 2);
        for label in labels.split('.').filter(|_| !text.is_empty() && text != ".") {
            append_label(&mut wire, label.as_bytes()).ok_or_else(|| DomainNameError::Label(text.into()))?;
        }
        if text.is_empty() {
            return Err(DomainNameError::Label(text.into()));
        }
        wire.push(0);
        if wire.len() > 255 {
            return Err(DomainNameError::Length(text.into()));
        }
        Ok(DomainName(wire.into()))
    }
}

/// Appends a label behind its length; `None` when it is no label.
pub(crate) fn append_label(wire: &mut Vec<u8>, label: &[u8]) -> Option<()> {
    let length = u8::try_from(label.len())
        .ok()
        .filter(|length| (1..=63).contains(length))?;
    if label.contains(&b'.') {
        return None;
    }
    wire.push(length);
    wire.extend(label);
    Some(())
}

impl fmt::Display for DomainName {
    /// With the dot at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.labels();
        if rest.is_empty() {
            return f.write_str(".");
        }
        while let Some((&length, after)) = rest.split_first() {
            let (label, after) = after.split_at(usize::from(length));
            write!(f, "{}.", String::from_utf8_lossy(label))?;
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_labels_of_63_and_255_bytes() {
        let name: DomainName = "Www.example.com".parse().unwrap();
        assert_eq!(name.wire(), b"\x03Www\x07example\x03com\0");
        assert_eq!(name.to_string(), "Www.example.com.");
        assert_eq!(name.to_string().parse(), Ok(name.clone()));
        assert_eq!(name.to_lower().to_string(), "www.example.com.");
        assert_eq!(DomainName::from_wire(name.wire()), Some(name.clone()));
        assert_eq!(DomainName::from_wire(b"\x03Www\0\0"), None);
        assert_eq!(DomainName::from_wire(b"\x03Ww"), None);
        assert_eq!(".".parse(), Ok(DomainName::root()));
        assert_eq!(DomainName::root().to_string(), ".");
        let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert!(long.parse::<DomainName>().is_ok());
        for bad in ["", "a..b", ".a", "..", &"a".repeat(64), &format!("{long}d")] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
    }
}
