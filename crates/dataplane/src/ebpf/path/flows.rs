//! Flows that the table translated, and connections that tracking is told of.

use std::collections::BTreeSet;

use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::Tuple;
use podnet_ebpf_abi::path::Notes;
use podnet_linux::netfilter::Netfilter;

use super::programs::Maps;
use super::rows::Rows;
use crate::conntrack;
use crate::ebpf::EbpfError;

/// Notes all flows between pods that the table translated so far; those that it translates from now on are noted as their
/// packets go. One whose port alone it changed is noted as it was, too: its packets must not go past.
pub(super) fn note(maps: &mut Maps, rows: &Rows) -> Result<(), EbpfError> {
    let mut notes = maps.notes()?;
    let flows = conntrack::translated(&mut Netfilter::open()?)?;
    let is_between_pods = |flow: &&Tuple| rows.is_pods(&flow.source) && rows.is_pods(&flow.destination);
    for flow in flows.iter().filter(is_between_pods) {
        match maps.note(flow) {
            Err(EbpfError::Full(_)) => notes.missing = 1,
            done => done?,
        }
        if notes.any == 0 {
            notes.any = 1;
            maps.set_notes(notes)?;
        }
    }
    match notes.missing {
        0 => Ok(()),
        _ => maps.set_notes(notes),
    }
}

/// Takes back notes of flows that are over, and trusts the notes again where some flow could not be noted.
pub(super) fn tend(maps: &mut Maps, have: &Rows) -> Result<(), EbpfError> {
    let noted = maps.noted()?;
    if !noted.is_empty() {
        let translated = conntrack::translated(&mut Netfilter::open()?)?;
        let translated: BTreeSet<Tuple> = translated.iter().map(Tuple::either).collect();
        for (flow, is_seen) in noted {
            if translated.contains(&flow) {
                continue;
            }
            // One that begins again this very moment is seen the next time.
            match is_seen {
                true => maps.unsee(flow)?,
                false => maps.cross_out(flow)?,
            }
        }
    }
    let notes = maps.notes()?;
    if notes.missing != 0 {
        // Whoever finds no room from now on says so again.
        maps.set_notes(Notes { missing: 0, any: 1 })?;
        note(maps, have)?;
    }
    forget(maps, have)
}

/// Forgets connections both ends of which are off the path. Whoever dies without a word ends none.
pub(super) fn forget(maps: &mut Maps, have: &Rows) -> Result<(), EbpfError> {
    let is_on = |address: &Address| have.pods.contains_key(address);
    let begun = maps.begun()?;
    let over = begun
        .iter()
        .filter(|of| !is_on(&of.source) && !is_on(&of.destination));
    over.into_iter()
        .try_for_each(|connection| maps.forget(connection))
}

/// Has tracking know connections, in the direction in which they were begun.
pub(super) fn track(socket: &mut Netfilter, connections: &BTreeSet<Tuple>) -> Result<(), EbpfError> {
    Ok(conntrack::take_up(socket, connections)?)
}
