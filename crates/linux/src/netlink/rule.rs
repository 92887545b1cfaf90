//! Rules that choose a routing table.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Request;

/// Packets with a mark are routed by a table of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    /// The mark.
    pub mark: u32,
    /// The table.
    pub table: u32,
    /// Of two rules that fit the one with the lower number is asked first.
    pub priority: u32,
}

impl MarkRule {
    /// Adds it for both families. An error if it is there.
    pub fn add(self) -> [Request<'static>; 2] {
        [AddressFamily::Inet, AddressFamily::Inet6].map(|family| {
            let mut message = RuleMessage::default();
            message.header.family = family;
            message.header.action = RuleAction::ToTable;
            message.attributes = vec![
                RuleAttribute::Priority(self.priority),
                RuleAttribute::FwMark(self.mark),
                RuleAttribute::Table(self.table),
            ];
            let what = format!(
                "add the rule that mark {} is routed by table {}",
                self.mark, self.table
            );
            Request::new(
                RouteNetlinkMessage::NewRule(message),
                NLM_F_CREATE | NLM_F_EXCL,
                what,
            )
        })
    }
}
