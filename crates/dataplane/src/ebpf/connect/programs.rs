//! The programs and maps in the kernel. Nothing else here knows the loader.
//!
//! All of it is pinned below one directory, so that it outlives the agent. Maps are called after themselves and the version
//! of their layout, and whoever finds them goes on with them. A build's hooks are in a directory that is called after the
//! object and the group: another build has its own in their places, one after the other in one step each. Two at one hook
//! would not do where they share maps: to the second, a socket that the first one leads asks for the endpoint itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use podnet_ebpf_abi::connect::{Balance, LAYOUT, Serving, Slot};
use podnet_ebpf_abi::{Endpoint, Frontend};
use podnet_linux::{bpf, cgroup};
use zerocopy::transmute;

use super::rows::{Row, Rows, Step};
use crate::ebpf::pins::{self, Pins, all};
use crate::ebpf::site::PATH;
use crate::ebpf::{EbpfError, Site, Sizes};

static OBJECT: &[u8] = include_bytes_aligned!("../../../../ebpf/objects/connect.o");

/// In the order in which they are attached: nobody is led before his answers are.
const HOOKS: [&str; 8] = [
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "connect4",
    "connect6",
];
/// How directories of hooks are called, before the build and the group.
const HOOKS_OF: &str = "hooks-";
/// Those that hold what programs remember are last.
const MAPS: [&str; 7] = [
    "CLIENTS", "BALANCES", "SLOTS", "SERVING", "ASKED", "ANSWERS", "PEERS",
];

/// Where the maps are.
pub(in crate::ebpf) fn pins(directory: &Path) -> Pins<'_> {
    Pins {
        directory,
        layout: |_| LAYOUT,
    }
}

/// The maps of programs that are attached.
pub(super) struct Programs {
    maps: Maps,
    hooks: Hooks,
}

/// Those that are filled from outside.
pub(in crate::ebpf) struct Maps {
    clients: HashMap<MapData, u64, u32>,
    balances: HashMap<MapData, [u8; 20], [u8; 4]>,
    slots: HashMap<MapData, [u8; 24], [u8; 20]>,
    serving: HashMap<MapData, [u8; 40], u32>,
}

/// The directory in which a build's hooks of a group are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hooks(PathBuf);

impl Hooks {
    /// What one build pins below `directory` for a group.
    fn of(directory: &Path, group: &Path) -> Result<Self, EbpfError> {
        let build = pins::build(OBJECT);
        let group = cgroup::id(group).map_err(EbpfError::at(group))?;
        Ok(Hooks(directory.join(format!("{HOOKS_OF}{build}-{group}"))))
    }

    /// Those of another build at the same group, by the same maps.
    fn before(&self, directory: &Path, group: &Path) -> Result<Option<Self>, EbpfError> {
        if !MAPS.iter().all(|name| pins(directory).path(name).exists()) {
            return Ok(None);
        }
        let group = format!("-{}", cgroup::id(group).map_err(EbpfError::at(group))?);
        let names = pins::entries(directory)?.into_iter();
        let names = names.filter(|name| name.starts_with(HOOKS_OF) && name.ends_with(&group));
        let mut others = names.map(|name| Hooks(directory.join(name)));
        Ok(others.find(|other| other != self && other.are_attached()))
    }

    /// Whether all of them are.
    pub(super) fn are_attached(&self) -> bool {
        HOOKS.iter().all(|hook| self.0.join(hook).exists())
    }
}

impl Programs {
    /// Those that are attached, or new ones.
    pub(super) fn open(site: &Site) -> Result<Self, EbpfError> {
        let directory = site.directory()?;
        fs::create_dir_all(&directory).map_err(EbpfError::at(&directory))?;
        let group = site.group()?;
        let hooks = Hooks::of(&directory, &group)?;
        if !hooks.are_attached() {
            let before = hooks.before(&directory, &group)?;
            let mut programs = load(site.sizes, &directory)?;
            let replaced = before.map(|before| replace(&mut programs, &before, &hooks));
            match replaced {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(
                        "another build's programs at sockets go after this one's have come: {error}"
                    );
                    attach(&mut programs, &hooks, &group)?;
                }
                None => attach(&mut programs, &hooks, &group)?,
            }
        }
        remove_others(&directory, &hooks)?;
        Ok(Programs {
            maps: Maps::open(&directory)?,
            hooks,
        })
    }

    /// What they lead by.
    pub(super) fn maps(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Where its hooks are.
    pub(super) fn hooks(&self) -> &Hooks {
        &self.hooks
    }
}

impl Maps {
    /// Those that are pinned in a directory.
    pub(in crate::ebpf) fn open(directory: &Path) -> Result<Self, EbpfError> {
        let pins = pins(directory);
        Ok(Maps {
            clients: pins.hash("CLIENTS")?,
            balances: pins.hash("BALANCES")?,
            slots: pins.hash("SLOTS")?,
            serving: pins.hash("SERVING")?,
        })
    }

    /// Everything that is in the maps.
    pub(in crate::ebpf) fn rows(&self) -> Result<Rows, EbpfError> {
        let clients: BTreeMap<u64, u32> = all("CLIENTS", self.clients.iter())?;
        let balances: BTreeMap<[u8; 20], [u8; 4]> = all("BALANCES", self.balances.iter())?;
        let slots: BTreeMap<[u8; 24], [u8; 20]> = all("SLOTS", self.slots.iter())?;
        let serving: BTreeMap<[u8; 40], u32> = all("SERVING", self.serving.iter())?;
        Ok(Rows {
            clients: clients.into_keys().map(|cookie| (cookie, ())).collect(),
            balances: balances
                .into_iter()
                .map(|(key, value)| -> (Frontend, Balance) { (transmute!(key), transmute!(value)) })
                .collect(),
            slots: slots
                .into_iter()
                .map(|(key, value)| -> (Slot, Endpoint) { (transmute!(key), transmute!(value)) })
                .collect(),
            serving: serving
                .into_keys()
                .map(|key| -> (Serving, ()) { (transmute!(key), ()) })
                .collect(),
        })
    }

    /// Changes a row.
    pub(super) fn run(&mut self, step: &Step) -> Result<(), EbpfError> {
        let (name, done) = match *step {
            Step::Put(Row::Client(cookie)) => ("CLIENTS", self.clients.insert(cookie, 1, 0)),
            Step::Put(Row::Balance(key, value)) => {
                let key: [u8; 20] = transmute!(key);
                let value: [u8; 4] = transmute!(value);
                ("BALANCES", self.balances.insert(key, value, 0))
            }
            Step::Put(Row::Slot(key, value)) => {
                let key: [u8; 24] = transmute!(key);
                let value: [u8; 20] = transmute!(value);
                ("SLOTS", self.slots.insert(key, value, 0))
            }
            Step::Put(Row::Serving(key)) => {
                let key: [u8; 40] = transmute!(key);
                ("SERVING", self.serving.insert(key, 1, 0))
            }
            Step::Remove(Row::Client(cookie)) => ("CLIENTS", self.clients.remove(&cookie)),
            Step::Remove(Row::Balance(key, _)) => {
                let key: [u8; 20] = transmute!(key);
                ("BALANCES", self.balances.remove(&key))
            }
            Step::Remove(Row::Slot(key, _)) => {
                let key: [u8; 24] = transmute!(key);
                ("SLOTS", self.slots.remove(&key))
            }
            Step::Remove(Row::Serving(key)) => {
                let key: [u8; 40] = transmute!(key);
                ("SERVING", self.serving.remove(&key))
            }
        };
        match step {
            Step::Put(_) => pins::put(name, done),
            Step::Remove(_) => pins::removed(name, done),
        }
    }
}

/// Has the kernel take all programs.
fn load(sizes: Sizes, directory: &Path) -> Result<Ebpf, EbpfError> {
    let mut loader = EbpfLoader::new();
    let Sizes { services, endpoints } = sizes;
    for (name, size) in [
        ("BALANCES", services),
        ("SLOTS", endpoints),
        ("SERVING", endpoints),
    ] {
        loader.map_max_entries(name, size);
    }
    for name in MAPS {
        loader.map_pin_path(name, pins(directory).path(name));
    }
    let mut object = loader
        .load(OBJECT)
        .map_err(|error| EbpfError::Load(error.into()))?;
    for hook in HOOKS {
        let loaded = program(&mut object, hook)?.load();
        loaded.map_err(|error| EbpfError::hook(hook, &error))?;
    }
    Ok(object)
}

fn program<'a>(object: &'a mut Ebpf, hook: &'static str) -> Result<&'a mut CgroupSockAddr, EbpfError> {
    let program = object.program_mut(hook).ok_or(EbpfError::NoProgram(hook))?;
    program.try_into().map_err(|error| EbpfError::hook(hook, &error))
}

/// Has them where those of another build are. One that is interrupted is followed by one that does it again.
fn replace(programs: &mut Ebpf, Hooks(before): &Hooks, Hooks(hooks): &Hooks) -> Result<(), EbpfError> {
    for hook in HOOKS {
        let failed = |error: &dyn std::error::Error| EbpfError::hook(hook, error);
        let program = program(programs, hook)?.fd().map_err(|error| failed(&error))?;
        bpf::replace_program(&before.join(hook), program.as_fd()).map_err(|error| failed(&error))?;
    }
    // What one that was interrupted left.
    let _ = fs::remove_dir_all(hooks);
    fs::rename(before, hooks).map_err(EbpfError::at(hooks))
}

fn attach(programs: &mut Ebpf, Hooks(hooks): &Hooks, group: &Path) -> Result<(), EbpfError> {
    // What one that was interrupted left.
    let _ = fs::remove_dir_all(hooks);
    fs::create_dir(hooks).map_err(EbpfError::at(hooks))?;
    let group = File::open(group).map_err(EbpfError::at(group))?;
    for hook in HOOKS {
        let failed = |error: &dyn std::error::Error| EbpfError::hook(hook, error);
        let program = program(programs, hook)?;
        let link = program
            .attach(&group, CgroupAttachMode::Single)
            .map_err(|error| failed(&error))?;
        let link = program.take_link(link).map_err(|error| failed(&error))?;
        let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
        link.pin(hooks.join(hook)).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Removes hooks of other builds and groups, and maps of other layouts. Hooks that stayed would lead by rows that nobody
/// keeps.
fn remove_others(directory: &Path, Hooks(hooks): &Hooks) -> Result<(), EbpfError> {
    let maps = MAPS.iter().map(|name| pins(directory).path(name));
    let kept = maps.chain([hooks.clone(), directory.join(PATH)]);
    pins::remove_all_but(directory, &kept.collect::<Vec<_>>())
}

/// Takes off everything that is at sockets.
pub(super) fn remove(site: &Site) -> Result<(), EbpfError> {
    match site.present() {
        Some(directory) => pins::remove_all_but(&directory, &[directory.join(PATH)]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use podnet_ebpf_abi::connect::{Answers, Asked, Peer};

    use super::*;
    use crate::ebpf::pins::tests::assert_shape;

    /// What the programs were compiled with is what this side writes.
    #[test]
    fn the_objects_maps_have_the_layouts_of_the_abi() {
        let sizes = [
            ("CLIENTS", (size_of::<u64>(), size_of::<u32>())),
            ("BALANCES", (size_of::<Frontend>(), size_of::<Balance>())),
            ("SLOTS", (size_of::<Slot>(), size_of::<Endpoint>())),
            ("SERVING", (size_of::<Serving>(), size_of::<u32>())),
            ("ASKED", (size_of::<Asked>(), size_of::<Endpoint>())),
            ("ANSWERS", (size_of::<Answers>(), size_of::<Endpoint>())),
            ("PEERS", (size_of::<u64>(), size_of::<Peer>())),
        ];
        assert_shape(OBJECT, &sizes, &HOOKS);
        assert_eq!(BTreeSet::from(sizes.map(|(name, _)| name)), MAPS.into());
    }
}
