//! What probes and replies look like on the wire.
//!
//! Both are UDP datagrams that begin with a header of [`HEADER`] bytes, in network byte order:
//!
//! ```text
//!  0                   1                   2                   3
//! +-------------------------------+-------------------------------+
//! |                        magic, "pnet"                          |
//! +---------------+---------------+-------------------------------+
//! |  version, 1   |     kind      |            length             |
//! +---------------+---------------+-------------------------------+
//! |                             nonce                             |
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                           checksum                            |
//! +---------------------------------------------------------------+
//! ```
//!
//! A probe (kind 1) is filled up to `length` with bytes that follow from the nonce; `checksum` is theirs. The reply
//! (kind 2, or 3 when what arrived is not what the checksum says) is the header alone and gives `length` as it arrived.
//! A reply is never longer than its probe, so that nobody gets more sent than they send.

/// The UDP port on which an agent answers probes.
pub const PORT: u16 = 9981;
/// Length of the header, which is also the shortest probe.
pub const HEADER: usize = 20;

const MAGIC: [u8; 4] = *b"pnet";
const VERSION: u8 = 1;
const PROBE: u8 = 1;
const INTACT: u8 = 2;
const CORRUPT: u8 = 3;

/// An answer to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The probe's.
    pub nonce: u64,
    /// How long the probe was when it arrived.
    pub length: u16,
    /// Every byte arrived as it was sent.
    pub intact: bool,
}

/// A probe of `length` bytes, at least [`HEADER`].
pub fn probe(nonce: u64, length: u16) -> Vec<u8> {
    let length = length.max(HEADER as u16);
    let mut bytes = header(PROBE, length, nonce, 0);
    bytes.extend(filling(nonce).take(usize::from(length) - HEADER));
    let sum = checksum(&bytes[HEADER..]);
    bytes[16..HEADER].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The reply to a probe; `None` to anything else.
pub fn answer(probe: &[u8]) -> Option<Vec<u8>> {
    let (kind, length, nonce, sum) = read(probe)?;
    if kind != PROBE {
        return None;
    }
    let arrived = u16::try_from(probe.len()).ok()?;
    let intact = arrived == length && checksum(&probe[HEADER..]) == sum;
    let kind = if intact { INTACT } else { CORRUPT };
    Some(header(kind, arrived, nonce, 0))
}

/// Reads a reply.
pub fn reply(bytes: &[u8]) -> Option<Reply> {
    let (kind, length, nonce, _) = read(bytes)?;
    let intact = match kind {
        INTACT => true,
        CORRUPT => false,
        _ => return None,
    };
    Some(Reply {
        nonce,
        length,
        intact,
    })
}

/// The nonce of a probe or the beginning of one, as it comes back with an error.
pub fn nonce(bytes: &[u8]) -> Option<u64> {
    read(bytes).map(|(_, _, nonce, _)| nonce)
}

fn header(kind: u8, length: u16, nonce: u64, sum: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::from(length));
    bytes.extend(MAGIC);
    bytes.extend([VERSION, kind]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(nonce.to_be_bytes());
    bytes.extend(sum.to_be_bytes());
    bytes
}

fn read(bytes: &[u8]) -> Option<(u8, u16, u64, u32)> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    if header[..4] != MAGIC || header[4] != VERSION {
        return None;
    }
    let length = u16::from_be_bytes([header[6], header[7]]);
    let nonce = u64::from_be_bytes(header[8..16].try_into().ok()?);
    let sum = u32::from_be_bytes(header[16..].try_into().ok()?);
    Some((header[5], length, nonce, sum))
}

fn filling(nonce: u64) -> impl Iterator<Item = u8> {
    (0..).flat_map(move |block| super::mix(nonce ^ block).to_be_bytes())
}

/// FNV-1a, 32 bits: against accidents, not against enemies.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_probe_is_answered_with_its_length_and_whether_it_is_whole(
            sent in any::<u64>(), length in 0..9000_u16, at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>(),
        ) {
            let mut bytes = probe(sent, length);
            prop_assert_eq!(bytes.len(), usize::from(length).max(HEADER));
            prop_assert_eq!(nonce(&bytes), Some(sent));
            let expected = Reply { nonce: sent, length: bytes.len() as u16, intact: true };
            let answered = answer(&bytes).unwrap();
            prop_assert_eq!(reply(&answered), Some(expected));
            prop_assert!(answered.len() <= bytes.len());
            prop_assert!(answer(&answered).is_none(), "a reply to a reply would go on for ever");
            if bytes.len() > HEADER {
                if cut {
                    bytes.truncate(bytes.len() - 1);
                } else {
                    let at = HEADER + at.index(bytes.len() - HEADER);
                    bytes[at] ^= flip;
                }
                prop_assert!(!reply(&answer(&bytes).unwrap()).unwrap().intact);
            }
        }

        #[test]
        fn nonsense_is_nothing(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(answer(&bytes).is_none());
            prop_assert!(reply(&bytes).is_none());
        }
    }
}
