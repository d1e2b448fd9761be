//! Apps as OCI images: packing, pushing, pulling, and a registry that keeps them.
//!
//! This crate is for everything between an app's folder and the bytes that other
//! tools of the OCI world understand: the form of images is Spin's, so that `spin`
//! pulls what Wisp pushed and the other way round. It is not for running anything
//! (it knows nothing of Wasmtime), and not for who may do what: the registry asks
//! an [`Access`](registry::Access) that the server implements.
//!
//! # The life of an image
//!
//! 1. [`pack`] makes an [`Image`] of a checked app: the locked app, a layer for each
//!    component and file, and a manifest that names them all by digest. The same app
//!    makes the same digest, whenever and wherever it is packed.
//! 2. [`Client::push`](client::Client::push) sends the blobs that the registry lacks,
//!    then the manifest.
//! 3. The [`registry`] writes each blob to its [`Blobs`], and only when it is durable
//!    there it notes in its index which repository has it. What no index row names is
//!    garbage, so whatever a power cut leaves is either complete or invisible.
//! 4. [`Client::pull`](client::Client::pull) fetches what is missing into a store of
//!    blobs of its own, the user's cache, and goes on where an earlier pull ended.
//! 5. [`unpack`] makes a folder of an image in a store of blobs: verified, complete or
//!    not there, with a `spin.lock` that `wisp up` and a node read as they read a
//!    `spin.toml`.
//!
//! # Code from elsewhere
//!
//! Components need not be in an app's folder: [`packages`] fetches what a manifest names by
//! a URL or as a package of a registry, before anything else is done with the app.
//!
//! # Limits
//!
//! Manifests, configurations, blobs, archives, uploads, pages of lists: each has a
//! bound, beside the code that minds it.

#![forbid(unsafe_code)]

mod blobs;
pub mod client;
pub mod credentials;
mod digest;
mod error;
pub mod format;
mod pack;
pub mod packages;
pub mod registry;
mod unpack;

pub use blobs::{BlobInfo, Blobs};
pub use digest::{Digest, Hasher};
pub use error::Error;
pub use pack::{Content, Image, Layer, PackOptions, pack};
pub use unpack::{Unpacked, unpack, unpack_with};
