//! Pod sandboxes through the real executable. Needs root.

mod containers;
mod echo;
mod images;
mod pod;
mod rootless;
