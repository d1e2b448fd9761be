//! Names, certificates and sockets: what stands between the internet and a node.
#![forbid(unsafe_code)]
