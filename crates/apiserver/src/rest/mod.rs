//! The REST shell: from HTTP requests to verbs and back.

mod accept;
mod auth;
mod body;
mod handler;
mod kubelet;
mod objects;
mod path;
mod query;
mod server;

pub use accept::{DiscoveryShape, Shape};
pub use auth::{TokenError, Tokens, User};
pub use handler::Handler;
pub use path::{ObjectPath, Path};
pub use query::{Query, percent_decode, percent_encode};
pub use server::{ServeError, TlsFiles, serve, tls_config};
