//! The lab: its namespaces, its processes, its files.
