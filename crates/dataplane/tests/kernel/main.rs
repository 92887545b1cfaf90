//! What was applied, as the kernel carries it out: in network namespaces, with real packets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

/// Runs tests on every back end: `NAME(on)` becomes the tests `nftables::NAME`, `iptables_legacy::NAME` and so on.
macro_rules! on_every_back_end {
    ($($test:ident),* $(,)?) => {
        mod nftables {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::Nftables) })*
        }
        mod iptables_legacy {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::IptablesLegacy) })*
        }
        mod iptables_nft {
            $(#[test] fn $test() { super::$test($crate::common::BackEnd::IptablesNft) })*
        }
    };
}

mod back_ends;
mod common;
mod node_ports;
mod paths;
mod peers;
mod rolling;
mod services;
mod states;
mod traffic;
mod untranslated;
mod walks;
