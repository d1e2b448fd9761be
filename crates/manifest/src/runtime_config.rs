//! What an operator gives to an app: `runtime-config.toml`.
//!
//! Every backend that there is can be named here. Whether this build has it is
//! found out by whoever opens it.
//!
//! `[outbound_http]` without `connection_pooling` means that connections are
//! pooled, as it does when the whole table is left away.

use std::fmt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::allowed_hosts::{AllowedHost, BlockedNetworks};
use crate::decode::{At, Context, Decode, Entries, Required, table, tagged};
use crate::diagnostics::{Diagnostics, Rule};
use crate::id::{ComponentId, Label, VariableName};
use crate::load::{Checked, directory_of, parse_text, read_text};

/// What an operator gives to an app. The default is an empty file.
#[derive(Clone, Debug, Default)]
pub struct RuntimeConfig {
    /// Where state is kept.
    pub state_directory: Directory,
    /// Where logs are kept.
    pub log_directory: Directory,
    /// The largest memory of one instance.
    pub max_instance_memory_bytes: Option<u64>,
    /// Backends of key-value stores, by the labels that manifests use.
    pub key_value_stores: IndexMap<Label, KeyValueBackend>,
    /// Backends of SQLite databases, by the labels that manifests use.
    pub sqlite_databases: IndexMap<Label, SqliteBackend>,
    /// Where values of variables come from; the first that has one wins.
    pub variables_providers: Vec<VariablesProvider>,
    /// What runs models.
    pub llm_compute: Option<LlmBackend>,
    /// Outbound HTTP requests.
    pub outbound_http: OutboundHttp,
    /// Connections to PostgreSQL servers.
    pub outbound_postgres: OutboundConnections,
    /// Connections to MySQL servers.
    pub outbound_mysql: OutboundConnections,
    /// Connections to Redis servers.
    pub outbound_redis: OutboundConnections,
    /// Connections to MQTT brokers.
    pub outbound_mqtt: OutboundMqtt,
    /// All that goes out.
    pub outbound_networking: OutboundNetworking,
    /// Certificates for outbound TLS connections.
    pub client_tls: Vec<ClientTls>,
    /// Where the file lies; relative paths in it start here.
    pub directory: PathBuf,
}

/// A directory that has a usual place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Directory {
    /// The usual place.
    #[default]
    Usual,
    /// None: nothing is kept.
    None,
    /// This one.
    Path(PathBuf),
}

/// A text that must not be shown: its debug form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// What keeps a key-value store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueBackend {
    /// A file on this machine: `type = "spin"`.
    Embedded {
        /// The file; a usual one if not given.
        path: Option<PathBuf>,
    },
    /// A Redis server: `type = "redis"`.
    Redis {
        /// The server. It may have a password in it.
        url: Secret,
    },
    /// Azure Cosmos DB: `type = "azure_cosmos"`.
    AzureCosmos {
        /// The key; the environment's credentials if not given.
        key: Option<Secret>,
        /// The account.
        account: String,
        /// The database.
        database: String,
        /// The container.
        container: String,
    },
    /// Amazon DynamoDB: `type = "aws_dynamo"`.
    AwsDynamo {
        /// The region.
        region: String,
        /// The table.
        table: String,
        /// Whether reads see all earlier writes, at twice the price.
        consistent_read: bool,
        /// Credentials; the environment's if not given.
        credentials: Option<AwsCredentials>,
    },
}

/// Long-lived or temporary credentials for AWS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsCredentials {
    /// The id of the key.
    pub access_key: String,
    /// The key.
    pub secret_key: Secret,
    /// The session token that temporary credentials have.
    pub token: Option<Secret>,
}

/// What keeps a SQLite database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqliteBackend {
    /// A file on this machine: `type = "spin"`.
    Embedded {
        /// The file; a usual one if not given.
        path: Option<PathBuf>,
        /// Whether guests may attach other files.
        allow_attach_file: bool,
    },
    /// A libSQL server: `type = "libsql"`.
    Libsql {
        /// The server.
        url: url::Url,
        /// Its token.
        token: Secret,
    },
}

/// Where values of variables come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VariablesProvider {
    /// The configuration itself: `type = "static"`.
    Static {
        /// The values.
        values: IndexMap<VariableName, Secret>,
    },
    /// Environment variables: `type = "env"`.
    Environment {
        /// What stands before the name, without the `_` between them.
        prefix: String,
        /// A file with more of them.
        dotenv_path: Option<PathBuf>,
    },
    /// A HashiCorp Vault: `type = "vault"`.
    Vault {
        /// The server.
        url: url::Url,
        /// Its token.
        token: Secret,
        /// Where the secrets engine is mounted.
        mount: String,
        /// What stands before the name.
        prefix: Option<String>,
    },
    /// Azure Key Vault: `type = "azure_key_vault"`.
    AzureKeyVault {
        /// The vault.
        vault_url: url::Url,
        /// Credentials; the environment's if not given.
        credentials: Option<AzureClient>,
    },
}

/// An Azure service principal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureClient {
    /// Its id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// The directory that it belongs to.
    pub tenant_id: String,
    /// The cloud, if it is not the public one: its name or a host.
    pub authority_host: Option<String>,
}

/// What runs models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LlmBackend {
    /// This machine: `type = "spin"`.
    Embedded,
    /// A server: `type = "remote_http"`.
    RemoteHttp {
        /// The server.
        url: url::Url,
        /// Its token.
        auth_token: Secret,
        /// What it speaks.
        api_type: LlmApi,
    },
}

/// What a server of models speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlmApi {
    /// `api_type = "default"`
    #[default]
    Default,
    /// `api_type = "open_ai"`
    OpenAi,
}

/// Settings of outbound HTTP requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundHttp {
    /// Whether connections are kept for later requests.
    pub connection_pooling: bool,
    /// How many connections there are at once.
    pub max_connections_count: Option<u32>,
}

/// Settings of connections of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboundConnections {
    /// How many connections there are at once.
    pub max_connections_count: Option<u32>,
}

/// Settings of connections to MQTT brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboundMqtt {
    /// How many connections there are at once.
    pub max_connections_count: Option<u32>,
    /// The largest message.
    pub max_payload_size_bytes: Option<u64>,
}

/// Settings of all that goes out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboundNetworking {
    /// Networks that no component may reach.
    pub blocked_networks: BlockedNetworks,
    /// How many sockets guests may have open at once.
    pub max_socket_connections_count: Option<u32>,
    /// How many connections of all kinds there are at once.
    pub max_total_connections_count: Option<u32>,
}

/// Certificates for the connections of some components to some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// The components.
    pub component_ids: Vec<ComponentId>,
    /// The hosts: names, addresses, or `*.domain`; in lower case.
    pub hosts: Vec<String>,
    /// Whether the authorities are trusted that this machine trusts.
    pub ca_use_platform_roots: bool,
    /// Whether the authorities are trusted that browsers trust: yes if not
    /// given, unless [`ca_roots_file`](Self::ca_roots_file) is.
    pub ca_use_webpki_roots: bool,
    /// A file with other authorities that are trusted.
    pub ca_roots_file: Option<PathBuf>,
    /// A file with the certificate to show, and one with its private key.
    pub client_certificate: Option<ClientCertificate>,
}

/// A certificate that a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The file with the certificate and its chain.
    pub certificate_file: PathBuf,
    /// The file with its private key.
    pub private_key_file: PathBuf,
}

/// What stands before a variable's name in the environment, unless the
/// provider says otherwise.
pub const USUAL_ENVIRONMENT_PREFIX: &str = "SPIN_VARIABLE";

table! {
    /// What an operator gives to an app.
    #[schemars(title = "runtime-config.toml")]
    closed struct RawConfig {
        /// Where state is kept; empty for nowhere.
        state_dir: Option<At<String>>,
        /// Where logs are kept; empty for nowhere.
        log_dir: Option<At<String>>,
        /// The largest memory of one instance, in bytes.
        max_instance_memory: Option<At<u64>>,
        /// Backends of key-value stores, by label.
        key_value_store: Option<Entries<RawKeyValue>>,
        /// Backends of SQLite databases, by label.
        sqlite_database: Option<Entries<RawSqlite>>,
        /// Where values of variables come from; the first that has one wins.
        variables_provider: Option<Vec<At<RawProvider>>>,
        /// An older name of `variables_provider`.
        config_provider: Option<Vec<At<RawProvider>>>,
        /// What runs models.
        llm_compute: Option<At<RawLlm>>,
        /// Outbound HTTP requests.
        outbound_http: Option<RawOutboundHttp>,
        /// Connections to PostgreSQL servers.
        outbound_pg: Option<RawConnections>,
        /// Connections to MySQL servers.
        outbound_mysql: Option<RawConnections>,
        /// Connections to Redis servers.
        outbound_redis: Option<RawConnections>,
        /// Connections to MQTT brokers.
        outbound_mqtt: Option<RawMqtt>,
        /// All that goes out.
        outbound_networking: Option<RawNetworking>,
        /// Certificates for outbound TLS connections.
        client_tls: Option<Vec<At<RawClientTls>>>,
    }
}

tagged! {
    /// What keeps a key-value store.
    enum RawKeyValue, "key-value store" {
        /// A file on this machine.
        "spin" => Embedded(RawKeyValueFile),
        /// A Redis server.
        "redis" => Redis(RawKeyValueRedis),
        /// Azure Cosmos DB.
        "azure_cosmos" => AzureCosmos(RawAzureCosmos),
        /// Amazon DynamoDB.
        "aws_dynamo" => AwsDynamo(RawAwsDynamo),
    }
}

table! {
    /// A file on this machine.
    variant struct RawKeyValueFile {
        /// The file; a usual one if not given.
        path: Option<At<String>>,
    }
}

table! {
    /// A Redis server.
    variant struct RawKeyValueRedis {
        /// The server: `redis://…` or `rediss://…`.
        url: Required<At<String>>,
    }
}

table! {
    /// Azure Cosmos DB.
    variant struct RawAzureCosmos {
        /// The key; the environment's credentials if not given.
        key: Option<String>,
        /// The account.
        account: Required<String>,
        /// The database.
        database: Required<String>,
        /// The container.
        container: Required<String>,
    }
}

table! {
    /// Amazon DynamoDB.
    variant struct RawAwsDynamo {
        /// The region.
        region: Required<String>,
        /// The table.
        table: Required<String>,
        /// The id of the key; the environment's credentials if not given.
        access_key: Option<At<String>>,
        /// The key.
        secret_key: Option<At<String>>,
        /// The session token of temporary credentials.
        token: Option<At<String>>,
        /// Whether reads see all earlier writes.
        consistent_read: Option<bool>,
    }
}

tagged! {
    /// What keeps a SQLite database.
    enum RawSqlite, "database" {
        /// A file on this machine.
        "spin" => Embedded(RawSqliteFile),
        /// A libSQL server.
        "libsql" => Libsql(RawLibsql),
    }
}

table! {
    /// A file on this machine.
    variant struct RawSqliteFile {
        /// The file; a usual one if not given.
        path: Option<At<String>>,
        /// Whether guests may attach other files.
        allow_attach_file: Option<bool>,
    }
}

table! {
    /// A libSQL server.
    variant struct RawLibsql {
        /// The server.
        url: Required<At<String>>,
        /// Its token.
        token: Required<String>,
    }
}

tagged! {
    /// Where values of variables come from.
    enum RawProvider, "variables provider" {
        /// The configuration itself.
        "static" => Static(RawStatic),
        /// Environment variables.
        "env" => Environment(RawEnvironment),
        /// A HashiCorp Vault.
        "vault" => Vault(RawVault),
        /// Azure Key Vault.
        "azure_key_vault" => AzureKeyVault(RawAzureKeyVault),
    }
}

table! {
    /// Values in the configuration itself.
    variant struct RawStatic {
        /// The values.
        values: Required<Entries<String>>,
    }
}

table! {
    /// Environment variables.
    variant struct RawEnvironment {
        /// What stands before the name: `SPIN_VARIABLE` if not given.
        prefix: Option<At<String>>,
        /// A file with more of them.
        dotenv_path: Option<At<String>>,
    }
}

table! {
    /// A HashiCorp Vault.
    variant struct RawVault {
        /// The server.
        url: Required<At<String>>,
        /// Its token.
        token: Required<String>,
        /// Where the secrets engine is mounted.
        mount: Required<String>,
        /// What stands before the name.
        prefix: Option<String>,
    }
}

table! {
    /// Azure Key Vault.
    variant struct RawAzureKeyVault {
        /// The vault.
        vault_url: Required<At<String>>,
        /// The service principal; the environment's credentials if not given.
        client_id: Option<At<String>>,
        /// Its secret.
        client_secret: Option<At<String>>,
        /// The directory that it belongs to.
        tenant_id: Option<At<String>>,
        /// The cloud, if it is not the public one.
        authority_host: Option<String>,
    }
}

tagged! {
    /// What runs models.
    enum RawLlm, "model backend" {
        /// This machine.
        #[expect(dead_code, reason = "it has no settings")]
        "spin" => Embedded(RawLlmEmbedded),
        /// A server.
        "remote_http" => RemoteHttp(RawLlmRemote),
    }
}

table! {
    /// This machine.
    variant struct RawLlmEmbedded {}
}

table! {
    /// A server of models.
    variant struct RawLlmRemote {
        /// The server.
        url: Required<At<String>>,
        /// Its token.
        auth_token: Required<String>,
        /// What it speaks: `default` or `open_ai`.
        api_type: Option<At<String>>,
    }
}

table! {
    /// Settings of outbound HTTP requests.
    closed struct RawOutboundHttp {
        /// Whether connections are kept for later requests: yes if not given.
        connection_pooling: Option<bool>,
        /// How many connections there are at once.
        max_connections: Option<At<u32>>,
        /// Deprecated: use `max_connections`.
        max_concurrent_requests: Option<At<u32>>,
    }
}

table! {
    /// Settings of connections of one kind.
    closed struct RawConnections {
        /// How many connections there are at once.
        max_connections: Option<At<u32>>,
    }
}

table! {
    /// Settings of connections to MQTT brokers.
    closed struct RawMqtt {
        /// How many connections there are at once.
        max_connections: Option<At<u32>>,
        /// The largest message, in bytes.
        max_payload_size_bytes: Option<At<u64>>,
    }
}

table! {
    /// Settings of all that goes out.
    closed struct RawNetworking {
        /// Networks that no component may reach: `"10.0.0.0/8"`, `"private"`.
        block_networks: Option<Vec<At<String>>>,
        /// How many sockets guests may have open at once.
        max_socket_connections: Option<At<u32>>,
        /// How many connections of all kinds there are at once.
        max_total_connections: Option<At<u32>>,
    }
}

table! {
    /// Certificates for the connections of some components to some hosts.
    closed struct RawClientTls {
        /// The components.
        component_ids: Required<Vec<At<String>>>,
        /// The hosts.
        hosts: Required<Vec<At<String>>>,
        /// Whether the authorities are trusted that this machine trusts.
        ca_use_platform_roots: Option<bool>,
        /// Whether the authorities are trusted that browsers trust.
        ca_use_webpki_roots: Option<bool>,
        /// A file with other authorities that are trusted.
        ca_roots_file: Option<At<String>>,
        /// A file with the certificate to show.
        client_cert_file: Option<At<String>>,
        /// A file with its private key.
        client_private_key_file: Option<At<String>>,
    }
}

impl Secret {
    /// The text. Whoever takes it keeps it out of messages and logs.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Default for OutboundHttp {
    fn default() -> Self {
        Self { connection_pooling: true, max_connections_count: None }
    }
}

impl RuntimeConfig {
    /// Reads a runtime configuration from its text. `path` is how it is called
    /// in messages, and where relative paths in it start.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &Path, text: &str) -> Result<Checked<Self>, Diagnostics> {
        let directory = directory_of(path);
        parse_text(path, text, |value, context| {
            let raw = RawConfig::decode(value, context)?;
            let config = Checker { context }.config(raw, directory);
            (context.errors_count() == 0).then_some(config)
        })
    }

    /// Reads a runtime configuration from a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that it cannot be read.
    pub fn read(path: &Path) -> Result<Checked<Self>, Diagnostics> {
        let text = read_text(path, "name a file that exists, or leave the option away")?;
        Self::parse(path, &text)
    }
}

/// The JSON schema of runtime configurations, made of the types that read
/// them.
pub fn runtime_config_schema() -> serde_json::Value {
    crate::schema::schema_of::<RawConfig>()
}

struct Checker<'c> {
    context: &'c mut Context,
}

impl Checker<'_> {
    fn within<R>(&mut self, path: &'static str, action: impl FnOnce(&mut Self) -> R) -> R {
        self.context.enter_path(path);
        let result = action(self);
        self.context.leave();
        result
    }

    fn within_key<R>(&mut self, key: &str, action: impl FnOnce(&mut Self) -> R) -> R {
        self.context.enter(key);
        let result = action(self);
        self.context.leave();
        result
    }

    fn config(&mut self, raw: RawConfig, directory: PathBuf) -> RuntimeConfig {
        let mut providers = raw.variables_provider.unwrap_or_default();
        providers.extend(raw.config_provider.unwrap_or_default());
        providers.sort_by_key(|provider| provider.span.start);
        let mqtt = raw.outbound_mqtt;
        RuntimeConfig {
            state_directory: self.within("state_dir", |checker| checker.directory(raw.state_dir)),
            log_directory: self.within("log_dir", |checker| checker.directory(raw.log_dir)),
            max_instance_memory_bytes: self
                .within("max_instance_memory", |checker| checker.positive(raw.max_instance_memory)),
            key_value_stores: self.within("key_value_store", |checker| {
                checker.labelled(raw.key_value_store, "a key-value store", Self::key_value)
            }),
            sqlite_databases: self.within("sqlite_database", |checker| {
                checker.labelled(raw.sqlite_database, "a database", Self::sqlite)
            }),
            variables_providers: self.within("variables_provider", |checker| {
                let providers = providers.into_iter();
                providers.filter_map(|provider| checker.provider(provider.value)).collect()
            }),
            llm_compute: self
                .within("llm_compute", |checker| raw.llm_compute.and_then(|llm| checker.llm(llm.value))),
            outbound_http: self.within("outbound_http", |checker| {
                raw.outbound_http.map_or_else(OutboundHttp::default, |http| checker.outbound_http(http))
            }),
            outbound_postgres: connections(raw.outbound_pg),
            outbound_mysql: connections(raw.outbound_mysql),
            outbound_redis: connections(raw.outbound_redis),
            outbound_mqtt: OutboundMqtt {
                max_connections_count: mqtt
                    .as_ref()
                    .and_then(|mqtt| mqtt.max_connections.as_ref())
                    .map(|count| count.value),
                max_payload_size_bytes: mqtt
                    .as_ref()
                    .and_then(|mqtt| mqtt.max_payload_size_bytes.as_ref())
                    .map(|size| size.value),
            },
            outbound_networking: raw
                .outbound_networking
                .map(|networking| self.networking(&networking))
                .unwrap_or_default(),
            client_tls: self.within("client_tls", |checker| {
                let settings = raw.client_tls.unwrap_or_default().into_iter();
                settings.filter_map(|tls| checker.client_tls(tls)).collect()
            }),
            directory,
        }
    }

    fn directory(&mut self, directory: Option<At<String>>) -> Directory {
        match directory {
            None => Directory::Usual,
            Some(directory) if directory.value.is_empty() => Directory::None,
            directory => match self.path(directory) {
                Some(path) => Directory::Path(path),
                None => Directory::Usual,
            },
        }
    }

    fn path(&mut self, path: Option<At<String>>) -> Option<PathBuf> {
        let path = path?;
        if path.value.is_empty() || path.value.contains('\0') {
            self.context.invalid(path.span, "is no path of a file", None);
            return None;
        }
        Some(path.value.into())
    }

    fn positive<T: Copy + Default + PartialEq>(&mut self, number: Option<At<T>>) -> Option<T> {
        let number = number?;
        if number.value == T::default() {
            self.context.invalid(number.span, "must be more than zero", None);
            return None;
        }
        Some(number.value)
    }

    fn url(&mut self, text: Option<At<String>>, schemes: &[&str]) -> Option<url::Url> {
        let text = text?;
        let listed: Vec<String> = schemes.iter().map(|scheme| format!("`{scheme}://`")).collect();
        let hint = format!("start with {}", listed.join(" or "));
        // The text may hold a password, so that it must not be repeated.
        match url::Url::parse(&text.value) {
            Ok(url) if schemes.contains(&url.scheme()) => Some(url),
            Ok(_) => {
                self.context.invalid(text.span, "the URL has another scheme", Some(&hint));
                None
            }
            Err(error) => {
                let reason = format!("is no URL: {error}");
                self.context.invalid(text.span, reason, Some(&hint));
                None
            }
        }
    }

    fn labelled<R, T>(
        &mut self,
        entries: Option<Entries<R>>,
        what: &'static str,
        check: impl Fn(&mut Self, R) -> Option<T>,
    ) -> IndexMap<Label, T> {
        let mut checked = IndexMap::new();
        for (name, entry) in entries.map(|entries| entries.0).unwrap_or_default() {
            let label = match Label::new(&name.value) {
                Ok(label) => Some(label),
                Err(reason) => {
                    let text = name.value.chars().take(100).collect();
                    let rule = Rule::InvalidName { name: text, what, reason, suggestion: None };
                    self.context.error(name.span, rule);
                    None
                }
            };
            let Some(entry) = entry else { continue };
            let entry = self.within_key(&name.value, |checker| check(checker, entry.value));
            checked.extend(label.zip(entry));
        }
        checked
    }

    fn key_value(&mut self, raw: RawKeyValue) -> Option<KeyValueBackend> {
        match raw {
            RawKeyValue::Embedded(file) => {
                let path = self.within("path", |checker| checker.path(file.path));
                Some(KeyValueBackend::Embedded { path })
            }
            RawKeyValue::Redis(redis) => {
                let text = redis.url.0.clone();
                self.within("url", |checker| checker.url(redis.url.0, &["redis", "rediss"]))?;
                Some(KeyValueBackend::Redis { url: Secret(text?.value) })
            }
            RawKeyValue::AzureCosmos(cosmos) => Some(KeyValueBackend::AzureCosmos {
                key: cosmos.key.map(Secret),
                account: cosmos.account.0?,
                database: cosmos.database.0?,
                container: cosmos.container.0?,
            }),
            RawKeyValue::AwsDynamo(dynamo) => {
                let credentials = self.all_or_none(
                    [("access_key", &dynamo.access_key), ("secret_key", &dynamo.secret_key)],
                    dynamo.token.as_ref(),
                    "token",
                );
                let credentials = credentials.map(|[access_key, secret_key]| AwsCredentials {
                    access_key,
                    secret_key: Secret(secret_key),
                    token: dynamo.token.map(|token| Secret(token.value)),
                });
                Some(KeyValueBackend::AwsDynamo {
                    region: dynamo.region.0?,
                    table: dynamo.table.0?,
                    consistent_read: dynamo.consistent_read.unwrap_or_default(),
                    credentials,
                })
            }
        }
    }

    /// Values that only make sense together, and one that needs them.
    fn all_or_none<const N: usize>(
        &mut self,
        values: [(&'static str, &Option<At<String>>); N],
        dependent: Option<&At<String>>,
        dependent_name: &'static str,
    ) -> Option<[String; N]> {
        let dependent = dependent.map(|value| (dependent_name, value.span));
        let given = values.iter().find_map(|(name, value)| Some((*name, value.as_ref()?.span)));
        let (given_name, span) = given.or(dependent)?;
        for (name, value) in &values {
            if value.is_none() {
                let rule = Rule::Exclusive {
                    place: self.context.subject(),
                    reason: format!("`{given_name}` is given without `{name}`"),
                };
                self.context.error(span, rule);
            }
        }
        let texts: Option<Vec<String>> =
            values.iter().map(|(_, value)| value.as_ref().map(|value| value.value.clone())).collect();
        texts?.try_into().ok()
    }

    fn sqlite(&mut self, raw: RawSqlite) -> Option<SqliteBackend> {
        match raw {
            RawSqlite::Embedded(file) => {
                let path = self.within("path", |checker| checker.path(file.path));
                let allow_attach_file = file.allow_attach_file.unwrap_or_default();
                Some(SqliteBackend::Embedded { path, allow_attach_file })
            }
            RawSqlite::Libsql(libsql) => {
                let schemes = ["libsql", "https", "http", "wss", "ws"];
                let url = self.within("url", |checker| checker.url(libsql.url.0, &schemes));
                Some(SqliteBackend::Libsql { url: url?, token: Secret(libsql.token.0?) })
            }
        }
    }

    fn provider(&mut self, raw: RawProvider) -> Option<VariablesProvider> {
        const HTTP: [&str; 2] = ["https", "http"];
        match raw {
            RawProvider::Static(provider) => {
                let mut values = IndexMap::new();
                for (name, value) in provider.values.as_ref().into_iter().flat_map(Entries::iter) {
                    match VariableName::new(&name.value) {
                        Ok(name) => {
                            values.insert(name, Secret(value.value.clone()));
                        }
                        Err(reason) => {
                            let text = name.value.chars().take(100).collect();
                            let rule = Rule::InvalidName {
                                name: text,
                                what: "a variable",
                                reason,
                                suggestion: None,
                            };
                            self.context.error(name.span, rule);
                        }
                    }
                }
                Some(VariablesProvider::Static { values })
            }
            RawProvider::Environment(environment) => {
                let dotenv_path = self.within("dotenv_path", |checker| checker.path(environment.dotenv_path));
                let prefix = environment.prefix.map(|prefix| prefix.value);
                let prefix = prefix.unwrap_or_else(|| USUAL_ENVIRONMENT_PREFIX.to_owned());
                Some(VariablesProvider::Environment { prefix, dotenv_path })
            }
            RawProvider::Vault(vault) => {
                let url = self.within("url", |checker| checker.url(vault.url.0, &HTTP));
                Some(VariablesProvider::Vault {
                    url: url?,
                    token: Secret(vault.token.0?),
                    mount: vault.mount.0?,
                    prefix: vault.prefix,
                })
            }
            RawProvider::AzureKeyVault(vault) => {
                let vault_url = self.within("vault_url", |checker| checker.url(vault.vault_url.0, &HTTP));
                let credentials = self.all_or_none(
                    [
                        ("client_id", &vault.client_id),
                        ("client_secret", &vault.client_secret),
                        ("tenant_id", &vault.tenant_id),
                    ],
                    None,
                    "",
                );
                let credentials = credentials.map(|[client_id, client_secret, tenant_id]| AzureClient {
                    client_id,
                    client_secret: Secret(client_secret),
                    tenant_id,
                    authority_host: vault.authority_host,
                });
                Some(VariablesProvider::AzureKeyVault { vault_url: vault_url?, credentials })
            }
        }
    }

    fn llm(&mut self, raw: RawLlm) -> Option<LlmBackend> {
        let remote = match raw {
            RawLlm::Embedded(_) => return Some(LlmBackend::Embedded),
            RawLlm::RemoteHttp(remote) => remote,
        };
        let url = self.within("url", |checker| checker.url(remote.url.0, &["https", "http"]));
        let api_type = match &remote.api_type {
            None => LlmApi::Default,
            Some(api_type) => match api_type.value.as_str() {
                "default" => LlmApi::Default,
                "open_ai" => LlmApi::OpenAi,
                other => {
                    let reason = format!("`{other}` is not known");
                    let hint = "use `default` or `open_ai`";
                    self.within("api_type", |checker| {
                        checker.context.invalid(api_type.span, reason, Some(hint));
                    });
                    return None;
                }
            },
        };
        Some(LlmBackend::RemoteHttp { url: url?, auth_token: Secret(remote.auth_token.0?), api_type })
    }

    fn outbound_http(&mut self, raw: RawOutboundHttp) -> OutboundHttp {
        let mut max_connections_count = raw.max_connections.as_ref().map(|count| count.value);
        if let Some(legacy) = raw.max_concurrent_requests {
            let rule = Rule::Deprecated {
                what: "`max_concurrent_requests` is deprecated".to_owned(),
                instead: "use `max_connections`".to_owned(),
            };
            self.context.warning(legacy.span, rule);
            // The older setting let one more request through than it said.
            let count = max_connections_count.unwrap_or(legacy.value.saturating_add(1));
            max_connections_count = Some(count);
        }
        let connection_pooling = raw.connection_pooling.unwrap_or(true);
        OutboundHttp { connection_pooling, max_connections_count }
    }

    fn networking(&mut self, raw: &RawNetworking) -> OutboundNetworking {
        let mut blocked_networks = BlockedNetworks::default();
        for network in raw.block_networks.iter().flatten() {
            if let Err(reason) = blocked_networks.add(&network.value) {
                self.context.error(network.span, Rule::BlockedNetwork { reason });
            }
        }
        let count = |count: &Option<At<u32>>| count.as_ref().map(|count| count.value);
        OutboundNetworking {
            blocked_networks,
            max_socket_connections_count: count(&raw.max_socket_connections),
            max_total_connections_count: count(&raw.max_total_connections),
        }
    }

    fn client_tls(&mut self, raw: At<RawClientTls>) -> Option<ClientTls> {
        let raw = raw.value;
        let mut component_ids = Vec::new();
        for id in raw.component_ids.0.unwrap_or_default() {
            match ComponentId::new(&id.value) {
                Ok(id) => component_ids.push(id),
                Err(reason) => {
                    let name = id.value.chars().take(100).collect();
                    let rule = Rule::InvalidName { name, what: "a component", reason, suggestion: None };
                    self.context.error(id.span, rule);
                }
            }
        }
        let mut hosts = Vec::new();
        for host in raw.hosts.0.unwrap_or_default() {
            // A host here is what stands for one in a list of allowed hosts.
            match AllowedHost::parse(&format!("https://{}:*", host.value)) {
                Ok(_) => hosts.push(host.value.to_ascii_lowercase()),
                Err(_) => self.within("hosts", |checker| {
                    let reason = format!("`{}` is no host", host.value);
                    checker.context.invalid(host.span, reason, Some("give a name without a port"));
                }),
            }
        }
        let client_certificate = self.all_or_none(
            [
                ("client_cert_file", &raw.client_cert_file),
                ("client_private_key_file", &raw.client_private_key_file),
            ],
            None,
            "",
        );
        let ca_roots_file = self.within("ca_roots_file", |checker| checker.path(raw.ca_roots_file));
        Some(ClientTls {
            component_ids,
            hosts,
            ca_use_platform_roots: raw.ca_use_platform_roots.unwrap_or_default(),
            ca_use_webpki_roots: raw.ca_use_webpki_roots.unwrap_or(ca_roots_file.is_none()),
            ca_roots_file,
            client_certificate: client_certificate.map(|[certificate, private_key]| ClientCertificate {
                certificate_file: certificate.into(),
                private_key_file: private_key.into(),
            }),
        })
    }
}

fn connections(raw: Option<RawConnections>) -> OutboundConnections {
    let max_connections = raw.and_then(|raw| raw.max_connections);
    OutboundConnections { max_connections_count: max_connections.map(|count| count.value) }
}
