//! Everything that talks to the kernel and has no opinion: namespaces, netlink, mounts, processes.
//!
//! This is the only crate in which `unsafe` stands. Nothing here knows Kubernetes or podnet's model.
#![expect(
    unsafe_code,
    reason = "the crate that talks to the kernel; every block states why it is sound"
)]

pub mod bootid;
pub mod bpf;
pub mod cgroup;
pub mod datagram;
pub mod enter;
pub mod ethtool;
pub mod fdpass;
pub mod frame_socket;
pub mod ipvs;
pub mod listeners;
mod mac;
pub mod mount;
pub mod netfilter;
pub mod netlink;
pub mod ns;
pub mod packet_socket;
pub mod probe;
pub mod process;
pub mod sysctl;
pub mod xfrm;

pub use mac::{InvalidMacAddr, MacAddr};
