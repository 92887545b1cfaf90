//! NodeState into the kernel: render, diff, apply
