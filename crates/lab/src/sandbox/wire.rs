//! What client and pause say to each other: frames of JSON on a unix stream socket, with descriptors beside.
//!
//! A frame is its length (32 bits, little endian) and its JSON. Descriptors travel with the frame's first
//! byte. One connection carries one request; `Exec` and `Watch` keep it open for later replies, and closing
//! it early kills the exec'd process or forgets the watch.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::spec::{ContainerSpec, ContainerState};

/// Name of the socket in the sandbox's directory.
pub(crate) const SOCKET: &str = "pause.sock";
/// Name of the file that holds the [`super::SandboxSpec`].
pub(crate) const SPEC: &str = "spec.json";
/// No frame is longer: a container's spec carries ConfigMaps of up to 1 MiB in its environment.
const MAX_FRAME: usize = 16 << 20;
/// No frame carries more descriptors.
const MAX_FDS: usize = 4;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello,
    Start(Box<ContainerSpec>),
    Containers,
    /// Answered when the generation is another than `seen`.
    Watch {
        seen: u64,
    },
    Signal {
        container: String,
        signal: i32,
    },
    Exec(ExecRequest),
    /// Descriptors: stdout and stderr, where true, in this order.
    Attach {
        container: String,
        stdout: bool,
        stderr: bool,
    },
    CloseStdin {
        container: String,
    },
    Stop,
}

/// Descriptors: stdin, stdout, stderr, where true, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub(crate) container: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Hello {
        pid: u32,
    },
    Container(ContainerState),
    Containers(Vec<ContainerState>),
    Changed {
        generation: u64,
    },
    ExecStarted {
        pid: u32,
    },
    ExecEnded {
        exit_code: i32,
    },
    /// Descriptor: the container's stdin (a pipe's write end or the pty's master side), when it has one.
    Attached {
        stdin: bool,
        tty: bool,
    },
    Done,
    Refused(Refusal),
}

/// The bytes of one frame.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!(
            "the message has {length} bytes, more than {MAX_FRAME}"
        )));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// Sends what fits of `bytes`, with `fds` beside the first of them.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Takes bytes and descriptors from a socket and gives whole messages.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads once; `Ok(0)` is the end of the stream.
    pub(crate) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut chunk = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes)
    }

    /// The next whole message, when all of it has come.
    pub(crate) fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(header) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other(format!(
                "a message claims {length} bytes, more than {MAX_FRAME}"
            )));
        }
        let Some(body) = self.bytes.get(4..4 + length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body).map_err(io::Error::other)?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }

    /// The descriptors that came so far.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
}
