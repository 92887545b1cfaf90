//! How an agent talks to the proxy: lines over a unix socket.
//!
//! The proxy begins, with the line `podnet proxy IDENTITY`, which says what build it is. Edits are collected until a line
//! `apply`; `list` shows the table, `ports` its node ports; `drain` ends the proxy with its last connection, `stop` at once.
//! What cannot be served is told in lines `refused WHY`; the last line of an answer is `done`, or `failed WHY`. Another
//! proxy says `yield` and gets the gate (see [`super::succession`]), and `close` when it has its table.
//!
//! What edits look like is for proxies and agents of one build; the first line and all other words are the same in every
//! build, so that any can end or replace any other.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Stream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podnet_linux::fdpass;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::block_in_place;

use super::super::claim::Claim;
use super::super::conversation::greeting;
use super::super::table::{Edit, Place};
use super::server::Server;
use super::watch::watch;
use super::{SWEEP, succession};

/// What conversations share.
struct Control {
    greeting: String,
    server: Mutex<Server>,
    /// An agent wants it to end at once.
    stop: Notify,
    /// Another proxy wants its place.
    yields: Notify,
}

/// The socket, and the right to it.
struct Door {
    listener: UnixListener,
    claim: Claim,
}

impl Door {
    fn open(mut claim: Claim) -> io::Result<Self> {
        let listener = claim.bind()?;
        listener.set_nonblocking(true)?;
        Ok(Door {
            listener: UnixListener::from_std(listener)?,
            claim,
        })
    }
}

/// The next agent; nobody comes through a door that is closed.
async fn accept(door: Option<&Door>) -> io::Result<UnixStream> {
    match door {
        Some(door) => Ok(door.listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Serves until it is told to end, or cannot go on.
pub(super) async fn serve(path: &Path, identity: &str) -> io::Result<()> {
    let (claim, inheritance) = block_in_place(|| succession::claim(path, identity))?;
    let mut server = block_in_place(|| Server::open(inheritance))?;
    let changed = Arc::new(Notify::new());
    watch(server.link(), Arc::clone(&changed))?;
    // An address that came between the two.
    block_in_place(|| server.readdress())?;
    let mut door = Some(Door::open(claim)?);
    let (proxy, bereaved) = (Arc::clone(&server.proxy), Arc::clone(&server.bereaved));
    let control = Arc::new(Control {
        greeting: greeting(identity),
        server: Mutex::new(server),
        stop: Notify::new(),
        yields: Notify::new(),
    });
    let with = |work: fn(&mut Server) -> io::Result<()>| {
        block_in_place(|| work(&mut control.server.blocking_lock()))
    };
    let mut sweep = tokio::time::interval(SWEEP);
    let ended = loop {
        tokio::select! {
            accepted = accept(door.as_ref()) => match accepted {
                Ok(stream) => _ = tokio::spawn(converse(stream, Arc::clone(&control))),
                Err(error) => {
                    tracing::warn!(%error, "an agent is not accepted");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            () = changed.notified() => match with(Server::look_around) {
                // Without its link it is of no use: another one makes its own.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => break Err(error),
                outcome => report(outcome),
            },
            () = proxy.released.notified() => report(with(Server::release)),
            () = bereaved.notified() => report(with(Server::come_of_age)),
            _ = sweep.tick() => control.server.lock().await.sweep(),
            () = control.yields.notified() => door = None,
            () = control.stop.notified() => break Ok(()),
        }
        if control.server.lock().await.is_done() {
            break Ok(());
        }
    };
    // Whoever comes from here on finds nobody, and begins when the claim is let go.
    let unbound = door.as_mut().map_or(Ok(()), |door| door.claim.unbind());
    let closed = with(Server::close);
    ended.and(closed).and(unbound)
}

fn report(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "service addresses may lead nowhere until the next change");
    }
}

async fn converse(stream: UnixStream, control: Arc<Control>) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut edits: Vec<Edit> = Vec::new();
    let mut wrong = None;
    if writer
        .write_all(format!("{}\n", control.greeting).as_bytes())
        .await
        .is_err()
    {
        // Somebody who only looked whether there is a proxy.
        return;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        let server = || control.server.blocking_lock();
        let answer = match line.as_str() {
            "apply" => {
                let edits = std::mem::take(&mut edits);
                match wrong.take() {
                    Some(error) => failed(error),
                    None => answer(block_in_place(|| server().apply(edits))),
                }
            }
            "list" => list(&*control.server.lock().await),
            "ports" => ports(&*control.server.lock().await),
            "drain" => answer(block_in_place(|| server().drain().map(|()| Vec::new()))),
            "yield" => match block_in_place(|| hand_over(&mut server(), &writer)) {
                Ok(()) => {
                    control.yields.notify_one();
                    continue;
                }
                Err(error) => failed(error),
            },
            "close" => {
                block_in_place(|| server().make_way());
                answer(Ok(Vec::new()))
            }
            "stop" => answer(Ok(Vec::new())),
            _ => {
                match line.parse() {
                    Ok(edit) => edits.push(edit),
                    Err(error) => wrong = Some(error),
                }
                continue;
            }
        };
        if let Err(error) = writer.write_all(answer.as_bytes()).await {
            tracing::debug!(%error, "an agent does not wait for its answer");
        }
        if line == "stop" {
            control.stop.notify_one();
        }
    }
}

fn hand_over(server: &mut Server, to: &OwnedWriteHalf) -> io::Result<()> {
    let to = Stream::from(to.as_ref().as_fd().try_clone_to_owned()?);
    server.hand_over(|gate| fdpass::send(&to, b"gate", &[gate]))
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("failed {}\n", error.to_string().replace('\n', " "))
}

fn answer(outcome: io::Result<Vec<String>>) -> String {
    match outcome {
        Ok(refused) => {
            let mut lines: String = refused.iter().map(|why| format!("refused {why}\n")).collect();
            lines.push_str("done\n");
            lines
        }
        Err(error) => failed(error),
    }
}

fn list(server: &Server) -> String {
    let edits = server.proxy.table.read().whole();
    let mut lines: String = edits.iter().map(|edit| format!("{edit}\n")).collect();
    lines.push_str("done\n");
    lines
}

fn ports(server: &Server) -> String {
    let table = server.proxy.table.read();
    let ports = table.node_ports.keys().copied().map(Place::Node);
    let mut lines: String = ports.map(|place| format!("{place}\n")).collect();
    lines.push_str("done\n");
    lines
}
