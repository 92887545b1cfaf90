//! What a network device does itself (`ethtool -k`).

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType};

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` of include/uapi/linux/ethtool.h.
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the link called `name` takes packets without checksums and fills them in (`tx-checksumming`).
pub fn tx_checksum(name: &str) -> io::Result<bool> {
    Ok(call(name, GET_TX_CHECKSUM, 0)? != 0)
}

/// Makes the link called `name` take packets without checksums, or the kernel compute them before. Segmentation
/// offload, which needs it, goes with it.
pub fn set_tx_checksum(name: &str, on: bool) -> io::Result<()> {
    call(name, SET_TX_CHECKSUM, u32::from(on)).map(drop)
}

/// In the network namespace of the calling thread.
fn call(name: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name} is no name of a link"),
        ));
    }
    let mut value = Value { command, data };
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the name ends with a zero since it is shorter than its array, and `value`, which outlives the call, is
    // what both commands read and write.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Netlink, NewLink};
    use crate::ns::{Kind, Namespace};

    #[test]
    fn checksums_can_be_left_to_the_kernel_and_given_back() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink.request(NewLink::veth("a", "b", None).create()).unwrap();
                assert!(tx_checksum("a").unwrap());
                set_tx_checksum("a", false).unwrap();
                assert!(!tx_checksum("a").unwrap());
                assert!(tx_checksum("b").unwrap());
                set_tx_checksum("a", true).unwrap();
                assert!(tx_checksum("a").unwrap());
                assert!(tx_checksum("nosuchlink").is_err());
                assert!(tx_checksum("a-name-that-is-too-long").is_err());
            })
            .unwrap();
    }
}
