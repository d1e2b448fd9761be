//! Locked apps: what a manifest says once its components and files are at hand.
//!
//! It is JSON, in the form that Spin gives it in `spin.lock` and in images. An
//! [`App`] becomes a [`LockedApp`] by [`LockedApp::new`]; who packs an app then
//! puts digests in the place of paths ([`ContentRef`]), and who unpacks one puts
//! paths in the place of digests. [`LockedApp::check`] makes an [`App`] of it
//! again, by the very rules that hold for `spin.toml`: it is said again in the
//! words of a manifest, and read as one. So nobody downstream needs to know
//! where an app came from.
//!
//! What Spin's form has no place for, such as the settings of
//! `[component.NAME.tool.wisp]`, is kept in metadata under the key
//! [`WISP_KEY`], which Spin ignores.
//!
//! # Where content is
//!
//! `source` of a [`ContentRef`] is a URI: a `file:` URL, or a path relative to the
//! file that the locked app is in; what has still to be fetched keeps the URL that
//! it comes from, and what has still to be composed is `component:ID` or
//! `package:NAMESPACE:NAME@VERSION`. Content with a `digest` and no `source` is
//! found by whoever has the image; in a checked app its path is the digest.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as BASE64;
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::diagnostics::{Diagnostics, Rule, Subject};
use crate::load::Checked;
use crate::model::{
    App, Component, Dependency, DependencySource, Executor, FileMount, FreeTable, HttpRoute, HttpTarget,
    InheritConfiguration, Limits, MiddlewareSource, RegistryPackage, Source, Target, Trigger, TriggerKind,
    Variable, WagiSettings,
};

/// The name of a locked app in a directory.
pub const LOCKED_FILE_NAME: &str = "spin.lock";

/// The largest locked app: a hundred thousand files with a line each.
pub const MAX_LOCKED_BYTES: u64 = 32 * 1024 * 1024;

/// The key in metadata under which Wisp keeps what Spin has no place for.
pub const WISP_KEY: &str = "wisp";

/// What a component needs that calls others of its app.
pub const SERVICE_CHAINING: &str = "local_service_chaining";

/// What a component needs that has others in front of it.
const MIDDLEWARE: &str = "middleware";

/// What an app may need of its host, of all that there is.
const KNOWN_REQUIREMENTS: [&str; 2] = [SERVICE_CHAINING, MIDDLEWARE];

/// What a host may be told to mind.
const HOST_REQUIREMENTS: &str = "host_requirements";
const COMPONENT_HOST_REQUIREMENTS: &str = "component_host_requirements";

/// The newest form of locked apps that is known.
const MAX_VERSION: u32 = 1;

/// The path of content that is in the locked app itself and has no digest.
const INLINE: &str = "inline";

const REQUIRED: &str = "required";
const OPTIONAL: &str = "optional";

/// What a manifest says about how a component is built.
const BUILD_KEYS: [&str; 3] = ["command", "workdir", "watch"];

/// The type of a component's content.
const WASM: &str = "application/wasm";

/// An app, its components and files resolved to content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedApp {
    /// The form: 1, or 0 where a host need not understand anything special.
    pub spin_lock_version: u32,
    /// Which other keys a host must not ignore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub must_understand: Vec<String>,
    /// Name, version, authors and what else is said about the app.
    #[serde(default, skip_serializing_if = "FreeTable::is_empty")]
    pub metadata: FreeTable,
    /// What a host must be able to do.
    #[serde(default, skip_serializing_if = "FreeTable::is_empty")]
    pub host_requirements: FreeTable,
    /// The variables that an operator may set.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub variables: IndexMap<String, LockedVariable>,
    /// What starts components.
    pub triggers: Vec<LockedTrigger>,
    /// The components.
    pub components: Vec<LockedComponent>,
}

/// A variable of a locked app. One without a default is required.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedVariable {
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its value when nobody sets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Whether its value must be kept out of messages and logs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

/// A trigger of a locked app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedTrigger {
    /// Its name.
    pub id: String,
    /// Its type: `http`, `redis`, …
    pub trigger_type: String,
    /// Its settings, as a manifest has them, with `component` among them.
    pub trigger_config: Value,
    /// Components that are composed with its component, by role.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub trigger_dependencies: IndexMap<String, Vec<LockedDependency>>,
}

/// A component of a locked app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedComponent {
    /// Its name.
    pub id: String,
    /// What it may reach, and what else is said about it.
    #[serde(default, skip_serializing_if = "FreeTable::is_empty")]
    pub metadata: FreeTable,
    /// Its code.
    pub source: LockedSource,
    /// Its environment variables.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub env: IndexMap<String, String>,
    /// The files that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<LockedFile>,
    /// The values that it reads through the variables interface: templates.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub config: IndexMap<String, String>,
    /// Which of its imports other components provide.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub dependencies: IndexMap<String, LockedDependency>,
    /// Components that a trigger wants to be composed with it, by role.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub trigger_dependencies: IndexMap<String, Vec<LockedDependency>>,
    /// What a host must be able to do for it.
    #[serde(default, skip_serializing_if = "FreeTable::is_empty")]
    pub host_requirements: FreeTable,
}

/// The code of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedSource {
    /// Its media type.
    pub content_type: String,
    /// The code itself.
    #[serde(flatten)]
    pub content: ContentRef,
}

/// A file, or a directory with all that is in it, and where a component sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedFile {
    /// The content.
    #[serde(flatten)]
    pub content: ContentRef,
    /// Where it is seen: absolute, or relative to the guest's root.
    pub path: String,
}

/// Content: where it is, or what it hashes to, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRef {
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The content itself, if it is short.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_base64",
        deserialize_with = "read_base64"
    )]
    pub inline: Option<Vec<u8>>,
    /// What it hashes to: `sha256:` and 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A component that another one is composed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedDependency {
    /// Its code.
    pub source: LockedSource,
    /// The export of it that is used, if it is not named as the import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// What of the depending component's permissions it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherit: Option<LockedInherit>,
}

/// What of a component's permissions a dependency has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockedInherit {
    /// All of them.
    All,
    /// These.
    Some(Vec<String>),
}

impl LockedApp {
    /// The locked form of an app. All content is where the manifest says that it is,
    /// and patterns of files are kept as they are, see [`LockedComponent::set_files`].
    pub fn new(app: &App) -> Self {
        let components: Vec<LockedComponent> = app.components.values().map(LockedComponent::new).collect();
        let needs_something = components.iter().any(|component| !component.host_requirements.is_empty());
        Self {
            spin_lock_version: u32::from(needs_something),
            must_understand: needs_something
                .then(|| COMPONENT_HOST_REQUIREMENTS.to_owned())
                .into_iter()
                .collect(),
            metadata: app_metadata(app),
            host_requirements: FreeTable::new(),
            variables: app
                .variables
                .iter()
                .map(|(name, variable)| (name.to_string(), LockedVariable::new(variable)))
                .collect(),
            triggers: app.triggers.iter().map(LockedTrigger::new).collect(),
            components,
        }
    }

    /// Reads one from JSON. Nothing is checked but its form; `path` is how it is called
    /// in messages.
    ///
    /// # Errors
    /// What is wrong with the JSON, or that it is too large.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, Diagnostics> {
        if json.len() as u64 > MAX_LOCKED_BYTES {
            let rule = Rule::Unreadable {
                path: path.display().to_string(),
                reason: format!("it has more than {MAX_LOCKED_BYTES} bytes"),
                hint: None,
            };
            return Err(Diagnostics::without_text(path, rule));
        }
        serde_json::from_slice(json).map_err(|error| {
            Diagnostics::without_text(path, Rule::Syntax { message: format!("no locked app: {error}") })
        })
    }

    /// The JSON, the same for equal apps.
    pub fn to_json(&self) -> Vec<u8> {
        // Keys are strings and nothing in it fails to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks it by the rules of manifests and of locked apps. `path` is how it is
    /// called in messages, and where relative paths in it start.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn check(&self, path: &Path) -> Result<Checked<App>, Diagnostics> {
        self.check_requirements(path)?;
        let text = self.manifest_text(path)?;
        let profile = self.metadata.get("profile").and_then(Value::as_str);
        let checked = App::parse(path, &text, None);
        // The text is ours: nobody can look up a line of it.
        match checked {
            Ok(mut checked) => {
                checked.value.profile = profile.map(str::to_owned);
                Ok(Checked { value: checked.value, warnings: checked.warnings.without_places(path) })
            }
            Err(problems) => Err(problems.without_places(path)),
        }
    }

    fn check_requirements(&self, path: &Path) -> Result<(), Diagnostics> {
        if self.spin_lock_version > MAX_VERSION {
            let found = format!("there is no locked app of version {}", self.spin_lock_version);
            return Err(Diagnostics::without_text(path, Rule::Unsupported { what: found }));
        }
        let understood = [HOST_REQUIREMENTS, COMPONENT_HOST_REQUIREMENTS];
        let unknown = self
            .must_understand
            .iter()
            .filter(|key| !understood.contains(&key.as_str()))
            .map(|key| format!("the app wants its key `{key}` to be understood"));
        let requirements = self
            .components
            .iter()
            .map(|component| (format!("component `{}`", component.id), &component.host_requirements))
            .chain(std::iter::once(("the app".to_owned(), &self.host_requirements)));
        let unmet = requirements.flat_map(|(who, requirements)| {
            requirements
                .iter()
                .filter(|(name, value)| {
                    value.as_str() != Some(OPTIONAL) && !KNOWN_REQUIREMENTS.contains(&name.as_str())
                })
                .map(move |(name, _)| format!("{who} needs `{name}` of its host"))
        });
        let problems: Vec<String> = unknown.chain(unmet).collect();
        match problems.is_empty() {
            true => Ok(()),
            false => {
                Err(Diagnostics::of_rules(path, problems.into_iter().map(|what| Rule::Unsupported { what })))
            }
        }
    }

    /// The same app in the words of `spin.toml`.
    fn manifest_text(&self, path: &Path) -> Result<String, Diagnostics> {
        let mut faults = Vec::new();
        let mut text = Text::default();
        let wisp = wisp_table(&self.metadata);
        text.line("spin_manifest_version = 2");
        text.line("[application]");
        for key in ["name", "version", "description", "authors"] {
            text.entry(key, self.metadata.get(key));
        }
        text.entry("targets", wisp.get("targets"));
        text.tools(&wisp);
        text.entry("trigger", Some(&self.trigger_settings()));
        text.line("[variables]");
        for (name, variable) in &self.variables {
            let value = match &variable.default {
                Some(default) => json!({
                    "default": default, "secret": variable.secret, "description": variable.description,
                }),
                None => json!({
                    "required": true, "secret": variable.secret, "description": variable.description,
                }),
            };
            text.entry(name, Some(&value));
        }
        for trigger in &self.triggers {
            text.line(&format!("[[trigger.{}]]", quoted(&trigger.trigger_type)));
            text.entry("id", Some(&json!(trigger.id)));
            let Value::Object(settings) = &trigger.trigger_config else {
                faults.push((format!("triggers.{}.trigger_config", trigger.id), "an object is needed"));
                continue;
            };
            let dependencies = self.trigger_dependencies(trigger, settings);
            let has_dependencies = !dependencies.is_empty();
            for (key, value) in settings {
                let is_said_elsewhere = key == "id" || (key == "dependencies" && has_dependencies);
                if !is_said_elsewhere {
                    text.entry(key, Some(value));
                }
            }
            if has_dependencies {
                let mut roles = FreeTable::new();
                for (role, members) in dependencies {
                    let members = members.iter().map(|member| member.manifest(&mut faults, &trigger.id));
                    roles.insert(role.clone(), members.collect());
                }
                text.entry("dependencies", Some(&Value::Object(roles)));
            }
        }
        for component in &self.components {
            component.write(&mut text, &mut faults);
        }
        match faults.is_empty() {
            true => Ok(text.0),
            false => Err(Diagnostics::of_rules(
                path,
                faults.into_iter().map(|(place, reason)| Rule::InvalidValue {
                    place: Subject(place),
                    reason: reason.to_owned(),
                    hint: None,
                }),
            )),
        }
    }

    /// What a trigger's component is composed with for it: some versions of Spin say that
    /// where the trigger is, others where its component is.
    fn trigger_dependencies<'a>(
        &'a self,
        trigger: &'a LockedTrigger,
        settings: &FreeTable,
    ) -> &'a IndexMap<String, Vec<LockedDependency>> {
        let component = settings.get("component").and_then(Value::as_str);
        let component = self.components.iter().find(|known| component == Some(known.id.as_str()));
        match component {
            Some(component) if trigger.trigger_dependencies.is_empty() => &component.trigger_dependencies,
            _ => &trigger.trigger_dependencies,
        }
    }

    /// What all triggers of a type share, by type.
    fn trigger_settings(&self) -> Value {
        if let Some(settings) = self.metadata.get("triggers") {
            return settings.clone();
        }
        // As older versions of Spin write it, for one type.
        let Some(Value::Object(settings)) = self.metadata.get("trigger") else { return json!({}) };
        let mut settings = settings.clone();
        match settings.remove("type") {
            Some(Value::String(trigger_type)) => json!({ trigger_type: settings }),
            _ => json!({}),
        }
    }
}

/// Where something is wrong, and what.
type Fault = (String, &'static str);

impl LockedComponent {
    fn new(component: &Component) -> Self {
        let mut metadata = FreeTable::new();
        let mut put = |key: &str, value: Value| {
            let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !is_empty {
                metadata.insert(key.to_owned(), value);
            }
        };
        put("description", json!(component.description));
        put(
            "allowed_outbound_hosts",
            component.allowed_outbound_hosts.iter().map(|host| host.source()).collect(),
        );
        put("key_value_stores", component.key_value_stores.iter().map(|label| label.as_str()).collect());
        put("databases", component.sqlite_databases.iter().map(|label| label.as_str()).collect());
        put("ai_models", json!(component.ai_models));
        if let Some(build) = &component.build {
            let mut table = FreeTable::new();
            let command = match build.commands.as_slice() {
                [only] => json!(only),
                several => json!(several),
            };
            table.insert("command".to_owned(), command);
            if let Some(workdir) = &build.workdir {
                table.insert("workdir".to_owned(), json!(workdir));
            }
            if !build.watch.is_empty() {
                table.insert("watch".to_owned(), json!(build.watch));
            }
            put("build", Value::Object(table));
        }
        let mut wisp = FreeTable::new();
        let mut settings = FreeTable::new();
        if let Some(reuse) = &component.wisp.reuse {
            let reuse =
                json!({ "max_requests": reuse.max_requests, "idle_timeout": duration(reuse.idle_timeout) });
            settings.insert("reuse".to_owned(), reuse);
        }
        if component.wisp.omits_spin_headers {
            settings.insert("spin_headers".to_owned(), json!(false));
        }
        put_limits(&mut settings, &component.wisp.limits);
        put_table(&mut wisp, "settings", settings);
        put_table(&mut wisp, "tools", tools(&component.tools));
        if let Some(targets) = &component.targets {
            wisp.insert("targets".to_owned(), targets.iter().map(target).collect());
        }
        if component.dependencies_inherit_configuration {
            wisp.insert("dependencies_inherit_configuration".to_owned(), json!(true));
        }
        if !component.files.is_empty() {
            wisp.insert("files".to_owned(), component.files.iter().map(file_mount).collect());
        }
        if !component.exclude_files.is_empty() {
            wisp.insert("exclude_files".to_owned(), json!(component.exclude_files));
        }
        put_table(&mut metadata, WISP_KEY, wisp);

        let mut host_requirements = FreeTable::new();
        if component.calls_others() {
            host_requirements.insert(SERVICE_CHAINING.to_owned(), json!(REQUIRED));
        }
        Self {
            id: component.id.to_string(),
            metadata,
            source: LockedSource::new(source(&component.source)),
            env: component.environment.clone(),
            files: Vec::new(),
            config: component
                .variables
                .iter()
                .map(|(name, template)| (name.to_string(), template.source().to_owned()))
                .collect(),
            dependencies: component
                .dependencies
                .iter()
                .map(|(name, dependency)| {
                    let inherits_all = component.dependencies_inherit_configuration;
                    (name.to_string(), LockedDependency::new(dependency, inherits_all))
                })
                .collect(),
            trigger_dependencies: IndexMap::new(),
            host_requirements,
        }
    }

    /// Puts content in the place of the patterns of files that the manifest has.
    pub fn set_files(&mut self, files: Vec<LockedFile>) {
        self.files = files;
        if let Some(Value::Object(wisp)) = self.metadata.get_mut(WISP_KEY) {
            wisp.remove("files");
            wisp.remove("exclude_files");
            if wisp.is_empty() {
                self.metadata.remove(WISP_KEY);
            }
        }
    }

    fn write(&self, text: &mut Text, faults: &mut Vec<Fault>) {
        let wisp = wisp_table(&self.metadata);
        text.line(&format!("[component.{}]", quoted(&self.id)));
        let source = match self.source.content.place() {
            Ok(Place::Path(path)) => json!(path),
            Ok(Place::Url { url, digest }) => json!({ "url": url, "digest": digest }),
            Ok(Place::Package { registry, package, version }) => {
                json!({ "registry": registry, "package": package, "version": version })
            }
            Ok(Place::Component(_)) => {
                faults.push((format!("components.{}.source", self.id), "another component is no source"));
                return;
            }
            Err(reason) => {
                faults.push((format!("components.{}.source", self.id), reason));
                return;
            }
        };
        text.entry("source", Some(&source));
        for (key, metadata_key) in [
            ("description", "description"),
            ("allowed_outbound_hosts", "allowed_outbound_hosts"),
            ("key_value_stores", "key_value_stores"),
            ("sqlite_databases", "databases"),
            ("ai_models", "ai_models"),
        ] {
            text.entry(key, self.metadata.get(metadata_key));
        }
        if let Some(Value::Object(build)) = self.metadata.get("build") {
            // How it was built elsewhere; what more is said about that keeps nothing from
            // being served.
            let mut build = build.clone();
            build.retain(|key, _| BUILD_KEYS.contains(&key.as_str()));
            text.entry("build", Some(&Value::Object(build)));
        }
        if !self.metadata.contains_key("allowed_outbound_hosts") {
            text.entry("allowed_http_hosts", self.metadata.get("allowed_http_hosts"));
        }
        for key in ["targets", "exclude_files"] {
            text.entry(key, wisp.get(key));
        }
        text.entry("variables", Some(&json!(self.config)));
        text.entry("environment", Some(&json!(self.env)));

        let mut files: Vec<Value> = wisp.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
        for file in &self.files {
            match file.content.place() {
                Ok(Place::Path(path)) => {
                    let destination = format!("/{}", file.path.trim_start_matches('/'));
                    files.push(json!({ "source": path, "destination": destination }));
                }
                Ok(_) => faults.push((format!("components.{}.files", self.id), "only files can be seen")),
                Err(reason) => faults.push((format!("components.{}.files", self.id), reason)),
            }
        }
        if !files.is_empty() {
            text.entry("files", Some(&Value::Array(files)));
        }

        let inherits_all = wisp.get("dependencies_inherit_configuration");
        text.entry("dependencies_inherit_configuration", inherits_all);
        if !self.dependencies.is_empty() {
            let mut dependencies = FreeTable::new();
            for (name, dependency) in &self.dependencies {
                let mut dependency = dependency.manifest(faults, &self.id);
                if let (Some(_), Value::Object(dependency)) = (inherits_all, &mut dependency) {
                    dependency.remove("inherit_configuration");
                }
                dependencies.insert(name.clone(), dependency);
            }
            text.entry("dependencies", Some(&Value::Object(dependencies)));
        }
        text.tools(&wisp);
    }
}

impl LockedVariable {
    fn new(variable: &Variable) -> Self {
        Self {
            description: variable.description.clone(),
            default: variable.default.clone(),
            secret: variable.secret,
        }
    }
}

impl LockedTrigger {
    fn new(trigger: &Trigger) -> Self {
        let mut config = FreeTable::new();
        let mut dependencies = IndexMap::new();
        match &trigger.kind {
            TriggerKind::Http(http) => {
                let route = match &http.route {
                    HttpRoute::Pattern(pattern) => json!(pattern.as_str()),
                    HttpRoute::Private => json!({ "private": true }),
                };
                config.insert("route".to_owned(), route);
                match &http.target {
                    HttpTarget::Component { component, executor } => {
                        config.insert("component".to_owned(), json!(component.as_str()));
                        config.insert("executor".to_owned(), executor_table(executor));
                    }
                    HttpTarget::Static(response) => {
                        let headers: FreeTable = response
                            .headers
                            .iter()
                            .map(|(name, value)| (name.clone(), json!(value)))
                            .collect();
                        let mut table = FreeTable::new();
                        table.insert("status_code".to_owned(), json!(response.status_code));
                        put_table(&mut table, "headers", headers);
                        if let Some(body) = &response.body {
                            table.insert("body".to_owned(), json!(body));
                        }
                        config.insert("static_response".to_owned(), Value::Object(table));
                    }
                }
                if !http.middleware.is_empty() {
                    let members = http.middleware.iter().map(LockedDependency::of_middleware).collect();
                    dependencies.insert(MIDDLEWARE.to_owned(), members);
                }
            }
            TriggerKind::Redis(redis) => {
                config.insert("component".to_owned(), json!(redis.component.as_str()));
                config.insert("channel".to_owned(), json!(redis.channel.source()));
                config.insert("address".to_owned(), json!(redis.address.source()));
            }
            TriggerKind::Other(other) => {
                config = other.table.clone();
                if let Some(component) = &other.component {
                    config.insert("component".to_owned(), json!(component.as_str()));
                }
                let mut roles = FreeTable::new();
                for (role, members) in &other.components {
                    roles.insert(role.clone(), members.iter().map(|id| id.as_str()).collect());
                }
                put_table(&mut config, "components", roles);
            }
        }
        Self {
            id: trigger.id.to_string(),
            trigger_type: trigger.kind.type_name().to_owned(),
            trigger_config: Value::Object(config),
            trigger_dependencies: dependencies,
        }
    }
}

impl LockedSource {
    /// A component's code.
    pub fn new(content: ContentRef) -> Self {
        Self { content_type: WASM.to_owned(), content }
    }
}

impl LockedDependency {
    fn new(dependency: &Dependency, inherits_all: bool) -> Self {
        let inherit = match (&dependency.inherit, inherits_all) {
            (None, true) => Some(LockedInherit::All),
            (inherit, _) => inherit.as_ref().map(LockedInherit::new),
        };
        Self {
            source: LockedSource::new(dependency_source(&dependency.source)),
            export: dependency.export.clone(),
            inherit,
        }
    }

    fn of_middleware(middleware: &MiddlewareSource) -> Self {
        Self {
            source: LockedSource::new(dependency_source(&middleware.source)),
            export: None,
            inherit: middleware.inherit.as_ref().map(LockedInherit::new),
        }
    }

    /// As a manifest writes it.
    fn manifest(&self, faults: &mut Vec<Fault>, owner: &str) -> Value {
        let mut table = FreeTable::new();
        match self.source.content.place() {
            Ok(Place::Path(path)) => {
                table.insert("path".to_owned(), json!(path));
            }
            Ok(Place::Url { url, digest }) => {
                table.insert("url".to_owned(), json!(url));
                table.insert("digest".to_owned(), json!(digest));
            }
            Ok(Place::Component(id)) => {
                table.insert("component".to_owned(), json!(id));
            }
            Ok(Place::Package { registry, package, version }) => {
                table.insert("registry".to_owned(), json!(registry));
                table.insert("package".to_owned(), json!(package));
                table.insert("version".to_owned(), json!(version));
            }
            Err(reason) => faults.push((format!("{owner}.dependencies"), reason)),
        }
        if let Some(export) = &self.export {
            table.insert("export".to_owned(), json!(export));
        }
        match &self.inherit {
            None => {}
            Some(LockedInherit::All) => {
                table.insert("inherit_configuration".to_owned(), json!(true));
            }
            Some(LockedInherit::Some(some)) if some.is_empty() => {
                table.insert("inherit_configuration".to_owned(), json!(false));
            }
            Some(LockedInherit::Some(some)) => {
                table.insert("inherit_configuration".to_owned(), json!(some));
            }
        }
        Value::Object(table)
    }
}

impl LockedInherit {
    fn new(inherit: &InheritConfiguration) -> Self {
        match inherit {
            InheritConfiguration::All => Self::All,
            InheritConfiguration::None => Self::Some(Vec::new()),
            InheritConfiguration::Some(some) => {
                Self::Some(some.iter().map(|permission| permission.name().to_owned()).collect())
            }
        }
    }
}

/// Where content is.
enum Place<'a> {
    Path(String),
    Url { url: &'a str, digest: &'a str },
    Component(&'a str),
    Package { registry: Option<&'a str>, package: &'a str, version: &'a str },
}

impl ContentRef {
    /// Content in a file, relative to the locked app unless absolute.
    pub fn of_path(path: &Path) -> Self {
        let text = path.display().to_string();
        let source = match url::Url::from_file_path(path) {
            Ok(url) => url.to_string(),
            Err(()) if scheme(&text).is_some() => format!("./{text}"),
            Err(()) => text,
        };
        Self { source: Some(source), ..Self::default() }
    }

    fn of_uri(uri: String) -> Self {
        Self { source: Some(uri), ..Self::default() }
    }

    /// The path of the file that it is in, if it is in one.
    pub fn path(&self) -> Option<std::path::PathBuf> {
        match (&self.source, self.place()) {
            (Some(_), Ok(Place::Path(path))) => Some(path.into()),
            _ => None,
        }
    }

    /// The component of the same app that it is, for dependencies.
    pub fn component(&self) -> Option<&str> {
        match self.place() {
            Ok(Place::Component(id)) => Some(id),
            _ => None,
        }
    }

    fn place(&self) -> Result<Place<'_>, &'static str> {
        let Some(source) = self.source.as_deref() else {
            let inline = || self.inline.as_ref().map(|_| INLINE.to_owned());
            let digest = self.digest.clone().or_else(inline);
            return digest.map(Place::Path).ok_or("has neither a source nor a digest");
        };
        match scheme(source) {
            None => {
                let escaped = source.strip_prefix("./").filter(|rest| scheme(rest).is_some());
                Ok(Place::Path(escaped.unwrap_or(source).to_owned()))
            }
            Some("file") => {
                let url = url::Url::parse(source).map_err(|_| "is no URL of a file")?;
                let path = url.to_file_path().map_err(|()| "is no URL of a file")?;
                Ok(Place::Path(path.into_os_string().into_string().map_err(|_| "is not UTF-8 text")?))
            }
            Some("http" | "https") => {
                let digest = self.digest.as_deref().ok_or("is a download without a digest")?;
                Ok(Place::Url { url: source, digest })
            }
            Some("component") => Ok(Place::Component(source.strip_prefix("component:").unwrap_or_default())),
            Some("package") => {
                let rest = source.strip_prefix("package:").unwrap_or_default();
                let (package, version) = rest.split_once('@').ok_or("is a package without a version")?;
                let (version, registry) = match version.rsplit_once("?registry=") {
                    Some((version, registry)) => (version, Some(registry)),
                    None => (version, None),
                };
                Ok(Place::Package { registry, package, version })
            }
            Some(_) => Err("has a source of an unknown kind"),
        }
    }
}

/// The scheme of a URI, if it is none that is relative.
fn scheme(uri: &str) -> Option<&str> {
    let (scheme, _) = uri.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    is_scheme.then_some(scheme)
}

fn app_metadata(app: &App) -> FreeTable {
    let mut metadata = FreeTable::new();
    metadata.insert("name".to_owned(), json!(&*app.name));
    for (key, value) in
        [("version", &app.version), ("description", &app.description), ("profile", &app.profile)]
    {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), json!(value));
        }
    }
    if !app.authors.is_empty() {
        metadata.insert("authors".to_owned(), json!(app.authors));
    }
    let mut triggers = FreeTable::new();
    for trigger_type in app.trigger_types() {
        triggers.insert(trigger_type.to_owned(), json!({}));
    }
    for (trigger_type, settings) in &app.trigger_settings {
        triggers.insert(trigger_type.clone(), Value::Object(settings.clone()));
    }
    put_table(&mut metadata, "triggers", triggers);

    let mut settings = FreeTable::new();
    put_limits(&mut settings, &app.wisp.limits);
    if let Some(probe) = &app.wisp.probe {
        settings.insert("probe".to_owned(), json!(probe));
    }
    if let Some(folder) = &app.wisp.migrations {
        settings.insert("migrations".to_owned(), json!(folder));
    }
    let mut wisp = FreeTable::new();
    put_table(&mut wisp, "settings", settings);
    put_table(&mut wisp, "tools", tools(&app.tools));
    if !app.targets.is_empty() {
        wisp.insert("targets".to_owned(), app.targets.iter().map(target).collect());
    }
    put_table(&mut metadata, WISP_KEY, wisp);
    metadata
}

/// What Wisp keeps in metadata.
fn wisp_table(metadata: &FreeTable) -> FreeTable {
    match metadata.get(WISP_KEY) {
        Some(Value::Object(wisp)) => wisp.clone(),
        _ => FreeTable::new(),
    }
}

fn put_table(into: &mut FreeTable, key: &str, table: FreeTable) {
    if !table.is_empty() {
        into.insert(key.to_owned(), Value::Object(table));
    }
}

fn put_limits(into: &mut FreeTable, limits: &Limits) {
    let all = [
        ("memory_bytes", limits.memory_bytes.map(|bytes| json!(bytes))),
        ("table_elements", limits.table_elements.map(|count| json!(count))),
        ("cpu_time", limits.cpu_time.map(|time| json!(duration(time)))),
        ("request_timeout", limits.request_timeout.map(|time| json!(duration(time)))),
        ("max_concurrent_requests", limits.max_concurrent_requests.map(|count| json!(count))),
        ("request_body_bytes", limits.request_body_bytes.map(|bytes| json!(bytes))),
        ("response_body_bytes", limits.response_body_bytes.map(|bytes| json!(bytes))),
        ("max_handles", limits.max_handles.map(|count| json!(count))),
        ("max_outbound_requests", limits.max_outbound_requests.map(|count| json!(count))),
        ("max_outbound_connections", limits.max_outbound_connections.map(|count| json!(count))),
        ("log_bytes", limits.log_bytes.map(|bytes| json!(bytes))),
        ("log_bytes_per_second", limits.log_bytes_per_second.map(|bytes| json!(bytes))),
    ];
    let table = all.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    put_table(into, "limits", table);
}

/// The largest unit that says it exactly.
fn duration(duration: std::time::Duration) -> String {
    let nanos = duration.as_nanos();
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")];
    let (size, unit) = units.into_iter().find(|(size, _)| nanos.is_multiple_of(*size)).unwrap_or((1, "ns"));
    format!("{}{unit}", nanos / size)
}

fn tools(tools: &IndexMap<String, FreeTable>) -> FreeTable {
    tools.iter().map(|(name, table)| (name.clone(), Value::Object(table.clone()))).collect()
}

fn target(target: &Target) -> Value {
    match target {
        Target::Named(name) => json!(name),
        Target::Url(url) => json!({ "url": url.as_str() }),
        Target::Path(path) => json!({ "path": path }),
    }
}

fn file_mount(mount: &FileMount) -> Value {
    match mount {
        FileMount::Pattern(pattern) => json!(pattern),
        FileMount::Placement { source, destination } => {
            json!({ "source": source, "destination": destination })
        }
    }
}

fn executor_table(executor: &Executor) -> Value {
    let Executor::Wagi(wagi) = executor else { return json!({ "type": "http" }) };
    let defaults = WagiSettings::default();
    let mut table = FreeTable::new();
    table.insert("type".to_owned(), json!("wagi"));
    table.insert("argv".to_owned(), json!(wagi.argv));
    if wagi.entrypoint != defaults.entrypoint {
        table.insert("entrypoint".to_owned(), json!(wagi.entrypoint));
    }
    Value::Object(table)
}

fn source(source: &Source) -> ContentRef {
    match source {
        Source::Path(path) => ContentRef::of_path(path),
        Source::Url { url, digest } => {
            ContentRef { digest: Some(digest.to_string()), ..ContentRef::of_uri(url.to_string()) }
        }
        Source::Registry(RegistryPackage { registry, package, version }) => {
            ContentRef::of_uri(package_uri(package, version, registry.as_deref()))
        }
    }
}

fn dependency_source(source: &DependencySource) -> ContentRef {
    match source {
        DependencySource::Path(path) => ContentRef::of_path(path),
        DependencySource::Url { url, digest } => {
            ContentRef { digest: Some(digest.to_string()), ..ContentRef::of_uri(url.to_string()) }
        }
        DependencySource::Registry { registry, package, version } => {
            ContentRef::of_uri(package_uri(package, version, registry.as_deref()))
        }
        DependencySource::Component(id) => ContentRef::of_uri(format!("component:{id}")),
    }
}

fn package_uri(
    package: &impl std::fmt::Display,
    version: &impl std::fmt::Display,
    registry: Option<&str>,
) -> String {
    match registry {
        Some(registry) => format!("package:{package}@{version}?registry={registry}"),
        None => format!("package:{package}@{version}"),
    }
}

/// A manifest that is being written.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// A key and its value, unless there is none.
    fn entry(&mut self, key: &str, value: Option<&Value>) {
        let Some(value) = value.filter(|value| !value.is_null()) else { return };
        self.0.push_str(&quoted(key));
        self.0.push_str(" = ");
        write_value(&mut self.0, value);
        self.0.push('\n');
    }

    /// Our settings and those of other tools.
    fn tools(&mut self, wisp: &FreeTable) {
        let mut tools = match wisp.get("tools") {
            Some(Value::Object(tools)) => tools.clone(),
            _ => FreeTable::new(),
        };
        if let Some(settings) = wisp.get("settings") {
            tools.insert(WISP_KEY.to_owned(), settings.clone());
        }
        if !tools.is_empty() {
            self.entry("tool", Some(&Value::Object(tools)));
        }
    }
}

/// Writes a value as TOML on one line. There is no null in TOML: what is null counts
/// as not given.
fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Null => {}
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => out.push_str(&quoted(text)),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().filter(|item| !item.is_null()).enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            out.push('{');
            for (index, (key, item)) in entries.iter().filter(|(_, item)| !item.is_null()).enumerate() {
                out.push_str(if index > 0 { ", " } else { " " });
                out.push_str(&quoted(key));
                out.push_str(" = ");
                write_value(out, item);
            }
            out.push_str(" }");
        }
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            _ if character.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(quoted, "\\u{:04X}", u32::from(character));
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

fn write_base64<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => serializer.serialize_str(&BASE64.encode(bytes)),
        None => serializer.serialize_none(),
    }
}

fn read_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    BASE64.decode(text.trim_end_matches('=')).map(Some).map_err(serde::de::Error::custom)
}
