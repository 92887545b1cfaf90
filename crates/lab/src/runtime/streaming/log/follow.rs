//! Reads records from a log file and waits for more, through rotation, until the container has ended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

use super::super::{LogSource, readiness};
use super::Record;

const BLOCK: usize = 64 * 1024;
/// How often to look when the kernel gives no more inotify instances, and in any case.
const POLL: Duration = Duration::from_millis(250);

/// A position in a log.
///
/// Files are read with plain blocking reads: they were written a moment ago by a neighbour, so they come from the
/// page cache, in blocks of 64 KiB.
pub(super) struct Reader {
    source: LogSource,
    file: File,
    follow: bool,
    buffer: Vec<u8>,
    /// What of the buffer has been handed out.
    used: usize,
    watch: Option<AsyncFd<OwnedFd>>,
    /// The container had ended before the last look at the file.
    last_look: bool,
}

impl Reader {
    /// Opens the log at its last `tail` lines, or at its start. With `follow` it waits at the end for more.
    pub(super) fn open(source: LogSource, tail: Option<u64>, follow: bool) -> io::Result<Self> {
        // Watch first, read then: nothing can be written in between unseen.
        let watch = if follow {
            source.path.parent().and_then(watch_directory)
        } else {
            None
        };
        let mut file = File::open(&source.path)?;
        if let Some(lines) = tail {
            let start = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let last_look = !follow || ended(&source);
        Ok(Reader {
            source,
            file,
            follow,
            buffer: Vec::new(),
            used: 0,
            watch,
            last_look,
        })
    }

    /// The next record that is there already; `None` when the end has been reached for now.
    pub(super) fn next_ready(&mut self) -> io::Result<Option<Record<'_>>> {
        loop {
            let Some(length) = self.buffer[self.used..].iter().position(|byte| *byte == b'\n') else {
                if self.fill()? {
                    continue;
                }
                return Ok(None);
            };
            let (start, end) = (self.used, self.used + length);
            self.used = end + 1;
            // Parsed twice, since the borrow checker does not let a record out of a loop that goes on otherwise.
            if Record::parse(&self.buffer[start..end]).is_some() {
                return Ok(Record::parse(&self.buffer[start..end]));
            }
        }
    }

    /// Waits until there may be more; false when there will be no more.
    pub(super) async fn more(&mut self) -> io::Result<bool> {
        if !self.follow || self.last_look {
            return Ok(false);
        }
        if ended(&self.source) {
            // What was written between our last read and the end is still to be read.
            self.last_look = true;
            return Ok(true);
        }
        tokio::select! {
            _ = self.source.finished.changed() => {}
            () = changed(self.watch.as_ref()) => {}
            () = tokio::time::sleep(POLL) => {}
        }
        Ok(true)
    }

    /// Reads more into the buffer; false at the end of what there is.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        loop {
            let before = self.buffer.len();
            self.buffer.resize(before + BLOCK, 0);
            let read = self.file.read(&mut self.buffer[before..]);
            self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
            if read? > 0 {
                return Ok(true);
            }
            if !self.follow || !self.go_over_to_the_new_file()? {
                return Ok(false);
            }
        }
    }

    /// After a rotation another file has the path.
    fn go_over_to_the_new_file(&mut self) -> io::Result<bool> {
        let Ok(file) = File::open(&self.source.path) else {
            return Ok(false);
        };
        let (old, new) = (self.file.metadata()?, file.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            // The same file, but cut off: it starts anew.
            if new.len() < self.file.stream_position()? {
                self.file.seek(SeekFrom::Start(0))?;
                return Ok(new.len() > 0);
            }
            return Ok(false);
        }
        // The writer may have written to the old one until the moment of the rotation.
        let before = self.buffer.len();
        self.file.read_to_end(&mut self.buffer)?;
        self.file = file;
        Ok(self.buffer.len() == before || self.fill_is_whole())
    }

    /// The old file's last record is complete, since it is written at once; what is not is dropped.
    fn fill_is_whole(&mut self) -> bool {
        let end = self
            .buffer
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.buffer.truncate(end);
        true
    }
}

fn ended(source: &LogSource) -> bool {
    *source.finished.borrow() || source.finished.has_changed().is_err()
}

/// Where the last `lines` lines start. A line that was written in parts counts once.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(size);
    }
    let (mut at, mut seen) = (size, Vec::new());
    loop {
        let block = at.min(BLOCK as u64);
        at -= block;
        let mut head = vec![0; block as usize];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        head.append(&mut seen);
        seen = head;
        if let Some(offset) = last_lines(&seen, lines, at == 0) {
            return Ok(at + offset as u64);
        }
        if at == 0 {
            return Ok(0);
        }
    }
}

/// Where in `bytes` the last `lines` lines start, if they are all there. Unless `whole`, the first record may be cut.
fn last_lines(bytes: &[u8], lines: u64, whole: bool) -> Option<usize> {
    let mut start = bytes.len();
    let mut full = 0;
    let mut end = bytes.len().checked_sub(1)?;
    loop {
        let begin = bytes[..end]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map(|at| at + 1);
        if begin.is_none() && !whole {
            return None;
        }
        let begin = begin.unwrap_or(0);
        let partial = Record::parse(&bytes[begin..end]).is_some_and(|record| record.partial);
        if !partial {
            if full == lines {
                return Some(start);
            }
            full += 1;
        }
        start = begin;
        end = begin.checked_sub(1)?;
    }
}

fn watch_directory(directory: &Path) -> Option<AsyncFd<OwnedFd>> {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok()?;
    let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, directory, events).ok()?;
    readiness(watch).ok()
}

/// Resolves when something happened in the directory, and never without a watch.
async fn changed(watch: Option<&AsyncFd<OwnedFd>>) {
    let Some(watch) = watch else {
        return std::future::pending().await;
    };
    let Ok(mut ready) = watch.readable().await else {
        return std::future::pending().await;
    };
    let mut events = [0; 4096];
    while rustix::io::read(watch.get_ref(), &mut events).is_ok_and(|read| read > 0) {}
    ready.clear_ready();
}
