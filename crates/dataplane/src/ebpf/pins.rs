//! Maps that are pinned, and what is common to all objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::EbpfError;

/// What an object is called after: the same for the same bytes.
pub(super) fn build(object: &[u8]) -> String {
    let digest = Sha256::digest(object);
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Where an object's maps are pinned.
#[derive(Debug, Clone)]
pub(super) struct Pins<'a> {
    pub(super) directory: &'a Path,
    /// The version of a map's layout.
    pub(super) layout: fn(&str) -> u32,
}

impl Pins<'_> {
    /// Without a dot, which the file system of pins reserves.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{}", (self.layout)(name)))
    }

    fn open<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, EbpfError> {
        MapData::from_pin(self.path(name))
            .and_then(Map::from_map_data)
            .and_then(M::try_from)
            .map_err(|source| EbpfError::Map { name, source })
    }

    /// A map with keys and values of these sizes.
    pub(super) fn hash<K: Pod, V: Pod>(
        &self,
        name: &'static str,
    ) -> Result<HashMap<MapData, K, V>, EbpfError> {
        self.open(name)
    }

    /// The same by prefixes.
    pub(super) fn trie<K: Pod, V: Pod>(
        &self,
        name: &'static str,
    ) -> Result<LpmTrie<MapData, K, V>, EbpfError> {
        self.open(name)
    }

    /// The same by numbers.
    pub(super) fn array<V: Pod>(&self, name: &'static str) -> Result<Array<MapData, V>, EbpfError> {
        self.open(name)
    }
}

/// What is in a directory, by name.
pub(super) fn entries(directory: &Path) -> Result<BTreeSet<String>, EbpfError> {
    let entries = fs::read_dir(directory).map_err(EbpfError::at(directory))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.collect())
}

/// Removes all that is in a directory but this.
pub(super) fn remove_all_but(directory: &Path, kept: &[PathBuf]) -> Result<(), EbpfError> {
    for name in entries(directory)? {
        let path = directory.join(name);
        let removed = match path.is_dir() {
            _ if kept.contains(&path) => Ok(()),
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(EbpfError::at(&path))?;
    }
    Ok(())
}

/// All rows of a map.
pub(super) fn all<K: Ord, V>(
    name: &'static str,
    rows: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<BTreeMap<K, V>, EbpfError> {
    rows.collect::<Result<_, _>>()
        .map_err(|source| EbpfError::Map { name, source })
}

/// One row of those that are always there.
pub(super) fn get<V: Pod>(name: &'static str, array: &Array<MapData, V>, index: u32) -> Result<V, EbpfError> {
    array
        .get(&index, 0)
        .map_err(|source| EbpfError::Map { name, source })
}

/// What came of putting a row.
pub(super) fn put(name: &'static str, done: Result<(), MapError>) -> Result<(), EbpfError> {
    done.map_err(|source| match errno(&source) {
        // What a hash says, and what a trie does.
        Some(Errno::TOOBIG | Errno::NOSPC) => EbpfError::Full(name),
        _ => EbpfError::Map { name, source },
    })
}

/// What came of removing one; somebody else may have been first.
pub(super) fn removed(name: &'static str, done: Result<(), MapError>) -> Result<(), EbpfError> {
    match done {
        Err(source) if errno(&source) != Some(Errno::NOENT) => Err(EbpfError::Map { name, source }),
        _ => Ok(()),
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(error) => Errno::from_io_error(&error.io_error),
        MapError::KeyNotFound => Some(Errno::NOENT),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// That an object has these maps, with keys and values of these sizes, and these programs, and no others.
    pub(in crate::ebpf) fn assert_shape(object: &[u8], maps: &[(&str, (usize, usize))], programs: &[&str]) {
        let object = aya_obj::Object::parse(object).unwrap();
        let found = object.maps.iter().map(|(name, map)| {
            let sizes = (map.key_size() as usize, map.value_size() as usize);
            (name.as_str(), sizes)
        });
        let found: BTreeMap<_, _> = found.collect();
        assert_eq!(found, maps.iter().copied().collect());
        let found: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
        assert_eq!(found, programs.iter().copied().collect());
    }
}
