//! Rules as data. They print as `iptables-save` prints them and are read from that, so what the kernel has is compared
//! with what it should have by value.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use podnet_core::cluster::{Family, Protocol};

/// One rule. Conditions stand in the order in which iptables prints them: addresses, protocol, then the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub clauses: Vec<Clause>,
    /// What happens then.
    pub target: Target,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// The source is in the range.
    Source(IpNet),
    /// The destination is in the range.
    Destination(IpNet),
    /// The destination is not in the range.
    NotDestination(IpNet),
    /// The protocol.
    Protocol(Protocol),
    /// The protocol, and a range of destination ports.
    Ports(Protocol, u16, u16),
    /// A ping.
    EchoRequest(Family),
    /// The destination is the node's own.
    DestinationIsLocal,
    /// The source is not the node's own.
    SourceIsForeign,
    /// Parts of the packet are in a set of ipset's.
    In(Asked, String),
    /// Or are not.
    NotIn(Asked, String),
    /// The connection's first packet.
    New,
    /// It belongs to no connection, and begins none.
    Invalid,
    /// The destination was translated.
    Translated,
    /// It was not.
    Untranslated,
    /// The packet goes the way the connection's first one went.
    Forth,
    /// IPVS has the connection.
    Carried,
    /// It has not.
    NotCarried,
    /// The packet is to be delivered to IPVS.
    Delivered,
    /// The packet does not carry [`crate::services::OURS`].
    NotMarked,
    /// The packet carries [`crate::services::OURS`].
    Marked,
    /// So many of 2^31 packets, by lot.
    Lot(u32),
    /// These bits of the packet's mark, out of those of the second number.
    MarkedAs(u32, u32),
}

/// Which parts of a packet a set is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
    /// Destination address, protocol and port.
    Frontend,
    /// These, and the source address.
    FrontendAndSource,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Goes on in a chain, and comes back.
    Jump(String),
    /// Goes on in a chain for good.
    Goto(String),
    /// Translates the destination.
    Translate(SocketAddr),
    /// Translates the destination's address.
    TranslateAddress(IpAddr),
    /// Gives the packet the node's address.
    Masquerade,
    /// Puts [`crate::services::OURS`] on the packet.
    Mark,
    /// Takes [`crate::services::OURS`] off the packet.
    Unmark,
    /// Makes [`crate::services::OURS`] all of the packet's mark.
    MarkAlone,
    /// Makes [`crate::services::OURS`] and a hash of the client's address, and of its port if so, less than
    /// [`HASHES`], all of the packet's mark.
    MarkHash(Family, bool),
    /// Adds the source to a set for so many seconds.
    Remember(String, u32),
    /// Notes that IPVS has the connection.
    Carry,
    /// Has the packet delivered to IPVS.
    Deliver,
    /// Not any more.
    Release,
    /// Gives the packet the mark that a set has for its destination address, protocol and port.
    MarkBy(String),
    /// Answers with a TCP reset.
    Reset,
    /// Answers that nobody is there.
    PortUnreachable(Family),
    /// Drops.
    Drop,
    /// Leaves the table.
    Accept,
    /// Leaves the chain.
    Return,
}

/// The text of a rule is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("podnet has no such rule: {0}")]
pub struct ForeignRule(String);

const PROTOCOLS: [(Protocol, &str); 3] = [
    (Protocol::Tcp, "tcp"),
    (Protocol::Udp, "udp"),
    (Protocol::Sctp, "sctp"),
];
const ASKED: [(Asked, &str); 4] = [
    (Asked::Source, "src"),
    (Asked::Destination, "dst"),
    (Asked::Frontend, "dst,dst"),
    (Asked::FrontendAndSource, "dst,dst,src"),
];
/// Conditions that are always the same words.
const FIXED: [(Clause, &str); 14] = [
    (Clause::EchoRequest(Family::V4), "-p icmp -m icmp --icmp-type 8"),
    (
        Clause::EchoRequest(Family::V6),
        "-p ipv6-icmp -m icmp6 --icmpv6-type 128",
    ),
    (Clause::DestinationIsLocal, "-m addrtype --dst-type LOCAL"),
    (Clause::SourceIsForeign, "-m addrtype ! --src-type LOCAL"),
    (Clause::New, "-m conntrack --ctstate NEW"),
    (Clause::Invalid, "-m conntrack --ctstate INVALID"),
    (Clause::Translated, "-m conntrack --ctstate DNAT"),
    (Clause::Untranslated, "-m conntrack ! --ctstate DNAT"),
    (Clause::Forth, "-m conntrack --ctdir ORIGINAL"),
    // These are `services::share`'s bits.
    (Clause::Carried, "-m connmark --mark 0x10/0x10"),
    (Clause::NotCarried, "-m connmark ! --mark 0x10/0x10"),
    (Clause::Delivered, "-m mark --mark 0x10/0x10"),
    (Clause::NotMarked, "-m mark ! --mark 0x4000/0x4000"),
    (Clause::Marked, "-m mark --mark 0x4000/0x4000"),
];
const TARGETS: [(Target, &str); 17] = [
    (Target::Masquerade, "-j MASQUERADE"),
    (Target::Carry, "-j CONNMARK --set-xmark 0x10/0x10"),
    (Target::Deliver, "-j MARK --set-xmark 0x10/0x10"),
    (Target::Release, "-j MARK --set-xmark 0x0/0xffff3010"),
    (Target::MarkAlone, "-j MARK --set-xmark 0x4000/0xffffffff"),
    (
        Target::MarkHash(Family::V4, false),
        "-j HMARK --hmark-src-prefix 32 --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
    ),
    (
        Target::MarkHash(Family::V4, true),
        "-j HMARK --hmark-src-prefix 32 --hmark-sport-mask 0xffff --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
    ),
    (
        Target::MarkHash(Family::V6, false),
        "-j HMARK --hmark-src-prefix 128 --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
    ),
    (
        Target::MarkHash(Family::V6, true),
        "-j HMARK --hmark-src-prefix 128 --hmark-sport-mask 0xffff --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
    ),
    (Target::Mark, "-j MARK --set-xmark 0x4000/0x4000"),
    (Target::Unmark, "-j MARK --set-xmark 0x0/0x4000"),
    (Target::Reset, "-j REJECT --reject-with tcp-reset"),
    (
        Target::PortUnreachable(Family::V4),
        "-j REJECT --reject-with icmp-port-unreachable",
    ),
    (
        Target::PortUnreachable(Family::V6),
        "-j REJECT --reject-with icmp6-port-unreachable",
    ),
    (Target::Drop, "-j DROP"),
    (Target::Accept, "-j ACCEPT"),
    (Target::Return, "-j RETURN"),
];
/// So many hashes of clients there are.
pub(crate) const HASHES: u32 = 256;
/// Probabilities are fractions of this.
const WHOLE: f64 = 2_147_483_648.0;

impl Clause {
    /// One of `count`, by lot.
    pub fn one_of(count: usize) -> Self {
        let share = WHOLE / count.max(1) as f64;
        Clause::Lot(share.round() as u32)
    }
}

impl Rule {
    /// A rule for what meets all conditions.
    pub fn new(clauses: impl IntoIterator<Item = Clause>, target: Target) -> Self {
        Rule {
            clauses: clauses.into_iter().collect(),
            target,
        }
    }
}

fn name<T: PartialEq>(names: &[(T, &'static str)], wanted: &T) -> &'static str {
    let found = names.iter().find(|(value, _)| value == wanted);
    found.map_or("", |(_, name)| name)
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = |protocol| name(&PROTOCOLS, protocol);
        match self {
            Clause::Source(net) => write!(f, "-s {net}"),
            Clause::Destination(net) => write!(f, "-d {net}"),
            Clause::NotDestination(net) => write!(f, "! -d {net}"),
            Clause::Protocol(only) => write!(f, "-p {}", protocol(only)),
            Clause::Ports(only, first, last) => {
                write!(f, "-p {0} -m {0} --dport {first}", protocol(only))?;
                if first == last {
                    return Ok(());
                }
                write!(f, ":{last}")
            }
            Clause::In(asked, set) => write!(f, "-m set --match-set {set} {}", name(&ASKED, asked)),
            Clause::NotIn(asked, set) => write!(f, "-m set ! --match-set {set} {}", name(&ASKED, asked)),
            Clause::Lot(share) => {
                let share = f64::from(*share) / WHOLE;
                write!(f, "-m statistic --mode random --probability {share:.11}")
            }
            Clause::MarkedAs(value, mask) => write!(f, "-m mark --mark {value:#x}/{mask:#x}"),
            fixed => f.write_str(name(&FIXED, fixed)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Jump(chain) => write!(f, "-j {chain}"),
            Target::Goto(chain) => write!(f, "-g {chain}"),
            Target::Translate(to) => write!(f, "-j DNAT --to-destination {to}"),
            Target::TranslateAddress(to) => write!(f, "-j DNAT --to-destination {to}"),
            Target::Remember(set, seconds) => {
                write!(f, "-j SET --add-set {set} src --exist --timeout {seconds}")
            }
            Target::MarkBy(set) => write!(f, "-j SET --map-set {set} dst,dst --map-mark"),
            fixed => f.write_str(name(&TARGETS, fixed)),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clauses
            .iter()
            .try_for_each(|clause| write!(f, "{clause} "))?;
        write!(f, "{}", self.target)
    }
}

impl FromStr for Rule {
    type Err = ForeignRule;

    /// Reads what follows `-A CHAIN`.
    fn from_str(text: &str) -> Result<Self, ForeignRule> {
        let words: Vec<&str> = text.split_whitespace().collect();
        read(&words).ok_or_else(|| ForeignRule(text.to_owned()))
    }
}

fn read(mut words: &[&str]) -> Option<Rule> {
    let mut clauses = Vec::new();
    loop {
        if let Some(target) = read_target(words) {
            return Some(Rule { clauses, target });
        }
        let (clause, rest) = read_fixed(words).or_else(|| read_clause(words))?;
        clauses.push(clause);
        words = rest;
    }
}

fn read_fixed<'a, 'b>(words: &'a [&'b str]) -> Option<(Clause, &'a [&'b str])> {
    FIXED.iter().find_map(|(clause, text)| {
        let count = text.split(' ').count();
        let (begin, rest) = words.split_at_checked(count)?;
        let same = begin.iter().copied().eq(text.split(' '));
        same.then(|| (clause.clone(), rest))
    })
}

fn read_clause<'a, 'b>(words: &'a [&'b str]) -> Option<(Clause, &'a [&'b str])> {
    let protocol = |text: &str| value(&PROTOCOLS, text);
    Some(match words {
        ["-s", net, rest @ ..] => (Clause::Source(net.parse().ok()?), rest),
        ["-d", net, rest @ ..] => (Clause::Destination(net.parse().ok()?), rest),
        ["!", "-d", net, rest @ ..] => (Clause::NotDestination(net.parse().ok()?), rest),
        ["-p", only, "-m", again, "--dport", ports, rest @ ..] if only == again => {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            (
                Clause::Ports(protocol(only)?, first.parse().ok()?, last.parse().ok()?),
                rest,
            )
        }
        ["-p", only, rest @ ..] => (Clause::Protocol(protocol(only)?), rest),
        ["-m", "set", "--match-set", set, asked, rest @ ..] => {
            (Clause::In(value(&ASKED, asked)?, (*set).to_owned()), rest)
        }
        ["-m", "set", "!", "--match-set", set, asked, rest @ ..] => {
            (Clause::NotIn(value(&ASKED, asked)?, (*set).to_owned()), rest)
        }
        [
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            share,
            rest @ ..,
        ] => {
            let share: f64 = share.parse().ok()?;
            (Clause::Lot((share * WHOLE).round() as u32), rest)
        }
        ["-m", "mark", "--mark", both, rest @ ..] => {
            let (value, mask) = both.split_once('/')?;
            (Clause::MarkedAs(hexadecimal(value)?, hexadecimal(mask)?), rest)
        }
        _ => return None,
    })
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn read_target(words: &[&str]) -> Option<Target> {
    let fixed = TARGETS
        .iter()
        .find(|(_, text)| text.split(' ').eq(words.iter().copied()));
    if let Some((target, _)) = fixed {
        return Some(target.clone());
    }
    match words {
        ["-g", chain] => Some(Target::Goto((*chain).to_owned())),
        ["-j", "DNAT", "--to-destination", to] => {
            let socket = to.parse().map(Target::Translate);
            socket.or_else(|_| to.parse().map(Target::TranslateAddress)).ok()
        }
        [
            "-j",
            "SET",
            "--add-set",
            set,
            "src",
            "--exist",
            "--timeout",
            seconds,
        ] => Some(Target::Remember((*set).to_owned(), seconds.parse().ok()?)),
        ["-j", "SET", "--map-set", set, "dst,dst", "--map-mark"] => Some(Target::MarkBy((*set).to_owned())),
        // Nothing but chains of ours: what has a target of the kernel's without its options is none of our rules.
        ["-j", chain] if chain.starts_with(super::PREFIX) => Some(Target::Jump((*chain).to_owned())),
        _ => None,
    }
}

fn value<T: Clone>(names: &[(T, &str)], text: &str) -> Option<T> {
    let found = names.iter().find(|(_, name)| *name == text);
    found.map(|(value, _)| value.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_print_as_iptables_prints_them_and_read_back() {
        for text in [
            "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -m set --match-set PODNET-ADMIT4 dst,dst,src -g PODNET-SVC-A",
            "-p udp -m udp --dport 30000:30015 -g PODNET-P-udp-30000/12",
            "-p sctp -m statistic --mode random --probability 0.33333333349 -j DNAT --to-destination 10.244.0.2:8080",
            "-p tcp -j DNAT --to-destination [fd00::1]:8080",
            "-p icmp -m icmp --icmp-type 8 -m set --match-set PODNET-CLUSTER4 dst -j DNAT --to-destination 172.30.0.11",
            "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DNAT --to-destination fd30::11",
            "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j PODNET-GUARD",
            "-m addrtype ! --src-type LOCAL -m set ! --match-set PODNET-PODS4 src -j ACCEPT",
            "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j PODNET-PORTS",
            "-j SET --add-set PODNET-STAY-A src --exist --timeout 600",
            "-s 10.244.0.2/32 -d 10.244.0.2/32 -j MASQUERADE",
            "-p tcp -j REJECT --reject-with tcp-reset",
            "-j REJECT --reject-with icmp6-port-unreachable",
            "-m conntrack --ctstate DNAT -j PODNET-POSTROUTING",
            "-m connmark --mark 0x10/0x10 -m conntrack --ctdir ORIGINAL -j MARK --set-xmark 0x10/0x10",
            "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -m connmark ! --mark 0x10/0x10 -j PODNET-GUARD",
            "-m mark --mark 0x10/0x10 -j MARK --set-xmark 0x0/0xffff3010",
            "-j SET --map-set PODNET-IPVS-PORT4 dst,dst --map-mark",
            "-j CONNMARK --set-xmark 0x10/0x10",
            "-m mark --mark 0x4000/0x4000 -j PODNET-POSTROUTING",
            "-j MARK --set-xmark 0x4000/0x4000",
            "-j MARK --set-xmark 0x0/0x4000",
            "-m mark --mark 0x40/0xf0 -j MARK --set-xmark 0x4000/0xffffffff",
            "-p tcp -j HMARK --hmark-src-prefix 32 --hmark-sport-mask 0xffff --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
            "-j HMARK --hmark-src-prefix 128 --hmark-rnd 0x706f646e --hmark-mod 256 --hmark-offset 16384",
            "-j RETURN",
            "-j DROP",
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        for foreign in [
            "-j LOG",
            "-m comment --comment x -j DROP",
            "-p tcp",
            "",
            "-d 10.96.0.1/33 -j DROP",
        ] {
            assert!(foreign.parse::<Rule>().is_err(), "{foreign}");
        }
    }

    #[test]
    fn our_mark_is_the_one_of_all_data_planes() {
        let bit = format!("{0:#x}/{0:#x}", crate::services::OURS);
        assert_eq!(Clause::Marked.to_string(), format!("-m mark --mark {bit}"));
        assert_eq!(Target::Mark.to_string(), format!("-j MARK --set-xmark {bit}"));
        let hash = Target::MarkHash(Family::V6, true).to_string();
        let ours = crate::services::OURS;
        assert!(
            hash.ends_with(&format!("--hmark-mod {HASHES} --hmark-offset {ours}")),
            "{hash}"
        );
    }

    proptest! {
        #[test]
        fn a_share_survives_being_printed(count in 1..100_000_usize) {
            let rule = Rule::new([Clause::one_of(count)], Target::Drop);
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,80}") {
            let _ = text.parse::<Rule>();
        }
    }
}
