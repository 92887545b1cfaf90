//! What carries services in a test, and what of the tests for all back ends one cannot do.

use std::net::IpAddr;

use podnet_core::cluster::DataplaneName;

use super::Machine;

/// What carries services in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackEnd {
    Nftables,
    Ebpf,
    /// Which not every kernel has.
    Ipvs,
    IptablesLegacy,
    IptablesNft,
    Userspace,
}

impl BackEnd {
    pub(crate) fn name(self) -> DataplaneName {
        match self {
            BackEnd::Nftables => DataplaneName::Nftables,
            BackEnd::Ebpf => DataplaneName::Ebpf,
            BackEnd::Ipvs => DataplaneName::Ipvs,
            BackEnd::IptablesLegacy | BackEnd::IptablesNft => DataplaneName::Iptables,
            BackEnd::Userspace => DataplaneName::Userspace,
        }
    }

    /// The iptables program of the variant it uses.
    pub(crate) fn iptables(self) -> Option<&'static str> {
        match self {
            BackEnd::Nftables | BackEnd::Ebpf | BackEnd::Ipvs | BackEnd::Userspace => None,
            BackEnd::IptablesLegacy => Some("iptables-legacy"),
            BackEnd::IptablesNft => Some("iptables-nft"),
        }
    }

    /// Makes a node one that uses it: iptables' variant is the one that kubelet's chain is in.
    pub(crate) fn prime(self, node: &Machine) {
        if let Some(program) = self.iptables() {
            node.command(&format!("{program} -t mangle -N KUBE-IPTABLES-HINT"));
        }
    }

    /// What the packets of the tests for all back ends do not ask of this one.
    fn lacking(self) -> &'static [Lack] {
        match self {
            BackEnd::Userspace => &[
                Lack::ClientsAddress,
                Lack::Sctp,
                Lack::LateRefusal,
                Lack::SilentRefusal,
                Lack::OtherLoopbackAddresses,
            ],
            BackEnd::Ipvs => &[Lack::PortsUsedAgain, Lack::OthersProxies],
            BackEnd::Nftables | BackEnd::Ebpf | BackEnd::IptablesLegacy | BackEnd::IptablesNft => &[],
        }
    }

    /// Whether it cannot do that.
    pub(crate) fn lacks(self, lack: Lack) -> bool {
        self.lacking().contains(&lack)
    }

    /// Who answered, and whom it saw, where that is the client.
    pub(crate) fn seen(self, (who, client): (String, IpAddr)) -> (String, Option<IpAddr>) {
        (who, (!self.lacks(Lack::ClientsAddress)).then_some(client))
    }
}

/// What a back end cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Endpoints see their client: behind a proxy they see the node, under `externalTrafficPolicy: Local`, too.
    ClientsAddress,
    /// It carries SCTP.
    Sctp,
    /// A client is refused by the endpoint that refuses it: a proxy has accepted it by then, and resets it.
    LateRefusal,
    /// Who may not come is not answered where there is no endpoint either: nobody listens for a proxy there, and the kernel
    /// refuses.
    SilentRefusal,
    /// The node itself reaches services that another proxy carries.
    OthersProxies,
    /// A client's port leads to the same endpoint by two ways within minutes.
    PortsUsedAgain,
    /// Node ports are on every address of 127.0.0.0/8 where they are on loopback: a proxy has those that the node has.
    OtherLoopbackAddresses,
}
