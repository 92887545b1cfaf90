//! Putting volumes into a pod's directory, and finding them for a container's mounts.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::mount::{MountFlags, UnmountFlags};

use super::{Kind, Payload, VolumeError, atomic, kind};
use crate::runtime::pod::{env, spec};
use crate::sandbox::Mount;

/// The directories that a node has of its own; the rest of the file system is the machine's.
const NODE_DIRS: [&str; 4] = ["etc/cni/net.d", "opt/cni/bin", "run/podnet", "var/lib/podnet"];

/// Where a pod's volumes are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The directory of the pod's volumes.
    pub volumes: PathBuf,
    /// The directory that holds the node's own directories.
    pub node_fs: PathBuf,
}

impl Places {
    /// Makes one volume what it should be. `payload` is given for volumes made from objects.
    pub fn put(&self, name: &str, kind: &Kind, payload: Option<&Payload>) -> Result<(), VolumeError> {
        let failed = |error: io::Error| VolumeError::new(name, error.to_string());
        match kind {
            Kind::HostPath { path, check } => self.check_host_path(name, path, check),
            Kind::EmptyDir { memory } => {
                let dir = self.make_dir(name, 0o777).map_err(failed)?;
                memory
                    .map_or(Ok(()), |bytes| mount_tmpfs(&dir, bytes))
                    .map_err(failed)
            }
            Kind::Files => {
                let dir = self.make_dir(name, 0o755).map_err(failed)?;
                match payload {
                    Some(payload) => atomic::write(&dir, payload).map(drop).map_err(failed),
                    None => Ok(()),
                }
            }
        }
    }

    fn make_dir(&self, name: &str, mode: u32) -> io::Result<PathBuf> {
        let dir = self.volumes.join(name);
        match fs::create_dir_all(&self.volumes).and_then(|()| fs::create_dir(&dir)) {
            // umask does not apply to what a pod was promised.
            Ok(()) => fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(dir)
    }

    /// A path of the node as the runtime sees it.
    fn host_path(&self, path: &str) -> PathBuf {
        let relative = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
        if NODE_DIRS.iter().any(|own| relative.starts_with(own)) {
            return self.node_fs.join(relative);
        }
        Path::new("/").join(relative)
    }

    fn check_host_path(&self, volume: &str, path: &str, check: &str) -> Result<(), VolumeError> {
        let failed =
            |problem: String| VolumeError::new(volume, format!("hostPath type check failed: {problem}"));
        let real = self.host_path(path);
        if Path::new(path).components().any(|it| it == Component::ParentDir) {
            return Err(failed(format!("{path} contains ..")));
        }
        match check {
            "DirectoryOrCreate" => fs::create_dir_all(&real).map_err(|error| failed(error.to_string()))?,
            "FileOrCreate" => drop(
                fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(&real)
                    .map_err(|error| failed(error.to_string()))?,
            ),
            _ => {}
        }
        let metadata = fs::metadata(&real).map_err(|error| failed(format!("{path}: {error}")))?;
        let file_type = metadata.file_type();
        let (fits, wanted) = match check {
            "Directory" | "DirectoryOrCreate" => (file_type.is_dir(), "a directory"),
            "File" | "FileOrCreate" => (file_type.is_file(), "a file"),
            "Socket" => (file_type.is_socket(), "a socket file"),
            "CharDevice" => (file_type.is_char_device(), "a character device"),
            "BlockDevice" => (file_type.is_block_device(), "a block device"),
            _ => (true, ""),
        };
        if fits {
            Ok(())
        } else {
            Err(failed(format!("{path} is not {wanted}")))
        }
    }

    /// The mounts of a container. Sub-paths are made when missing and may not lead out of their volume.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        environment: &[(String, String)],
    ) -> Result<Vec<Mount>, VolumeError> {
        let value = |name: &str| {
            environment
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let name = &mount.name;
            let volume = spec::volumes(pod)
                .iter()
                .find(|volume| volume.name == *name)
                .ok_or_else(|| VolumeError::new(name, format!("no volume \"{name}\" in the pod")))?;
            let kind = kind(volume)?;
            let root = match &kind {
                Kind::HostPath { path, .. } => self.host_path(path),
                _ => self.volumes.join(name),
            };
            let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => Some(path.clone()),
                (_, Some(expression)) if !expression.is_empty() => Some(env::expand(expression, value)),
                _ => None,
            };
            let source = match sub_path {
                Some(path) => inside(&root, &path, kind != Kind::Files)
                    .map_err(|error| VolumeError::new(name, format!("subPath {path}: {error}")))?,
                None => root,
            };
            mounts.push(Mount {
                source,
                target: mount.mount_path.clone(),
                read_only: mount.read_only == Some(true) || kind == Kind::Files,
            });
        }
        // An outer path first, or it would hide the inner one.
        mounts.sort_by_key(|mount| Path::new(&mount.target).components().count());
        Ok(mounts)
    }
}

/// `path` below `root`, which no symlink may leave.
fn inside(root: &Path, path: &str, create: bool) -> io::Result<PathBuf> {
    let escapes = || io::Error::new(io::ErrorKind::InvalidInput, "it leads out of the volume");
    if !Path::new(path)
        .components()
        .all(|it| matches!(it, Component::Normal(_) | Component::CurDir))
    {
        return Err(escapes());
    }
    let root = root.canonicalize()?;
    let mut at = root.clone();
    for component in Path::new(path).components() {
        let next = at.join(component);
        if create && fs::symlink_metadata(&next).is_err() {
            fs::create_dir(&next)?;
            fs::set_permissions(&next, fs::metadata(&root)?.permissions())?;
        }
        at = next.canonicalize()?;
        if !at.starts_with(&root) {
            return Err(escapes());
        }
    }
    Ok(at)
}

fn mount_tmpfs(dir: &Path, bytes: u64) -> io::Result<()> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let mut options = String::from("mode=0777");
    if bytes > 0 {
        options.push_str(&format!(",size={bytes}"));
    }
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount(
        "tmpfs",
        dir,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(options.as_c_str()),
    )?;
    Ok(())
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// Removes a pod's directory with the mounts in it.
pub fn remove_all(pod_dir: &Path) -> io::Result<()> {
    let volumes = pod_dir.join("volumes");
    for entry in fs::read_dir(&volumes).into_iter().flatten() {
        let path = entry?.path();
        if is_mount_point(&path).unwrap_or(false) {
            rustix::mount::unmount(&path, UnmountFlags::DETACH)?;
        }
    }
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    fn places(dir: &Path) -> Places {
        Places {
            volumes: dir.join("volumes"),
            node_fs: dir.join("fs"),
        }
    }

    #[test]
    fn a_nodes_own_directories_are_found_where_they_are() {
        let places = places(Path::new("/lab"));
        assert_eq!(
            places.host_path("/run/podnet/cni.sock"),
            Path::new("/lab/fs/run/podnet/cni.sock")
        );
        assert_eq!(
            places.host_path("/var/lib/podnet"),
            Path::new("/lab/fs/var/lib/podnet")
        );
        assert_eq!(
            places.host_path("/var/lib/podnets"),
            Path::new("/var/lib/podnets")
        );
        assert_eq!(places.host_path("/tmp"), Path::new("/tmp"));
    }

    #[test]
    fn mounts_follow_volumes_and_sub_paths() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let pod = pod(
            r#"{"volumes":[{"name":"e","emptyDir":{}},{"name":"c","configMap":{"name":"m"}}],"containers":[{"name":"a",
            "volumeMounts":[{"name":"e","mountPath":"/data/in","subPathExpr":"$(POD)/x"},{"name":"c","mountPath":"/data"},
            {"name":"e","mountPath":"/ro","readOnly":true}]}]}"#,
        );
        places.put("e", &Kind::EmptyDir { memory: None }, None).unwrap();
        places.put("c", &Kind::Files, Some(&Payload::new())).unwrap();
        let env = [("POD".to_owned(), "web".to_owned())];
        let mounts = places
            .mounts(&pod, &spec::spec(&pod).containers[0], &env)
            .unwrap();
        let found: Vec<_> = mounts
            .iter()
            .map(|it| (it.target.as_str(), it.read_only))
            .collect();
        assert_eq!(found, [("/data", true), ("/ro", true), ("/data/in", false)]);
        assert!(mounts[2].source.ends_with("e/web/x") && mounts[2].source.is_dir());
        assert_eq!(
            fs::metadata(&mounts[2].source).unwrap().permissions().mode() & 0o777,
            0o777
        );
    }

    #[test]
    fn a_sub_path_stays_in_its_volume() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("v")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("v/out")).unwrap();
        for path in ["../x", "/etc", "out", "out/passwd", "a/../../x"] {
            assert!(inside(&dir.path().join("v"), path, true).is_err(), "{path}");
        }
        assert!(inside(&dir.path().join("v"), "a/b", true).is_ok());
        assert!(inside(&dir.path().join("v"), "none", false).is_err());
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let check = |path: &Path, check: &str| {
            places
                .check_host_path("v", path.to_str().unwrap(), check)
                .map_err(|error| error.to_string())
        };
        assert!(check(&file, "File").is_ok());
        assert!(
            check(&file, "Directory")
                .unwrap_err()
                .contains("is not a directory")
        );
        assert!(check(&dir.path().join("none"), "").is_err());
        assert!(check(&dir.path().join("made"), "DirectoryOrCreate").is_ok());
        assert!(dir.path().join("made").is_dir());
    }
}
