//! The control plane: teams, tokens, apps, releases, resources, and their HTTP API.
#![forbid(unsafe_code)]
