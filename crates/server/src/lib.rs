//! The cloud in one process: control plane, registry, node and ingress.
#![forbid(unsafe_code)]
