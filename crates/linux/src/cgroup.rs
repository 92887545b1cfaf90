//! Control groups of version 2.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the hierarchy is mounted, as the calling process sees it; none where it is not.
pub fn root() -> io::Result<Option<PathBuf>> {
    let mounted = mounted(&fs::read_to_string("/proc/self/mountinfo")?);
    Ok(mounted.map(|(_, target)| target))
}

/// Which part of the hierarchy is mounted, and where: its own root before a part of it; see proc_pid_mountinfo(5).
fn mounted(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, target) = (fields.next()?, fields.next()?);
        file_system
            .starts_with("cgroup2 ")
            .then_some((root != "/", root, target))
    });
    let (_, root, target) = mounts.min()?;
    Some((unescaped(root).into(), unescaped(target).into()))
}

/// Blanks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, meaning)| {
        text.replace(code, meaning)
    })
}

/// The group that the calling process is in; none where the hierarchy is not mounted.
pub fn own() -> io::Result<Option<PathBuf>> {
    let Some((part, target)) = mounted(&fs::read_to_string("/proc/self/mountinfo")?) else {
        return Ok(None);
    };
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    // The hierarchy of version 2 has the number 0 and no controllers; see cgroups(7).
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(own.and_then(|own| seen(Path::new(own), &part, &target)))
}

/// Where a group is seen, of which `part` is mounted at `target`; nowhere, where it is not in that part.
fn seen(group: &Path, part: &Path, target: &Path) -> Option<PathBuf> {
    group.strip_prefix(part).ok().map(|below| target.join(below))
}

/// The number of a group, which no other has while it is there.
pub fn id(group: &Path) -> io::Result<u64> {
    Ok(fs::metadata(group)?.ino())
}

/// Moves a process into a group. Its children from then on are in it, too.
pub fn enter(group: &Path, pid: u32) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_beside_the_first_versions() {
        let hybrid = "\
            29 22 0:25 / /sys/fs/cgroup rw,relatime shared:4 - tmpfs tmpfs rw,mode=755\n\
            30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            31 29 0:27 /part /run/a\\040part rw - cgroup2 cgroup2 rw\n\
            32 29 0:27 / /sys/fs/cgroup/unified rw,relatime shared:5 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounted(hybrid),
            Some(("/".into(), "/sys/fs/cgroup/unified".into()))
        );
        let part = hybrid.lines().nth(2).unwrap();
        assert_eq!(mounted(part), Some(("/part".into(), "/run/a part".into())));
        assert_eq!(mounted("29 22 0:25 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn a_group_is_seen_below_the_part_that_is_mounted() {
        let seen = |group: &str, part: &str| seen(Path::new(group), Path::new(part), Path::new("/cg"));
        assert_eq!(seen("/user/me", "/"), Some("/cg/user/me".into()));
        assert_eq!(seen("/docker/abc/x", "/docker/abc"), Some("/cg/x".into()));
        assert_eq!(seen("/", "/"), Some("/cg/".into()));
        assert_eq!(seen("/user", "/docker/abc"), None);
    }
}
