//! `podnet service`: what services lead to, and why.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use k8s_openapi::api::core::v1 as core_api;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::DynamicObject;
use kube::{Api, Client as KubeClient};
use miette::{IntoDiagnostic, WrapErr, miette};
use podnet_core::Cluster;
use podnet_core::cluster::{Affinity, NodeName, ObjectName, ObjectRef};
use podnet_core::service::{Client, Explanation, Verdict, explain, keep_rivals, served};
use podnet_core::state::Problem;
use serde_json::{Value, json};

use crate::output::Format;
use crate::watch::is_not_served;
use crate::{cli, output, parse};

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say which endpoints clients of a service get, and why not the others (exit code 1 when they get none)
    Explain(Explain),
}

#[derive(Debug, clap::Args)]
struct Explain {
    /// The service: [NAMESPACE/]NAME
    name: String,
    /// Who asks: [NAMESPACE/]POD, or "outside"
    #[arg(long, default_value = "outside", value_name = "POD|outside")]
    from: String,
    /// The node that clients from outside reach [default: every node]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Namespace of names without one
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// How to reach the Kubernetes API
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: PathBuf,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Runs a subcommand. The exit code is 0 when clients get an endpoint, 1 when there is an address by which they get none,
/// 2 when it cannot be told.
pub fn run(args: Args) -> ExitCode {
    let Command::Explain(args) = args.command;
    output::answer(explain_service(&args))
}

/// `[NAMESPACE/]NAME`.
fn object_name(text: &str, namespace: &str) -> ObjectName {
    match text.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(namespace, text),
    }
}

fn explain_service(args: &Explain) -> miette::Result<(String, bool)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .into_diagnostic()?;
    let (mut cluster, pods) = runtime.block_on(async {
        let (client, url) = cli::client(&args.kubeconfig).await?;
        read(client).await.wrap_err_with(|| format!("cannot ask {url}"))
    })?;
    let name = object_name(&args.name, &args.namespace);
    let service = match cluster.services.get(&name) {
        Some(Ok(service)) => service.clone(),
        Some(Err(invalid)) => return Err(miette!("service {name} cannot be served: {}", invalid.why)),
        None => {
            return Err(miette!(
                help = "kubectl get services --all-namespaces lists what there is; a service without an address is not served yet",
                "there is no service {name}"
            ));
        }
    };
    if !service.is_carried() {
        let why = if service.proxied_elsewhere {
            "its labels leave its packets to another proxy"
        } else {
            "it has no cluster IP: its name stands for its endpoints, or for another name"
        };
        return Err(miette!("service {name} leads nowhere by itself: {why}"));
    }
    let (client, nodes) = match args.from.as_str() {
        "outside" => (Client::Outside, asked_nodes(&cluster, args.node.as_deref())?),
        pod => {
            let pod = object_name(pod, &args.namespace);
            let node = pods
                .iter()
                .find(|(name, _)| *name == pod)
                .map(|(_, node)| node.clone());
            let node = node.ok_or_else(|| miette!("there is no pod {pod} that is on a node"))?;
            if args.node.is_some() {
                return Err(miette!(
                    help = "--node is for clients from outside: leave it out",
                    "pod {pod} is on {node}"
                ));
            }
            (Client::Inside, vec![node])
        }
    };
    keep_rivals(&mut cluster, &service);
    let mut left_out = BTreeSet::new();
    let mut explained = Vec::new();
    for node in nodes {
        let (services, problems) = served(&cluster, &node);
        left_out.extend(of_service(problems, &name));
        explained.push(OnNode {
            explanations: explain(&cluster, &node, &name, &service, client, &services),
            node,
        });
    }
    let is_served = |on: &OnNode| {
        on.explanations
            .iter()
            .all(|explanation| explanation.verdict == Verdict::Balanced)
    };
    let fine = left_out.is_empty() && explained.iter().all(is_served);
    let text = match args.output {
        Format::Text => text(&explained, &left_out, client),
        Format::Json => format!("{:#}\n", json(&explained, &left_out)),
    };
    Ok((text, fine))
}

/// What clients get at one node.
struct OnNode {
    node: NodeName,
    explanations: Vec<Explanation>,
}

/// What of the service is not served.
fn of_service(problems: Vec<Problem>, name: &ObjectName) -> impl Iterator<Item = String> {
    let object = ObjectRef::service(name);
    let its = problems
        .into_iter()
        .filter(move |problem| problem.object == object);
    its.map(|problem| problem.why)
}

fn asked_nodes(cluster: &Cluster, node: Option<&str>) -> miette::Result<Vec<NodeName>> {
    let Some(node) = node else {
        return Ok(cluster.nodes.keys().cloned().collect());
    };
    let known = NodeName::new(node)
        .ok()
        .filter(|node| cluster.nodes.contains_key(node));
    known.map(|node| vec![node]).ok_or_else(|| {
        miette!(
            help = "kubectl get nodes lists what there is",
            "there is no node {node}"
        )
    })
}

/// The objects that services depend on, and the node of every pod that has one.
async fn read(client: KubeClient) -> miette::Result<(Cluster, Vec<(ObjectName, NodeName)>)> {
    let all = Default::default();
    let services = Api::<core_api::Service>::all(client.clone());
    let slices = Api::<discovery::EndpointSlice>::all(client.clone());
    let nodes = Api::<core_api::Node>::all(client.clone());
    let ranges = Api::<DynamicObject>::all_with(client.clone(), &parse::service_cidr_kind());
    let pods = Api::<core_api::Pod>::all(client);
    let lists = tokio::try_join!(
        services.list(&all),
        slices.list(&all),
        nodes.list(&all),
        pods.list(&all)
    );
    let (services, slices, nodes, pods) = lists.into_diagnostic()?;
    // What is in these ranges is for cluster IPs alone. A server may not have the kind, as agents may not have the right.
    let ranges = match ranges.list(&all).await {
        Ok(ranges) => ranges.items,
        Err(error) if is_not_served(&error) => Vec::new(),
        Err(error) => return Err(error).into_diagnostic(),
    };
    let mut cluster = Cluster::default();
    let services = services.iter().map(parse::service);
    cluster.services = services
        .filter_map(|(name, service)| Some((name, service?)))
        .collect();
    cluster.slices = slices.iter().map(parse::slice).collect();
    cluster.service_cidrs = ranges.iter().filter_map(parse::service_cidr).collect();
    cluster.nodes = nodes.iter().filter_map(parse::node).collect();
    let pods = pods.iter().filter_map(|pod| {
        let node = NodeName::new(pod.spec.as_ref()?.node_name.clone()?).ok()?;
        Some((parse::object_name(&pod.metadata), node))
    });
    let pods = pods.collect();
    Ok((cluster, pods))
}

fn text(explained: &[OnNode], left_out: &BTreeSet<String>, client: Client) -> String {
    let mut text: String = left_out.iter().map(|why| format!("left out: {why}\n")).collect();
    for on in explained {
        let node = &on.node;
        text += &match client {
            Client::Inside => format!("from a pod on {node}:\n"),
            Client::Outside => format!("from outside, at {node}:\n"),
        };
        for explanation in &on.explanations {
            text.extend(explanation.to_string().lines().map(|line| format!("  {line}\n")));
        }
    }
    text
}

fn json(explained: &[OnNode], left_out: &BTreeSet<String>) -> Value {
    let endpoint = |endpoint: &podnet_core::service::Explained, chosen: usize| {
        json!({
            "address": endpoint.address,
            "node": endpoint.node.as_ref().map(NodeName::as_str),
            "chosen": endpoint.unchosen.is_none(),
            "weight": if endpoint.unchosen.is_none() { 1.0 / chosen as f64 } else { 0.0 },
            "reason": endpoint.unchosen.map(|why| why.to_string()),
        })
    };
    let explanation = |explanation: &Explanation| {
        let chosen = explanation.chosen();
        let (verdict, reason) = match explanation.verdict {
            Verdict::Balanced => ("balance", None),
            Verdict::Refused(why) => ("refuse", Some(why.to_string())),
            Verdict::Dropped => ("drop", None),
        };
        json!({
            "port": explanation.port.port,
            "protocol": explanation.port.protocol.to_string(),
            "addresses": explanation.asked,
            "guarded": explanation.guarded.as_ref().map(|guarded| json!({
                "addresses": guarded.addresses,
                "sources": guarded.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })),
            "verdict": verdict,
            "reason": reason,
            "endpoints": explanation.endpoints.iter().map(|e| endpoint(e, chosen)).collect::<Vec<_>>(),
            "algorithm": explanation.algorithm.to_string(),
            "affinitySeconds": match explanation.affinity {
                Affinity::None => None,
                Affinity::ClientIp { seconds } => Some(seconds),
            },
        })
    };
    let nodes = explained.iter().map(|on| {
        json!({
            "node": on.node.as_str(),
            "leftOut": left_out,
            "ports": on.explanations.iter().map(explanation).collect::<Vec<_>>(),
        })
    });
    nodes.collect()
}
