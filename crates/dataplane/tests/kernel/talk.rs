//! Connections that last.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::common::{Machine, PATIENCE};

/// A connection that lasts.
pub(crate) struct Talk(pub(crate) TcpStream);

impl Talk {
    pub(crate) fn begin(from: &Machine, to: &str) -> Talk {
        let to: SocketAddr = to.parse().unwrap();
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Talk(stream)
    }

    /// Who answers a line.
    pub(crate) fn ask(&mut self) -> String {
        let line = self.try_ask().unwrap();
        line.split(' ').next().unwrap().to_owned()
    }

    fn try_ask(&mut self) -> io::Result<String> {
        self.0.write_all(b"?\n")?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.0.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        Ok(String::from_utf8(answer).unwrap())
    }
}
