//! A manifest as it is written, version 2: the one place that says which keys
//! there are. The doc comments here are the descriptions in the JSON schema.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use toml::de::DeValue;

use crate::decode::{
    At, Context, Decode, Entries, Required, Span, Value, span_of, table, tagged, to_free_table, union,
};
use crate::model::FreeTable;

table! {
    /// What an app consists of: components, and the triggers that start them.
    #[schemars(title = "spin.toml")]
    closed struct Manifest {
        /// The version of this format.
        #[expect(dead_code, reason = "it is checked before the manifest is read")]
        spin_manifest_version: VersionTwo,
        /// What the app is.
        application: Required<At<Application>>,
        /// The variables that an operator may set. Names are lower-case words
        /// with `_` between them.
        variables: Option<Entries<Variable>>,
        /// What starts the components, by type: `[[trigger.http]]`.
        trigger: Option<Triggers>,
        /// The components. Names are words with `-` between them.
        component: Option<Entries<Component>>,
    }
}

/// The version of the format. It is checked before all else.
#[derive(Clone, Debug)]
pub(crate) struct VersionTwo;

table! {
    /// What the app is.
    closed struct Application {
        /// The app's name.
        name: Required<At<String>>,
        /// The app's version.
        version: Option<String>,
        /// What the app is for, in one line.
        description: Option<String>,
        /// Who wrote it.
        authors: Option<Vec<String>>,
        /// The host environments that its components are checked against when
        /// they are built.
        targets: Option<Vec<At<Target>>>,
        /// Settings that all triggers of a type share, by type.
        trigger: Option<Entries<Free>>,
        /// Settings of tools, by their names.
        tool: Option<Tools<WispApplication>>,
    }
}

table! {
    /// A variable that an operator may set. Exactly one of `default` and
    /// `required` is given.
    closed struct Variable {
        /// The value when nobody sets one.
        default: Option<At<String>>,
        /// Whether the app cannot run before somebody sets it.
        required: Option<At<bool>>,
        /// Whether its value is kept out of messages and logs.
        secret: Option<bool>,
        /// What it is for.
        description: Option<String>,
    }
}

union! {
    /// A host environment that components are checked against.
    enum Target {
        /// One of the catalogue.
        text => Named(String),
        /// A definition at a URL.
        keyed "url" => Url(TargetUrl),
        /// A definition in a file.
        table => Path(TargetPath),
    }
}

table! {
    /// A definition at a URL.
    closed struct TargetUrl {
        /// The URL.
        url: Required<At<String>>,
    }
}

table! {
    /// A definition in a file.
    closed struct TargetPath {
        /// The file, relative to the manifest.
        path: Required<At<String>>,
    }
}

/// `tool` tables: ours is checked, others are kept as they are.
#[derive(Clone, Debug)]
pub(crate) struct Tools<W> {
    pub(crate) wisp: Option<W>,
    pub(crate) others: Vec<(String, FreeTable)>,
}

/// A table of any content.
#[derive(Clone, Debug)]
pub(crate) struct Free(pub(crate) FreeTable);

table! {
    /// What the author asks of Wisp for the whole app.
    closed struct WispApplication {
        /// Limits of every component that does not set its own.
        limits: Option<Limits>,
        /// A path that each new version is asked for once: if the answer is a status of
        /// 500 or above, the version is not taken. For nodes with many apps.
        probe: Option<At<String>>,
        /// A folder with files of SQL statements (`*.sql`). Each is run once, in the order
        /// of names, on the database `default`, before the release that brings it serves.
        migrations: Option<At<String>>,
    }
}

table! {
    /// What the author asks of Wisp for a component.
    closed struct WispComponent {
        /// Whether an instance may serve more than one request, which then see
        /// what earlier ones left in memory. Not unless it is asked for.
        reuse: Option<At<Reuse>>,
        /// Whether requests have the `spin-*` headers. They have unless this is false:
        /// guests of Spin expect them, for others they are a fifth of a small request.
        spin_headers: Option<At<bool>>,
        /// Limits of the component. They can only tighten the operator's.
        limits: Option<Limits>,
    }
}

union! {
    /// Whether and how instances are reused.
    enum Reuse {
        /// With the default limits, or not at all.
        flag => Flag(bool),
        /// With these limits.
        table => Settings(ReuseSettings),
    }
}

table! {
    /// How instances are reused.
    closed struct ReuseSettings {
        /// After how many requests an instance is dropped: 128 if not given.
        max_requests: Option<At<u32>>,
        /// After how much time without a request an instance is dropped, such
        /// as `"500ms"`: one second if not given.
        idle_timeout: Option<At<String>>,
    }
}

table! {
    /// Limits of a component.
    closed struct Limits {
        /// The largest memory of one instance, in bytes, the sum of all of its
        /// memories: 4 GiB if not given.
        memory_bytes: Option<At<u64>>,
        /// The most elements of one instance's tables together: a million if not
        /// given.
        table_elements: Option<At<u32>>,
        /// The most CPU time of one request, such as `"500ms"`: a minute if not
        /// given.
        cpu_time: Option<At<String>>,
        /// The longest time from a request's start to its response's end, such
        /// as `"30s"`: an hour if not given.
        request_timeout: Option<At<String>>,
        /// How many requests the component handles at once; more wait.
        max_concurrent_requests: Option<At<u32>>,
        /// The largest body of a request, in bytes; larger ones get 413.
        request_body_bytes: Option<At<u64>>,
        /// The largest body of a response, in bytes: 10 GiB if not given.
        response_body_bytes: Option<At<u64>>,
        /// How many handles (resources of the host, and of the component itself)
        /// an instance may have open: 10,000 if not given.
        max_handles: Option<At<u32>>,
        /// How many HTTP requests one request may send: 1,000 if not given.
        max_outbound_requests: Option<At<u32>>,
        /// How many of them may be under way at once: 100 if not given.
        max_outbound_connections: Option<At<u32>>,
        /// How many bytes one request may write to the log: 16 MiB if not given.
        log_bytes: Option<At<u64>>,
        /// How many bytes the component may write to each of its two logs in a
        /// second, in the long run: 4 MiB if not given.
        log_bytes_per_second: Option<At<u64>>,
    }
}

/// The triggers of an app, in the order of the text.
#[derive(Clone, Debug)]
pub(crate) struct Triggers(pub(crate) Vec<At<Trigger>>);

#[derive(Clone, Debug)]
pub(crate) enum Trigger {
    Http(HttpTrigger),
    Redis(RedisTrigger),
    Other(OtherTrigger),
}

table! {
    /// Starts a component, or answers by itself, when an HTTP request comes in.
    open struct HttpTrigger {
        /// The trigger's name; made from the component's if not given.
        id: Option<At<String>>,
        /// The component that answers: its name, or all of it.
        component: Option<At<ComponentSpec>>,
        /// The response that is always given. It takes the component's place.
        static_response: Option<At<StaticResponse>>,
        /// Which requests it takes: `/a/b`, `/users/:id`, `/files/...`, or
        /// `{ private = true }` for those of the app's own components only.
        route: Required<At<Route>>,
        /// How the component is called.
        executor: Option<At<Executor>>,
        /// Components that are composed with the trigger's component.
        dependencies: Option<HttpTriggerDependencies>,
    }
}

table! {
    /// Components that are composed with a trigger's component.
    closed struct HttpTriggerDependencies {
        /// Components that see each request first, outermost first.
        middleware: Option<Vec<At<Middleware>>>,
    }
}

union! {
    /// A component: its name, or all of it.
    enum ComponentSpec {
        /// The name of a component.
        text => Reference(String),
        /// All of a component.
        table => Inline(Box<Component>),
    }
}

union! {
    /// One component or several.
    enum ComponentSpecs {
        /// Several components.
        list => Many(Vec<At<ComponentSpec>>),
        /// The name of a component.
        text => Reference(At<String>),
        /// All of a component.
        table => Inline(Box<At<Component>>),
    }
}

union! {
    /// Which requests an HTTP trigger takes.
    enum Route {
        /// Those whose path matches.
        text => Pattern(String),
        /// None from outside.
        table => Private(PrivateRoute),
    }
}

table! {
    /// A route for requests of the app's own components only.
    closed struct PrivateRoute {
        /// Always `true`.
        private: Required<At<bool>>,
    }
}

tagged! {
    /// How a component is called.
    enum Executor, "executor" {
        /// By whichever HTTP handler it exports.
        #[expect(dead_code, reason = "it has no settings")]
        "http" => Http(PlainExecutor),
        /// The same, by an older name.
        #[expect(dead_code, reason = "it has no settings")]
        "spin" => Spin(PlainExecutor),
        /// As a command: request in environment and standard input, response
        /// on standard output.
        "wagi" => Wagi(WagiExecutor),
    }
}

table! {
    /// An executor without settings.
    variant struct PlainExecutor {}
}

table! {
    /// Calls the component as a command.
    variant struct WagiExecutor {
        /// The command line; `${SCRIPT_NAME}` and `${ARGS}` are replaced.
        argv: Option<String>,
        /// The function that is called. Deprecated: leave it away.
        entrypoint: Option<At<String>>,
    }
}

table! {
    /// A response that is always the same.
    closed struct StaticResponse {
        /// The status: 200 if not given.
        status_code: Option<At<u16>>,
        /// The headers.
        headers: Option<Entries<String>>,
        /// The body.
        body: Option<String>,
    }
}

table! {
    /// Starts a component when a message comes in through Redis.
    open struct RedisTrigger {
        /// The trigger's name; made from the component's if not given.
        id: Option<At<String>>,
        /// The component that handles the messages: its name, or all of it.
        component: Required<At<ComponentSpec>>,
        /// The channel. May have `{{ variables }}`.
        channel: Required<At<String>>,
        /// The server, if it is not the one of `[application.trigger.redis]`.
        /// May have `{{ variables }}`.
        address: Option<At<String>>,
    }
}

/// A trigger of a type that nothing is known about.
#[derive(Clone, Debug)]
pub(crate) struct OtherTrigger {
    pub(crate) trigger_type: String,
    pub(crate) id: Option<At<String>>,
    pub(crate) component: Option<At<ComponentSpec>>,
    pub(crate) components: Option<Entries<ComponentSpecs>>,
    pub(crate) table: FreeTable,
}

table! {
    /// WebAssembly code and what it may reach.
    closed struct Component {
        /// Where the code comes from.
        source: Required<At<Source>>,
        /// What the component is for.
        description: Option<String>,
        /// The values that it reads through the variables interface. They may
        /// have `{{ variables }}` of the app.
        variables: Option<Entries<String>>,
        /// Its environment variables.
        environment: Option<Entries<String>>,
        /// The files that it sees: patterns, or places.
        files: Option<Vec<At<FileMount>>>,
        /// Patterns of files that it does not see although `files` has them.
        exclude_files: Option<Vec<At<String>>>,
        /// The network destinations that it may reach, such as
        /// `https://*.example.com`. They may have `{{ variables }}`.
        allowed_outbound_hosts: Option<Vec<At<String>>>,
        /// Deprecated: use `allowed_outbound_hosts`.
        allowed_http_hosts: Option<Vec<At<String>>>,
        /// Labels of the key-value stores that it may open.
        key_value_stores: Option<Vec<At<String>>>,
        /// Labels of the SQLite databases that it may open.
        sqlite_databases: Option<Vec<At<String>>>,
        /// Names of the models that it may use.
        ai_models: Option<Vec<String>>,
        /// The host environments that it is checked against, if they are not
        /// the app's.
        targets: Option<Vec<At<Target>>>,
        /// How it is built.
        build: Option<Build>,
        /// Settings of tools, by their names.
        tool: Option<Tools<WispComponent>>,
        /// Whether all dependencies may reach what the component may reach.
        dependencies_inherit_configuration: Option<At<bool>>,
        /// Which imports other components provide.
        dependencies: Option<Entries<Dependency>>,
        /// What is different in other profiles, by their names.
        profile: Option<Entries<Profile>>,
    }
}

union! {
    /// Where a component's code comes from.
    enum Source {
        /// A file, relative to the manifest.
        text => Path(String),
        /// A download.
        keyed "url" => Url(UrlSource),
        /// A package of a component registry.
        table => Registry(RegistrySource),
    }
}

table! {
    /// A download.
    closed struct UrlSource {
        /// From where.
        url: Required<At<String>>,
        /// What it hashes to: `sha256:` and 64 hexadecimal digits.
        digest: Required<At<String>>,
    }
}

table! {
    /// A package of a component registry.
    closed struct RegistrySource {
        /// The registry's host name, if it is not the one configured.
        registry: Option<String>,
        /// The package: `namespace:name`.
        package: Required<At<String>>,
        /// The exact version.
        version: Required<At<String>>,
    }
}

union! {
    /// Files that a component sees.
    enum FileMount {
        /// All that match, where they lie relative to the manifest.
        text => Pattern(String),
        /// A file or directory, somewhere else.
        table => Placement(FilePlacement),
    }
}

table! {
    /// A file or directory and where the component sees it.
    closed struct FilePlacement {
        /// The file or directory, relative to the manifest.
        source: Required<At<String>>,
        /// Where the component sees it: an absolute path.
        destination: Required<At<String>>,
    }
}

table! {
    /// How a component is built.
    closed struct Build {
        /// The command, or several that run one after the other.
        command: Required<At<Commands>>,
        /// Where it runs, relative to the manifest.
        workdir: Option<At<String>>,
        /// Patterns of files whose change calls for another build.
        watch: Option<Vec<String>>,
    }
}

union! {
    /// One command or several.
    enum Commands {
        /// One command.
        text => One(String),
        /// Several, which run one after the other.
        list => Many(Vec<String>),
    }
}

union! {
    /// What satisfies an import.
    enum Dependency {
        /// A package of a component registry, in a version that this allows.
        text => Version(String),
        /// A file.
        keyed "path" => Path(DependencyPath),
        /// A download.
        keyed "url" => Url(DependencyUrl),
        /// Another component of the app.
        keyed "component" => Component(DependencyComponent),
        /// A package of a component registry.
        table => Registry(DependencyRegistry),
    }
}

table! {
    /// A file.
    closed struct DependencyPath {
        /// The file, relative to the manifest.
        path: Required<At<String>>,
        /// The export to use, if it is not named as the import.
        export: Option<At<String>>,
        /// What of the component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// A download.
    closed struct DependencyUrl {
        /// From where.
        url: Required<At<String>>,
        /// What it hashes to: `sha256:` and 64 hexadecimal digits.
        digest: Required<At<String>>,
        /// The export to use, if it is not named as the import.
        export: Option<At<String>>,
        /// What of the component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// Another component of the app.
    closed struct DependencyComponent {
        /// Its name.
        component: Required<At<String>>,
        /// The export to use, if it is not named as the import.
        export: Option<At<String>>,
        /// What of the component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// A package of a component registry.
    closed struct DependencyRegistry {
        /// Which versions will do, such as `">=1.2"`.
        version: Required<At<String>>,
        /// The registry's host name, if it is not the one configured.
        registry: Option<String>,
        /// The package, if it is not the one that the import names.
        package: Option<At<String>>,
        /// The export to use, if it is not named as the import.
        export: Option<At<String>>,
        /// What of the component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

union! {
    /// A component that stands between a trigger and its component.
    enum Middleware {
        /// A component of the app.
        keyed "component" => Component(MiddlewareComponent),
        /// A file.
        keyed "path" => Path(MiddlewarePath),
        /// A download.
        keyed "url" => Url(MiddlewareUrl),
        /// A package of a component registry.
        keyed "package" => Registry(MiddlewareRegistry),
    }
}

table! {
    /// A component of the app.
    closed struct MiddlewareComponent {
        /// Its name.
        component: Required<At<String>>,
        /// What of the triggered component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// A file.
    closed struct MiddlewarePath {
        /// The file, relative to the manifest.
        path: Required<At<String>>,
        /// What of the triggered component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// A download.
    closed struct MiddlewareUrl {
        /// From where.
        url: Required<At<String>>,
        /// What it hashes to: `sha256:` and 64 hexadecimal digits.
        digest: Required<At<String>>,
        /// What of the triggered component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

table! {
    /// A package of a component registry.
    closed struct MiddlewareRegistry {
        /// The package: `namespace:name`.
        package: Required<At<String>>,
        /// Which versions will do, such as `">=1.2"`.
        version: Required<At<String>>,
        /// The registry's host name, if it is not the one configured.
        registry: Option<String>,
        /// What of the triggered component's permissions it has.
        inherit_configuration: Option<At<Inherit>>,
    }
}

union! {
    /// What a dependency may reach of that which the component may reach.
    enum Inherit {
        /// Everything or nothing.
        flag => Flag(bool),
        /// These: `ai_models`, `allowed_outbound_hosts`, `environment`,
        /// `files`, `key_value_stores`, `sqlite_databases`, `variables`.
        list => Some(Vec<At<String>>),
    }
}

table! {
    /// What is different when a component is built and run in a profile.
    closed struct Profile {
        /// Where the code comes from.
        source: Option<At<Source>>,
        /// Environment variables that are added or replaced.
        environment: Option<Entries<String>>,
        /// Dependencies that are added or replaced.
        dependencies: Option<Entries<Dependency>>,
        /// How it is built.
        build: Option<ProfileBuild>,
    }
}

table! {
    /// How a component is built in a profile.
    closed struct ProfileBuild {
        /// The command, or several that run one after the other.
        command: Required<At<Commands>>,
    }
}

impl Decode for VersionTwo {
    fn decode(_: &Value<'_>, _: &mut Context) -> Option<Self> {
        Some(Self)
    }

    /// That it is missing has been noted before.
    fn absent(_: Span, _: &str, _: &mut Context) -> Option<Self> {
        Some(Self)
    }
}

impl JsonSchema for VersionTwo {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "VersionTwo".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "const": 2 })
    }
}

impl Decode for Free {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        context.table(value).map(to_free_table).map(Self)
    }
}

impl JsonSchema for Free {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Free".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "object" })
    }
}

/// The name of our own table among those of tools.
const WISP: &str = "wisp";

impl<W: Decode> Decode for Tools<W> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        let wisp = context.field::<Option<W>>(value, table, WISP)?;
        let mut others = Vec::new();
        for (name, settings) in table {
            // What another tool keeps here is its own affair, even if it is
            // no table.
            if let (true, DeValue::Table(settings)) = (name.get_ref() != WISP, settings.get_ref()) {
                others.push((name.get_ref().clone().into_owned(), to_free_table(settings)));
            }
        }
        Some(Self { wisp, others })
    }
}

impl<W: JsonSchema> JsonSchema for Tools<W> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ToolsWith{}", W::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let wisp = generator.subschema_for::<W>();
        schemars::json_schema!({ "type": "object", "properties": { WISP: wisp } })
    }
}

impl Decode for Triggers {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        let mut triggers: Vec<At<Trigger>> = Vec::new();
        for (name, value) in table {
            let name = name.get_ref().as_ref();
            context.within(name, |context| {
                if value.get_ref().is_table() {
                    let reason = "each trigger is an item of an array";
                    let hint = format!("write `[[trigger.{name}]]` with two brackets");
                    context.invalid(span_of(value), reason, Some(&hint));
                    return;
                }
                match name {
                    "http" => extend(&mut triggers, value, context, Trigger::Http),
                    "redis" => extend(&mut triggers, value, context, Trigger::Redis),
                    _ => extend(&mut triggers, value, context, |other| {
                        Trigger::Other(OtherTrigger { trigger_type: name.to_owned(), ..other })
                    }),
                }
            });
        }
        triggers.sort_by_key(|trigger| trigger.span.start);
        Some(Self(triggers))
    }
}

fn extend<T: Decode>(
    triggers: &mut Vec<At<Trigger>>,
    value: &Value<'_>,
    context: &mut Context,
    wrap: impl Fn(T) -> Trigger,
) {
    let decoded = Vec::<At<T>>::decode(value, context).unwrap_or_default();
    triggers.extend(decoded.into_iter().map(|trigger| At { value: wrap(trigger.value), span: trigger.span }));
}

impl Decode for OtherTrigger {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        let mut rest = to_free_table(table);
        for key in ["id", "component", "components"] {
            rest.remove(key);
        }
        Some(Self {
            trigger_type: String::new(),
            id: context.field(value, table, "id")?,
            component: context.field(value, table, "component")?,
            components: context.field(value, table, "components")?,
            table: rest,
        })
    }
}

impl JsonSchema for Triggers {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Triggers".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let http = generator.subschema_for::<Vec<HttpTrigger>>();
        let redis = generator.subschema_for::<Vec<RedisTrigger>>();
        let component = generator.subschema_for::<ComponentSpec>();
        let components = generator.subschema_for::<ComponentSpecs>();
        schemars::json_schema!({
            "type": "object",
            "properties": { "http": http, "redis": redis },
            "additionalProperties": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "id": { "type": "string" },
                        "component": component,
                        "components": {
                            "type": "object",
                            "additionalProperties": components,
                        },
                    },
                },
            },
        })
    }
}
