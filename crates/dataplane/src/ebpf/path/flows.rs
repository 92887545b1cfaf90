//! Flows that the table translated, and connections that tracking is told of.

use std::collections::BTreeSet;

use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::Tuple;
use podnet_ebpf_abi::path::{ACCEPTED, ANY_MISSING, ANY_NOTED, ASKED, LONG_ASKED};
use podnet_linux::netfilter::Netfilter;
use rustix::thread::{MembarrierCommand, membarrier};

use super::programs::Maps;
use super::rows::Rows;
use crate::conntrack;
use crate::ebpf::EbpfError;

/// Notes all flows between pods that the table translated so far; those that it translates from now on are noted as their
/// packets go. One whose port alone it changed is noted as it was, too: its packets must not go past. And remembers the
/// connections between pods that tracking knows and will hear no more of.
pub(super) fn note(maps: &mut Maps, rows: &Rows) -> Result<(), EbpfError> {
    let known = conntrack::known(&mut Netfilter::open()?)?;
    let lengths = rows.lengths();
    let is_between_pods = |flow: &&Tuple| rows.are_pods(&lengths, flow);
    for flow in known.translated.iter().filter(is_between_pods) {
        maps.say(ANY_NOTED, true)?;
        match maps.note(flow) {
            Err(EbpfError::Full(_)) => maps.say(ANY_MISSING, true)?,
            done => done?,
        }
    }
    // One of which we know who began it may be known the other way round, by who spoke first when tracking met it.
    let begun = maps.connections()?;
    let is_new = |of: &&Tuple| !begun.contains_key(&of.reversed());
    let led = known.established.iter().filter(|of| rows.leads(&lengths, of));
    let mut established = led.filter(is_new);
    established.try_for_each(|connection| maps.remember(connection, ACCEPTED))
}

/// Takes back notes of flows that are over, and trusts the notes again where some flow could not be noted.
pub(super) fn tend(maps: &mut Maps, have: &Rows) -> Result<(), EbpfError> {
    let noted = maps.noted()?;
    if !noted.is_empty() {
        let known = conntrack::known(&mut Netfilter::open()?)?;
        let translated: BTreeSet<Tuple> = known.translated.iter().map(Tuple::either).collect();
        for (flow, is_seen) in noted {
            if translated.contains(&flow) {
                continue;
            }
            // One that begins again this very moment is noted by its next packet.
            match is_seen {
                true => maps.unsee(flow)?,
                false => maps.cross_out(flow)?,
            }
        }
    }
    if maps.says(ANY_MISSING)? {
        // Whoever finds no room from now on says so again.
        maps.say(ANY_MISSING, false)?;
        note(maps, have)?;
    }
    for (connection, how_far) in maps.connections()? {
        match how_far {
            // Nobody answers.
            LONG_ASKED => maps.forget(&connection)?,
            ASKED => maps.remember(&connection, LONG_ASKED)?,
            _ => {}
        }
    }
    forget(maps, have)
}

/// Forgets connections both ends of which are off the path. Whoever dies without a word ends none.
pub(super) fn forget(maps: &mut Maps, have: &Rows) -> Result<(), EbpfError> {
    let is_on = |address: &Address| have.pods.contains_key(address);
    let begun = maps.connections()?.into_keys();
    let mut over = begun.filter(|of| !is_on(&of.source) && !is_on(&of.destination));
    over.try_for_each(|connection| maps.forget(&connection))
}

/// Tells tracking of connections that take the stack from now on.
pub(super) fn hand_over(maps: &mut Maps, which: impl Fn(&Tuple) -> bool) -> Result<(), EbpfError> {
    // A processor that is at a packet which met the rows of before is through with it then (RCU).
    let _ = membarrier(MembarrierCommand::Global);
    let mut begun = maps.begun()?;
    begun.retain(which);
    if begun.is_empty() {
        return Ok(());
    }
    conntrack::take_up(&mut Netfilter::open()?, &begun)?;
    begun.iter().try_for_each(|connection| maps.forget(connection))
}
