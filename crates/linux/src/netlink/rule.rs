//! Rules that choose a routing table.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Request, wire};

/// Packets with a mark are routed by a table of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    /// The mark.
    pub mark: u32,
    /// The bits of packets' marks that count.
    pub mask: u32,
    /// The table.
    pub table: u32,
    /// Of two rules that fit the one with the lower number is asked first.
    pub priority: u32,
}

// Attribute numbers of include/uapi/linux/fib_rules.h.
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
/// Length of `struct fib_rule_hdr`.
const HEADER: usize = 12;

impl MarkRule {
    /// Adds it for both families. An error if it is there.
    pub fn add(self) -> [Request<'static>; 2] {
        [false, true].map(|six| self.add_for(six))
    }

    /// Adds it for IPv6 or IPv4. An error if it is there.
    pub fn add_for(self, six: bool) -> Request<'static> {
        let message = RouteNetlinkMessage::NewRule(self.message(six));
        Request::new(message, NLM_F_CREATE | NLM_F_EXCL, format!("add {}", self.name()))
    }

    /// Removes it for IPv6 or IPv4.
    pub fn delete_for(self, six: bool) -> Request<'static> {
        let message = RouteNetlinkMessage::DelRule(self.message(six));
        Request::new(message, 0, format!("remove {}", self.name()))
    }

    fn name(self) -> String {
        format!(
            "the rule that mark {} is routed by table {}",
            self.mark, self.table
        )
    }

    fn message(self, six: bool) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(six);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
        ];
        message
    }

    /// None for a rule that is about no mark.
    fn read(payload: &[u8]) -> Option<MarkRule> {
        let value = |wanted: u16| {
            wire::attributes(payload, HEADER)
                .find(|(kind, _)| *kind == wanted)
                .and_then(|(_, value)| wire::word(value))
        };
        Some(MarkRule {
            mark: value(FRA_FWMARK)?,
            mask: value(FRA_FWMASK)?,
            table: value(FRA_TABLE)?,
            priority: value(FRA_PRIORITY).unwrap_or_default(),
        })
    }
}

fn family(six: bool) -> AddressFamily {
    match six {
        false => AddressFamily::Inet,
        true => AddressFamily::Inet6,
    }
}

impl Netlink {
    /// The rules of IPv6 or of IPv4 that are about packets' marks.
    pub fn mark_rules(&mut self, six: bool) -> Result<Vec<MarkRule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = family(six);
        let request = Request::new(
            RouteNetlinkMessage::GetRule(message),
            0,
            "list the routing rules".into(),
        );
        self.dump(&request, MarkRule::read)
    }
}
