//! The programs at links, and their maps, in the kernel.
//!
//! All of it is pinned below one directory, so that it outlives the agent: each map by the version of its layout, a build's
//! programs in a directory that is called after their object, and what holds a program at a link (a tcx link) by the link's
//! index. Another build replaces the program at each link in one step, and goes on with the maps whose layout is the same;
//! those that it makes anew lead nobody until their rows come. Two programs at one link would each know half of what was
//! translated.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use aya::{EbpfLoader, include_bytes_aligned};
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::Tuple;
use podnet_ebpf_abi::path::{ACCEPTED, Pod, Range, layout};
use podnet_ebpf_abi::tunnel::Tunnel;
use podnet_linux::netlink::Netlink;
use zerocopy::transmute;

use super::rows::{Row, Rows, Side, Step};
use crate::ebpf::pins::{self, Pins, all, entries};
use crate::ebpf::site::PATH;
use crate::ebpf::{EbpfError, Site};

static OBJECT: &[u8] = include_bytes_aligned!("../../../../ebpf/objects/path.o");

const POD_SENDS: &str = "pod_sends";
const NODE_SENDS: &str = "node_sends";
const STACK_SENDS: &str = "stack_sends";
const PROGRAMS: [&str; 3] = [STACK_SENDS, POD_SENDS, NODE_SENDS];
/// Those that programs fill are last.
const MAPS: [&str; 6] = ["PODS", "WAYS", "TUNNEL", "NOTED", "BEGUN", "NOTES"];
/// Where what holds programs at links is pinned, in the directory of maps.
const LINKS: &str = "links";
/// What a build's programs are pinned below begins with that.
const BUILD: &str = "programs-";

/// Where the maps are.
fn pins(directory: &Path) -> Pins<'_> {
    Pins { directory, layout }
}

/// Programs that can be attached, and their maps.
pub(super) struct Programs {
    directory: PathBuf,
    pinned: PathBuf,
    programs: BTreeMap<&'static str, SchedClassifier>,
    maps: Maps,
}

/// All of them.
pub(in crate::ebpf) struct Maps {
    pods: HashMap<MapData, [u8; 16], [u8; 24]>,
    ways: LpmTrie<MapData, [u8; 16], [u8; 36]>,
    tunnel: Array<MapData, [u8; 28]>,
    noted: HashMap<MapData, [u8; 40], u32>,
    begun: HashMap<MapData, [u8; 40], u32>,
    notes: Array<MapData, u32>,
}

/// What each side of a link has. Of what leaves by the underlay, the tunnel's device has had a look at the inside.
fn hooks(side: Side) -> &'static [(&'static str, TcAttachType)] {
    const NOTES: (&str, TcAttachType) = (STACK_SENDS, TcAttachType::Egress);
    const NODES: (&str, TcAttachType) = (NODE_SENDS, TcAttachType::Ingress);
    match side {
        Side::Pod => &[NOTES, (POD_SENDS, TcAttachType::Ingress)],
        Side::Nodes => &[NOTES, NODES],
        Side::Underlay => &[NODES],
    }
}

/// Where they are, if there are any.
fn there(site: &Site) -> Option<PathBuf> {
    let directory = site.present()?.join(PATH);
    directory.exists().then_some(directory)
}

fn directory(site: &Site) -> Result<PathBuf, EbpfError> {
    Ok(site.directory()?.join(PATH))
}

impl Programs {
    /// Those that are there, or new ones in their place.
    pub(super) fn open(site: &Site) -> Result<Self, EbpfError> {
        let directory = directory(site)?;
        let links = directory.join(LINKS);
        fs::create_dir_all(&links).map_err(EbpfError::at(&links))?;
        let pinned = directory.join(format!("{BUILD}{}", pins::build(OBJECT)));
        let are_whole = Maps::are_whole(&directory);
        let programs = match are_whole && PROGRAMS.iter().all(|name| pinned.join(name).exists()) {
            true => open(&pinned)?,
            // Also where a map is missing: programs that are there go by one that nobody finds any more.
            false => replace(&directory, &pinned)?,
        };
        remove_others(&directory, &pinned)?;
        Ok(Programs {
            maps: Maps::open(&directory)?,
            directory,
            pinned,
            programs,
        })
    }

    /// The same where any are at links; they are this build's then.
    pub(super) fn take_over(site: &Site) -> Result<Option<Self>, EbpfError> {
        there(site).map(|_| Programs::open(site)).transpose()
    }

    /// Whether a link has its program: somebody may have taken it off, whatever is pinned.
    fn is_at(&self, netlink: &mut Netlink, (link, hook, at): Hook) -> Result<bool, EbpfError> {
        let failed = |error: ProgramError| EbpfError::hook(hook, &error);
        let (Some(program), Some(link)) = (self.programs.get(hook), netlink.link_by_index(link)?) else {
            return Ok(false);
        };
        let own = program.info().map_err(failed)?.id();
        let (_, found) = SchedClassifier::query_tcx(&link.name, at).map_err(failed)?;
        Ok(found.iter().any(|program| program.id() == own))
    }

    /// Whether they are still where others find them.
    pub(super) fn are_pinned(&self) -> bool {
        PROGRAMS.iter().all(|name| self.pinned.join(name).exists())
    }

    pub(super) fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Has programs at these links and at no others, and says at which of them some are missing. Whether those that are
    /// pinned are still at their links is seen only by who `looks`.
    pub(super) fn missing(
        &self,
        wanted: &BTreeMap<u32, Side>,
        looks: bool,
    ) -> Result<BTreeSet<(Side, u32)>, EbpfError> {
        let links = self.directory.join(LINKS);
        let mut missing: BTreeMap<String, (Side, Hook)> = wanted.iter().flat_map(named).collect();
        let mut netlink = Netlink::open()?;
        for name in entries(&links)? {
            let is_held = match missing.get(&name) {
                None => false,
                Some((_, at)) if looks => self.is_at(&mut netlink, *at)?,
                Some(_) => true,
            };
            if is_held {
                missing.remove(&name);
                continue;
            }
            let path = links.join(name);
            fs::remove_file(&path).map_err(EbpfError::at(&path))?;
        }
        let missing = missing.into_values();
        Ok(missing.map(|(side, (link, ..))| (side, link)).collect())
    }

    /// Has all programs at these links.
    pub(super) fn attach(&mut self, links: &BTreeSet<(Side, u32)>) -> Result<(), EbpfError> {
        let mut netlink = Netlink::open()?;
        let directory = self.directory.join(LINKS);
        let hooks: Vec<_> = links
            .iter()
            .flat_map(|(side, link)| named((link, side)))
            .collect();
        // All that note, before all that lead past.
        for name in PROGRAMS {
            let Some(program) = self.programs.get_mut(name) else {
                continue;
            };
            for (pin, (_, at)) in hooks.iter().filter(|(_, (_, (_, hook, _)))| *hook == name) {
                let pin = directory.join(pin);
                if !pin.exists() {
                    attach(&mut netlink, program, *at, &pin)?;
                }
            }
        }
        Ok(())
    }
}

type Hook = (u32, &'static str, TcAttachType);

/// How often what the kernel is about to do is waited for, so long each time.
const PATIENCE: u32 = 100;
const MOMENT: Duration = Duration::from_millis(10);

/// What a link has, by the names of its pins.
fn named((link, side): (&u32, &Side)) -> impl Iterator<Item = (String, (Side, Hook))> {
    let (link, side) = (*link, *side);
    let hooks = hooks(side).iter();
    hooks.map(move |(hook, at)| (pin(link, hook), (side, (link, *hook, *at))))
}

fn pin(link: u32, hook: &str) -> String {
    format!("{link}-{hook}")
}

fn attach(
    netlink: &mut Netlink,
    program: &mut SchedClassifier,
    (link, hook, at): Hook,
    path: &Path,
) -> Result<(), EbpfError> {
    let failed = |error: &dyn std::error::Error| EbpfError::hook(hook, error);
    // One that went away meanwhile needs none.
    let Some(link) = netlink.link_by_index(link)? else {
        return Ok(());
    };
    let mut attempts = 0..PATIENCE;
    let held = loop {
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        match program.attach_with_options(&link.name, at, order) {
            Ok(held) => break held,
            Err(ProgramError::SyscallError(error)) => match error.io_error.kind() {
                // Attach types that a kernel does not know.
                ErrorKind::InvalidInput => return Err(EbpfError::NoTcx),
                // Somebody removed its pin, and the kernel takes its time to take it off.
                ErrorKind::AlreadyExists if attempts.next().is_some() => std::thread::sleep(MOMENT),
                _ => return Err(failed(&error)),
            },
            Err(error) => return Err(failed(&error)),
        }
    };
    let held = program.take_link(held).map_err(|error| failed(&error))?;
    let held: FdLink = held.try_into().map_err(|error| failed(&error))?;
    held.pin(path).map_err(|error| failed(&error))?;
    Ok(())
}

/// Those that this build has pinned.
fn open(pinned: &Path) -> Result<BTreeMap<&'static str, SchedClassifier>, EbpfError> {
    let programs = PROGRAMS.map(|name| {
        let program = SchedClassifier::from_pin(pinned.join(name));
        Ok((name, program.map_err(|error| EbpfError::hook(name, &error))?))
    });
    programs.into_iter().collect()
}

/// Loads this build's, and puts them in the place of another's at every link. They are pinned in the end, so that who is
/// interrupted begins again.
fn replace(directory: &Path, pinned: &Path) -> Result<BTreeMap<&'static str, SchedClassifier>, EbpfError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins(directory).path(name));
    }
    let mut object = loader
        .load(OBJECT)
        .map_err(|error| EbpfError::Load(error.into()))?;
    // What one that was interrupted left.
    let _ = fs::remove_dir_all(pinned);
    fs::create_dir(pinned).map_err(EbpfError::at(pinned))?;
    // Those that note are last: what one before noted where these do not look is read from tracking before anybody is led.
    for name in PROGRAMS.into_iter().rev() {
        let failed = |error: &dyn std::error::Error| EbpfError::hook(name, error);
        let program = object.program_mut(name).ok_or(EbpfError::NoProgram(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|error| failed(&error))?;
        program.load().map_err(|error| failed(&error))?;
        let links = directory.join(LINKS);
        for held in entries(&links)? {
            if held.split_once('-').is_some_and(|(_, hook)| hook == name) {
                let path = links.join(held);
                if take_over(program, &path).is_err() {
                    // It holds another's program, or nothing: then a new one is put there.
                    fs::remove_file(&path).map_err(EbpfError::at(&path))?;
                }
            }
        }
        program.pin(pinned.join(name)).map_err(|error| failed(&error))?;
    }
    open(pinned)
}

/// The numbers of the programs that are pinned, and what they are called.
pub(in crate::ebpf) fn numbers(site: &Site) -> Result<BTreeMap<u32, String>, EbpfError> {
    let mut numbers = BTreeMap::new();
    let Some(directory) = there(site) else {
        return Ok(numbers);
    };
    for build in entries(&directory)?
        .into_iter()
        .filter(|name| name.starts_with(BUILD))
    {
        for name in entries(&directory.join(&build))? {
            let failed = |error: ProgramError| EbpfError::At {
                path: directory.join(&build).join(&name),
                source: std::io::Error::other(error),
            };
            let program = SchedClassifier::from_pin(directory.join(&build).join(&name)).map_err(failed)?;
            numbers.insert(program.info().map_err(failed)?.id(), name);
        }
    }
    Ok(numbers)
}

/// Has a link hold this program from now on.
fn take_over(program: &mut SchedClassifier, path: &Path) -> Result<(), ProgramError> {
    let held = FdLink::from(PinnedLink::from_pin(path).map_err(|_| ProgramError::NotAttached)?);
    let held = SchedClassifierLink::try_from(held).map_err(|_| ProgramError::NotAttached)?;
    let held = program.attach_to_link(held)?;
    // The pin holds it from now on.
    program.take_link(held).map(drop)
}

/// Removes programs of other builds, and maps of other layouts.
fn remove_others(directory: &Path, programs: &Path) -> Result<(), EbpfError> {
    let maps = MAPS.iter().map(|name| pins(directory).path(name));
    let kept = maps.chain([programs.to_owned(), directory.join(LINKS)]);
    pins::remove_all_but(directory, &kept.collect::<Vec<_>>())
}

/// Takes off everything that is at links.
pub(super) fn remove(site: &Site) -> Result<(), EbpfError> {
    match there(site) {
        Some(directory) => fs::remove_dir_all(&directory).map_err(EbpfError::at(&directory)),
        None => Ok(()),
    }
}

impl Maps {
    /// Those of a node; none where there are none.
    pub(in crate::ebpf) fn present(site: &Site) -> Result<Option<Self>, EbpfError> {
        let whole = there(site).filter(|directory| Maps::are_whole(directory));
        whole.map(|directory| Maps::open(&directory)).transpose()
    }

    /// Whether all of this layout are there.
    fn are_whole(directory: &Path) -> bool {
        MAPS.iter().all(|name| pins(directory).path(name).exists())
    }

    fn open(directory: &Path) -> Result<Self, EbpfError> {
        let pins = pins(directory);
        Ok(Maps {
            pods: pins.hash("PODS")?,
            ways: pins.trie("WAYS")?,
            tunnel: pins.array("TUNNEL")?,
            noted: pins.hash("NOTED")?,
            begun: pins.hash("BEGUN")?,
            notes: pins.array("NOTES")?,
        })
    }

    /// Everything that is filled from outside.
    pub(in crate::ebpf) fn rows(&self) -> Result<Rows, EbpfError> {
        let pods: BTreeMap<[u8; 16], [u8; 24]> = all("PODS", self.pods.iter())?;
        let pods = pods.into_iter();
        let ways = self.ways.iter().map(|row| {
            row.map(|(key, way)| {
                let range = Range {
                    length: key.prefix_len(),
                    address: Address(key.data()),
                };
                (range, transmute!(way))
            })
        });
        let tunnel: Tunnel = transmute!(pins::get("TUNNEL", &self.tunnel, 0)?);
        Ok(Rows {
            tunnel: (tunnel != Tunnel::NONE).then_some(tunnel),
            pods: pods
                .map(|(address, pod)| -> (Address, Pod) { (Address(address), transmute!(pod)) })
                .collect(),
            ways: all("WAYS", ways)?,
        })
    }

    /// Changes a row.
    pub(super) fn run(&mut self, step: &Step) -> Result<(), EbpfError> {
        match *step {
            Step::Put(Row::Pod(Address(address), pod)) => {
                let pod: [u8; 24] = transmute!(pod);
                pins::put("PODS", self.pods.insert(address, pod, 0))
            }
            Step::Put(Row::Way(range, way)) => {
                let way: [u8; 36] = transmute!(way);
                pins::put("WAYS", self.ways.insert(&key(range), way, 0))
            }
            Step::Put(Row::Tunnel(tunnel)) => self.set_tunnel(tunnel),
            Step::Remove(Row::Tunnel(_)) => self.set_tunnel(Tunnel::NONE),
            Step::Remove(Row::Pod(address, _)) => self.remove_pod(address),
            Step::Remove(Row::Way(range, _)) => pins::removed("WAYS", self.ways.remove(&key(range))),
        }
    }

    fn set_tunnel(&mut self, tunnel: Tunnel) -> Result<(), EbpfError> {
        let tunnel: [u8; 28] = transmute!(tunnel);
        pins::put("TUNNEL", self.tunnel.set(0, tunnel, 0))
    }

    /// Takes a pod off.
    pub(super) fn remove_pod(&mut self, Address(address): Address) -> Result<(), EbpfError> {
        pins::removed("PODS", self.pods.remove(&address))
    }

    /// Flows that the table translated; whether a packet of theirs came by since [`Maps::unsee`].
    pub(in crate::ebpf) fn noted(&self) -> Result<BTreeMap<Tuple, bool>, EbpfError> {
        let noted = self
            .noted
            .iter()
            .map(|row| row.map(|(flow, seen)| -> (Tuple, bool) { (transmute!(flow), seen != 0) }));
        all("NOTED", noted)
    }

    /// Notes a flow that may be noted already.
    pub(super) fn note(&mut self, flow: &Tuple) -> Result<(), EbpfError> {
        let flow: [u8; 40] = transmute!(flow.either());
        pins::put("NOTED", self.noted.insert(flow, 1, 0))
    }

    /// From now on nobody saw it.
    pub(super) fn unsee(&mut self, flow: Tuple) -> Result<(), EbpfError> {
        let flow: [u8; 40] = transmute!(flow);
        pins::put("NOTED", self.noted.insert(flow, 0, 0))
    }

    /// Takes a note back.
    pub(super) fn cross_out(&mut self, flow: Tuple) -> Result<(), EbpfError> {
        let flow: [u8; 40] = transmute!(flow);
        pins::removed("NOTED", self.noted.remove(&flow))
    }

    /// Whether something is said of them all: [`ANY_NOTED`](podnet_ebpf_abi::path::ANY_NOTED), for one.
    pub(super) fn says(&self, what: u32) -> Result<bool, EbpfError> {
        Ok(pins::get("NOTES", &self.notes, what)? != 0)
    }

    /// Says so.
    pub(super) fn say(&mut self, what: u32, holds: bool) -> Result<(), EbpfError> {
        pins::put("NOTES", self.notes.set(what, u32::from(holds), 0))
    }

    /// Connections past the stack, in the direction in which they were begun, and how far they are.
    pub(super) fn connections(&self) -> Result<BTreeMap<Tuple, u32>, EbpfError> {
        let begun = self
            .begun
            .iter()
            .map(|row| row.map(|(flow, how_far)| -> (Tuple, u32) { (transmute!(flow), how_far) }));
        all("BEGUN", begun)
    }

    /// Those that were accepted.
    pub(in crate::ebpf) fn begun(&self) -> Result<BTreeSet<Tuple>, EbpfError> {
        let accepted = self.connections()?.into_iter();
        let accepted = accepted.filter(|(_, how_far)| *how_far == ACCEPTED);
        Ok(accepted.map(|(connection, _)| connection).collect())
    }

    /// Remembers how far one is. Where there is no room it stays unknown.
    pub(super) fn remember(&mut self, connection: &Tuple, how_far: u32) -> Result<(), EbpfError> {
        let connection: [u8; 40] = transmute!(*connection);
        match pins::put("BEGUN", self.begun.insert(connection, how_far, 0)) {
            Err(EbpfError::Full(_)) => Ok(()),
            done => done,
        }
    }

    /// Forgets one.
    pub(super) fn forget(&mut self, connection: &Tuple) -> Result<(), EbpfError> {
        let connection: [u8; 40] = transmute!(*connection);
        pins::removed("BEGUN", self.begun.remove(&connection))
    }
}

fn key(range: Range) -> Key<[u8; 16]> {
    let Address(address) = range.address;
    Key::new(range.length, address)
}

#[cfg(test)]
mod tests {
    use podnet_ebpf_abi::path::Way;

    use super::*;
    use crate::ebpf::pins::tests::assert_shape;

    /// What the programs were compiled with is what this side writes.
    #[test]
    fn the_objects_maps_have_the_layouts_of_the_abi() {
        let flow = size_of::<Tuple>();
        let sizes = [
            ("PODS", (size_of::<Address>(), size_of::<Pod>())),
            ("WAYS", (size_of::<Range>(), size_of::<Way>())),
            ("TUNNEL", (size_of::<u32>(), size_of::<Tunnel>())),
            ("NOTED", (flow, size_of::<u32>())),
            ("BEGUN", (flow, size_of::<u32>())),
            ("NOTES", (size_of::<u32>(), size_of::<u32>())),
        ];
        assert_shape(OBJECT, &sizes, &PROGRAMS);
        assert_eq!(BTreeSet::from(sizes.map(|(name, _)| name)), MAPS.into());
    }
}
