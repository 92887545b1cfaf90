//! The API over real TLS, as clients see it: codes, Status objects, watches, streams.

mod deletion;
mod informers;
mod kinds;
mod protobuf;
mod server;
mod streams;
mod verbs;
