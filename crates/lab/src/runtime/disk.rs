//! The records of a node's pods on disk.

use std::fs;
use std::io;
use std::path::Path;

use super::pod::state::Record;

const FILE: &str = "pod.json";

/// Writes a pod's record. A reader finds the old one or the new one.
pub(super) fn save(pod_dir: &Path, record: &Record) -> io::Result<()> {
    let next = pod_dir.join("pod.json.next");
    fs::write(&next, serde_json::to_vec(record)?)?;
    fs::rename(next, pod_dir.join(FILE))
}

/// A pod's record; `None` when there is none. One that cannot be read is an error that names the file.
pub(super) fn load(pod_dir: &Path) -> io::Result<Option<Record>> {
    let path = pod_dir.join(FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The records of all pods below `pods`. A directory without a readable record is passed over with a warning.
pub(super) fn load_all(pods: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(pods)? {
        let dir = entry?.path();
        match load(&dir) {
            Ok(Some(record)) => records.push(record),
            // The runtime ended between making the directory and the first record: nothing was started.
            Ok(None) => super::volumes::remove_all(&dir)?,
            Err(error) => tracing::warn!(%error, "passing over a pod's directory"),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = crate::runtime::pod::testing::ready_state();
        crate::runtime::pod::testing::ends(&mut state, "a", 3, 1, 5);
        for name in ["u-1", "empty"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        save(&dir.path().join("u-1"), &state.record).unwrap();
        assert_eq!(load_all(dir.path()).unwrap(), [state.record]);
        assert!(!dir.path().join("empty").exists());
    }
}
