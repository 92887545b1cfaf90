//! Labels made of addresses: `10-244-0-5`, `fd00--5`.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for every such label.
const LONGEST: usize = 39;

/// A label made of an address.
#[derive(Debug, Clone, Copy)]
pub struct Dashed {
    text: [u8; LONGEST],
    length: usize,
}

impl Dashed {
    /// The label of an address.
    pub fn new(address: IpAddr) -> Self {
        let mut label = Dashed {
            text: [0; LONGEST],
            length: 0,
        };
        // It fits: 39 is the length of the longest IPv6 address, and a mapped one, which is written longer, is none
        // that an endpoint can have.
        let _ = write!(label, "{address}");
        label
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }
}

impl Write for Dashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self
            .text
            .get_mut(self.length..self.length + text.len())
            .ok_or(fmt::Error)?;
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = if matches!(from, b'.' | b':') { b'-' } else { from };
        }
        self.length += text.len();
        Ok(())
    }
}

/// The address a label is made of, in whichever of its spellings. Of three dashes, none beside another, it is IPv4.
pub fn parse(label: &[u8]) -> Option<IpAddr> {
    if label.len() > LONGEST {
        return None;
    }
    let dashes = label.iter().filter(|&&byte| byte == b'-').count();
    let mut text = [0; LONGEST];
    let separator = if dashes == 3 && !label.windows(2).any(|pair| pair == b"--") {
        b'.'
    } else {
        b':'
    };
    for (to, &from) in text.iter_mut().zip(label) {
        match from {
            b'-' => *to = separator,
            // What is written with dots or colons already is no label of ours.
            b'.' | b':' => return None,
            other => *to = other,
        }
    }
    let text = std::str::from_utf8(&text[..label.len()]).ok()?;
    if separator == b'.' {
        text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    } else {
        text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_for_addresses_of_both_families() {
        for (address, label) in [
            ("10.244.0.5", "10-244-0-5"),
            ("fd00::5", "fd00--5"),
            ("1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8"),
            ("::1", "--1"),
            (
                "fd00:1111:2222:3333:4444:5555:6666:7777",
                "fd00-1111-2222-3333-4444-5555-6666-7777",
            ),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(Dashed::new(address).as_bytes(), label.as_bytes());
            assert_eq!(parse(label.as_bytes()), Some(address));
        }
        for other in [
            "",
            "web",
            "10-244-0",
            "10-244-0-256",
            "010-1-1-1",
            "1.2.3.4",
            "fd00::5",
            "a-b-c-d",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
