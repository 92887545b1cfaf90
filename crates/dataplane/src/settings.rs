//! The node's settings that had to be changed, and what they were before.
//!
//! Nothing in the kernel tells what a setting was before it was changed, so that is written down first, in a file with a
//! line `KEY BEFORE AFTER` each, below the boot it holds for: a reboot undoes every setting by itself.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podnet_linux::bootid;
use podnet_linux::sysctl::{self, SysctlError};

/// Why a setting of the node could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    /// The kernel has it no other way.
    #[error(transparent)]
    Kernel(#[from] SysctlError),
    /// What settings were before cannot be read.
    #[error("cannot read {}: {source}; remove it if what the node's settings were before is of no interest", file.display())]
    Records {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What it was before could not be written down.
    #[error("cannot write {}: {source}; the node's settings are not changed while they could not be put back", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The node's settings. All copies keep one record, so that whoever changes one of them is undone with the others.
#[derive(Debug, Clone, Default)]
pub struct Settings(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    file: Option<PathBuf>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    key: String,
    before: String,
    after: String,
}

impl Settings {
    /// Keeps what was before in `file`, and goes on where another left it.
    pub fn kept_in(file: &Path) -> Result<Self, SettingError> {
        let failed = |source| SettingError::Records {
            file: file.to_owned(),
            source,
        };
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        let boot = bootid::boot_id().map_err(failed)?;
        let records = Records {
            file: Some(file.to_owned()),
            changes: read(&text, &boot),
        };
        Ok(Settings(Arc::new(Mutex::new(records))))
    }

    /// Gives `key`, a path below /proc/sys, the value and tells whether it had another.
    pub fn ensure(&self, key: &str, value: &str) -> Result<bool, SettingError> {
        let mut records = self.records();
        let before = sysctl::get(key)?;
        if before == value {
            return Ok(false);
        }
        records.note(key, &before, value)?;
        sysctl::set(key, value)?;
        Ok(true)
    }

    /// Writes down what `key` is, because a change of another setting, made next, takes it along.
    pub(crate) fn note(&self, key: &str, now: &str) -> Result<(), SettingError> {
        self.records().note(key, now, now)
    }

    /// Puts one setting back, unless somebody else has changed it since.
    pub(crate) fn put_back(&self, key: &str) -> Result<(), SettingError> {
        self.records().put_back(key)
    }

    /// Puts back what nobody else has changed since, with `really`, and says what it is. The last change goes first.
    pub(crate) fn restore(&self, really: bool) -> Result<Vec<String>, SettingError> {
        self.records().restore("", really)
    }

    /// Puts back those below a path.
    pub(crate) fn restore_below(&self, path: &str) -> Result<Vec<String>, SettingError> {
        self.records().restore(path, true)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // No step of theirs leaves them half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// Writes down that `key`, now at `before`, is about to become `after`. The first value counts.
    fn note(&mut self, key: &str, before: &str, after: &str) -> Result<(), SettingError> {
        if self.changes.iter().any(|change| change.key == key) {
            return Ok(());
        }
        self.changes.push(Change {
            key: key.into(),
            before: before.into(),
            after: after.into(),
        });
        // What is not written down is not known: the next attempt writes again.
        self.write().inspect_err(|_| drop(self.changes.pop()))
    }

    fn write(&self) -> Result<(), SettingError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let failed = |source| SettingError::Record {
            file: file.clone(),
            source,
        };
        let mut text = bootid::boot_id().map_err(failed)? + "\n";
        for Change { key, before, after } in &self.changes {
            text.push_str(&format!("{key} {before} {after}\n"));
        }
        replace(file, &text).map_err(failed)
    }

    fn put_back(&mut self, key: &str) -> Result<(), SettingError> {
        let Some(place) = self.changes.iter().position(|change| change.key == key) else {
            return Ok(());
        };
        self.changes
            .get(place)
            .map(|change| change.undo(true))
            .transpose()?;
        self.changes.remove(place);
        self.write()
    }

    fn restore(&mut self, path: &str, really: bool) -> Result<Vec<String>, SettingError> {
        let (mut restored, mut left, mut failure) = (Vec::new(), Vec::new(), None);
        for change in self.changes.iter().rev() {
            if !change.key.starts_with(path) {
                left.push(change.clone());
                continue;
            }
            match change.undo(really) {
                Ok(what) => restored.extend(what),
                Err(error) => {
                    left.push(change.clone());
                    failure = Some(error);
                }
            }
        }
        if really {
            left.reverse();
            self.changes = left;
            if self.changes.is_empty()
                && let Some(file) = &self.file
            {
                // What is left of it belongs to the directory that goes next.
                let _ = std::fs::remove_file(file);
            } else if !path.is_empty() {
                self.write()?;
            }
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(restored),
        }
    }
}

impl Change {
    /// Puts back what nobody else has changed since, with `really`, and says so.
    fn undo(&self, really: bool) -> Result<Option<String>, SysctlError> {
        let Change { key, before, after } = self;
        let now = match sysctl::get(key) {
            // Its link is gone.
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        // What was not changed itself is noted because another change, which is put back first, takes it along.
        let along = before == after;
        let is_ours = if along { now != *before } else { now == *after };
        if is_ours && really {
            sysctl::set(key, before)?;
        }
        Ok((is_ours && !along).then(|| format!("setting {key} = {after}, which was {before}")))
    }
}

fn replace(file: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let new = file.with_extension("new");
    let mut writer = File::create(&new)?;
    writer.write_all(text.as_bytes())?;
    writer.sync_all()?;
    std::fs::rename(new, file)
}

/// Lines that are none are passed over: a torn file must not keep the agent from starting.
fn read(text: &str, boot: &str) -> Vec<Change> {
    let mut lines = text.lines();
    if lines.next() != Some(boot) {
        return Vec::new();
    }
    let change = |line: &str| {
        let mut words = line.split(' ');
        let (key, before, after) = (words.next()?, words.next()?, words.next()?);
        let whole = words.next().is_none() && key.starts_with("net/") && !key.contains("..");
        whole.then(|| Change {
            key: key.into(),
            before: before.into(),
            after: after.into(),
        })
    };
    lines.filter_map(change).collect()
}
