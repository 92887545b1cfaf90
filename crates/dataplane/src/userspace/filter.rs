//! Who may open a connection, as a classic BPF program for the listening socket (socket(7), `SO_ATTACH_FILTER`): the
//! kernel then drops the first segment of anybody else in silence, where a proxy could only accept and reset.

use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_core::service::{Backend, Entry};

use super::table::Ground;

/// An instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many to pass over when a comparison holds.
    pub jt: u8,
    /// How many when it does not.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;
/// Offsets from here on are from the network header (`SKF_NET_OFF`).
const NETWORK_HEADER: u32 = -0x10_0000_i32 as u32;
const PASS: u32 = u32::MAX;
const DROP: u32 = 0;
/// The kernel takes no longer programs (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

/// What the listener for such an entry lets in: nothing for everybody, or a program. A program that would be too long is
/// none: then connections are accepted and reset.
pub fn filter(entry: &Entry, ground: &Ground, family: Family) -> Option<Vec<Instruction>> {
    let mut stages: Vec<Vec<IpNet>> = Vec::new();
    if let Some(sources) = &entry.sources {
        stages.push(sources.iter().copied().collect());
    }
    let drops = |backend: &Backend| *backend == Backend::Drop;
    match (drops(&entry.inside), drops(entry.outside())) {
        (true, true) => stages.push(Vec::new()),
        (false, true) => {
            let node = ground.node.iter().map(|address| IpNet::from(*address));
            stages.push(ground.pods.iter().copied().chain(node).collect());
        }
        (_, false) => {}
    }
    if stages.is_empty() {
        return None;
    }
    let mut program = Vec::new();
    for stage in stages {
        let of_family = stage.iter().filter(|range| Family::of(range.addr()) == family);
        one_of(&mut program, of_family);
    }
    program.push(operation(RETURN, PASS));
    (program.len() <= LONGEST).then_some(program)
}

fn operation(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Goes on when the source is in one of the ranges, and drops when it is not.
fn one_of<'a>(program: &mut Vec<Instruction>, ranges: impl Iterator<Item = &'a IpNet>) {
    let mut found = Vec::new();
    for range in ranges {
        compare(program, range);
        found.push(program.len());
        program.push(operation(JUMP, 0));
    }
    program.push(operation(RETURN, DROP));
    let end = program.len();
    for at in found {
        program[at].k = (end - at - 1) as u32;
    }
}

/// Passes over the instruction behind it when the source is not in the range.
fn compare(program: &mut Vec<Instruction>, range: &IpNet) {
    let (bytes, source) = match range.addr() {
        IpAddr::V4(address) => (address.octets().to_vec(), 12),
        IpAddr::V6(address) => (address.octets().to_vec(), 8),
    };
    let mut comparisons = Vec::new();
    for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let bits = u32::from(range.prefix_len())
            .saturating_sub(32 * index as u32)
            .min(32);
        if bits == 0 {
            break;
        }
        let mask = u32::MAX << (32 - bits);
        let offset = NETWORK_HEADER.wrapping_add(source + 4 * index as u32);
        program.push(operation(LOAD_WORD, offset));
        if mask != u32::MAX {
            program.push(operation(AND, mask));
        }
        comparisons.push(program.len());
        program.push(operation(JUMP_IF_EQUAL, u32::from_be_bytes(*word) & mask));
    }
    let end = program.len();
    for at in comparisons {
        // At most twelve instructions, and the one behind.
        program[at].jf = (end - at) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podnet_core::cluster::{ObjectName, Protocol};
    use podnet_core::service::PortName;
    use proptest::prelude::*;
    use std::num::NonZeroU16;
    use std::sync::Arc;

    /// What the kernel makes of a program for a packet from `source`.
    fn run(program: &[Instruction], source: IpAddr) -> bool {
        let (mut header, at) = ([0; 40], if source.is_ipv4() { 12 } else { 8 });
        match source {
            IpAddr::V4(source) => header[at..at + 4].copy_from_slice(&source.octets()),
            IpAddr::V6(source) => header[at..at + 16].copy_from_slice(&source.octets()),
        }
        let (mut accumulator, mut counter) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[counter];
            counter += 1;
            match code {
                LOAD_WORD => {
                    let offset = k.wrapping_sub(NETWORK_HEADER) as usize;
                    accumulator = u32::from_be_bytes(header[offset..offset + 4].try_into().unwrap());
                }
                AND => accumulator &= k,
                JUMP_IF_EQUAL => counter += usize::from(if accumulator == k { jt } else { jf }),
                JUMP => counter += k as usize,
                RETURN => return k == PASS,
                other => panic!("{other:#x} is none of ours"),
            }
        }
    }

    fn entry(sources: Option<Vec<IpNet>>, inside: Backend, outside: Backend) -> Entry {
        let port = PortName {
            service: ObjectName::new("default", "web"),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        };
        Entry {
            sources: sources.map(|sources| Arc::new(sources.into_iter().collect())),
            outside: Some(Arc::new(outside)),
            ..Entry::new(port, inside)
        }
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few of them, so that ranges are met.
        let v4 = (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b]));
        let v6 = (0..4u16, 0..4u16).prop_map(|(a, b)| IpAddr::from([0xfd00, 0, a, 0, 0, 0, b << 12, b]));
        prop_oneof![v4, v6]
    }

    fn range() -> impl Strategy<Value = IpNet> {
        (address(), 0..=128u8).prop_map(|(address, length)| {
            let length = length.min(if address.is_ipv4() { 32 } else { 128 });
            IpNet::new(address, length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn the_program_lets_in_whom_the_entry_admits(
            sources in proptest::option::of(proptest::collection::vec(range(), 0..5)),
            pods in proptest::collection::btree_set(range(), 0..3),
            source in address(),
            inside_drops: bool,
            outside_drops: bool,
        ) {
            let backend = |drops| if drops { Backend::Drop } else { Backend::Refuse };
            let entry = entry(sources, backend(inside_drops), backend(outside_drops));
            let ground = Ground { pods, ..Ground::default() };
            let program = filter(&entry, &ground, Family::of(source));
            let passes = program.is_none_or(|program| run(&program, source));
            let expected = entry.admits(source) && match (inside_drops, outside_drops) {
                (_, false) => true,
                (true, true) => false,
                (false, true) => ground.is_pod(source),
            };
            prop_assert_eq!(passes, expected);
        }
    }

    #[test]
    fn everybody_needs_no_program_and_too_many_ranges_have_none() {
        let open = entry(None, Backend::Refuse, Backend::Refuse);
        assert_eq!(filter(&open, &Ground::default(), Family::V4), None);
        let many: Vec<IpNet> = (0..5000u32)
            .map(|number| IpNet::from(IpAddr::from((number << 8).to_be_bytes())))
            .collect();
        let many = entry(Some(many), Backend::Refuse, Backend::Refuse);
        assert_eq!(filter(&many, &Ground::default(), Family::V4), None);
    }
}
