//! A container's outputs: read here, written to its log, copied to whoever is attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::log::Stream;

/// An attached reader that is further behind is let go: a container never waits for one.
const MAX_BEHIND: usize = 1 << 20;

/// The read end of one output.
#[derive(Debug)]
pub(super) struct Output {
    /// None once it has ended.
    source: Option<OwnedFd>,
    pub(super) stream: Stream,
    sinks: Vec<Sink>,
}

/// What one read gave.
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    End,
}

impl Output {
    pub(super) fn new(source: OwnedFd, stream: Stream) -> io::Result<Output> {
        rustix::io::ioctl_fionbio(&source, true)?;
        Ok(Output {
            source: Some(source),
            stream,
            sinks: Vec::new(),
        })
    }

    /// What to poll for reading.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// What to poll for writing.
    pub(super) fn blocked_sinks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sinks
            .iter()
            .filter(|sink| !sink.behind.is_empty())
            .map(|sink| sink.to.as_fd())
    }

    /// Copies to `to` from now on; closes it when the output ends.
    pub(super) fn attach(&mut self, to: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&to, true)?;
        if self.source.is_some() {
            self.sinks.push(Sink {
                to,
                behind: Vec::new(),
            });
        }
        Ok(())
    }

    /// Reads once without waiting.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Read {
        let Some(source) = &self.source else {
            return Read::Nothing;
        };
        match rustix::io::read(source, &mut *buffer) {
            Ok(0) => Read::End,
            Ok(count) => {
                for sink in &mut self.sinks {
                    sink.behind.extend_from_slice(&buffer[..count]);
                }
                self.flush();
                Read::Bytes(count)
            }
            Err(Errno::AGAIN | Errno::INTR) => Read::Nothing,
            // A terminal says EIO when its last program has closed it.
            Err(_) => Read::End,
        }
    }

    /// Writes what the attached readers take; lets go of those that are gone or too far behind.
    pub(super) fn flush(&mut self) {
        let ended = self.source.is_none();
        self.sinks
            .retain_mut(|sink| sink.flush() && !(ended && sink.behind.is_empty()));
    }

    /// No more is read.
    pub(super) fn end(&mut self) {
        self.source = None;
        self.flush();
    }
}

#[derive(Debug)]
struct Sink {
    to: OwnedFd,
    behind: Vec<u8>,
}

impl Sink {
    /// False when it is of no use any more.
    fn flush(&mut self) -> bool {
        while !self.behind.is_empty() {
            match rustix::io::write(&self.to, &self.behind) {
                Ok(count) => drop(self.behind.drain(..count)),
                Err(Errno::AGAIN) => return self.behind.len() <= MAX_BEHIND,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}
