//! One attempt: run a command, ask a server. Probes and lifecycle hooks share it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{grpc, http};
use crate::runtime::pod::spec;
use crate::sandbox::{ExecSpec, Sandbox};

/// Kubelet keeps this much of a command's output for events.
const OUTPUT_LIMIT: u64 = 10 << 10;

/// What an attempt does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Runs a command; passes when it ends with 0.
    Exec(Vec<String>),
    /// Gets a URL; passes with a status from 200 to 399.
    Http(http::Get),
    /// Connects; passes when the connection is made.
    Tcp {
        /// Instead of the pod's address.
        host: Option<String>,
        /// Where to.
        port: u16,
    },
    /// Asks the gRPC health service; passes when it serves.
    Grpc {
        /// Where to.
        port: u16,
        /// The service asked for; empty for the server as a whole.
        service: String,
    },
    /// Waits (hooks only).
    Sleep(Duration),
    /// Does nothing and passes.
    Nothing,
}

/// What an attempt is made on.
#[derive(Debug, Clone)]
pub struct Target {
    /// The container's sandbox.
    pub sandbox: Sandbox,
    /// The container's ID.
    pub container: String,
    /// The pod's address, if it has one.
    pub ip: Option<IpAddr>,
}

impl Check {
    /// What a probe does.
    pub fn of_probe(probe: &Probe, container: &Container) -> Result<Check, String> {
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
            return Ok(Check::Grpc {
                port,
                service: grpc.service.clone().unwrap_or_default(),
            });
        }
        Self::of_actions(
            probe.exec.as_ref(),
            probe.http_get.as_ref(),
            probe.tcp_socket.as_ref(),
            container,
        )
    }

    /// What a lifecycle hook does.
    pub fn of_hook(hook: &LifecycleHandler, container: &Container) -> Result<Check, String> {
        if let Some(sleep) = &hook.sleep {
            return Ok(Check::Sleep(Duration::from_secs(
                u64::try_from(sleep.seconds).unwrap_or(0),
            )));
        }
        Self::of_actions(
            hook.exec.as_ref(),
            hook.http_get.as_ref(),
            hook.tcp_socket.as_ref(),
            container,
        )
    }

    fn of_actions(
        exec: Option<&ExecAction>,
        http: Option<&HTTPGetAction>,
        tcp: Option<&TCPSocketAction>,
        container: &Container,
    ) -> Result<Check, String> {
        Ok(match (exec, http, tcp) {
            (Some(exec), ..) => Check::Exec(exec.command.clone().unwrap_or_default()),
            (_, Some(get), _) => Check::Http(http::Get::of(get, container)?),
            (.., Some(tcp)) => Check::Tcp {
                host: tcp.host.clone().filter(|it| !it.is_empty()),
                port: spec::port(container, &tcp.port)?,
            },
            _ => Check::Nothing,
        })
    }

    /// Whether it goes over the network and is cheap for the container.
    pub fn is_over_network(&self) -> bool {
        matches!(self, Check::Http(_) | Check::Tcp { .. } | Check::Grpc { .. })
    }

    /// Makes the attempt. The error is the text after `probe failed: `.
    pub async fn attempt(&self, target: &Target, timeout: Duration) -> Result<(), String> {
        match tokio::time::timeout(timeout, self.run(target, timeout)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.overdue(target, timeout)),
        }
    }

    async fn run(&self, target: &Target, timeout: Duration) -> Result<(), String> {
        match self {
            Check::Exec(command) => exec(target, command).await,
            Check::Http(get) => get.run(target.ip).await,
            Check::Tcp { host, port } => connect(host.as_deref(), target.ip, *port).await.map(drop),
            Check::Grpc { port, service } => grpc::check(address(target.ip, *port)?, service, timeout).await,
            Check::Sleep(duration) => {
                tokio::time::sleep(*duration).await;
                Ok(())
            }
            Check::Nothing => Ok(()),
        }
    }

    fn overdue(&self, target: &Target, timeout: Duration) -> String {
        let ip = target.ip.map(|ip| ip.to_string()).unwrap_or_default();
        match self {
            Check::Exec(command) => {
                format!(
                    "command timed out: {:?} timed out after {}s",
                    command.join(" "),
                    timeout.as_secs()
                )
            }
            Check::Http(get) => format!(
                "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                get.url(&ip)
            ),
            Check::Tcp { host, port } => {
                format!(
                    "dial tcp {}: i/o timeout",
                    join(host.as_deref().unwrap_or(&ip), *port)
                )
            }
            Check::Grpc { port, .. } => format!(
                "timeout: failed to connect service {:?} within {}s: context deadline exceeded",
                join(&ip, *port),
                timeout.as_secs()
            ),
            Check::Sleep(_) | Check::Nothing => "context deadline exceeded".into(),
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn address(ip: Option<IpAddr>, port: u16) -> Result<SocketAddr, String> {
    ip.map(|ip| SocketAddr::new(ip, port))
        .ok_or_else(|| "the pod has no address".to_owned())
}

/// Connects to `host` if given, else to the pod.
pub(super) async fn connect(host: Option<&str>, ip: Option<IpAddr>, port: u16) -> Result<TcpStream, String> {
    let (shown, outcome) = match host {
        Some(host) => (join(host, port), TcpStream::connect((host, port)).await),
        None => {
            let address = address(ip, port)?;
            (address.to_string(), TcpStream::connect(address).await)
        }
    };
    outcome.map_err(|error| format!("dial tcp {shown}: connect: {}", plain(&error)))
}

/// The system's words for an error, without Rust's `(os error N)`, in lower case as Go has them.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

async fn exec(target: &Target, command: &[String]) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|it| failed(it.into()))?;
    let stderr = writer.try_clone().map_err(failed)?;
    let spec = ExecSpec {
        command: command.to_vec(),
        stdout: Some(writer),
        stderr: Some(stderr),
        ..ExecSpec::default()
    };
    let mut process = target
        .sandbox
        .exec(&target.container, &spec)
        .await
        .map_err(|error| error.to_string())?;
    // The command has its own copies; ours would keep the pipe open.
    drop(spec);
    let mut output = Vec::new();
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader).map_err(failed)?;
    let mut limited = reader.take(OUTPUT_LIMIT);
    // A background child may hold the pipe open beyond the command's end: that does not count.
    let ended = process.wait();
    tokio::pin!(ended);
    let code = tokio::select! {
        code = &mut ended => code,
        _ = limited.read_to_end(&mut output) => ended.await,
    };
    match code {
        Ok(0) => Ok(()),
        Ok(code) => {
            let _ = tokio::time::timeout(Duration::from_millis(20), limited.read_to_end(&mut output)).await;
            let text = String::from_utf8_lossy(&output).trim_end().to_owned();
            Err(if text.is_empty() {
                format!("command exited with {code}")
            } else {
                text
            })
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    fn check(probe: &str) -> Result<Check, String> {
        let pod = pod(r#"{"containers":[{"name":"a","ports":[{"name":"web","containerPort":8080}]}]}"#);
        Check::of_probe(
            &serde_json::from_str(probe).unwrap(),
            &spec::spec(&pod).containers[0],
        )
    }

    #[test]
    fn probes_name_their_ports() {
        assert_eq!(
            check(r#"{"tcpSocket":{"port":"web"}}"#),
            Ok(Check::Tcp {
                host: None,
                port: 8080
            })
        );
        assert!(check(r#"{"tcpSocket":{"port":"none"}}"#).is_err());
        assert_eq!(
            check(r#"{"exec":{"command":["true"]}}"#),
            Ok(Check::Exec(vec!["true".into()]))
        );
        assert_eq!(
            check(r#"{"grpc":{"port":1,"service":"s"}}"#),
            Ok(Check::Grpc {
                port: 1,
                service: "s".into()
            })
        );
        let Ok(Check::Http(get)) = check(r#"{"httpGet":{"port":"web","path":"/healthz"}}"#) else {
            panic!()
        };
        assert_eq!(get.url("fd00::1"), "http://[fd00::1]:8080/healthz");
    }

    #[tokio::test]
    async fn connections_are_made_and_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(connect(None, Some(address.ip()), address.port()).await.is_ok());
        drop(listener);
        let error = connect(None, Some(address.ip()), address.port())
            .await
            .unwrap_err();
        assert_eq!(error, format!("dial tcp {address}: connect: connection refused"));
    }
}
