//! From a template to files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use heck::ToKebabCase as _;
use indexmap::IndexMap;
use toml_edit::DocumentMut;
use wisp_manifest::{App, MANIFEST_FILE_NAME, id::ComponentId};

use super::{
    Question, Template, filters,
    manifest::{Output, Place, Variant},
};
use crate::Error;

/// What a template's file name ends in if the file is only valid after it was rendered.
const TEMPLATE_SUFFIX: &str = ".tmpl";

/// What nobody wants in a repository: build outputs, stores and logs.
const GITIGNORE: &str = "target/\nnode_modules/\n.spin/\n";

/// The longest name of an app, in bytes: it becomes a folder's name and part of a host.
const MAX_NAME_BYTES: usize = 64;

/// What a template is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To begin an app.
    New,
    /// To add a component to an app.
    Add,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it is called.
    pub name: String,
    /// Where it lands.
    pub output: PathBuf,
    /// Values of the template's parameters.
    pub values: IndexMap<String, String>,
    /// The manifest to add to; `None` makes an app of its own.
    pub manifest: Option<PathBuf>,
    /// Whether to leave a `.gitignore`.
    pub with_gitignore: bool,
    /// Whether files that are in the way may be replaced.
    pub may_overwrite: bool,
}

/// Everything that will be written.
#[derive(Debug)]
pub struct Project {
    files: Vec<(PathBuf, Vec<u8>, bool)>,
    folders: Vec<PathBuf>,
    /// The manifest that is changed, if one is.
    manifest: Option<(PathBuf, String)>,
    may_overwrite: bool,
}

impl Template {
    /// Makes all files in memory.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::MissingValues`] and [`Error::Value`] if the request does
    /// not fit, [`Error::Template`] if a file cannot be rendered, [`Error::ManifestEdit`]
    /// and [`Error::File`] if the manifest cannot be added to.
    pub fn render(&self, request: &Request) -> Result<Project, Error> {
        let id = check_name(&request.name)?;
        let purpose = if request.manifest.is_some() { Purpose::Add } else { Purpose::New };
        let default_variant = Variant::default();
        let variant = self.metadata.variant(purpose).unwrap_or(&default_variant);
        let manifest = request.manifest.as_deref().map(Manifest::read).transpose()?;
        let skipped = Skipped::new(variant, manifest.as_ref());
        let values = self.values(request, purpose, &skipped, manifest.as_ref())?;
        let renderer = Renderer::new(self, values)?;

        let mut files = Vec::with_capacity(self.content.len());
        for file in &self.content {
            if skipped.files.iter().any(|skipped| Path::new(skipped) == file.path) {
                continue;
            }
            let path = renderer.path(&file.path)?;
            // What is no text is copied as it is.
            let bytes = match std::str::from_utf8(&file.bytes) {
                Ok(text) => renderer.text(&file.path.display().to_string(), text)?.into_bytes(),
                Err(_) => file.bytes.to_vec(),
            };
            files.push((request.output.join(path), bytes, file.is_executable));
        }
        let gitignore = request.output.join(".gitignore");
        if !request.with_gitignore {
            files.retain(|(path, ..)| *path != gitignore);
        }
        let has_gitignore = files.iter().any(|(path, ..)| *path == gitignore) || gitignore.exists();
        if request.with_gitignore && purpose == Purpose::New && !has_gitignore {
            files.push((gitignore, GITIGNORE.into(), false));
        }
        for (path, bytes, _) in &files {
            if path.file_name().is_some_and(|name| name == MANIFEST_FILE_NAME) {
                check_manifest(path, &String::from_utf8_lossy(bytes))?;
            }
        }
        let manifest_dir = match &manifest {
            Some(manifest) => directory_of(&manifest.path),
            None => request.output.clone(),
        };
        let mut folders = Vec::new();
        for Output::CreateDir { path, at } in self.metadata.outputs.values() {
            let base = if *at == Place::Manifest { &manifest_dir } else { &request.output };
            folders.push(base.join(renderer.path(Path::new(path))?));
        }
        let manifest = match manifest {
            None => None,
            Some(manifest) => Some(self.add_to(manifest, &id, variant, &skipped, &renderer)?),
        };
        Ok(Project { files, folders, manifest, may_overwrite: request.may_overwrite })
    }

    /// Values of all parameters: those given, defaults for the rest.
    fn values(
        &self,
        request: &Request,
        purpose: Purpose,
        skipped: &Skipped,
        manifest: Option<&Manifest>,
    ) -> Result<liquid::Object, Error> {
        let mut values = liquid::Object::new();
        let mut set = |name: &str, value: String| {
            values.insert(name.to_owned().into(), liquid::model::Value::scalar(value));
        };
        let mut missing = Vec::new();
        for question in self.questions(purpose) {
            let Question { name, parameter } = question;
            if skipped.parameters.iter().any(|skipped| skipped == name) {
                continue;
            }
            match request.values.get(name).or(parameter.default.as_ref()) {
                Some(value) => {
                    question.check(value)?;
                    set(name, value.clone());
                }
                None => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            return Err(Error::MissingValues { names: missing });
        }
        set("project-name", request.name.clone());
        let output_path = match manifest {
            None => ".".to_owned(),
            Some(manifest) => relative(&request.output, &directory_of(&manifest.path)),
        };
        set("output-path", output_path);
        let (user, email) = (git_setting("user.name"), git_setting("user.email"));
        let authors = match (user.as_deref(), email) {
            (Some(user), Some(email)) => format!("{user} <{email}>"),
            (Some(user), None) => user.to_owned(),
            (None, _) => String::new(),
        };
        set("authors", authors);
        set("username", user.unwrap_or_default());
        Ok(values)
    }

    /// The manifest with the template's snippets in it.
    fn add_to(
        &self,
        manifest: Manifest,
        id: &ComponentId,
        variant: &Variant,
        skipped: &Skipped,
        renderer: &Renderer,
    ) -> Result<(PathBuf, String), Error> {
        if manifest.has(&["component", id.as_str()]) {
            return Err(Error::Name {
                name: id.to_string(),
                reason: "the app has a component of that name already".into(),
            });
        }
        let mut text = manifest.text.trim_end().to_owned();
        for (kind, name) in &variant.snippets {
            if skipped.snippets.contains(kind) {
                continue;
            }
            let snippet = self.snippets.get(name).ok_or_else(|| Error::Template {
                template: format!("`{}`", self.id()),
                message: format!("there is no `metadata/snippets/{name}`"),
            })?;
            let snippet = renderer.text(name, snippet)?;
            match kind.as_str() {
                "variables" => text = with_variables(&text, &snippet).unwrap_or(text),
                _ => text = format!("{text}\n\n{}", snippet.trim()),
            }
        }
        text.push('\n');
        check_manifest(&manifest.path, &text)?;
        Ok((manifest.path, text))
    }
}

/// A manifest that is added to.
struct Manifest {
    path: PathBuf,
    text: String,
    document: DocumentMut,
}

impl Manifest {
    fn read(path: &Path) -> Result<Self, Error> {
        let path = if path.is_dir() { path.join(MANIFEST_FILE_NAME) } else { path.to_owned() };
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let document = text
            .parse()
            .map_err(|error: toml_edit::TomlError| Error::ManifestEdit { message: error.to_string() })?;
        Ok(Self { path, text, document })
    }

    fn has(&self, keys: &[&str]) -> bool {
        let mut item = self.document.as_item();
        for key in keys {
            match item.get(key) {
                Some(inner) => item = inner,
                None => return false,
            }
        }
        true
    }
}

/// What is left out of a template for this purpose and this manifest.
struct Skipped {
    files: Vec<String>,
    parameters: Vec<String>,
    snippets: Vec<String>,
}

impl Skipped {
    fn new(variant: &Variant, manifest: Option<&Manifest>) -> Self {
        let mut skipped = Self {
            files: variant.skip_files.clone(),
            parameters: variant.skip_parameters.clone(),
            snippets: Vec::new(),
        };
        for conditional in variant.conditions.values() {
            let keys: Vec<_> = conditional.condition.manifest_entry_exists.split('.').collect();
            if manifest.is_some_and(|manifest| manifest.has(&keys)) {
                skipped.files.extend(conditional.skip_files.iter().cloned());
                skipped.parameters.extend(conditional.skip_parameters.iter().cloned());
                skipped.snippets.extend(conditional.skip_snippets.iter().cloned());
            }
        }
        skipped
    }
}

/// Liquid with a template's values and partials.
struct Renderer {
    template: String,
    parser: liquid::Parser,
    values: liquid::Object,
}

impl Renderer {
    fn new(template: &Template, values: liquid::Object) -> Result<Self, Error> {
        type Partials = liquid::partials::EagerCompiler<liquid::partials::InMemorySource>;

        let mut partials = Partials::empty();
        for (name, text) in &template.partials {
            partials.add(name.clone(), text.clone());
        }
        let mut builder = liquid::ParserBuilder::with_stdlib().partials(partials);
        for filter in filters::ALL {
            builder = builder.filter(filter);
        }
        let parser = builder.build().map_err(|error| Error::Template {
            template: format!("`{}`", template.id()),
            message: one_line(&error),
        })?;
        Ok(Self { template: template.id().to_owned(), parser, values })
    }

    fn text(&self, name: &str, text: &str) -> Result<String, Error> {
        self.parser.parse(text).and_then(|parsed| parsed.render(&self.values)).map_err(|error| {
            Error::Template {
                template: format!("`{}`", self.template),
                message: format!("`{name}`: {}", one_line(&error)),
            }
        })
    }

    /// The path of a file, which may have parameters in it.
    fn path(&self, path: &Path) -> Result<PathBuf, Error> {
        let text = path.to_string_lossy();
        let rendered = self.text(&text, &text)?;
        let rendered = PathBuf::from(rendered.strip_suffix(TEMPLATE_SUFFIX).unwrap_or(&rendered));
        let is_inside = rendered.components().all(|part| matches!(part, Component::Normal(_)));
        if is_inside && !rendered.as_os_str().is_empty() {
            return Ok(rendered);
        }
        Err(Error::Template {
            template: format!("`{}`", self.template),
            message: format!("`{text}` would lie outside of the project"),
        })
    }
}

impl Project {
    /// Where files will lie.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, ..)| path.as_path())
    }

    /// Writes everything.
    ///
    /// # Errors
    /// [`Error::FilesExist`], before anything is written, or [`Error::File`].
    pub fn write(&self) -> Result<(), Error> {
        let in_the_way: Vec<_> =
            self.paths().filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
        if !self.may_overwrite && !in_the_way.is_empty() {
            return Err(Error::FilesExist { paths: in_the_way });
        }
        for (path, bytes, is_executable) in &self.files {
            write(path, bytes, *is_executable)?;
        }
        for folder in &self.folders {
            fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
        }
        if let Some((path, text)) = &self.manifest {
            replace(path, text)?;
        }
        Ok(())
    }
}

/// Writes a file and makes its folder.
pub(crate) fn write(path: &Path, bytes: &[u8], is_executable: bool) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("make", folder))?;
    }
    fs::write(path, bytes).map_err(Error::file("write", path))?;
    if is_executable {
        let permissions = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, permissions).map_err(Error::file("write", path))?;
    }
    Ok(())
}

/// Writes a file beside another and then in its place, so that it is never half there.
pub(crate) fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let part = path.with_extension("toml.part");
    fs::write(&part, text).map_err(Error::file("write", &part))?;
    fs::rename(&part, path).map_err(Error::file("write", path))
}

/// Values of parameters from the text of a TOML file.
///
/// # Errors
/// [`Error::Value`] if it is no TOML, or has something else than texts.
pub fn parse_values(path: &Path, text: &str) -> Result<IndexMap<String, String>, Error> {
    let refused =
        |value: String, reason: String| Error::Value { parameter: "--values-file".into(), value, reason };
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| refused(path.display().to_string(), error.message().to_owned()))?;
    let values = table.into_iter().map(|(name, value)| match value {
        toml::Value::String(text) => Ok((name, text)),
        toml::Value::Integer(number) => Ok((name, number.to_string())),
        toml::Value::Boolean(flag) => Ok((name, flag.to_string())),
        other => Err(refused(name, format!("values are texts, not of the type {}", other.type_str()))),
    });
    values.collect()
}

/// A manifest that cannot be read is not written.
fn check_manifest(path: &Path, text: &str) -> Result<(), Error> {
    match App::parse(path, text, None) {
        Ok(_) => Ok(()),
        Err(problems) => Err(Error::ManifestEdit { message: problems.render(false, 80).trim_end().into() }),
    }
}

fn check_name(name: &str) -> Result<ComponentId, Error> {
    let refused = |reason: String| Error::Name { name: name.to_owned(), reason };
    if name.len() > MAX_NAME_BYTES {
        return Err(refused(format!("it has more than {MAX_NAME_BYTES} bytes")));
    }
    // It lands in files of all languages, also between quotes.
    if let Some(strange) =
        name.chars().find(|character| !character.is_alphanumeric() && !" -_.".contains(*character))
    {
        return Err(refused(format!("it has a `{strange}`")));
    }
    ComponentId::new(&name.to_kebab_case()).map_err(|error| refused(error.to_string()))
}

/// New variables in the manifest's table of them; `None` if there is no such table or
/// either text is no TOML.
fn with_variables(text: &str, snippet: &str) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    let new: DocumentMut = snippet.parse().ok()?;
    let new = new.get("variables").and_then(|item| item.as_table_like()).unwrap_or(new.as_table());
    let variables = document
        .entry("variables")
        .or_insert(toml_edit::Item::Table(toml_edit::Table::new()))
        .as_table_like_mut()?;
    for (name, value) in new.iter() {
        if !variables.contains_key(name) {
            variables.insert(name, value.clone());
        }
    }
    Some(document.to_string().trim_end().to_owned())
}

/// A path as seen from a folder, with `/`.
fn relative(path: &Path, folder: &Path) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (path, folder) = (absolute(path), absolute(folder));
    match path.strip_prefix(&folder) {
        Ok(inner) if inner.as_os_str().is_empty() => ".".to_owned(),
        Ok(inner) => inner.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}

fn directory_of(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// A setting of the user's git, if there is one.
fn git_setting(name: &str) -> Option<String> {
    let output = Command::new("git").args(["config", "--get", name]).stdin(Stdio::null()).output().ok()?;
    let value = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    // It lands between quotes.
    (!value.is_empty() && !value.contains(['"', '\\'])).then_some(value)
}

fn one_line(error: &liquid::Error) -> String {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ").trim_start_matches("liquid: ").to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::template::Catalog;

    fn request(name: &str, output: &Path) -> Request {
        Request {
            name: name.into(),
            output: output.into(),
            values: IndexMap::new(),
            manifest: None,
            with_gitignore: true,
            may_overwrite: false,
        }
    }

    /// A template in a folder, as a stranger would write it.
    fn template(folder: &Path, metadata: &str, files: &[(&str, &str)]) -> Template {
        let text = format!("manifest_version = \"1\"\nid = \"strange\"\n{metadata}");
        write(&folder.join("metadata/spin-template.toml"), text.as_bytes(), false).unwrap();
        for (path, text) in files {
            write(&folder.join(path), text.as_bytes(), false).unwrap();
        }
        Template::read(folder).unwrap()
    }

    #[test]
    fn every_built_in_template_makes_a_manifest_that_reads() {
        let catalog = Catalog::open(None).unwrap();
        assert!(catalog.iter().count() >= 8);
        for template in catalog.iter() {
            let folder = tempfile::tempdir().unwrap();
            template.render(&request("my-first app", folder.path())).unwrap().write().unwrap();
            let app = App::read(folder.path(), None).unwrap();
            assert!(app.warnings.is_empty(), "{}: {}", template.id(), app.warnings.render(false, 80));
            assert!(folder.path().join(".gitignore").is_file(), "{}", template.id());
            if !template.supports(Purpose::Add) {
                continue;
            }
            let mut added = request("second", &folder.path().join("second"));
            added.manifest = Some(folder.path().join(MANIFEST_FILE_NAME));
            if template.questions(Purpose::Add).iter().any(|question| question.name == "http-path") {
                added.values.insert("http-path".into(), "/second/...".into());
            }
            template.render(&added).unwrap().write().unwrap();
            let app = App::read(folder.path(), None).unwrap();
            assert!(app.warnings.is_empty(), "{}: {}", template.id(), app.warnings.render(false, 80));
            assert!(!folder.path().join("second/spin.toml").exists(), "{}", template.id());
            let again = template.render(&added).unwrap_err();
            assert!(["WISP-E1204", "WISP-E1209"].contains(&again.code()), "{again}");
        }
    }

    #[test]
    fn files_are_rendered_renamed_and_never_written_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (source, output) = (folder.path().join("template"), folder.path().join("made"));
        let metadata =
            "[parameters]\nwho = { type = \"string\", prompt = \"Who\", pattern = \"^[a-z]+$\" }\n";
        let made = template(
            &source,
            metadata,
            &[
                ("content/{{project-name | snake_case}}.txt.tmpl", "{{who}} {{project-name | pascal_case}}"),
                ("content/raw.txt", "{% raw %}{{ kept }}{% endraw %}"),
            ],
        );
        let mut wanted = request("my app", &output);
        assert_eq!(made.render(&wanted).unwrap_err().code(), "WISP-E1205");
        wanted.values.insert("who".into(), "Ada".into());
        assert_eq!(made.render(&wanted).unwrap_err().code(), "WISP-E1206");
        wanted.values.insert("who".into(), "ada".into());
        made.render(&wanted).unwrap().write().unwrap();
        assert_eq!(fs::read_to_string(output.join("my_app.txt")).unwrap(), "ada MyApp");
        assert_eq!(fs::read_to_string(output.join("raw.txt")).unwrap(), "{{ kept }}");
        let again = made.render(&wanted).unwrap().write().unwrap_err();
        assert_eq!(again.code(), "WISP-E1207");
        wanted.may_overwrite = true;
        made.render(&wanted).unwrap().write().unwrap();

        let escaping = template(
            &folder.path().join("other"),
            "[parameters]\nwho = { type = \"string\", prompt = \"Who\", default = \"../../x\" }\n",
            &[("content/{{who}}", "")],
        );
        let refused = escaping.render(&request("a", &output)).unwrap_err();
        assert!(refused.to_string().contains("outside of the project"), "{refused}");
    }

    #[test]
    fn names_that_no_component_can_have_are_refused() {
        for name in ["", "1st", "a/b", "quo\"te", "100%", "ünter", &"long".repeat(30)] {
            assert_eq!(check_name(name).unwrap_err().code(), "WISP-E1204", "{name}");
        }
        assert_eq!(check_name("My_First App").unwrap().as_str(), "my-first-app");
    }

    #[test]
    fn what_an_app_has_already_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("spin.toml");
        fs::write(
            &manifest,
            "spin_manifest_version = 2\n[application]\nname = \"a\"\n[application.trigger.redis]\naddress = \"redis://a\"\n",
        )
        .unwrap();
        let made = template(
            &folder.path().join("template"),
            "[add_component]\n\
             snippets = { application_trigger = \"a.txt\", component = \"c.txt\", variables = \"v.txt\" }\n\
             [add_component.conditions.trigger]\n\
             condition = { manifest_entry_exists = \"application.trigger.redis\" }\n\
             skip_snippets = [\"application_trigger\"]\n",
            &[
                ("metadata/snippets/a.txt", "[application.trigger.redis]\naddress = \"redis://b\"\n"),
                ("metadata/snippets/v.txt", "key = { default = \"1\" }\n"),
                (
                    "metadata/snippets/c.txt",
                    "[[trigger.redis]]\nchannel = \"c\"\ncomponent = \"{{project-name}}\"\n\
                     [component.{{project-name}}]\nsource = \"{{output-path}}/a.wasm\"\n",
                ),
            ],
        );
        let mut wanted = request("new", &folder.path().join("new"));
        wanted.manifest = Some(manifest.clone());
        made.render(&wanted).unwrap().write().unwrap();
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(
            text.contains("source = \"new/a.wasm\"") && text.contains("key = { default = \"1\" }"),
            "{text}"
        );
        assert!(!text.contains("redis://b"), "{text}");
    }
}
