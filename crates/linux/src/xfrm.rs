//! IPsec, as far as it concerns who sends past it.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

use crate::netlink::wire;

// Of include/uapi/linux/xfrm.h.
const XFRM_MSG_NEWSPDINFO: u16 = 0x24;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRMA_SPD_INFO: u16 = 1;
/// Length of the flags that are before attributes.
const FLAGS: usize = 4;

/// How many policies there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policies {
    /// For what is received here.
    pub inward: u32,
    /// For what is sent from here, or on.
    pub outward: u32,
    /// For what is sent on.
    pub forward: u32,
}

/// Counts the policies in the network namespace of the calling thread; there are none where the kernel has no IPsec.
pub fn policies() -> io::Result<Policies> {
    const NO_PROTOCOL: i32 = 93;
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Err(error) if error.raw_os_error() == Some(NO_PROTOCOL) => return Ok(Policies::default()),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    const REQUEST: u16 = 1;
    const LENGTH: u32 = 20;
    let words = |half: u16, other: u16| [half.to_ne_bytes(), other.to_ne_bytes()].concat();
    let header = [
        &LENGTH.to_ne_bytes()[..],
        &words(XFRM_MSG_GETSPDINFO, REQUEST),
        &[0; 8],
        &[0; FLAGS],
    ];
    socket.send(&header.concat(), 0)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut &mut answer[..], 0)?;
    let strange = || io::Error::other("the kernel's answer about IPsec policies cannot be read");
    let message = wire::Messages::new(&answer[..length])
        .next()
        .and_then(Result::ok)
        .ok_or_else(strange)?;
    match (message.kind, message.error()) {
        (XFRM_MSG_NEWSPDINFO, _) => read(message.payload).ok_or_else(strange),
        (_, Some((number, _))) => Err(io::Error::from_raw_os_error(number)),
        _ => Err(strange()),
    }
}

fn read(payload: &[u8]) -> Option<Policies> {
    let (_, counts) = wire::attributes(payload, FLAGS).find(|(kind, _)| *kind == XFRMA_SPD_INFO)?;
    let count = |at: usize| wire::word(counts.get(at * 4..)?);
    Some(Policies {
        inward: count(0)?,
        outward: count(1)?,
        forward: count(2)?,
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::ns::{Kind, Namespace};

    #[test]
    fn policies_are_counted_in_their_own_namespace() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let count = || {
            assert_eq!(policies().unwrap(), Policies::default());
            for (number, direction) in ["in", "out", "out", "fwd", "fwd", "fwd"].into_iter().enumerate() {
                let to = format!("192.0.2.{number}/32");
                let policy = [
                    "xfrm",
                    "policy",
                    "update",
                    "src",
                    "10.0.0.0/8",
                    "dst",
                    &to,
                    "dir",
                    direction,
                ];
                assert!(Command::new("ip").args(policy).status().unwrap().success());
            }
            assert_eq!(
                policies().unwrap(),
                Policies {
                    inward: 1,
                    outward: 2,
                    forward: 3
                }
            );
        };
        namespace.run(count).unwrap();
    }
}
