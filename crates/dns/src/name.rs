//! A name as it is looked up: lower case, with the places of its labels.

/// The longest name, its end included (RFC 1035, section 2.3.4).
const LONGEST: usize = 255;
/// A name has no more labels than this: each has a length and a character, and the end is one byte.
const MOST_LABELS: usize = 127;

/// A name in lower case, as it travels.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    wire: [u8; LONGEST],
    length: u8,
    starts: [u8; MOST_LABELS],
    labels: u8,
}

impl Name {
    /// The name that `bytes` begins with. Pointers are no part of it: a question has nothing before it to point at.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut name = Name {
            wire: [0; LONGEST],
            length: 0,
            starts: [0; MOST_LABELS],
            labels: 0,
        };
        let mut at = 0;
        loop {
            let length = usize::from(*bytes.get(at)?);
            // 64 and above: pointers and extended labels.
            if length > 63 || at + 1 + length > LONGEST {
                return None;
            }
            if length == 0 {
                name.length = u8::try_from(at + 1).ok()?;
                let wire = &mut name.wire[..=at];
                wire.copy_from_slice(&bytes[..=at]);
                // Lengths are below the letters.
                wire.make_ascii_lowercase();
                return Some(name);
            }
            *name.starts.get_mut(usize::from(name.labels))? = u8::try_from(at).ok()?;
            name.labels += 1;
            at += 1 + length;
        }
    }

    /// As it travels.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.wire[..usize::from(self.length)]
    }

    /// How many labels it has; the root has none.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.labels)
    }

    /// Where a label begins; that of the number of labels is the end.
    pub(crate) fn start(&self, label: usize) -> usize {
        if label < self.count() {
            usize::from(self.starts[label])
        } else {
            usize::from(self.length) - 1
        }
    }

    /// A label without its length.
    pub(crate) fn label(&self, label: usize) -> &[u8] {
        &self.wire[self.start(label) + 1..self.start(label + 1)]
    }

    /// Labels from `from` to before `to`, each behind its length.
    pub(crate) fn labels(&self, from: usize, to: usize) -> &[u8] {
        &self.wire[self.start(from)..self.start(to)]
    }

    /// How many labels stand before `suffix`, which is a whole name in lower case; `None` when it does not end so.
    pub(crate) fn before(&self, suffix: &[u8]) -> Option<usize> {
        let at = self.wire().len().checked_sub(suffix.len())?;
        if self.wire().get(at..)? != suffix {
            return None;
        }
        (0..=self.count()).find(|&label| self.start(label) == at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_lower_case_up_to_its_end() {
        let name = Name::parse(b"\x03WeB\x07default\x00more").unwrap();
        assert_eq!(name.wire(), b"\x03web\x07default\0");
        assert_eq!(
            (name.count(), name.label(0), name.label(1)),
            (2, &b"web"[..], &b"default"[..])
        );
        assert_eq!(name.labels(1, 2), b"\x07default");
        assert_eq!(name.before(b"\x07default\0"), Some(1));
        assert_eq!(name.before(b"\0"), Some(2));
        // Not at a label's beginning, and longer than the name.
        assert_eq!(Name::parse(b"\x03a\x01b\0").unwrap().before(b"\x01b\0"), None);
        assert_eq!(name.before(b"\x01x\x03web\x07default\0"), None);
        assert_eq!(Name::parse(b"\0").unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_name_is_not_read() {
        let mut long = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4);
        long.push(0);
        let many = [b"\x01a".repeat(127), vec![0]].concat();
        assert_eq!(Name::parse(&many).unwrap().count(), 127);
        for bad in [
            &b""[..],
            b"\x03we",
            b"\x03web",
            b"\xc0\x0c",
            b"\x41a\0",
            &long,
            &b"\x01a".repeat(128),
        ] {
            assert!(Name::parse(bad).is_none(), "{bad:?}");
        }
    }
}
