//! `podnet lab up`: checks, starts init, applies manifests, waits.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use miette::{Context, IntoDiagnostic, miette};
use podnet_manifest::Manifest;
use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use super::api::Api;
use super::create;
use super::init::Word;
use super::layout::LabDir;
use super::plan::Request;
use super::precondition;
use super::ready::{self, Workloads};
use super::record::{Lab, ProcessIdentity, Record, write_json};
use super::teardown;

/// A lab that is up.
#[derive(Debug)]
pub struct Raised {
    /// Its files.
    pub dir: LabDir,
    /// How long it took.
    pub took: Duration,
}

/// Raises the lab that `request` asks for and applies `files`.
///
/// When it cannot be raised, or a manifest is refused, or `up` is interrupted, nothing of it is left. Only when
/// the lab stands and a pod does not come up, the lab is kept for looking into.
pub fn up(mut request: Request, files: &[PathBuf], wait: Duration) -> miette::Result<Raised> {
    let began = Instant::now();
    request.dataplane = precondition::checked(request.dataplane)?;
    let mut manifests = Vec::new();
    for file in files {
        manifests.extend(podnet_manifest::read(file)?);
    }
    podnet_manifest::each_once(&manifests)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .into_diagnostic()?;
    // Heard from here on: whatever is made below is also removed.
    let mut interrupts = runtime
        .block_on(async { Interrupts::listen() })
        .into_diagnostic()?;
    let dir = LabDir::of(&request.name);
    make_room(&request, &dir)?;
    dir.create()
        .into_diagnostic()
        .wrap_err_with(|| format!("creating {}", dir.root().display()))?;

    let raised = runtime.block_on(async {
        tokio::select! {
            biased;
            interrupted = interrupts.next() => Err(Failure::Undo(interrupted.into())),
            outcome = raise(&dir, &request, &manifests, wait) => outcome,
        }
    });
    match raised {
        Ok(()) => Ok(Raised {
            dir,
            took: began.elapsed(),
        }),
        Err(Failure::Keep(report)) => Err(report),
        Err(Failure::Undo(report)) => {
            // The thread that starts init, or waits for it to say something, ends with it. Until then it may start another
            // and write files, so that nothing is removed from under it. What cannot be ended is told by the removal.
            let _ = teardown::end(&dir);
            runtime.shutdown_timeout(STARTER);
            match teardown::remove(&dir) {
                Ok(_) => Err(report),
                Err(error) => Err(report.wrap_err(format!("the lab could not be removed: {error}"))),
            }
        }
    }
}

/// How long who starts init may take to see that it is gone.
const STARTER: Duration = Duration::from_secs(5);

enum Failure {
    /// The lab cannot be; remove what there is.
    Undo(miette::Report),
    /// The lab stands, what runs in it does not.
    Keep(miette::Report),
}

/// A name is taken by a lab that lives; what a dead one left is removed.
fn make_room(request: &Request, dir: &LabDir) -> miette::Result<()> {
    match Lab::find(dir).into_diagnostic()? {
        Lab::None => Ok(()),
        Lab::Alive(_) => {
            let name = &request.name;
            let help = format!(
                "use it (podnet lab status --name {name}), remove it (podnet lab down --name {name}), or choose another \
                 --name"
            );
            Err(miette!(help = help, "there is already a lab named {name}"))
        }
        Lab::Dead(_) => {
            eprintln!("removing what is left of a lab named {} that died", request.name);
            teardown::remove(dir).map(drop).into_diagnostic()
        }
    }
}

async fn raise(
    dir: &LabDir,
    request: &Request,
    manifests: &[Manifest],
    wait: Duration,
) -> Result<(), Failure> {
    let (thread_dir, thread_request) = (dir.clone(), request.clone());
    tokio::task::spawn_blocking(move || start_init(&thread_dir, thread_request))
        .await
        .into_diagnostic()
        .and_then(|outcome| outcome)
        .map_err(Failure::Undo)?;
    let api = Api::connect(&dir.kubeconfig()).await.map_err(Failure::Undo)?;
    let nodes = request.nodes.into();
    // The scheduler can spread pods only over nodes that are there.
    if !wait.is_zero() {
        ready::wait(&api, nodes, &Workloads::default(), wait)
            .await
            .map_err(Failure::Keep)?;
    }
    let mut workloads = Workloads::default();
    for manifest in manifests {
        let created = create::create(manifest, &api)
            .await
            .map_err(|error| Failure::Undo(error.into()))?;
        workloads.add(&created);
    }
    if wait.is_zero() {
        return Ok(());
    }
    ready::wait(&api, nodes, &workloads, wait)
        .await
        .map_err(Failure::Keep)
}

/// Starts init and returns when the lab's processes are started.
fn start_init(dir: &LabDir, request: Request) -> miette::Result<()> {
    let exe = std::env::current_exe().into_diagnostic()?;
    // Appending, as all logs of the lab are written: it may be turned over.
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.log("init"))
        .into_diagnostic()?;
    let mut launcher = Command::new(exe)
        .args(["lab-init", "--launch", "--dir"])
        .arg(dir.root())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .into_diagnostic()
        .wrap_err("starting the lab's init")?;
    let (Some(mut ask), Some(answer)) = (launcher.stdin.take(), launcher.stdout.take()) else {
        return Err(miette!("the lab's init has no pipes"));
    };
    let mut words = BufReader::new(answer);
    let said = go(dir, request, &mut ask, &mut words);
    launcher.wait().into_diagnostic()?;
    said
}

fn go(
    dir: &LabDir,
    request: Request,
    ask: &mut ChildStdin,
    words: &mut BufReader<ChildStdout>,
) -> miette::Result<()> {
    let Word::Pid(pid) = next_word(dir, words)? else {
        return Err(miette!("the lab's init did not say its PID"));
    };
    let init = ProcessIdentity::of(pid).into_diagnostic()?;
    let record = Record {
        request,
        init,
        nodes: Default::default(),
        underlay: None,
    };
    write_json(&dir.record(), &record).into_diagnostic()?;
    ask.write_all(b"go\n").into_diagnostic()?;
    match next_word(dir, words)? {
        Word::Up => Ok(()),
        Word::Failed(why) => Err(miette!("the lab cannot be raised: {why}")),
        Word::Pid(_) => Err(miette!("the lab's init says its PID twice")),
    }
}

fn next_word(dir: &LabDir, words: &mut BufReader<ChildStdout>) -> miette::Result<Word> {
    let mut line = String::new();
    words.read_line(&mut line).into_diagnostic()?;
    serde_json::from_str(&line).map_err(|_| {
        miette!(
            "the lab's init ended early; its log says:\n{}",
            super::init::tail(&dir.log("init"))
        )
    })
}

/// A signal asked this command to stop.
#[derive(Debug, Clone, Copy, thiserror::Error, miette::Diagnostic)]
#[error("interrupted by {name}; nothing is left of the lab")]
pub struct Interrupted {
    name: &'static str,
    signal: Signal,
}

impl Interrupted {
    /// As shells tell of a command that a signal ended: 130 for ^C.
    pub fn exit_code(&self) -> u8 {
        u8::try_from(self.signal.as_raw()).map_or(1, |number| 128 + number)
    }
}

/// The signals that ask this command to stop.
struct Interrupts(Vec<(tokio::signal::unix::Signal, Interrupted)>);

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        let listen = |signal: Signal, name| {
            let kind = SignalKind::from_raw(signal.as_raw());
            Ok((tokio::signal::unix::signal(kind)?, Interrupted { name, signal }))
        };
        let signals = [
            (Signal::INT, "^C"),
            (Signal::TERM, "SIGTERM"),
            (Signal::HUP, "SIGHUP"),
        ];
        let all: std::io::Result<_> = signals
            .into_iter()
            .map(|(signal, name)| listen(signal, name))
            .collect();
        Ok(Interrupts(all?))
    }

    /// The first that comes.
    async fn next(&mut self) -> Interrupted {
        let waits = self.0.iter_mut().map(|(stream, interrupted)| {
            Box::pin(async move {
                stream.recv().await;
                *interrupted
            })
        });
        futures::future::select_all(waits).await.0
    }
}
