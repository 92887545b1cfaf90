//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet (MAC) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A unicast address with the locally-administered bit set (IEEE 802 clause 8.4), made from the first six
    /// octets of a hash.
    pub fn locally_administered(hash: [u8; 6]) -> Self {
        let mut octets = hash;
        octets[0] = (octets[0] | 0x02) & 0xfe;
        MacAddr(octets)
    }

    /// The address if `octets` are six of them.
    pub fn from_slice(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok().map(MacAddr)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an Ethernet address: it has six pairs of hexadecimal digits separated by colons")]
pub struct InvalidMacAddr(String);

impl FromStr for MacAddr {
    type Err = InvalidMacAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| InvalidMacAddr(text.into()))?;
        }
        match parts.next() {
            None => Ok(MacAddr(octets)),
            Some(_) => Err(InvalidMacAddr(text.into())),
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMacAddr;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        let mac: MacAddr = "0a:58:0A:f4:01:02".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:f4:01:02");
        for wrong in [
            "",
            "0a:58",
            "0a:58:0a:f4:01:02:03",
            "0a:58:0a:f4:01:+2",
            "g0:58:0a:f4:01:02",
        ] {
            assert!(wrong.parse::<MacAddr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hash_becomes_a_unicast_address_of_our_own() {
        assert_eq!(MacAddr::locally_administered([0xff; 6]).0[0], 0xfe);
        assert_eq!(MacAddr::locally_administered([0x00; 6]).0[0], 0x02);
    }
}
