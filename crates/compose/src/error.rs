//! Why components cannot be composed.

/// Why components cannot be composed, or do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part is no component, or is malformed.
    #[error("{part} cannot be composed: {message}")]
    Unreadable {
        /// Which one.
        part: String,
        /// What is wrong with it.
        message: String,
    },
    /// A dependency satisfies none of the component's imports.
    #[error("{part} imports nothing that the dependency `{dependency}` could be")]
    NothingToSatisfy {
        /// The component.
        part: String,
        /// The dependency's name.
        dependency: String,
        /// What it imports.
        imports: Vec<String>,
    },
    /// A component lacks the export that is asked of it.
    #[error("{part} exports no `{export}`, which the dependency `{dependency}` needs")]
    NoExport {
        /// The component that should export it.
        part: String,
        /// The export.
        export: String,
        /// The dependency's name.
        dependency: String,
        /// What it exports.
        exports: Vec<String>,
    },
    /// An export is of another type than the import.
    #[error("{part} does not fit the import `{import}`: {message}")]
    Mismatch {
        /// The component that exports it.
        part: String,
        /// The import.
        import: String,
        /// What is different.
        message: String,
    },
    /// A component stands in front of another and does not hand on requests.
    #[error("{part} is no middleware: {message}")]
    NotMiddleware {
        /// Which one.
        part: String,
        /// What it lacks.
        message: String,
    },
    /// Middleware and what it stands in front of speak different versions of HTTP's
    /// interface.
    #[error("{part} hands requests on by `{wanted}`, and {inner} takes them by `{offered}`")]
    HandlerMismatch {
        /// The middleware.
        part: String,
        /// What it imports.
        wanted: String,
        /// What it stands in front of.
        inner: String,
        /// What that exports.
        offered: String,
    },
    /// Parts cannot be put together, each of them being sound.
    #[error("{part} and its dependencies cannot be put together: {message}")]
    Conflict {
        /// The main component.
        part: String,
        /// Why not.
        message: String,
    },
    /// What a part may not reach cannot be answered in its place.
    #[error("nothing can answer in place of the host for {part}: {message}")]
    Adapter {
        /// Which one.
        part: String,
        /// Why not.
        message: String,
    },
    /// More parts than there may be.
    #[error("{part} has more than {limit} dependencies and middleware")]
    TooMany {
        /// The main component.
        part: String,
        /// How many there may be.
        limit: usize,
    },
    /// A target is not known or cannot be read.
    #[error("the target `{target}` cannot be used: {message}")]
    Target {
        /// Which one.
        target: String,
        /// Why not.
        message: String,
    },
    /// A component does not fit a target.
    #[error("{part} does not fit the target `{target}`: {message}")]
    DoesNotFit {
        /// The component.
        part: String,
        /// The target.
        target: String,
        /// What it needs that is not there, or lacks.
        message: String,
    },
    /// A part's code is not on this machine.
    #[error("{part} is not here: {message}")]
    NotHere {
        /// Which one.
        part: String,
        /// Why not.
        message: String,
    },
    /// A component depends on itself.
    #[error("{part} depends on itself: {chain}")]
    Cycle {
        /// Which one.
        part: String,
        /// How it comes back to itself.
        chain: String,
    },
    /// What dependencies export cannot be written down.
    #[error("the interfaces of {part} cannot be written down: {message}")]
    Bindings {
        /// Which dependency.
        part: String,
        /// Why not.
        message: String,
    },
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "WISP-E1301",
            Self::NothingToSatisfy { .. } => "WISP-E1302",
            Self::NoExport { .. } => "WISP-E1303",
            Self::Mismatch { .. } => "WISP-E1304",
            Self::NotMiddleware { .. } => "WISP-E1305",
            Self::HandlerMismatch { .. } => "WISP-E1306",
            Self::Conflict { .. } => "WISP-E1307",
            Self::Adapter { .. } => "WISP-E1308",
            Self::TooMany { .. } => "WISP-E1309",
            Self::Target { .. } => "WISP-E1310",
            Self::DoesNotFit { .. } => "WISP-E1311",
            Self::Bindings { .. } => "WISP-E1312",
            Self::NotHere { .. } => "WISP-E1313",
            Self::Cycle { .. } => "WISP-E1314",
        }
    }

    /// The part that it is about, as whoever composed called it.
    pub fn part(&self) -> &str {
        match self {
            Self::Unreadable { part, .. }
            | Self::NothingToSatisfy { part, .. }
            | Self::NoExport { part, .. }
            | Self::Mismatch { part, .. }
            | Self::NotMiddleware { part, .. }
            | Self::HandlerMismatch { part, .. }
            | Self::Conflict { part, .. }
            | Self::Adapter { part, .. }
            | Self::TooMany { part, .. }
            | Self::DoesNotFit { part, .. }
            | Self::NotHere { part, .. }
            | Self::Cycle { part, .. }
            | Self::Bindings { part, .. } => part,
            Self::Target { target, .. } => target,
        }
    }

    /// The name of the dependency that it is about, if it is about one.
    pub fn dependency(&self) -> Option<&str> {
        match self {
            Self::NothingToSatisfy { dependency, .. } | Self::NoExport { dependency, .. } => Some(dependency),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => Some(
                "build it as a component, or name another file; `wisp inspect FILE` says what it is".into(),
            ),
            Self::NothingToSatisfy { imports, .. } => Some(match imports.is_empty() {
                true => "remove the dependency: the component imports nothing but what the host has".into(),
                false => format!("it imports {}", listed(imports)),
            }),
            Self::NoExport { exports, .. } => Some(match exports.is_empty() {
                true => "it exports nothing; name another component".into(),
                false => format!("it exports {}; choose one with `export = \"…\"`", listed(exports)),
            }),
            Self::Mismatch { .. } => Some("build both from the same version of the interface's WIT".into()),
            Self::NotMiddleware { .. } => Some(
                "middleware imports and exports `wasi:http/handler@0.3.0`, as the world \
                 `wasi:http/middleware` says"
                    .into(),
            ),
            Self::HandlerMismatch { .. } => {
                Some("build both for WASI 0.3 (`wasi:http/handler@0.3.0`), or remove the middleware".into())
            }
            Self::TooMany { .. } => Some("compose some of them when they are built".into()),
            Self::Target { .. } => Some(format!(
                "use one of {}, or `{{ path = \"FILE\" }}` with a definition",
                listed(&crate::target::built_in().map(str::to_owned).collect::<Vec<_>>())
            )),
            Self::DoesNotFit { .. } => Some(
                "remove the target from `targets`, build for it, or skip this with `--skip-target-checks`"
                    .into(),
            ),
            Self::NotHere { .. } => Some(
                "build it first, or serve the app from its image: `wisp registry push` and `wisp deploy` \
                 pack what it needs"
                    .into(),
            ),
            Self::Cycle { .. } => Some("break the circle: one of them has to do without the other".into()),
            Self::Bindings { .. } => {
                Some("write the WIT yourself, and build with `--skip-generate-wits`".into())
            }
            Self::Conflict { .. } | Self::Adapter { .. } => None,
        }
    }
}

/// Names for a message; not all where there are many.
fn listed(names: &[String]) -> String {
    const SHOWN_COUNT: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN_COUNT).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SHOWN_COUNT) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{fs, path::Path};

    #[test]
    fn every_code_is_documented() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let documents = fs::read_to_string(folder.join("../../docs/errors.md")).unwrap();
        let source = fs::read_to_string(folder.join("src/error.rs")).unwrap();
        let codes = source.split('"').filter(|text| text.starts_with("WISP-E13") && text.len() == 10);
        let mut count = 0;
        for code in codes {
            assert!(documents.contains(&format!("| `{code}` |")), "{code} is not in docs/errors.md");
            count += 1;
        }
        assert!(count >= 14, "{count}");
    }
}
