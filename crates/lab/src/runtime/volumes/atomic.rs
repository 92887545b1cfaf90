//! Writing a set of files so that a reader sees all of the old ones or all of the new ones.
//!
//! The layout is kubelet's: the files are in a directory with a name of its own, `..data` is a symlink to it,
//! and each first path component is a symlink through `..data`. An update makes a new directory and renames a
//! new `..data` over the old one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::Payload;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes the files of `payload` what is in `dir`; returns whether anything was changed.
pub fn write(dir: &Path, payload: &Payload) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same(&dir.join(old), payload)) {
        return Ok(false);
    }
    let fresh = new_directory(dir)?;
    let written = fill(&dir.join(&fresh), payload).and_then(|()| {
        let _ = fs::remove_file(dir.join(NEXT));
        symlink(&fresh, dir.join(NEXT))?;
        fs::rename(dir.join(NEXT), dir.join(DATA))
    });
    if let Err(error) = written {
        let _ = fs::remove_dir_all(dir.join(&fresh));
        return Err(error);
    }
    link_names(dir, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn check_path(path: &str) -> io::Result<()> {
    let plain = Path::new(path)
        .components()
        .all(|it| matches!(it, Component::Normal(_)));
    if plain && !path.is_empty() && !path.starts_with("..") {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("invalid path {path:?} in a volume"),
    ))
}

/// `..2026_11_21_02_44_39.123456789`, as kubelet names them.
fn new_directory(dir: &Path) -> io::Result<PathBuf> {
    loop {
        let name = jiff::Timestamp::now()
            .strftime("..%Y_%m_%d_%H_%M_%S.%9f")
            .to_string();
        match fs::create_dir(dir.join(&name)) {
            Ok(()) => {
                fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755))?;
                return Ok(name.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn fill(dir: &Path, payload: &Payload) -> io::Result<()> {
    for (path, entry) in payload {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &entry.contents)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
    }
    Ok(())
}

/// Whether the directory has exactly these files with these contents and modes.
fn same(dir: &Path, payload: &Payload) -> bool {
    let matches = |path: &String, entry: &super::Entry| {
        let path = dir.join(path);
        fs::metadata(&path).is_ok_and(|it| it.permissions().mode() & 0o777 == entry.mode)
            && fs::read(&path).is_ok_and(|contents| contents == entry.contents)
    };
    count_files(dir) == Some(payload.len()) && payload.iter().all(|(path, entry)| matches(path, entry))
}

fn count_files(dir: &Path) -> Option<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        count += if entry.file_type().ok()?.is_dir() {
            count_files(&entry.path())?
        } else {
            1
        };
    }
    Some(count)
}

/// One symlink per first path component; those of files that are gone go too.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(dir.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::volumes::Entry;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                (
                    (*path).to_owned(),
                    Entry {
                        contents: text.as_bytes().to_vec(),
                        mode: 0o640,
                    },
                )
            })
            .collect()
    }

    fn listing(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .map(|name| {
                if name.starts_with("..2") {
                    "..TIME".into()
                } else {
                    name
                }
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn updates_swap_one_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("deep/b", "2")])).unwrap());
        assert_eq!(listing(dir), ["..TIME", "..data", "a", "deep"]);
        assert_eq!(fs::read_to_string(dir.join("deep/b")).unwrap(), "2");
        assert_eq!(
            fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );

        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write(dir, &payload(&[("a", "1"), ("deep/b", "2")])).unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);

        assert!(write(dir, &payload(&[("a", "3"), ("c", "4")])).unwrap());
        assert_eq!(listing(dir), ["..TIME", "..data", "a", "c"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");

        assert!(write(dir, &payload(&[])).unwrap());
        assert_eq!(listing(dir), ["..TIME", "..data"]);
    }

    #[test]
    fn a_reader_never_sees_a_mixture() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        write(&root, &payload(&[("a", "0"), ("b", "0")])).unwrap();
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let reader = {
            let (root, done) = (root.clone(), done.clone());
            std::thread::spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let Ok(data) = fs::read_link(root.join(DATA)) else {
                        panic!("..data is always there")
                    };
                    let read = |name: &str| fs::read_to_string(root.join(&data).join(name)).ok();
                    if let (Some(a), Some(b)) = (read("a"), read("b")) {
                        assert_eq!(a, b);
                    }
                }
            })
        };
        for round in 1..200 {
            let text = round.to_string();
            write(&root, &payload(&[("a", &text), ("b", &text)])).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "..data", "a/../../x", ""] {
            assert!(write(dir.path(), &payload(&[(path, "1")])).is_err(), "{path}");
        }
    }
}
