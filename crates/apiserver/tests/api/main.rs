//! The API over real TLS, as clients see it: codes, Status objects, watches, streams.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod deletion;
mod informers;
mod kinds;
mod protobuf;
mod server;
mod service_cidrs;
mod streams;
mod verbs;
