//! A control group that the test's process is in, so that programs which are attached to it see its sockets and nobody
//! else's.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use podnet_linux::cgroup;

/// One for the whole process, for as long as somebody has it.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    parent: PathBuf,
}

static GROUP: Mutex<Weak<Group>> = Mutex::new(Weak::new());
const PREFIX: &str = "podnet-test-";

impl Group {
    /// Moves this process there.
    pub(crate) fn of_this_process() -> Arc<Group> {
        let mut group = GROUP.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = group.upgrade() {
            return group;
        }
        let root = cgroup::root().unwrap().expect("cgroup v2 is mounted nowhere");
        remove_orphans(&root);
        let made = Arc::new(Group {
            path: root.join(format!("{PREFIX}{}", std::process::id())),
            parent: cgroup::own().unwrap().unwrap(),
        });
        match std::fs::create_dir(&made.path) {
            // This process had one before, and a child of it lived too long for that to go.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.unwrap(),
        }
        cgroup::enter(&made.path, std::process::id()).unwrap();
        *group = Arc::downgrade(&made);
        made
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let next = GROUP.lock().unwrap_or_else(PoisonError::into_inner);
        if next.strong_count() > 0 {
            // Another test is in it by now.
            return;
        }
        let _ = cgroup::enter(&self.parent, std::process::id());
        // A child that still lives keeps it; then it goes with the next test.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// What tests that were killed left: it is empty, or it cannot be removed.
fn remove_orphans(root: &Path) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}
