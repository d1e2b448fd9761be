//! Where templates come from.

use std::{
    borrow::Cow,
    fmt, fs,
    io::Read,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use indexmap::IndexMap;

use super::{File, Purpose, Template, manifest::Metadata};
use crate::Error;

include!(concat!(env!("OUT_DIR"), "/templates.rs"));

/// Files of one template: more than any project should begin with.
const MAX_FILES_COUNT: usize = 2_000;

/// Bytes of one template. It is held in memory as a whole.
const MAX_TEMPLATE_BYTES: u64 = 32 << 20;

/// Bytes of an archive of templates, once unpacked: many templates of ordinary size.
const MAX_ARCHIVE_BYTES: u64 = 64 << 20;

/// How names of archives end.
const ARCHIVE_ENDINGS: [&str; 3] = [".tar", ".tar.gz", ".tgz"];

/// What a compressed archive begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Where a template says what it is, in its folder.
const METADATA_PATH: &str = "metadata/spin-template.toml";

/// The folder of templates in a repository.
const TEMPLATES_DIR_NAME: &str = "templates";

/// The templates that there are.
#[derive(Clone, Debug)]
pub struct Catalog {
    templates: IndexMap<String, Template>,
}

/// Where a template comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This binary.
    BuiltIn,
    /// A folder.
    Folder(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => formatter.write_str("built in"),
            Self::Folder(path) => write!(formatter, "{}", path.display()),
        }
    }
}

impl Catalog {
    /// The templates of this binary, and over them those that were installed.
    ///
    /// # Errors
    /// [`Error::Template`] if one cannot be read.
    pub fn open(installed: Option<&Path>) -> Result<Self, Error> {
        let mut files: IndexMap<&str, Vec<File>> = IndexMap::new();
        for (path, bytes) in FILES {
            if let Some((template, path)) = path.split_once('/') {
                files.entry(template).or_default().push(File {
                    path: path.into(),
                    bytes: Cow::Borrowed(bytes),
                    is_executable: false,
                });
            }
        }
        let mut templates = IndexMap::new();
        for (name, files) in files {
            let template = Template::of_files(name, files, Origin::BuiltIn)?;
            templates.insert(template.id().to_owned(), template);
        }
        let mut catalog = Self { templates };
        if let Some(folder) = installed.filter(|folder| folder.is_dir()) {
            catalog.extend(templates_below(folder)?);
        }
        Ok(catalog)
    }

    /// Only the templates of a folder, of an archive (`.tar`, `.tar.gz`), or of a git
    /// repository: `https://…`, `git@…`, or a local one. A repository's folder is fetched
    /// for as long as that takes and not kept.
    ///
    /// # Errors
    /// [`Error::Fetch`] if there are none, [`Error::Template`] if one cannot be read.
    pub fn fetch(from: &str, branch: Option<&str>) -> Result<Self, Error> {
        let folder = Path::new(from);
        let mut catalog = Self { templates: IndexMap::new() };
        if folder.is_dir() && branch.is_none() {
            catalog.extend(templates_below(folder)?);
        } else if is_archive(folder) && branch.is_none() {
            let unpacked = unpack(folder)?;
            catalog.extend(templates_below(&only_folder(unpacked.path()))?);
        } else if is_repository(from) || folder.is_dir() {
            let clone = clone(from, branch)?;
            catalog.extend(templates_below(clone.path())?);
        } else {
            let message = "it is neither a folder nor an archive nor the address of a git repository".into();
            return Err(Error::Fetch { from: from.to_owned(), message });
        }
        if catalog.templates.is_empty() {
            let message = "no template is there".into();
            return Err(Error::Fetch { from: from.to_owned(), message });
        }
        Ok(catalog)
    }

    fn extend(&mut self, templates: Vec<Template>) {
        for template in templates {
            self.templates.insert(template.id().to_owned(), template);
        }
    }

    /// All of them, those of this binary first.
    pub fn iter(&self) -> impl Iterator<Item = &Template> {
        self.templates.values()
    }

    /// Those that can do something, and have all of these tags.
    pub fn matching(&self, purpose: Purpose, tags: &[String]) -> Vec<&Template> {
        let has = |template: &Template, tag: &String| {
            template.tags().iter().any(|known| known.eq_ignore_ascii_case(tag))
        };
        self.iter()
            .filter(|template| template.supports(purpose) && tags.iter().all(|tag| has(template, tag)))
            .collect()
    }

    /// The template of a name.
    ///
    /// # Errors
    /// [`Error::UnknownTemplate`].
    pub fn get(&self, id: &str) -> Result<&Template, Error> {
        self.templates.get(id).ok_or_else(|| Error::UnknownTemplate {
            id: id.to_owned(),
            known: self.templates.keys().cloned().collect(),
        })
    }

    /// Keeps these templates in a folder, for [`Catalog::open`].
    ///
    /// # Errors
    /// [`Error::FilesExist`] if one is there already and may not be replaced, or
    /// [`Error::File`].
    pub fn install(&self, folder: &Path, may_replace: bool) -> Result<(), Error> {
        let places: Vec<_> =
            self.iter().map(|template| (template, folder.join(safe_name(template.id())))).collect();
        let there = places.iter().filter(|(_, place)| place.exists());
        let there: Vec<_> = there.map(|(_, place)| place.display().to_string()).collect();
        if !may_replace && !there.is_empty() {
            return Err(Error::FilesExist { paths: there });
        }
        for (template, place) in places {
            if place.exists() {
                fs::remove_dir_all(&place).map_err(Error::file("replace", &place))?;
            }
            for file in template.all_files() {
                let path = place.join(&file.path);
                super::project::write(&path, &file.bytes, file.is_executable)?;
            }
        }
        Ok(())
    }
}

/// Removes an installed template.
///
/// # Errors
/// [`Error::UnknownTemplate`] if it is not installed, or [`Error::File`].
pub fn uninstall(folder: &Path, id: &str) -> Result<(), Error> {
    let place = folder.join(safe_name(id));
    if !place.join(METADATA_PATH).is_file() {
        let known = templates_below(folder).unwrap_or_default();
        let known = known.iter().map(|template| template.id().to_owned()).collect();
        return Err(Error::UnknownTemplate { id: id.to_owned(), known });
    }
    fs::remove_dir_all(&place).map_err(Error::file("remove", &place))
}

/// An id as the name of a folder; ids come from strangers.
fn safe_name(id: &str) -> String {
    let is_safe = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let name: String = id.chars().map(|character| if is_safe(character) { character } else { '_' }).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

fn is_repository(from: &str) -> bool {
    from.contains("://") || from.starts_with("git@")
}

fn is_archive(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.is_file() && ARCHIVE_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn unpack(archive: &Path) -> Result<tempfile::TempDir, Error> {
    let failed = |message: String| Error::Fetch { from: archive.display().to_string(), message };
    let folder = tempfile::tempdir().map_err(|cause| failed(cause.to_string()))?;
    let bytes = fs::read(archive).map_err(Error::file("read", archive))?;
    let read: Box<dyn Read + '_> = match bytes.starts_with(&GZIP_MAGIC) {
        true => Box::new(flate2::read::GzDecoder::new(&*bytes)),
        false => Box::new(&*bytes),
    };
    // What is beyond is missing, and an archive that ends too early is an error. Paths that
    // lead out of the folder are not followed.
    tar::Archive::new(read.take(MAX_ARCHIVE_BYTES))
        .unpack(folder.path())
        .map_err(|cause| failed(format!("it cannot be unpacked: {cause}")))?;
    Ok(folder)
}

/// The only folder in a folder that has nothing else, as in archives of repositories; else
/// the folder itself.
fn only_folder(folder: &Path) -> PathBuf {
    let entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().take(2).collect();
    match &entries[..] {
        [only] if only.path().is_dir() => only.path(),
        _ => folder.to_owned(),
    }
}

fn clone(from: &str, branch: Option<&str>) -> Result<tempfile::TempDir, Error> {
    let failed = |message: String| Error::Fetch { from: from.to_owned(), message };
    let folder = tempfile::tempdir().map_err(|cause| failed(cause.to_string()))?;
    let mut command = Command::new("git");
    command.args(["clone", "--quiet", "--depth", "1"]);
    if let Some(branch) = branch {
        command.args(["--branch", branch]);
    }
    // What follows is no option, whatever it looks like.
    command.arg("--").arg(from).arg(folder.path()).stdin(Stdio::null()).env("GIT_TERMINAL_PROMPT", "0");
    let output = command.output().map_err(|cause| Error::Program { program: "git".into(), cause })?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(folder)
}

/// The templates in a folder: itself, its folders, or those of its folder `templates`.
fn templates_below(folder: &Path) -> Result<Vec<Template>, Error> {
    if folder.join(METADATA_PATH).is_file() {
        return Ok(vec![Template::read(folder)?]);
    }
    let inner = folder.join(TEMPLATES_DIR_NAME);
    let folder = if inner.is_dir() { &inner } else { folder };
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        if path.join(METADATA_PATH).is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    folders.iter().map(|folder| Template::read(folder)).collect()
}

impl Template {
    /// Reads a template from its folder.
    ///
    /// # Errors
    /// [`Error::Template`] if it is none, or too large; [`Error::File`].
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let mut files = Vec::new();
        let mut size_bytes = 0;
        for part in ["metadata", "content"] {
            let part = folder.join(part);
            if part.is_dir() {
                collect(folder, &part, &mut files, &mut size_bytes)?;
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Self::of_files(&folder.display().to_string(), files, Origin::Folder(folder.to_owned()))
    }

    fn of_files(name: &str, files: Vec<File>, origin: Origin) -> Result<Self, Error> {
        let text = |file: &File| String::from_utf8_lossy(&file.bytes).into_owned();
        let Some(metadata) = files.iter().find(|file| file.path == Path::new(METADATA_PATH)) else {
            let message = format!("there is no `{METADATA_PATH}`");
            return Err(Error::Template { template: format!("`{name}`"), message });
        };
        let metadata = Metadata::parse(name, &text(metadata))?;
        let below = |folder: &str| {
            let named = files.iter().filter_map(|file| {
                let name = file.path.strip_prefix(folder).ok()?;
                Some((name.to_string_lossy().into_owned(), text(file)))
            });
            named.collect::<IndexMap<_, _>>()
        };
        Ok(Self {
            snippets: below("metadata/snippets"),
            partials: below("metadata/partials"),
            content: files
                .iter()
                .filter_map(|file| {
                    let path = file.path.strip_prefix("content").ok()?.to_owned();
                    Some(File { path, ..file.clone() })
                })
                .collect(),
            metadata,
            origin,
            files,
        })
    }

    fn all_files(&self) -> &[File] {
        &self.files
    }
}

fn collect(base: &Path, folder: &Path, files: &mut Vec<File>, size_bytes: &mut u64) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        // Links may lead out of the template, into files of whoever uses it.
        let facts = fs::symlink_metadata(&path).map_err(Error::file("read", &path))?;
        if facts.is_dir() {
            collect(base, &path, files, size_bytes)?;
        } else if facts.is_file() {
            *size_bytes += facts.len();
            if *size_bytes > MAX_TEMPLATE_BYTES || files.len() >= MAX_FILES_COUNT {
                let message =
                    format!("it has more than {MAX_FILES_COUNT} files or {} MiB", MAX_TEMPLATE_BYTES >> 20);
                return Err(Error::Template { template: format!("`{}`", base.display()), message });
            }
            files.push(File {
                path: path.strip_prefix(base).unwrap_or(&path).to_owned(),
                bytes: fs::read(&path).map_err(Error::file("read", &path))?.into(),
                is_executable: facts.permissions().mode() & 0o111 != 0,
            });
        }
    }
    Ok(())
}
