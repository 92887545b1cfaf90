//! What the kernel's own (legacy) iptables says about its tables, without the program.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, SocketType};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`, which are the same number.
const GET_INFO: libc::c_int = 64;
const NAME: usize = 32;

/// `struct ipt_getinfo`, which `struct ip6t_getinfo` equals.
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// How much is in a table, and where its hooks begin: nearly every change of its rules changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSize {
    /// Rules, with those that the kernel adds for every chain.
    pub entries: u32,
    /// Bytes of all rules.
    pub size: u32,
    /// Where each hook's chain begins and ends.
    pub hooks: ([u32; 5], [u32; 5]),
}

/// The tables that there are in the network namespace of the calling thread, such as `nat`; of IPv6, if `six`.
pub fn tables(six: bool) -> io::Result<Vec<String>> {
    // Of this thread: it may be in another namespace than the process.
    let path = if six {
        "ip6_tables_names"
    } else {
        "ip_tables_names"
    };
    match std::fs::read_to_string(format!("/proc/thread-self/net/{path}")) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Sockets by which tables are asked about.
#[derive(Debug)]
pub struct Xtables {
    four: OwnedFd,
    /// Nothing where the kernel was started without IPv6.
    six: Option<OwnedFd>,
}

impl Xtables {
    /// For the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        let raw = u32::try_from(libc::IPPROTO_RAW).ok().and_then(NonZeroU32::new);
        let open = |family| rustix::net::socket(family, SocketType::RAW, raw.map(Protocol::from_raw));
        Ok(Xtables {
            four: open(AddressFamily::INET)?,
            six: open(AddressFamily::INET6).ok(),
        })
    }

    /// The size of a table, which must be among [`tables`]: asking for it makes it.
    pub fn size(&self, six: bool, table: &str) -> io::Result<TableSize> {
        let (socket, level) = match (&self.six, six) {
            (Some(socket), true) => (socket, libc::IPPROTO_IPV6),
            (None, true) => return Err(io::ErrorKind::Unsupported.into()),
            (_, false) => (&self.four, libc::IPPROTO_IP),
        };
        let mut info = Info {
            name: [0; NAME],
            valid_hooks: 0,
            hook_entry: [0; 5],
            underflow: [0; 5],
            entries: 0,
            size: 0,
        };
        let name = table.as_bytes();
        let Some(place) = info.name.get_mut(..name.len()).filter(|_| name.len() < NAME) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        place.copy_from_slice(name);
        let mut length = size_of::<Info>() as libc::socklen_t;
        // SAFETY: `info` is plain data of the length that is passed, and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                GET_INFO,
                (&raw mut info).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(TableSize {
            entries: info.entries,
            size: info.size,
            hooks: (info.hook_entry, info.underflow),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{Kind, Namespace};

    #[test]
    fn a_rule_more_makes_the_table_larger() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let run = |program: &str, rule: &str| {
            let status = std::process::Command::new(program)
                .args(rule.split(' '))
                .status()
                .unwrap();
            assert!(status.success(), "{program} {rule}");
        };
        namespace
            .run(|| {
                for (six, program) in [(false, "iptables-legacy"), (true, "ip6tables-legacy")] {
                    assert!(tables(six).unwrap().is_empty());
                    run(program, "-t nat -N one");
                    assert_eq!(tables(six).unwrap(), ["nat"]);
                    let xtables = Xtables::open().unwrap();
                    let before = xtables.size(six, "nat").unwrap();
                    assert_eq!(xtables.size(six, "nat").unwrap(), before);
                    run(program, "-t nat -A one -j ACCEPT");
                    let after = xtables.size(six, "nat").unwrap();
                    assert!(after.entries == before.entries + 1 && after.size > before.size);
                }
            })
            .unwrap();
    }
}
