//! What goes wrong on the way from nothing to an app that answers.

use std::{io, path::PathBuf};

/// What goes wrong on the way from nothing to an app that answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No template has the name.
    #[error("there is no template `{id}`")]
    UnknownTemplate {
        /// What was asked for.
        id: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A template cannot be used.
    #[error("the template {template} cannot be used: {message}")]
    Template {
        /// Its id or folder.
        template: String,
        /// What is wrong.
        message: String,
    },
    /// Templates cannot be fetched.
    #[error("templates cannot be fetched from `{from}`: {message}")]
    Fetch {
        /// The folder or repository.
        from: String,
        /// What is wrong.
        message: String,
    },
    /// A name that cannot be an app's or a component's.
    #[error("`{name}` cannot be used as a name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Parameters of a template without a value.
    #[error("the template needs {}", list(names))]
    MissingValues {
        /// Their names.
        names: Vec<String>,
    },
    /// A parameter's value does not fit.
    #[error("`{value}` is no value for `{parameter}`: {reason}")]
    Value {
        /// The parameter.
        parameter: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Files are in the way.
    #[error("{} would be overwritten", list(paths))]
    FilesExist {
        /// The files.
        paths: Vec<String>,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot {action} `{path}`: {cause}", path = path.display())]
    File {
        /// What was to be done, such as `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A manifest that was changed is no manifest any more.
    #[error("the manifest would not be valid afterwards:\n{message}")]
    ManifestEdit {
        /// All that is wrong with it, with lines.
        message: String,
    },
    /// A program that is needed cannot be started.
    #[error("cannot start `{program}`: {cause}")]
    Program {
        /// The program.
        program: String,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A component's build command failed.
    #[error("component `{component}` was not built: `{command}` {status}")]
    Build {
        /// The component's id.
        component: String,
        /// The command.
        command: String,
        /// How it ended.
        status: String,
    },
    /// A build command left no file where the manifest expects it.
    #[error("component `{component}` was built, but there is no `{path}`", path = path.display())]
    NotProduced {
        /// The component's id.
        component: String,
        /// The file that the manifest names.
        path: PathBuf,
    },
    /// A component that the manifest does not have.
    #[error("there is no component `{component}`")]
    UnknownComponent {
        /// What was asked for.
        component: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Components depend on each other in a circle.
    #[error("components depend on each other in a circle: {}", list(components))]
    Circle {
        /// Their ids.
        components: Vec<String>,
    },
    /// Files cannot be watched.
    #[error("`{path}` cannot be watched: {message}", path = path.display())]
    Watch {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A file of tests has errors.
    #[error("{path}:{line}: {message}", path = path.display())]
    TestFile {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A component that should have tests has none, or cannot be asked for them.
    #[error("{message}")]
    TestComponent {
        /// What is wrong with it.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// There is nothing to test.
    #[error("there are no tests in `{path}`{}", filter.as_ref().map(|filter| format!(" that match `{filter}`")).unwrap_or_default(), path = path.display())]
    NoTests {
        /// The folder of tests.
        path: PathBuf,
        /// What their names had to contain.
        filter: Option<String>,
    },
    /// Tests failed.
    #[error("{failed_count} of {count} tests failed")]
    TestsFailed {
        /// How many failed.
        failed_count: usize,
        /// How many ran.
        count: usize,
    },
    /// A file is no WebAssembly.
    #[error("`{path}` cannot be inspected: {message}", path = path.display())]
    Inspect {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The doctor found problems.
    #[error("{count} {} found", if *count == 1 { "problem was" } else { "problems were" })]
    Unhealthy {
        /// How many.
        count: usize,
    },
    /// A component cannot be composed, or does not fit where it is meant for.
    #[error(transparent)]
    Composition(Box<wisp_compose::Error>),
    /// The app cannot be loaded to test it.
    #[error("the app cannot be loaded: {0}")]
    Load(wisp_node::Errors),
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownTemplate { .. } => "WISP-E1201",
            Self::Template { .. } => "WISP-E1202",
            Self::Fetch { .. } => "WISP-E1203",
            Self::Name { .. } => "WISP-E1204",
            Self::MissingValues { .. } => "WISP-E1205",
            Self::Value { .. } => "WISP-E1206",
            Self::FilesExist { .. } => "WISP-E1207",
            Self::File { .. } => "WISP-E1208",
            Self::ManifestEdit { .. } => "WISP-E1209",
            Self::Program { .. } => "WISP-E1210",
            Self::Build { .. } => "WISP-E1211",
            Self::NotProduced { .. } => "WISP-E1212",
            Self::UnknownComponent { .. } => "WISP-E1213",
            Self::Circle { .. } => "WISP-E1214",
            Self::Watch { .. } => "WISP-E1215",
            Self::TestFile { .. } => "WISP-E1216",
            Self::NoTests { .. } => "WISP-E1217",
            Self::TestsFailed { .. } => "WISP-E1218",
            Self::Inspect { .. } => "WISP-E1219",
            Self::Unhealthy { .. } => "WISP-E1220",
            Self::Composition(cause) => cause.code(),
            Self::Load(errors) => errors.0.first().map_or("WISP-E1221", wisp_node::Error::code),
            Self::TestComponent { .. } => "WISP-E1230",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownTemplate { known, .. } if known.is_empty() => None,
            Self::UnknownTemplate { known, .. } => Some(format!("there are {}", list(known))),
            Self::Template { .. } => {
                Some("a template is a folder with `metadata/spin-template.toml` and `content/`".into())
            }
            Self::Fetch { .. } => Some(
                "name a folder, an archive or a git repository that has templates in its folder \
                     `templates`"
                    .into(),
            ),
            Self::Name { reason, .. } if reason.ends_with("already") => Some("choose another one".into()),
            Self::Name { .. } => {
                Some("use letters, digits and `-`, and begin with a letter: `my-app`".into())
            }
            Self::MissingValues { names } => {
                Some(format!("give each with `--value {}=…`", names.first().map_or("NAME", String::as_str)))
            }
            Self::Value { .. } => None,
            Self::FilesExist { .. } => {
                Some("choose another folder with `--output`, or use `--allow-overwrite`".into())
            }
            Self::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                Some("check the path".into())
            }
            Self::File { .. } => Some("check the path and its permissions".into()),
            Self::ManifestEdit { .. } => {
                Some("nothing was written; the template does not fit this manifest".into())
            }
            Self::Program { program, .. } => {
                Some(format!("install `{program}`; `wisp doctor` looks for what an app needs"))
            }
            Self::Build { status, .. } if status.contains("127") => {
                Some("a program is missing; `wisp doctor` says which and how to get it".into())
            }
            Self::Build { .. } => Some("the command's own output is above".into()),
            Self::NotProduced { component, .. } => Some(format!(
                "`source` of `[component.{component}]` must name the file that its command makes; \
                 `wisp doctor` looks for it"
            )),
            Self::UnknownComponent { known, .. } => Some(format!("there are {}", list(known))),
            Self::Circle { .. } => Some("remove one of the `dependencies` between them".into()),
            Self::Watch { .. } => Some("many watches need a higher `fs.inotify.max_user_watches`".into()),
            Self::TestFile { hint, .. } | Self::TestComponent { hint, .. } => hint.clone(),
            Self::NoTests { filter: Some(_), .. } => Some("`wisp test --list` names all tests".into()),
            Self::NoTests { .. } => Some("docs/testing.md has examples to begin with".into()),
            Self::TestsFailed { .. } => None,
            Self::Inspect { .. } => Some("name a `.wasm` file, or a folder with a `spin.toml`".into()),
            Self::Unhealthy { .. } => Some("`wisp doctor --fix` mends what it can".into()),
            Self::Composition(cause) => cause.hint(),
            Self::Load(errors) => errors.0.first().and_then(wisp_node::Error::hint),
        }
    }

    /// 2 if a command was used wrongly, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownTemplate { .. }
            | Self::Name { .. }
            | Self::MissingValues { .. }
            | Self::Value { .. }
            | Self::UnknownComponent { .. } => 2,
            _ => 1,
        }
    }

    /// Something that cannot be done with a file.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::File { action, path, cause }
    }
}

impl From<wisp_compose::Error> for Error {
    fn from(cause: wisp_compose::Error) -> Self {
        Self::Composition(Box::new(cause))
    }
}

/// Names in backticks with commas between them.
pub(crate) fn list<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}
