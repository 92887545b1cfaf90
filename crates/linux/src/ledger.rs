//! What kernel settings were before podnet changed them, on disk, so that a node can have them back.
//!
//! A line is appended before each change. The file belongs where a reboot clears it, since that clears the settings too.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sysctl::{self, SysctlError};

/// Where changes are noted.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    path: Option<PathBuf>,
}

/// A setting that is not what podnet found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path below /proc/sys.
    pub key: String,
    /// What it was.
    pub before: String,
    /// What it was set to.
    pub ours: String,
}

impl Ledger {
    /// Notes nothing: for namespaces that go with what is in them.
    pub fn none() -> Self {
        Ledger::default()
    }

    /// Notes changes in a file.
    pub fn at(path: &Path) -> Self {
        Ledger {
            path: Some(path.to_owned()),
        }
    }

    /// Gives `key` a value unless it has it. True if it was changed.
    pub fn ensure(&self, key: &str, value: &str) -> Result<bool, SysctlError> {
        let before = sysctl::get(key)?;
        if before == value {
            return Ok(false);
        }
        self.note(key, &before, value)
            .map_err(|source| SysctlError::unnoted(key, source))?;
        sysctl::set(key, value)?;
        Ok(true)
    }

    fn note(&self, key: &str, before: &str, ours: &str) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // In one write: lines of two threads do not mix.
        file.write_all(format!("{key}\t{before}\t{ours}\n").as_bytes())
    }

    /// The settings that still are what podnet made them, the one that was changed last first. What somebody else has set
    /// since is theirs.
    pub fn standing(&self) -> Vec<Change> {
        let text = self
            .path
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let mut changes: Vec<Change> = Vec::new();
        let mut known: BTreeMap<&str, usize> = BTreeMap::new();
        // A line that a crash cut short was followed by no change.
        for line in text
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            // Lists of numbers have tabs in them, names have not.
            let Some((key, values)) = line.split_once('\t') else {
                continue;
            };
            let Some((before, ours)) = values.rsplit_once('\t') else {
                continue;
            };
            match known.get(key) {
                Some(at) => ours.clone_into(&mut changes[*at].ours),
                None => {
                    known.insert(key, changes.len());
                    changes.push(Change {
                        key: key.to_owned(),
                        before: before.to_owned(),
                        ours: ours.to_owned(),
                    });
                }
            }
        }
        let stands = |change: &Change| {
            change.before != change.ours && sysctl::get(&change.key).is_ok_and(|now| now == change.ours)
        };
        changes.retain(stands);
        changes.reverse();
        changes
    }
}

impl Change {
    /// Gives the setting back what it was.
    pub fn undo(&self) -> Result<(), SysctlError> {
        sysctl::set(&self.key, &self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{Kind, Namespace};

    const KEY: &str = "net/ipv4/ip_forward";
    const OTHER: &str = "net/ipv4/ip_default_ttl";

    #[test]
    fn settings_are_given_back_as_they_were_found() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(&dir.path().join("run/settings"));
        let namespace = Namespace::create(Kind::Net).unwrap();
        let standing = || {
            let keys = ledger.standing().into_iter().map(|change| change.key);
            keys.collect::<Vec<_>>()
        };
        namespace
            .run(|| {
                let before = [KEY, OTHER].map(|key| sysctl::get(key).unwrap());
                assert!(standing().is_empty());
                assert!(ledger.ensure(KEY, "1").unwrap() && !ledger.ensure(KEY, "1").unwrap());
                // Somebody takes it back, and podnet makes it again: what was found is what was there first.
                sysctl::set(KEY, "0").unwrap();
                assert!(standing().is_empty());
                assert!(ledger.ensure(KEY, "1").unwrap());
                assert!(ledger.ensure(OTHER, "77").unwrap());
                assert_eq!(standing(), [OTHER, KEY]);
                for change in ledger.standing() {
                    change.undo().unwrap();
                }
                assert_eq!([KEY, OTHER].map(|key| sysctl::get(key).unwrap()), before);
                assert!(standing().is_empty());
            })
            .unwrap();
    }

    #[test]
    fn what_somebody_else_has_set_since_and_what_a_crash_cut_short_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings");
        let ledger = Ledger::at(&path);
        let namespace = Namespace::create(Kind::Net).unwrap();
        namespace
            .run(|| {
                assert!(ledger.ensure(OTHER, "77").unwrap());
                sysctl::set(OTHER, "78").unwrap();
                let mut text = std::fs::read_to_string(&path).unwrap();
                text.push_str("nonsense\nnet/ipv4/ip_forward\t1\t0");
                std::fs::write(&path, text).unwrap();
                assert_eq!(ledger.standing(), []);
            })
            .unwrap();
    }

    #[test]
    fn what_cannot_be_noted_is_not_changed() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        namespace
            .run(|| {
                let before = sysctl::get(KEY).unwrap();
                let error = Ledger::at(Path::new("/dev/null/settings"))
                    .ensure(KEY, "1")
                    .unwrap_err();
                assert!(error.to_string().contains(KEY), "{error}");
                assert_eq!(sysctl::get(KEY).unwrap(), before);
            })
            .unwrap();
    }
}
