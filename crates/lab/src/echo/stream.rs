//! TCP and SCTP: a line of JSON for every line.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::reply::{Content, Identity, Reply, show};

/// No line is longer.
const MAX_LINE: u64 = 64 << 10;

/// What carries the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    /// One-to-one style sockets, which behave like TCP's.
    Sctp,
}

impl Transport {
    pub(super) fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Sctp => "SCTP",
        }
    }
}

/// The next connection; waits while there are no descriptors left.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Serves until the process ends.
pub(super) async fn serve(listener: TcpListener, transport: Transport, identity: Arc<Identity>) {
    loop {
        let stream = accept(&listener).await;
        let identity = identity.clone();
        tokio::task::spawn_local(async move {
            // A client that goes away is no error of ours.
            drop(answer(stream, transport, &identity).await);
        });
    }
}

async fn answer(mut stream: TcpStream, transport: Transport, identity: &Identity) -> io::Result<()> {
    if transport == Transport::Tcp {
        stream.set_nodelay(true)?;
    }
    let (client, server) = (show(stream.peer_addr()?), show(stream.local_addr()?));
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
            return writer.shutdown().await;
        }
        let received = String::from_utf8_lossy(&line)
            .trim_end_matches(['\r', '\n'])
            .to_owned();
        let reply = Reply {
            identity,
            client: client.clone(),
            server: server.clone(),
            protocol: transport.name(),
            content: Content::Data { received },
        };
        writer.write_all(&reply.line()).await?;
    }
}
