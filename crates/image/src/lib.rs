//! Apps as OCI images: packing, pushing, pulling, and a registry that keeps them.
#![forbid(unsafe_code)]
