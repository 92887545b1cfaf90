//! The purity wall: Kubernetes objects in, the state a node should have out
