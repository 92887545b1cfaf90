//! The plugin itself: one request in, one answer out.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use podnet_linux::netlink::{LinkChange, Netlink, NetlinkError};
use podnet_linux::ns::Namespace;
use podnet_linux::{MacAddr, fdpass};
use serde_json::{Value, json};

use crate::ask::{AgentReply, AgentRequest, AskError, Verb, ask};
use crate::attachment::Attachment;
use crate::check::check;
use crate::cni_args::{CniArgs, PodReference};
use crate::config::{NetworkConfig, json_object};
use crate::error::{CniError, Code};
use crate::invocation::{Command, Invocation};
use crate::release::note_release;
use crate::result::AddResult;
use crate::version::CniVersion;

/// Serves one request: what to print on standard output, as result or as error.
pub fn run(variable: impl Fn(&str) -> Option<String>, document: &[u8]) -> Result<Option<Value>, Value> {
    serve(variable, document).map_err(|error| error.to_json(&NetworkConfig::version_text(document)))
}

fn serve(variable: impl Fn(&str) -> Option<String>, document: &[u8]) -> Result<Option<Value>, CniError> {
    let invocation = Invocation::read(variable)?;
    if invocation.command == Command::Version {
        return versions(document).map(Some);
    }
    let config = NetworkConfig::parse(document)?;
    let args = invocation.args;
    match invocation.command {
        Command::Version => versions(document).map(Some),
        Command::Add { attachment, netns } => {
            let result = add(&config, attachment, &netns, args)?;
            Ok(Some(result.to_json(config.version)))
        }
        Command::Del { attachment, netns } => {
            del(&config, attachment, netns.as_deref(), &args)?;
            Ok(None)
        }
        Command::Check { attachment, netns } => {
            needs(&config, CniVersion::V0_4_0, "CHECK")?;
            if config.check_disabled {
                return Ok(None);
            }
            check_attachment(&config, attachment, &netns, args)?;
            Ok(None)
        }
        Command::Status => {
            needs(&config, CniVersion::V1_1_0, "STATUS")?;
            status(&config)?;
            Ok(None)
        }
        Command::Gc => {
            needs(&config, CniVersion::V1_1_0, "GC")?;
            if config.gc_disabled {
                return Ok(None);
            }
            gc(&config)?;
            Ok(None)
        }
    }
}

/// Whoever asks which versions we speak need not know any: all of a document is optional here.
fn versions(document: &[u8]) -> Result<Value, CniError> {
    if !document.trim_ascii().is_empty() {
        json_object(document)?;
    }
    let spoken: Vec<_> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
    Ok(json!({ "cniVersion": NetworkConfig::version_text(document), "supportedVersions": spoken }))
}

fn needs(config: &NetworkConfig, since: CniVersion, verb: &str) -> Result<(), CniError> {
    if config.version >= since {
        return Ok(());
    }
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!(
            "{verb} is of CNI version {since}, the network configuration of {}",
            config.version
        ),
    )
    .with_details(format!(
        "set its cniVersion to {since} or later, or use a runtime that does not call {verb} for it"
    )))
}

/// Both what the runtime should do (try again, code 11) and what a person should.
fn no_agent(error: &AskError, code: Code) -> CniError {
    let (msg, step) = match error {
        AskError::NoAgent { .. } => (
            "the podnet agent of this node is not running",
            "pods can be connected once it runs: see `kubectl -n kube-system get pods` or the agent's log",
        ),
        AskError::NoAnswer(_) | AskError::Nonsense(_) => (
            "the podnet agent of this node gave no answer",
            "see the agent's log; the runtime will try again",
        ),
    };
    CniError::new(code, msg).with_details(format!("{error}; {step}"))
}

fn question(config: &NetworkConfig, verb: Verb, pod: PodReference) -> AgentRequest {
    AgentRequest {
        verb,
        network: config.name.clone(),
        pod,
    }
}

fn accept(reply: AgentReply) -> Result<Option<AddResult>, CniError> {
    match reply {
        AgentReply::Added(result) => Ok(Some(*result)),
        AgentReply::Done => Ok(None),
        AgentReply::Refused(error) => Err(error),
    }
}

fn add(
    config: &NetworkConfig,
    attachment: Attachment,
    netns: &Path,
    args: CniArgs,
) -> Result<AddResult, CniError> {
    let namespace = Namespace::open(netns).map_err(|error| {
        CniError::new(
            Code::UnknownContainer,
            format!("cannot open the network namespace {}", netns.display()),
        )
        .with_details(format!(
            "{error}; CNI_NETNS must be the path of the container's network namespace"
        ))
    })?;
    let previous = config.previous()?;
    let verb = Verb::Add {
        attachment,
        netns: netns.to_string_lossy().into_owned(),
        runtime_config: Box::new(config.runtime_config()?.with(&args)?),
        pod_settings: Box::new(config.pod_settings()?),
    };
    let request = question(config, verb, args.pod);
    let reply = ask(&config.socket, &request, Some(namespace.as_fd()))
        .map_err(|error| no_agent(&error, Code::TryAgainLater))?;
    let result = accept(reply)?.ok_or_else(|| {
        CniError::new(
            Code::TryAgainLater,
            "the podnet agent of this node answered an ADD without a result",
        )
        .with_details("the plugin and the agent are of different versions; restart the agent")
    })?;
    Ok(match previous {
        Some(previous) => result.behind(previous),
        None => result,
    })
}

fn del(
    config: &NetworkConfig,
    attachment: Attachment,
    netns: Option<&Path>,
    args: &CniArgs,
) -> Result<(), CniError> {
    let request = question(
        config,
        Verb::Del {
            attachment: attachment.clone(),
        },
        args.pod.clone(),
    );
    match ask(&config.socket, &request, None) {
        Ok(reply) => accept(reply).map(drop),
        Err(_) => del_alone(config, &attachment, netns, args),
    }
}

/// A DEL without an agent. The note comes first: from then on the agent finishes what is left, whatever
/// happens here.
fn del_alone(
    config: &NetworkConfig,
    attachment: &Attachment,
    netns: Option<&Path>,
    args: &CniArgs,
) -> Result<(), CniError> {
    if let Err(error) = note_release(&config.state_dir, attachment) {
        // The agent also sees that the link is gone, when it next looks. That is no reason to keep the pod.
        eprintln!(
            "podnet-cni: cannot end the lease of {attachment}: {error}; the agent will find out by itself"
        );
    }
    let removed = remove_by_host_link(attachment).and_then(|found| {
        match netns.map(Namespace::open) {
            // The pair is gone, or the node's end is not where we can see it.
            Some(Ok(namespace)) if !found => {
                let wishes = config.runtime_config().and_then(|wishes| wishes.with(args));
                let wish = wishes.ok().and_then(|wishes| wishes.mac);
                remove_in(&namespace, attachment, wish.unwrap_or(attachment.pod_mac()))
            }
            _ => Ok(()),
        }
    });
    removed.map_err(|error| {
        CniError::new(Code::Wiring, format!("cannot remove {attachment}")).with_details(error.to_string())
    })
}

fn remove_by_host_link(attachment: &Attachment) -> Result<bool, NetlinkError> {
    match Netlink::open()?.request(LinkChange::named(&attachment.host_link()).delete()) {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_in(namespace: &Namespace, attachment: &Attachment, mac: MacAddr) -> Result<(), NetlinkError> {
    // A path that is no network namespace (any more) holds no link of ours.
    let Ok(mut netlink) = Netlink::open_in(namespace) else {
        return Ok(());
    };
    match netlink.link(attachment.ifname())? {
        // Only what ADD made: the runtime may have used the name for something else since.
        Some(link) if link.mac == Some(mac) => match netlink.request(link.delete()) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_attachment(
    config: &NetworkConfig,
    attachment: Attachment,
    netns: &Path,
    args: CniArgs,
) -> Result<(), CniError> {
    let previous = config.previous()?.ok_or_else(|| {
        CniError::new(
            Code::InvalidConfig,
            "the network configuration's \"prevResult\" is missing",
        )
        .with_details("CHECK compares the container with the result of its ADD")
    })?;
    let wishes = config.runtime_config()?;
    let settings = config.pod_settings()?.and(&wishes.sysctls);
    check(netns, &attachment, &previous, &settings)?;
    let verb = Verb::Check {
        attachment,
        previous: Box::new(previous),
        runtime_config: Box::new(wishes),
    };
    let request = question(config, verb, args.pod);
    let namespace = Namespace::open(netns).ok();
    match ask(&config.socket, &request, namespace.as_ref().map(AsFd::as_fd)) {
        Ok(reply) => accept(reply).map(drop),
        // Without an agent the pod's network goes on working, and that is what was asked.
        Err(_) => Ok(()),
    }
}

fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let request = question(config, Verb::Status, PodReference::default());
    let reply = ask(&config.socket, &request, None).map_err(|error| no_agent(&error, Code::NotAvailable))?;
    accept(reply).map(drop)
}

fn gc(config: &NetworkConfig) -> Result<(), CniError> {
    let valid = config.valid_attachments()?.ok_or_else(|| {
        CniError::new(
            Code::InvalidConfig,
            "the network configuration's \"cni.dev/valid-attachments\" is missing",
        )
        .with_details("GC frees everything that is not in that list; an empty list frees everything")
    })?;
    let request = question(config, Verb::Gc { valid }, PodReference::default());
    let reply = ask(&config.socket, &request, None).map_err(|error| no_agent(&error, Code::TryAgainLater))?;
    accept(reply).map(drop)
}

/// Largest document read from standard input. Half of what the agent takes, so that whatever is read can be passed on.
pub const LARGEST_DOCUMENT: u64 = fdpass::MAX_LENGTH as u64 / 2;

/// Reads the document. For the executable.
pub fn read_document(input: impl Read) -> Result<Vec<u8>, CniError> {
    let mut document = Vec::new();
    let read = input.take(LARGEST_DOCUMENT + 1).read_to_end(&mut document);
    read.map_err(|error| {
        CniError::new(
            Code::Io,
            "cannot read the network configuration from standard input",
        )
        .with_details(error.to_string())
    })?;
    if document.len() as u64 > LARGEST_DOCUMENT {
        let msg =
            format!("the network configuration on standard input has more than {LARGEST_DOCUMENT} bytes");
        return Err(CniError::new(Code::Decoding, msg)
            .with_details("no runtime writes as much; see what it passes on"));
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_is_too_long_is_an_error_and_never_cut() {
        let fits = read_document(std::io::repeat(b' ').take(LARGEST_DOCUMENT)).unwrap();
        assert_eq!(fits.len() as u64, LARGEST_DOCUMENT);
        let error = read_document(std::io::repeat(b' ').take(LARGEST_DOCUMENT + 1)).unwrap_err();
        assert_eq!(error.code, Code::Decoding);
        assert!(error.msg.contains("standard input"), "{error}");
    }
}
