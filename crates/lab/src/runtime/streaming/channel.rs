//! The channels of the WebSocket subprotocols `v4.channel.k8s.io` and `v5.channel.k8s.io`: the first byte of a message.

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// v5: the message `[255, channel]` closes the sender's side of a channel.
pub(crate) const CLOSE: u8 = 255;
