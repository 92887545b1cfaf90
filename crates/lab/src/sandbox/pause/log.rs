//! Container logs in the CRI format: `2026-01-02T03:04:05.123456789Z stdout F line`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use jiff::Timestamp;

/// A line longer than this is written in parts, as containerd does.
const MAX_LINE: usize = 16 << 10;

/// One of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// A container's log file.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// The line that has not ended yet, of stdout and of stderr.
    unfinished: [Vec<u8>; 2],
}

impl Log {
    pub(super) fn open(path: &Path) -> io::Result<Log> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Log {
            file,
            unfinished: [Vec::new(), Vec::new()],
        })
    }

    /// Writes the lines that `bytes` completes.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let line = &mut self.unfinished[stream as usize];
        let mut entries = Vec::with_capacity(bytes.len() + 64);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(piece);
            while line.len() > MAX_LINE + 1 || (line.len() > MAX_LINE && line[MAX_LINE] != b'\n') {
                let rest = line.split_off(MAX_LINE);
                entry(&mut entries, stream, "P", line, now);
                *line = rest;
            }
            if line.last() == Some(&b'\n') {
                line.pop();
                entry(&mut entries, stream, "F", line, now);
                line.clear();
            }
        }
        self.file.write_all(&entries)
    }

    /// Writes what the stream ended on without a newline.
    pub(super) fn finish(&mut self, stream: Stream, now: Timestamp) -> io::Result<()> {
        let line = std::mem::take(&mut self.unfinished[stream as usize]);
        if line.is_empty() {
            return Ok(());
        }
        let mut last = Vec::new();
        entry(&mut last, stream, "F", &line, now);
        self.file.write_all(&last)
    }
}

fn entry(entries: &mut Vec<u8>, stream: Stream, tag: &str, line: &[u8], now: Timestamp) {
    entries.extend_from_slice(format!("{now:.9} {} {tag} ", stream.name()).as_bytes());
    entries.extend_from_slice(line);
    entries.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(pieces: &[(Stream, &[u8])]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/0.log");
        let now: Timestamp = "2026-01-02T03:04:05.5Z".parse().unwrap();
        let mut log = Log::open(&path).unwrap();
        for (stream, bytes) in pieces {
            log.write(*stream, bytes, now).unwrap();
        }
        log.finish(Stream::Stdout, now).unwrap();
        log.finish(Stream::Stderr, now).unwrap();
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn lines_are_joined_from_pieces_stream_by_stream() {
        let lines = logged(&[
            (Stream::Stdout, b"a"),
            (Stream::Stderr, b"x\n"),
            (Stream::Stdout, b"b\n\nend"),
        ]);
        let at = "2026-01-02T03:04:05.500000000Z";
        assert_eq!(
            lines,
            [
                format!("{at} stderr F x"),
                format!("{at} stdout F ab"),
                format!("{at} stdout F "),
                format!("{at} stdout F end"),
            ]
        );
    }

    #[test]
    fn a_long_line_is_cut_into_parts() {
        let mut long = vec![b'x'; MAX_LINE + 3];
        long.push(b'\n');
        let lines = logged(&[(Stream::Stdout, &long)]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains(" stdout P x") && lines[0].len() > MAX_LINE);
        assert!(lines[1].ends_with(" stdout F xxx"));
    }

    #[test]
    fn a_line_of_just_the_greatest_length_is_whole() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        let lines = logged(&[(Stream::Stdout, &line)]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains(" stdout F "));
    }
}
