//! Policies from manifests to verdicts.

mod clusterwide;
mod network;
mod world;
