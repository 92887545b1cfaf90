//! Control groups: one for each node, below one of the lab's own, so that programs which an agent attaches see the sockets of
//! its node's processes and nobody else's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podnet_linux::cgroup;

use super::layout::LabDir;
use super::plan::LabName;

/// How long the kernel may take to let go of processes that were killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the group of a lab, below the one that the calling process is in, and writes down where, so that
/// [`remove`] finds it whatever becomes of the lab.
pub(crate) fn create(dir: &LabDir, name: &LabName) -> io::Result<PathBuf> {
    let own = cgroup::own()?.ok_or_else(|| {
        io::Error::other("cgroup v2 is mounted nowhere: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    })?;
    let group = own.join(format!("podnet-lab-{name}"));
    fs::write(dir.group(), group.as_os_str().as_encoded_bytes())?;
    match fs::create_dir(&group) {
        // What a lab left that died and whose files are gone.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    Ok(group)
}

/// Makes the group of a node.
pub(crate) fn of_node(lab: &Path, node: &str) -> io::Result<PathBuf> {
    let group = lab.join(node);
    match fs::create_dir(&group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    Ok(group)
}

/// Moves the calling process into the group of a node. There may be none.
pub(crate) fn enter(dir: &LabDir, node: &str) -> io::Result<()> {
    let Ok(lab) = fs::read_to_string(dir.group()) else {
        return Ok(());
    };
    match cgroup::enter(&Path::new(&lab).join(node), std::process::id()) {
        // The underlay has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        entered => entered,
    }
}

/// Removes the group of a lab that has ended. There may be none.
pub(crate) fn remove(dir: &LabDir) -> io::Result<()> {
    let Ok(group) = fs::read_to_string(dir.group()) else {
        return Ok(());
    };
    let group = PathBuf::from(group);
    remove_below(&group, Instant::now() + PATIENCE)
}

/// A group and all below it. Whoever is in them may have made more.
fn remove_below(group: &Path, until: Instant) -> io::Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // That one stays is told by the one above it.
            let _ = remove_below(&entry.path(), until);
        }
    }
    remove_when_empty(group, until)
}

fn remove_when_empty(group: &Path, until: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("control group {}: {error}", group.display()),
                ));
            }
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::teardown;

    /// Directories like any others: what the kernel makes of groups is for labs to show.
    fn lab(base: &Path) -> (LabDir, PathBuf) {
        let (dir, group) = (LabDir::at(base.join("labs/x")), base.join("group"));
        fs::create_dir_all(dir.root()).unwrap();
        fs::create_dir_all(group.join("node1/of a pod/deeper")).unwrap();
        fs::create_dir_all(group.join("node2")).unwrap();
        fs::write(dir.group(), group.as_os_str().as_encoded_bytes()).unwrap();
        (dir, group)
    }

    #[test]
    fn all_groups_of_a_lab_go_with_it_and_a_lab_without_any_is_no_error() {
        let base = tempfile::tempdir().unwrap();
        let (dir, group) = lab(base.path());
        remove(&dir).unwrap();
        assert!(!group.exists());
        remove(&dir).unwrap();
        fs::remove_file(dir.group()).unwrap();
        remove(&dir).unwrap();
    }

    #[test]
    fn a_group_that_stays_is_told_and_keeps_no_files() {
        let base = tempfile::tempdir().unwrap();
        let (dir, group) = lab(base.path());
        // Something that is no group is in the way.
        fs::write(group.join("node1/file"), "").unwrap();
        let error = teardown::remove(&dir).unwrap_err().to_string();
        assert!(error.contains("control group"), "{error}");
        assert!(!dir.exists());
        assert!(!group.join("node2").exists() && !group.join("node1/of a pod").exists());
    }
}
