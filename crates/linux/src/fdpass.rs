//! Messages with file descriptors over a unix stream socket.
//!
//! A message is its length (four bytes, network order) and its bytes; the descriptors travel with the length
//! (`SCM_RIGHTS`). A stream, so that no socket buffer limits a message.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Most descriptors in one message.
pub const MAX_DESCRIPTORS: usize = 8;
/// Most bytes in one message: nobody who speaks to us needs more, and a peer gone mad must not take our memory.
pub const MAX_LENGTH: usize = 4 << 20;

/// What came in one message.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one message.
pub fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_LENGTH || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too large",
        ));
    }
    let length = (bytes.len() as u32).to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("the descriptors do not fit into the message"));
    }
    let parts = [IoSlice::new(&length), IoSlice::new(bytes)];
    let sent = loop {
        match rustix::net::sendmsg(socket.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => break outcome?,
        }
    };
    // A stream may take less than all of it; the descriptors went with the first byte.
    let rest = |from: usize| [&length[..], bytes].concat().split_off(from);
    if sent < length.len() + bytes.len() {
        (&*socket).write_all(&rest(sent))
    } else {
        Ok(())
    }
}

/// Waits for one message. None when the other end has closed.
pub fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    let mut length = [0; 4];
    let mut got = 0;
    while got < length.len() {
        let count = receive_some(socket, &mut length[got..], &mut message.descriptors)?;
        if count == 0 {
            return if got == 0 {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        got += count;
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_LENGTH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes"),
        ));
    }
    message.bytes.resize(length, 0);
    (&*socket).read_exact(&mut message.bytes)?;
    Ok(Some(message))
}

fn receive_some(socket: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(bytes)];
        match rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => break outcome?,
        }
    };
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Seek;

    #[test]
    fn bytes_and_descriptors_arrive_together_and_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through the socket").unwrap();
        file.rewind().unwrap();
        send(&ours, b"first", &[file.as_fd()]).unwrap();
        send(&ours, b"", &[]).unwrap();
        drop(ours);

        let first = receive(&theirs).unwrap().unwrap();
        assert_eq!(first.bytes, b"first");
        let mut text = String::new();
        File::from(first.descriptors.into_iter().next().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through the socket");
        let second = receive(&theirs).unwrap().unwrap();
        assert!(second.bytes.is_empty() && second.descriptors.is_empty());
        assert!(receive(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_message_larger_than_the_socket_buffer_arrives_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let bytes: Vec<u8> = (0..MAX_LENGTH).map(|at| at as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| send(&ours, &bytes, &[]).unwrap());
            assert_eq!(receive(&theirs).unwrap().unwrap().bytes, bytes);
        });
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0xff; 4]).unwrap();
        assert_eq!(receive(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
