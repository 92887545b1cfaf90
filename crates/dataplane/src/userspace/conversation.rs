//! The agent's end of a conversation with the proxy.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use podnet_core::service::NodePort;

use super::table::{Edit, Place, Table};

/// How long a proxy may take for a whole table.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most written at once.
const CHUNK: usize = 1 << 20;

/// What the proxy said.
#[derive(Debug)]
pub(super) struct Answer {
    /// Lines of the table, where that was asked for.
    lines: Vec<String>,
    /// What it cannot serve, and why.
    pub(super) refused: Vec<String>,
    /// Whether it did as it was asked; if not, why.
    pub(super) outcome: Result<(), String>,
}

/// How every proxy begins, whatever its build.
const GREETING: &str = "podnet proxy ";

/// What a proxy of that build says first.
pub(super) fn greeting(identity: &str) -> String {
    format!("{GREETING}{identity}")
}

/// Whether a line is what a proxy says first.
pub(super) fn is_greeting(line: &str) -> bool {
    line.starts_with(GREETING)
}

/// A connection to the proxy.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: BufReader<UnixStream>,
    /// What it said first.
    said: String,
}

impl Conversation {
    /// With the proxy that has the socket.
    pub(super) fn begin(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut conversation = Conversation {
            stream: BufReader::new(stream),
            said: String::new(),
        };
        conversation.said = conversation.line()?;
        match is_greeting(&conversation.said) {
            true => Ok(conversation),
            false => Err(io::Error::other("what answers is no proxy of podnet")),
        }
    }

    /// Whether the proxy is of that build, and understands edits as they are meant.
    pub(super) fn is_with(&self, identity: &str) -> bool {
        self.said == greeting(identity)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end_matches('\n').len());
        Ok(line)
    }

    /// Says edits and a command, and waits for the answer.
    pub(super) fn ask(&mut self, edits: &[Edit], command: &str) -> io::Result<Answer> {
        let mut text = String::new();
        for edit in edits {
            let _ = writeln!(text, "{edit}");
            if text.len() > CHUNK {
                self.stream.get_mut().write_all(text.as_bytes())?;
                text.clear();
            }
        }
        let _ = writeln!(text, "{command}");
        self.stream.get_mut().write_all(text.as_bytes())?;
        self.hear()
    }

    fn hear(&mut self) -> io::Result<Answer> {
        let mut answer = Answer {
            lines: Vec::new(),
            refused: Vec::new(),
            outcome: Ok(()),
        };
        loop {
            let line = self.line()?;
            if line == "done" {
                return Ok(answer);
            } else if let Some(why) = line.strip_prefix("failed ") {
                answer.outcome = Err(why.to_owned());
                return Ok(answer);
            } else if let Some(why) = line.strip_prefix("refused ") {
                answer.refused.push(why.to_owned());
            } else {
                answer.lines.push(line);
            }
        }
    }

    /// Waits until the proxy has ended.
    pub(super) fn wait_for_end(&mut self) -> io::Result<()> {
        match self.stream.read_line(&mut String::new())? {
            0 => Ok(()),
            _ => Err(io::Error::other("it talks on")),
        }
    }

    /// What the proxy serves.
    pub(super) fn list(&mut self) -> io::Result<Table> {
        let mut table = Table::default();
        for line in self.ask(&[], "list")?.lines {
            table.edit(line.parse().map_err(io::Error::other)?);
        }
        Ok(table)
    }

    /// The node ports it serves. Every build understands that.
    pub(super) fn node_ports(&mut self) -> io::Result<BTreeSet<NodePort>> {
        let places = self.ask(&[], "ports")?.lines.into_iter();
        let places: Result<Vec<Place>, _> = places.map(|line| line.parse()).collect();
        let ports = places
            .map_err(io::Error::other)?
            .into_iter()
            .filter_map(|place| match place {
                Place::Node(node_port) => Some(node_port),
                Place::Service(_) => None,
            });
        Ok(ports.collect())
    }
}
