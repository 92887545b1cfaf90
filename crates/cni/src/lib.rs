//! The CNI plugin (specification 0.3.0 to 1.1.0), and what it says to the agent.
//!
//! The plugin is exec'd for every pod. It reads the request ([`Invocation`], [`NetworkConfig`]), hands it to the
//! agent with the pod's network namespace as a descriptor ([`ask`]), and prints the answer in the version
//! of the request ([`AddResult`], [`CniError`]). Without an agent it still removes a pod ([`plugin`]).

mod ask;
mod attachment;
mod check;
mod cni_args;
mod config;
mod error;
mod invocation;
pub mod plugin;
mod pod_settings;
mod release;
mod result;
mod runtime_config;
mod version;
mod wiring;

pub use ask::{AgentReply, AgentRequest, AskError, Verb, ask};
pub use attachment::{Attachment, AttachmentError, HOST_LINK_PREFIX};
pub use check::check;
pub use cni_args::{CniArgs, PodReference};
pub use config::NetworkConfig;
pub use error::{CniError, Code};
pub use invocation::{Command, Invocation};
pub use pod_settings::{ExtraRoute, PodSettings, SYSCTLS_ANNOTATION};
pub use release::{LEASES, RELEASED, note_release};
pub use result::{AddResult, Dns, Interface, IpConfig, RouteConfig};
pub use runtime_config::{Bandwidth, Capability, IpRange, PortMapping, Rate, RuntimeConfig};
pub use version::CniVersion;
pub use wiring::WiringName;
