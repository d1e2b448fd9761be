//! From a text or file to a checked app.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use toml::de::{DeTable, DeValue};

use crate::check;
use crate::decode::{At, Context, Decode, Span, Value, span_of};
use crate::diagnostics::{Diagnostics, Rule};
use crate::id::{ComponentId, TriggerId};
use crate::locked::{LOCKED_FILE_NAME, LockedApp, MAX_LOCKED_BYTES};
use crate::model::{
    App, Component, Executor, HttpRoute, HttpTarget, HttpTrigger, Source, Trigger, TriggerKind,
    WispAppSettings, WispComponentSettings,
};
use crate::raw;
use crate::route::RoutePattern;
use crate::v1;

/// The largest manifest or runtime configuration: more than a thousand
/// components with a page of text each. It bounds all that is in them.
pub const MAX_TEXT_BYTES: u64 = 1024 * 1024;

/// More than most manifests have.
const USUAL_TEXT_BYTES: usize = 8 * 1024;

/// The name of a manifest in a directory.
pub const MANIFEST_FILE_NAME: &str = "spin.toml";

/// Something that was read, and what is worth a warning about it.
#[derive(Clone, Debug)]
pub struct Checked<T> {
    /// What was read.
    pub value: T,
    /// Warnings, and only warnings.
    pub warnings: Diagnostics,
}

impl App {
    /// Reads a manifest from its text. `path` is how it is called in messages,
    /// and where relative paths in it start. `profile` must be the name of one
    /// that at least one component has.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &Path, text: &str, profile: Option<&str>) -> Result<Checked<Self>, Diagnostics> {
        let directory = directory_of(path);
        let mut checked = parse_text(path, text, |table, context| {
            let manifest = manifest(table, context)?;
            check::check(manifest, context, &directory, profile)
        })?;
        path.clone_into(&mut checked.value.file);
        Ok(checked)
    }

    /// Reads a manifest from a file, or from `spin.toml` in a directory, or from
    /// `spin.lock` if there is only that.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that it cannot be read.
    pub fn read(path: &Path, profile: Option<&str>) -> Result<Checked<Self>, Diagnostics> {
        if !path.is_dir() {
            return Self::read_file(path, profile);
        }
        let manifest = path.join(MANIFEST_FILE_NAME);
        let locked = path.join(LOCKED_FILE_NAME);
        match !manifest.exists() && locked.exists() {
            true => Self::read_file(&locked, profile),
            false => Self::read_file(&manifest, profile),
        }
    }

    /// Reads a manifest from a file; a locked app if it is called `spin.lock`.
    ///
    /// # Errors
    /// Everything that is wrong with it, or that it cannot be read.
    pub fn read_file(path: &Path, profile: Option<&str>) -> Result<Checked<Self>, Diagnostics> {
        if path.file_name().is_some_and(|name| name == LOCKED_FILE_NAME) {
            if let Some(profile) = profile {
                // What other profiles say is not in it any more.
                let rule = Rule::UnknownProfile { profile: profile.to_owned(), known: Vec::new() };
                return Err(Diagnostics::without_text(path, rule));
            }
            let json = read_bytes(path, MAX_LOCKED_BYTES, "name a locked app or its directory")?;
            return LockedApp::parse(path, &json)?.check(path);
        }
        let text = read_text(path, "name a manifest or its directory, or change into it")?;
        Self::parse(path, &text, profile)
    }

    /// The app that consists of one component, which answers all requests and
    /// may reach nothing.
    pub fn for_component_file(path: &Path) -> Self {
        const USUAL_ID: &str = "main";
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().replace('_', "-"));
        #[expect(clippy::expect_used, reason = "the literals are ids and a route")]
        let (component, trigger, route) = (
            stem.and_then(|stem| ComponentId::new(&stem).ok())
                .unwrap_or_else(|| ComponentId::new(USUAL_ID).expect("an id")),
            TriggerId::new("http-trigger1").expect("an id"),
            RoutePattern::parse("/...").expect("a route"),
        );
        let target = HttpTarget::Component { component: component.clone(), executor: Executor::default() };
        let http = HttpTrigger { route: HttpRoute::Pattern(route), target, middleware: Vec::new() };
        let name = component.as_arc().clone();
        let component = Component {
            id: component,
            source: Source::Path(path.file_name().map_or_else(PathBuf::new, PathBuf::from)),
            description: None,
            variables: IndexMap::new(),
            environment: IndexMap::new(),
            files: Vec::new(),
            exclude_files: Vec::new(),
            allowed_outbound_hosts: Vec::new(),
            key_value_stores: Vec::new(),
            sqlite_databases: Vec::new(),
            ai_models: Vec::new(),
            targets: None,
            build: None,
            dependencies: IndexMap::new(),
            dependencies_inherit_configuration: false,
            wisp: WispComponentSettings::default(),
            tools: IndexMap::new(),
        };
        Self {
            name,
            version: None,
            description: None,
            authors: Vec::new(),
            targets: Vec::new(),
            variables: IndexMap::new(),
            triggers: vec![Trigger { id: trigger, kind: TriggerKind::Http(http) }],
            trigger_settings: IndexMap::new(),
            components: IndexMap::from([(component.id.clone(), component)]),
            wisp: WispAppSettings::default(),
            tools: IndexMap::new(),
            directory: directory_of(path),
            file: PathBuf::new(),
            profile: None,
        }
    }
}

/// The JSON schema of manifests of version 2, made of the types that read
/// them.
pub fn manifest_schema() -> serde_json::Value {
    crate::schema::schema_of::<raw::Manifest>()
}

/// Where a file lies.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reads a file as text, up to [`MAX_TEXT_BYTES`].
pub(crate) fn read_text(path: &Path, missing_hint: &str) -> Result<String, Diagnostics> {
    String::from_utf8(read_bytes(path, MAX_TEXT_BYTES, missing_hint)?).map_err(|_| {
        let reason = "it is not UTF-8 text".to_owned();
        let path_text = path.display().to_string();
        Diagnostics::without_text(path, Rule::Unreadable { path: path_text, reason, hint: None })
    })
}

/// Reads a file, one byte more than `max_bytes` at most.
fn read_bytes(path: &Path, max_bytes: u64, missing_hint: &str) -> Result<Vec<u8>, Diagnostics> {
    use std::io::Read;

    let refused = |reason: String, hint: Option<String>| {
        let path_text = path.display().to_string();
        let rule = Rule::Unreadable { path: path_text, reason, hint };
        Diagnostics::without_text(path, rule)
    };
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refused("there is no such file".to_owned(), Some(missing_hint.to_owned()))
        }
        _ => refused(error.to_string(), None),
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // Read in one step, as nearly all are shorter.
    let mut bytes = Vec::with_capacity(USUAL_TEXT_BYTES);
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// Parses TOML, lets `read` make something of it, and sorts what was wrong.
pub(crate) fn parse_text<T>(
    path: &Path,
    text: &str,
    read: impl FnOnce(&Value<'_>, &mut Context) -> Option<T>,
) -> Result<Checked<T>, Diagnostics> {
    if text.len() as u64 > MAX_TEXT_BYTES {
        let rule = Rule::Unreadable {
            path: path.display().to_string(),
            reason: format!("it has more than {MAX_TEXT_BYTES} bytes"),
            hint: None,
        };
        return Err(Diagnostics::without_text(path, rule));
    }
    let mut context = Context::new(Diagnostics::new(path, text));
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().map_or(Span::default(), Span::from);
        context.error(span, Rule::Syntax { message: error.message().to_owned() });
    }
    // A text that is only half understood would get complaints about things
    // that stand in its other half.
    let value = match errors.is_empty() {
        true => {
            let span = table.span();
            let value = Value::new(span, DeValue::Table(table.into_inner()));
            read(&value, &mut context)
        }
        false => None,
    };
    let failed = context.errors_count() > 0;
    let mut diagnostics = context.diagnostics;
    diagnostics.sort();
    match value {
        Some(value) if !failed => Ok(Checked { value, warnings: diagnostics }),
        _ => Err(diagnostics),
    }
}

/// The manifest as it is written, in the form of version 2.
fn manifest(value: &Value<'_>, context: &mut Context) -> Option<At<raw::Manifest>> {
    let table = context.table(value)?;
    let is_one = |value: &DeValue<'_>| match value {
        DeValue::Integer(integer) => integer.as_str() == "1",
        DeValue::String(text) => text == "1",
        _ => false,
    };
    let stated = table.get("spin_manifest_version").or_else(|| table.get("spin_version"));
    let start = Span::default();
    match stated.map(|stated| (stated.get_ref(), span_of(stated))) {
        Some((DeValue::Integer(integer), _)) if integer.as_str() == "2" => {}
        Some((version, _)) if is_one(version) => {
            let manifest = At::<v1::Manifest>::decode(value, context)?;
            return Some(v1::translate(manifest, context));
        }
        Some((version, span)) => {
            let found = match version {
                DeValue::Integer(integer) => {
                    format!("there is no manifest version {}", integer.as_str())
                }
                DeValue::String(text) => format!("there is no manifest version \"{text}\""),
                _ => "the manifest version must be a number".to_owned(),
            };
            // Nothing can be said about a version that is not known.
            context.error(span, Rule::ManifestVersion { found });
            return None;
        }
        None => {
            let found = "missing key `spin_manifest_version`".to_owned();
            context.error(start, Rule::ManifestVersion { found });
        }
    }
    At::<raw::Manifest>::decode(value, context)
}
