//! What was applied, as the kernel carries it out: in network namespaces, with real packets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Runs tests on every back end that this kernel is known to have: `NAME(on)` becomes the tests `nftables::NAME`,
/// `iptables_legacy::NAME` and so on.
macro_rules! on_every_back_end_here {
    ($($test:ident),* $(,)?) => {
        mod nftables {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::Nftables) })*
        }
        mod ebpf {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::Ebpf) })*
        }
        mod iptables_legacy {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::IptablesLegacy) })*
        }
        mod iptables_nft {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::IptablesNft) })*
        }
        mod userspace {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::Userspace) })*
        }
    };
}

/// What other kernels' verifiers and hooks make of programs.
macro_rules! programs_on {
    ($($kernel:ident)*) => {$(
        mod $kernel {
            mod ebpf {
                use crate::common::BackEnd::Ebpf;

                #[test]
                #[ignore = "needs another kernel: cargo xtask vm"]
                fn packets() {
                    crate::packets::packets_meet_the_fate_the_oracle_says(Ebpf);
                }

                #[test]
                #[ignore = "needs another kernel: cargo xtask vm"]
                fn killed() {
                    crate::killed::an_agent_that_is_killed_in_the_middle_of_a_sync_loses_no_packet_and_the_next_completes_it(Ebpf);
                }

                #[test]
                #[ignore = "needs another kernel: cargo xtask vm"]
                fn sockets() {
                    crate::ebpf::everything();
                }
            }
        }
    )*};
}

programs_on!(linux_6_12 linux_6_1);

/// The same, and `linux_6_12::ipvs::NAME` for a kernel that has IPVS.
macro_rules! on_every_back_end {
    ($($test:ident),* $(,)?) => {
        on_every_back_end_here!($($test),*);
        mod linux_6_12 {
            mod ipvs {
                $(
                    #[test]
                    #[ignore = "needs Linux 6.12: cargo xtask vm"]
                    fn $test() {
                        super::super::$test($crate::common::BackEnd::Ipvs)
                    }
                )*
            }
        }
    };
}

mod affinity;
mod back_ends;
mod changes;
mod common;
mod crafted;
mod ebpf;
mod established;
mod flows;
mod host_ports;
mod ipvs;
mod killed;
mod near;
mod node_ports;
mod packets;
mod paths;
mod peers;
mod pod_path;
mod policy;
#[expect(clippy::duplicate_mod, reason = "it is what differs that is tested")]
#[path = "policy/mod.rs"]
mod policy_by_programs;
mod repairs;
mod rolling;
mod sctp;
mod services;
mod states;
mod talk;
mod traffic;
mod tunnel;
mod untranslated;
mod upgrades;
mod userspace;
mod walks;
mod written;
