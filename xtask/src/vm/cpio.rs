//! An initramfs: a cpio archive in the format "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

const DIRECTORY: usize = 0o040_755;
const FILE: usize = 0o100_755;

impl Archive {
    /// Adds a directory; what is above it must have been added before.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file that may be executed.
    pub(super) fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, FILE, contents);
    }

    /// The archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: usize, contents: &[u8]) {
        self.entries += 1;
        let (length, name) = (contents.len(), path.len() + 1);
        // inode, mode, user, group, links, time, length, four device numbers, length of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_entries_on_multiples_of_four() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/a", b"12345");
        let bytes = archive.finish();
        let at = |name: &[u8]| {
            bytes
                .windows(name.len())
                .position(|window| window == name)
                .unwrap()
        };
        assert_eq!(&bytes[..6], b"070701");
        // The header has 110 bytes.
        assert_eq!(at(b"bin/a\0"), 116 + 110);
        assert_eq!(at(b"12345") % 4, 0);
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
