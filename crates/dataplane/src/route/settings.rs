//! The node's settings that had to be changed, and what they were before.
//!
//! Nothing in the kernel tells what a setting was before it was changed, so that is written down first, in a file with a
//! line `KEY BEFORE AFTER` each, below the boot it holds for: a reboot undoes every setting by itself.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use podnet_linux::bootid;
use podnet_linux::sysctl;

use super::RouteError;

#[derive(Debug, Default)]
pub(super) struct Settings {
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
    pub(super) fn kept_in(file: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        Ok(Settings {
            file: Some(file.to_owned()),
            changes: read(&text, &bootid::boot_id()?),
        })
    }

    /// Gives `key` the value and tells whether it had another.
    pub(super) fn ensure(&mut self, key: &str, value: &str) -> Result<bool, RouteError> {
        let before = sysctl::get(key)?;
        if before == value {
            return Ok(false);
        }
        self.note(key, &before, value)?;
        sysctl::set(key, value)?;
        Ok(true)
    }

    /// Writes down that `key`, now at `before`, is about to become `after`. The first value counts.
    pub(super) fn note(&mut self, key: &str, before: &str, after: &str) -> Result<(), RouteError> {
        if self.changes.iter().any(|change| change.key == key) {
            return Ok(());
        }
        self.changes.push(Change {
            key: key.into(),
            before: before.into(),
            after: after.into(),
        });
        self.write()
    }

    fn write(&self) -> Result<(), RouteError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let failed = |source| RouteError::Record {
            file: file.clone(),
            source,
        };
        let mut text = bootid::boot_id().map_err(failed)? + "\n";
        for Change { key, before, after } in &self.changes {
            text.push_str(&format!("{key} {before} {after}\n"));
        }
        replace(file, &text).map_err(failed)
    }

    /// Puts back what nobody else has changed since, with `really`, and says what it is. The last change goes first.
    pub(super) fn restore(&mut self, really: bool) -> Result<Vec<String>, RouteError> {
        let mut restored = Vec::new();
        let mut left = Vec::new();
        let mut failure = None;
        for change in self.changes.iter().rev() {
            let Change { key, before, after } = change;
            // What did not change itself is noted because another change would take it along.
            let along = before == after;
            let is_ours = match sysctl::get(key) {
                Ok(now) => {
                    if along {
                        now != *before
                    } else {
                        now == *after
                    }
                }
                // Its link is gone.
                Err(error) if error.is_not_found() => false,
                Err(error) => {
                    failure = Some(error);
                    left.push(change.clone());
                    continue;
                }
            };
            if !is_ours {
                continue;
            }
            if really && let Err(error) = sysctl::set(key, before) {
                failure = Some(error);
                left.push(change.clone());
                continue;
            }
            if along {
                continue;
            }
            restored.push(format!("setting {key} = {after}, which was {before}"));
        }
        if really {
            left.reverse();
            self.changes = left;
            if self.changes.is_empty()
                && let Some(file) = &self.file
            {
                // What is left of it belongs to the directory that goes next.
                let _ = std::fs::remove_file(file);
            }
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(restored),
        }
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
