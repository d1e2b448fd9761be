//! From `runtime-config.toml` to settings of the capabilities.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use wisp_capability::{
    key_value::StoreConfig,
    outbound,
    outbound_http::{self, ClientTls},
    sqlite::DatabaseConfig,
    variables::ProviderConfig,
};
use wisp_manifest::runtime_config::{KeyValueBackend, RuntimeConfig, SqliteBackend, VariablesProvider};

/// Where the files of stores and databases lie whose path is configured.
#[derive(Clone, Copy)]
pub(crate) enum Placement<'path> {
    /// Where the configuration says.
    AsConfigured,
    /// Each app has its own: a file of the same name in this folder, or memory.
    PerApp(Option<&'path Path>),
}

impl Placement<'_> {
    fn place(self, config: &RuntimeConfig, path: Option<&PathBuf>) -> Option<PathBuf> {
        let path = path?;
        match self {
            Self::AsConfigured => Some(config.directory.join(path)),
            Self::PerApp(folder) => Some(folder?.join(path.file_name()?)),
        }
    }
}

/// Key-value stores by label.
pub(crate) fn key_value_stores(
    config: &RuntimeConfig,
    placement: Placement<'_>,
) -> IndexMap<String, StoreConfig> {
    let other = |backend: &str| StoreConfig::Other { backend: backend.to_owned() };
    config
        .key_value_stores
        .iter()
        .map(|(label, backend)| {
            let store = match backend {
                KeyValueBackend::Embedded { path } => {
                    StoreConfig::Spin { path: placement.place(config, path.as_ref()) }
                }
                KeyValueBackend::Redis { .. } => other("redis"),
                KeyValueBackend::AzureCosmos { .. } => other("azure_cosmos"),
                KeyValueBackend::AwsDynamo { .. } => other("aws_dynamo"),
            };
            (label.to_string(), store)
        })
        .collect()
}

/// SQLite databases by label.
pub(crate) fn sqlite_databases(
    config: &RuntimeConfig,
    placement: Placement<'_>,
) -> IndexMap<String, DatabaseConfig> {
    config
        .sqlite_databases
        .iter()
        .map(|(label, backend)| {
            let database = match backend {
                SqliteBackend::Embedded { path, allow_attach_file } => DatabaseConfig::Spin {
                    path: placement.place(config, path.as_ref()),
                    // An app among many reaches no file but its own.
                    allow_attach_file: *allow_attach_file && matches!(placement, Placement::AsConfigured),
                },
                SqliteBackend::Libsql { .. } => DatabaseConfig::Other { backend: "libsql".into() },
            };
            (label.to_string(), database)
        })
        .collect()
}

/// Where values of variables come from, beside the command line and the environment.
pub(crate) fn variables_providers(config: &RuntimeConfig) -> Vec<ProviderConfig> {
    let provider = |provider: &VariablesProvider| match provider {
        VariablesProvider::Static { values } => ProviderConfig::Static {
            values: values
                .iter()
                .map(|(name, value)| (name.to_string(), value.reveal().to_owned()))
                .collect(),
        },
        VariablesProvider::Environment { prefix, dotenv_path } => ProviderConfig::Environment {
            prefix: Some(prefix.clone()),
            dotenv_path: dotenv_path.as_ref().map(|path| config.directory.join(path)),
        },
        VariablesProvider::Vault { .. } => ProviderConfig::Vault,
        VariablesProvider::AzureKeyVault { .. } => ProviderConfig::AzureKeyVault,
    };
    config.variables_providers.iter().map(provider).collect()
}

/// How outbound HTTP requests are sent.
pub(crate) fn outbound_http(config: &RuntimeConfig) -> outbound_http::Settings {
    outbound_http::Settings {
        connection_pooling: config.outbound_http.connection_pooling,
        max_connections_count: config.outbound_http.max_connections_count.map(count),
        client_tls: config.client_tls.iter().map(|tls| client_tls(config, tls)).collect(),
        http2_prior_knowledge: std::env::var(outbound_http::HTTP2_PRIOR_KNOWLEDGE_VARIABLE).ok(),
    }
}

fn client_tls(config: &RuntimeConfig, tls: &wisp_manifest::runtime_config::ClientTls) -> ClientTls {
    let file = |path: &PathBuf| config.directory.join(path);
    ClientTls {
        component_ids: tls.component_ids.iter().map(ToString::to_string).collect(),
        hosts: tls.hosts.clone(),
        ca_use_platform_roots: tls.ca_use_platform_roots,
        ca_use_webpki_roots: Some(tls.ca_use_webpki_roots),
        ca_roots_file: tls.ca_roots_file.as_ref().map(file),
        client_cert_file: tls.client_certificate.as_ref().map(|files| file(&files.certificate_file)),
        client_private_key_file: tls.client_certificate.as_ref().map(|files| file(&files.private_key_file)),
    }
}

/// How many connections of all kinds may be open.
pub(crate) fn outbound_limits(config: &RuntimeConfig) -> outbound::Limits {
    let networking = &config.outbound_networking;
    outbound::Limits::new(
        networking.max_total_connections_count.map(count),
        networking.max_socket_connections_count.map(count),
    )
}

fn count(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
