//! One line of a log file: `TIME STREAM TAG TEXT`, as the CRI has it.

use jiff::Timestamp;

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) time: Timestamp,
    /// The text goes on in the next record of the same stream: tag `P`, where a whole line or its end has `F`.
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses a line without its line feed; `None` when it is no record.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        if !matches!(fields.next()?, b"stdout" | b"stderr") {
            return None;
        }
        // Tags are separated by colons; the first one tells partial from full.
        let tag = fields.next()?.split(|byte| *byte == b':').next();
        Some(Record {
            time,
            partial: tag == Some(b"P"),
            text: fields.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read() {
        let record = Record::parse(b"2026-01-01T00:00:00.000000001+01:00 stderr P:x  two  spaces").unwrap();
        assert_eq!(record.time, "2025-12-31T23:00:00.000000001Z".parse().unwrap());
        assert_eq!((record.partial, record.text), (true, &b" two  spaces"[..]));
        let empty = Record::parse(b"2026-01-01T00:00:00Z stdout F ").unwrap();
        assert_eq!((empty.partial, empty.text), (false, &b""[..]));
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            let _ = Record::parse(&line);
        }
    }
}
