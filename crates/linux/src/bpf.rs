//! eBPF links, as far as the loader of programs has no call for it; see bpf(2).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Of linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
const LINK_UPDATE: libc::c_long = 29;

/// What `bpf(2)` opens a pin with: the beginning of `union bpf_attr`.
#[repr(C)]
struct ObjectGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// What it changes a link with.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as it is told, of a struct that is all initialised, and writes none of them
    // for these commands.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as libc::c_int),
    }
}

/// Has the link that is pinned at `pin` hold `program` from now on, in one step (Linux 5.7).
pub fn replace_program(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let opened = bpf(
        OBJ_GET,
        &ObjectGet {
            pathname: path.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        },
    )?;
    // SAFETY: the kernel just made it, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(opened) };
    let update = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(LINK_UPDATE, &update).map(drop)
}
