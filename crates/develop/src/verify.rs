//! Whether a built app will be able to do what its components want: every import is
//! there, and what the manifest does not grant is named together with the line that
//! would.

use std::{borrow::Cow, fs, path::Path};

use wasmparser::Parser;
pub use wisp_compose::target::{MAX_DEFINITION_BYTES, WorldPackage};
use wisp_compose::{
    Code,
    target::{Environment, Needs},
};
use wisp_engine::normalize::normalize;
use wisp_manifest::{
    App, MANIFEST_FILE_NAME,
    id::Label,
    locked::SERVICE_CHAINING,
    model::{Component, HttpTarget, Source, Target, TriggerKind},
};
use wisp_node::{AppSettings, Runtime};

use crate::{
    Error,
    wasm::{self, Capability},
};

/// Something that a component imports and its manifest does not grant. That is no error:
/// an import need not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotGranted {
    /// The component's id.
    pub component: String,
    /// What is not granted.
    pub capability: Capability,
    /// One of the imports that ask for it.
    pub import: String,
    /// The line of the manifest below which a grant would stand, from 1, if it was found.
    pub line: Option<usize>,
}

/// What definitions of targets need that is not on this machine.
pub trait TargetSources {
    /// What is at a URL.
    ///
    /// # Errors
    /// Why it is not to be had.
    fn definition(&self, url: &url::Url) -> Result<String, String>;

    /// A package of WIT.
    ///
    /// # Errors
    /// Why it is not to be had.
    fn package(&self, wanted: &WorldPackage) -> Result<Vec<u8>, String>;
}

/// Whether all imports of all components are there. Compiles what was not compiled yet,
/// into the folder of images that `wisp up` uses too.
///
/// # Errors
/// Everything that is missing.
pub fn check_imports(runtime: &Runtime, app: &App) -> Result<(), wisp_node::Errors> {
    match runtime.prepare(app, &AppSettings::default()) {
        // An app is begun without triggers, and has others than those that run here.
        Err(errors) if errors.0.iter().all(|error| matches!(error, wisp_node::Error::NoTrigger)) => Ok(()),
        result => result,
    }
}

/// Whether all components that triggers start fit the targets that the manifest names,
/// as they are once they are composed.
///
/// # Errors
/// Everything that does not fit.
pub fn check_targets(runtime: &Runtime, app: &App, sources: &dyn TargetSources) -> Result<(), Vec<Error>> {
    let has_targets =
        |component: &Component| component.targets.as_ref().is_some_and(|targets| !targets.is_empty());
    if app.targets.is_empty() && !app.components.values().any(has_targets) {
        return Ok(());
    }
    let composed = runtime.compose(app, &[]).map_err(|errors| vec![Error::Load(errors)])?;
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let mut errors = Vec::new();
    for trigger in &composed.app.triggers {
        let component = match &trigger.kind {
            TriggerKind::Http(http) => match &http.target {
                HttpTarget::Component { component, .. } => Some(component),
                HttpTarget::Static(_) => None,
            },
            TriggerKind::Redis(redis) => Some(&redis.component),
            TriggerKind::Other(other) => other.component.as_ref(),
        };
        let Some(component) = component.and_then(|id| composed.app.components.get(id)) else { continue };
        let kind = (component.id.as_str(), trigger.kind.type_name());
        if !seen.contains(&kind) {
            seen.push(kind);
            errors.extend(check_component(&composed.app, component, kind.1, sources));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn check_component(
    app: &App,
    component: &Component,
    trigger: &str,
    sources: &dyn TargetSources,
) -> Vec<Error> {
    let targets = component.targets.as_ref().unwrap_or(&app.targets);
    let Source::Path(source) = &component.source else { return Vec::new() };
    let path = app.directory.join(source);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(cause) => return vec![Error::file("read", path)(cause)],
    };
    // Modules are looked at as the components that they will be.
    let component_bytes = match Parser::is_core_wasm(&bytes) {
        false => Cow::Borrowed(bytes.as_slice()),
        true => match normalize(&bytes) {
            Ok(normalized) => normalized.component,
            Err(error) => return vec![Error::Inspect { path, message: error.to_string() }],
        },
    };
    let name = format!("component `{}`", component.id);
    let code = Code { name: &name, bytes: &component_bytes };
    let labels = |labels: &[Label]| labels.iter().map(ToString::to_string).collect();
    let needs = Needs {
        capabilities: component.calls_others().then(|| SERVICE_CHAINING.to_owned()).into_iter().collect(),
        key_value_stores: labels(&component.key_value_stores),
        sqlite_databases: labels(&component.sqlite_databases),
        ai_models: component.ai_models.clone(),
    };
    let check =
        |target| environment(app, target, sources)?.check(&code, trigger, &needs).map_err(Error::from);
    targets.iter().filter_map(|target| check(target).err()).collect()
}

/// What a target asks for.
fn environment(app: &App, target: &Target, sources: &dyn TargetSources) -> Result<Environment, Error> {
    let packages = |wanted: &WorldPackage| sources.package(wanted);
    let environment = match target {
        Target::Named(name) => Environment::named(name)?,
        Target::Path(path) => {
            let file = app.directory.join(path);
            let size_bytes = fs::metadata(&file).map_err(Error::file("read", &file))?.len();
            if size_bytes > MAX_DEFINITION_BYTES {
                let message = format!("it has more than {} KiB", MAX_DEFINITION_BYTES >> 10);
                let target = path.display().to_string();
                return Err(wisp_compose::Error::Target { target, message }.into());
            }
            let text = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
            let folder = file.parent().unwrap_or(&app.directory);
            Environment::parse(&path.display().to_string(), &text, folder, &packages)?
        }
        Target::Url(url) => {
            let target = url.to_string();
            let text = sources
                .definition(url)
                .map_err(|message| wisp_compose::Error::Target { target: target.clone(), message })?;
            // Paths in it would be of another machine.
            Environment::parse(&target, &text, &app.directory, &packages)?
        }
    };
    Ok(environment)
}

/// What components import and are not granted. Components that cannot be read are left
/// out, and those that import everything there is whether they use it or not.
pub fn not_granted(app: &App, manifest: &Path) -> Vec<NotGranted> {
    let manifest = if manifest.is_dir() { manifest.join(MANIFEST_FILE_NAME) } else { manifest.to_owned() };
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let mut found = Vec::new();
    for component in app.components.values() {
        let Source::Path(path) = &component.source else { continue };
        let Ok(imports) = wasm::imports(&app.directory.join(path)) else { continue };
        let capabilities = wasm::capabilities(&imports);
        if wasm::is_everything(&capabilities) {
            continue;
        }
        for (capability, imports) in capabilities {
            if !is_granted(component, capability) && !is_refused(&text, component.id.as_str(), capability) {
                found.push(NotGranted {
                    component: component.id.to_string(),
                    capability,
                    import: imports.first().map(ToString::to_string).unwrap_or_default(),
                    line: line_of(&text, component.id.as_str()),
                });
            }
        }
    }
    found
}

fn is_granted(component: &Component, capability: Capability) -> bool {
    match capability {
        Capability::KeyValue => !component.key_value_stores.is_empty(),
        Capability::Sqlite => !component.sqlite_databases.is_empty(),
        Capability::Variables => !component.variables.is_empty(),
        Capability::Llm => !component.ai_models.is_empty(),
        Capability::Http => reaches(component, &["http", "https", "*"]),
        Capability::Redis => reaches(component, &["redis", "rediss", "*"]),
        Capability::Postgres => reaches(component, &["postgres", "postgresql", "*"]),
        Capability::Mysql => reaches(component, &["mysql", "*"]),
        Capability::Mqtt => reaches(component, &["mqtt", "mqtts", "*"]),
    }
}

/// Whether the manifest says in so many words that nothing is granted, with an empty list:
/// then its author knows. Components in JavaScript import HTTP whether they use it or not.
fn is_refused(text: &str, component: &str, capability: Capability) -> bool {
    let Some((key, _)) = capability.grant().split_once(" = ") else { return false };
    let Ok(document) = text.parse::<toml_edit::DocumentMut>() else { return false };
    let item =
        document.get("component").and_then(|table| table.get(component)).and_then(|table| table.get(key));
    item.and_then(toml_edit::Item::as_array).is_some_and(toml_edit::Array::is_empty)
}

/// Whether a component is allowed any destination of these schemes. A template may
/// become one.
fn reaches(component: &Component, schemes: &[&str]) -> bool {
    component.allowed_outbound_hosts.iter().any(|host| match host.as_literal() {
        None => true,
        Some(host) => host.split_once("://").is_some_and(|(scheme, _)| schemes.contains(&scheme)),
    })
}

/// The line of a component's table.
pub(crate) fn line_of(text: &str, component: &str) -> Option<usize> {
    let document = toml_edit::Document::parse(text).ok()?;
    let table = document.as_table().get("component")?.as_table_like()?;
    let (key, item) = table.get_key_value(component)?;
    let span = item.span().or_else(|| key.span())?;
    Some(line_at(text, span.start))
}

/// The line of a place in a text, from 1.
pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn what_is_imported_and_not_granted_is_found_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let component = wat::parse_str(
            r#"(component
                (import "fermyon:spin/key-value@2.0.0" (instance))
                (import "fermyon:spin/sqlite@2.0.0" (instance))
                (import "wasi:http/outgoing-handler@0.2.3" (instance))
                (import "wasi:io/poll@0.2.3" (instance)))"#,
        )
        .unwrap();
        fs::write(folder.path().join("a.wasm"), component).unwrap();
        let manifest = folder.path().join("spin.toml");
        let text = "spin_manifest_version = 2\n[application]\nname = \"a\"\n\n[component.a]\n\
                    source = \"a.wasm\"\nsqlite_databases = [\"default\"]\n\
                    allowed_outbound_hosts = [\"redis://a:1\"]\n";
        fs::write(&manifest, text).unwrap();
        let app = App::read(&manifest, None).unwrap().value;
        let found = not_granted(&app, folder.path());
        let found: Vec<_> = found.iter().map(|found| (found.capability, found.line)).collect();
        assert_eq!(found, [(Capability::KeyValue, Some(5)), (Capability::Http, Some(5))]);
    }
}
