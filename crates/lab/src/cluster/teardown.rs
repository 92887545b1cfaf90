//! `podnet lab down`: ends the lab and removes its files, whatever state it is in.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::group;
use super::layout::LabDir;
use super::record::{ProcessIdentity, Record, read_json};

/// What was found and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Removed {
    /// A running lab was ended.
    Running,
    /// Files of a lab that had died.
    Remains,
    /// There was nothing.
    Nothing,
}

/// Ends the lab in `dir` and removes its files. Repeating it does no harm.
pub fn remove(dir: &LabDir) -> io::Result<Removed> {
    if !dir.exists() {
        return Ok(Removed::Nothing);
    }
    let removed = if end(dir)? {
        Removed::Running
    } else {
        Removed::Remains
    };
    // Its files go in any case: a group that stays is told, and taken over by the next lab of the name.
    let group = group::remove(dir);
    remove_tree(dir.root())?;
    group?;
    if let Some(base) = dir.root().parent() {
        // Gone with its last lab; another lab in it is no error.
        let _ = fs::remove_dir(base);
    }
    Ok(removed)
}

/// Ends what runs of the lab in `dir`; says whether there was anything.
pub fn end(dir: &LabDir) -> io::Result<bool> {
    let mut was_running = false;
    for init in inits(dir)? {
        was_running |= init.is_alive();
        // With init, the kernel ends every process of the lab before the wait returns.
        init.kill_and_wait()?;
    }
    Ok(was_running)
}

/// The processes to end. Not only the recorded one: `up` may have been killed before it wrote the record, and a
/// record that cannot be read must not leave a lab running without its files.
fn inits(dir: &LabDir) -> io::Result<Vec<ProcessIdentity>> {
    let recorded = read_json::<Record>(&dir.record()).ok().map(|record| record.init);
    let mut inits: Vec<ProcessIdentity> = recorded.into_iter().collect();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Processes come and go while we look.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if is_init_of(dir, &command) {
            inits.extend(ProcessIdentity::of(pid).ok());
        }
    }
    Ok(inits)
}

/// Whether a command line, as /proc gives it, is that of the lab's init or of what starts it.
fn is_init_of(dir: &LabDir, command: &[u8]) -> bool {
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    words.get(1) == Some(&b"lab-init".as_slice())
        && words
            .windows(2)
            .any(|pair| pair[0] == b"--dir" && pair[1] == dir.root().as_os_str().as_bytes())
}

/// `remove_dir_all` that also enters directories which their owner may not, such as overlayfs' work directories.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn open_up(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_own_init_is_taken_for_it() {
        let dir = LabDir::at("/run/podnet-lab/a");
        let is = |line: &str| is_init_of(&dir, line.replace(' ', "\0").as_bytes());
        assert!(is("/bin/podnet lab-init --dir /run/podnet-lab/a"));
        assert!(is("/bin/podnet lab-init --launch --dir /run/podnet-lab/a"));
        assert!(!is("/bin/podnet lab-init --dir /run/podnet-lab/ab"));
        assert!(!is("grep -e lab-init --dir /run/podnet-lab/a"));
        assert!(!is(""));
    }

    #[test]
    fn closed_directories_are_removed_and_a_second_time_is_fine() {
        let base = tempfile::tempdir().unwrap();
        let dir = LabDir::at(base.path().join("labs/x"));
        fs::create_dir_all(dir.root().join("work/work")).unwrap();
        fs::set_permissions(dir.root().join("work/work"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(dir.root().join("work"), fs::Permissions::from_mode(0o500)).unwrap();
        assert_eq!(remove(&dir).unwrap(), Removed::Remains);
        assert!(!base.path().join("labs").exists());
        assert_eq!(remove(&dir).unwrap(), Removed::Nothing);
    }
}
