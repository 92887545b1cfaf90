//! A table of nftables, evaluated as nft's manual describes it: base chains by hook and priority; of those that translate
//! destinations, none after the one that did.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use podnet_core::cluster::Family;

use super::{End, Judge, Node, Outcome, Packet};
use crate::nftables::{Asked, Clause, Hook, Rule, Table, Value, Verdict, render};
use crate::services::OURS;

/// A packet on its way.
#[derive(Debug, Clone, Copy)]
struct Moving {
    from: IpAddr,
    to: SocketAddr,
    protocol: u8,
    translated: bool,
    masqueraded: bool,
    mark: u32,
}

/// All the ways that chance may send it.
type Ways = Vec<(End, Moving)>;

/// What a clause says.
enum Said {
    /// The condition holds, or it is done.
    Yes,
    No,
    /// What becomes of it, one of these.
    Ways(Ways),
    Verdicts(Vec<Verdict>),
}

struct Evaluation<'a> {
    node: &'a Node<'a>,
    table: Table,
}

pub(super) fn judge<'a>(node: &'a Node<'a>) -> Judge<'a> {
    let table = render(node.state);
    let evaluation = Evaluation { node, table };
    Box::new(move |packet| evaluation.outcomes(packet))
}

impl Evaluation<'_> {
    fn outcomes(&self, packet: Packet) -> BTreeSet<Outcome> {
        let begin = Moving {
            from: packet.from,
            to: packet.to,
            protocol: packet.protocol.number(),
            translated: false,
            masqueraded: false,
            mark: 0,
        };
        let hook = match self.node.is_own(packet.from) {
            true => Hook::Output,
            false => Hook::Prerouting,
        };
        let ways = self.hook(hook, begin).into_iter();
        ways.map(|(end, moving)| match end {
            End::Refused => Outcome::Refused,
            End::Dropped => Outcome::Dropped,
            End::Through | End::Accepted if !moving.translated => Outcome::Untouched,
            End::Through | End::Accepted => {
                let left = self.hook(Hook::Postrouting, moving);
                let [(_, left)] = left[..] else {
                    panic!("{left:?}: sources are not left to chance")
                };
                Outcome::To {
                    endpoint: moving.to,
                    keeps: !left.masqueraded,
                }
            }
        })
        .collect()
    }

    /// The base chains of a hook that translate, one after the other.
    fn hook(&self, hook: Hook, begin: Moving) -> Ways {
        let based = self
            .table
            .chains
            .values()
            .filter_map(|chain| Some((chain.base?, chain)));
        let mut based: Vec<_> = based
            .filter(|(base, _)| base.hook == hook && base.kind == "nat")
            .collect();
        based.sort_by_key(|(base, _)| base.priority);
        let mut ways = vec![(End::Accepted, begin)];
        for (_, chain) in based {
            let goes_on = |(end, moving): (End, Moving)| match end {
                End::Refused | End::Dropped => vec![(end, moving)],
                // Connection tracking knows already where it goes.
                _ if moving.translated && hook != Hook::Postrouting => vec![(end, moving)],
                End::Through | End::Accepted => self.rules(&chain.rules, moving),
            };
            ways = ways.into_iter().flat_map(goes_on).collect();
        }
        ways
    }

    fn rules(&self, rules: &[Rule], mut moving: Moving) -> Ways {
        for (index, rule) in rules.iter().enumerate() {
            let verdicts = match self.rule(rule, &mut moving) {
                Said::Yes | Said::No => continue,
                Said::Ways(ways) => return ways,
                Said::Verdicts(verdicts) => verdicts,
            };
            let rest = rules.get(index + 1..).unwrap_or_default();
            let ways = verdicts.iter().flat_map(|verdict| match verdict {
                Verdict::Accept => vec![(End::Accepted, moving)],
                Verdict::Drop => vec![(End::Dropped, moving)],
                Verdict::Return => vec![(End::Through, moving)],
                Verdict::Goto(chain) => self.chain(chain, moving),
                Verdict::Jump(chain) => {
                    let ways = self.chain(chain, moving).into_iter();
                    let back = |(end, moving)| match end {
                        End::Through => self.rules(rest, moving),
                        end => vec![(end, moving)],
                    };
                    ways.flat_map(back).collect()
                }
            });
            return ways.collect();
        }
        vec![(End::Through, moving)]
    }

    fn chain(&self, name: &str, moving: Moving) -> Ways {
        let chain = self.table.chains.get(name);
        let chain = chain.unwrap_or_else(|| panic!("there is no chain {name}"));
        self.rules(&chain.rules, moving)
    }

    fn rule(&self, rule: &Rule, moving: &mut Moving) -> Said {
        for clause in &rule.0 {
            match self.clause(clause, moving) {
                Said::Yes => {}
                said => return said,
            }
        }
        Said::Yes
    }

    fn clause(&self, clause: &Clause, moving: &mut Moving) -> Said {
        let family = Family::of(moving.to.ip());
        let (from, to) = (moving.from, moving.to.ip());
        let holds = |holds: bool| if holds { Said::Yes } else { Said::No };
        let within = |range: &IpNet, address: IpAddr| range.contains(&address);
        let of = |wanted: &Family| *wanted == family;
        match clause {
            Clause::Family(wanted) => holds(of(wanted)),
            Clause::Protocol(number) => holds(moving.protocol == *number),
            Clause::DestinationIn(wanted, set) => holds(of(wanted) && self.has(set, &bytes(to))),
            Clause::SourceIn(wanted, set) => holds(of(wanted) && self.has(set, &bytes(from))),
            Clause::PairIn(wanted, set) => {
                holds(of(wanted) && self.has(set, &[bytes(from), bytes(to)].concat()))
            }
            Clause::DestinationWithin(range) => holds(within(range, to)),
            Clause::DestinationNotWithin(range) => holds(of(&Family::of(range.addr())) && !within(range, to)),
            Clause::SourceWithin(range) => holds(within(range, from)),
            Clause::SourceIsNot(address) => holds(of(&Family::of(*address)) && from != *address),
            Clause::DestinationIsLocal => holds(self.node.is_own(to)),
            Clause::SourceIsLocal => holds(self.node.is_own(from)),
            // It matters for what the node itself sends, whose source is not judged.
            Clause::Leaves(_) => holds(true),
            Clause::Translated | Clause::TranslatedAtAll => holds(moving.translated),
            Clause::Marked => holds(moving.mark & OURS != 0),
            Clause::Mark => {
                moving.mark |= OURS;
                Said::Yes
            }
            Clause::Unmark => {
                moving.mark &= !OURS;
                Said::Yes
            }
            // For programs; no rule asks for it.
            Clause::Note => Said::Yes,
            // A first packet answers nothing, and none of these is a ping.
            Clause::Answers | Clause::EchoRequest(_) => Said::No,
            // Nobody asks twice.
            Clause::KeepSource(..) => Said::Yes,
            Clause::ServiceVerdict(wanted, asked, map) if of(wanted) => {
                match self.look_up(map, &self.key(*asked, moving)) {
                    Some(Value::Verdict(verdict)) => Said::Verdicts(vec![verdict.clone()]),
                    _ => Said::No,
                }
            }
            Clause::ServiceVerdict(..) => Said::No,
            Clause::VerdictByNumber(_, count, map) => {
                let verdicts = (0..*count).map(|number| match self.look_up(map, &number.to_ne_bytes()) {
                    Some(Value::Verdict(verdict)) => verdict.clone(),
                    other => panic!("{map} has {other:?} for {number}"),
                });
                Said::Verdicts(verdicts.collect())
            }
            Clause::TranslateToOneOf(wanted, choice) => {
                assert!(of(wanted), "{choice:?} is met by {moving:?}");
                let key = self.key(choice.asked, moving);
                let numbers = choice.first..choice.first + choice.count;
                let sockets = numbers.map(|number| {
                    let key = [&key[..], &number.to_ne_bytes()].concat();
                    self.socket(&choice.map, &key, family)
                });
                Said::Ways(sockets.map(|socket| translated(moving, socket)).collect())
            }
            Clause::TranslateByPort(wanted, map) => {
                let key = self.key(Asked::Port, moving);
                match of(wanted) && self.look_up(map, &key).is_some() {
                    true => Said::Ways(vec![translated(moving, self.socket(map, &key, family))]),
                    false => Said::No,
                }
            }
            Clause::TranslateToSocket(socket) => Said::Ways(vec![translated(moving, *socket)]),
            Clause::Masquerade => {
                moving.masqueraded = true;
                Said::Ways(vec![(End::Accepted, *moving)])
            }
            Clause::Reset | Clause::PortUnreachable => Said::Ways(vec![(End::Refused, *moving)]),
            Clause::Verdict(verdict) => Said::Verdicts(vec![verdict.clone()]),
            other => panic!("{other:?} is not of services"),
        }
    }

    /// What a packet is asked for by: fields begin at multiples of four bytes.
    fn key(&self, asked: Asked, moving: &Moving) -> Vec<u8> {
        let [high, low] = moving.to.port().to_be_bytes();
        let port = [moving.protocol, 0, 0, 0, high, low, 0, 0].to_vec();
        match asked {
            Asked::Address => [bytes(moving.to.ip()), port].concat(),
            Asked::Port => port,
        }
    }

    fn look_up(&self, set: &str, key: &[u8]) -> Option<&Value> {
        assert!(self.table.sets.contains_key(set), "there is no set {set}");
        self.table.elements.get(set)?.get(key)
    }

    fn has(&self, set: &str, key: &[u8]) -> bool {
        self.look_up(set, key).is_some()
    }

    fn socket(&self, map: &str, key: &[u8], family: Family) -> SocketAddr {
        let Some(Value::Data(data)) = self.look_up(map, key) else {
            panic!("{map} has nothing for {key:?}")
        };
        let (address, port) = data.split_at(if family == Family::V4 { 4 } else { 16 });
        let address: IpAddr = match family {
            Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(address).unwrap()).into(),
            Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(address).unwrap()).into(),
        };
        SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]]))
    }
}

fn translated(moving: &Moving, to: SocketAddr) -> (End, Moving) {
    let moving = Moving {
        to,
        translated: true,
        ..*moving
    };
    (End::Accepted, moving)
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
