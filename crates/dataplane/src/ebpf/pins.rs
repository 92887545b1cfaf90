//! Maps that are pinned, and what is common to all objects.

use std::collections::BTreeMap;
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

/// Where the maps of one layout are pinned.
#[derive(Debug, Clone)]
pub(super) struct Pins<'a> {
    pub(super) directory: &'a Path,
    pub(super) layout: u32,
}

impl Pins<'_> {
    /// Without a dot, which the file system of pins reserves.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-{}", self.layout))
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

/// All rows of a map.
pub(super) fn all<K: Ord, V>(
    name: &'static str,
    rows: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<BTreeMap<K, V>, EbpfError> {
    rows.collect::<Result<_, _>>()
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
