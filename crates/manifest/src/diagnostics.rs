//! What is wrong with a text, all of it at once and each with its place.
//!
//! A [`Rule`] says what is wrong, a [`Problem`] also where, and
//! [`Diagnostics`] are all problems of one text in the order of its lines.
//! Codes are stable: scripts and search engines may rely on them.
//! `docs/errors.md` lists them all.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::allowed_hosts::{AllowedHostError, BlockedNetworkError};
use crate::id::InvalidName;
use crate::route::RouteError;
use crate::template::TemplateError;

/// How many problems of one text are kept; the others are only counted. More
/// than this come from a file that is no manifest at all.
pub const MAX_PROBLEMS_COUNT: usize = 100;

/// What is wrong. The text is the message, without place and code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// The text is not TOML.
    #[error("{message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// A key that means nothing here.
    #[error("unknown key `{key}`{place}")]
    UnknownKey {
        /// The key.
        key: String,
        /// In which table.
        place: Place,
        /// A key that it may have been meant to be.
        similar: Option<String>,
        /// The keys that mean something here.
        known: Vec<&'static str>,
    },
    /// A key that must be there.
    #[error("missing key `{key}`{place}")]
    MissingKey {
        /// The key.
        key: String,
        /// In which table.
        place: Place,
    },
    /// A value of the wrong type.
    #[error("{place}: expected {expected}, found {found}")]
    WrongType {
        /// Which value.
        place: Subject,
        /// What it should be.
        expected: String,
        /// What it is.
        found: &'static str,
    },
    /// A manifest of a version that there is not, or of none.
    #[error("{found}")]
    ManifestVersion {
        /// What stands in its place.
        found: String,
    },
    /// A value that has the right type but makes no sense.
    #[error("{place}: {reason}")]
    InvalidValue {
        /// Which value.
        place: Subject,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A name that may not be one.
    #[error("`{name}` is no name for {what}: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// Of what it is meant to be the name.
        what: &'static str,
        /// What is wrong with it.
        reason: InvalidName,
        /// A name that would do.
        suggestion: Option<String>,
    },
    /// Keys of which exactly one may be there.
    #[error("{place}: {reason}")]
    Exclusive {
        /// Which table.
        place: Subject,
        /// What is wrong.
        reason: String,
    },
    /// A component that is referred to but not there.
    #[error("there is no component `{id}`")]
    UnknownComponent {
        /// Its name.
        id: String,
        /// The component that may have been meant.
        similar: Option<String>,
        /// Whether the app has any component.
        has_components: bool,
    },
    /// A variable that is referred to but not there.
    #[error("there is no variable `{name}`")]
    UndefinedVariable {
        /// Its name.
        name: String,
        /// The variable that may have been meant.
        similar: Option<String>,
    },
    /// A variable with a default that is required, or with neither.
    #[error("variable `{name}` has {fault}")]
    VariableDefault {
        /// Its name.
        name: String,
        /// What is wrong.
        fault: &'static str,
    },
    /// Two things with the same name.
    #[error("there are two {what} with the id `{id}`")]
    DuplicateId {
        /// What they are.
        what: &'static str,
        /// The name.
        id: String,
    },
    /// A route that is none.
    #[error("invalid route: {reason}")]
    Route {
        /// What is wrong with it.
        reason: RouteError,
    },
    /// A route that another one with the same pattern hides.
    #[error("route `{route}` never matches, since {winner} has the same route")]
    ShadowedRoute {
        /// The route.
        route: String,
        /// The trigger that gets the requests.
        winner: String,
    },
    /// An entry of `allowed_outbound_hosts` that is none.
    #[error("invalid allowed host: {reason}")]
    AllowedHost {
        /// What is wrong with it.
        reason: AllowedHostError,
    },
    /// A text with broken places for variables.
    #[error("invalid template: {reason}")]
    Template {
        /// What is wrong with it.
        reason: TemplateError,
    },
    /// A profile that no component has.
    #[error("no component has a profile `{profile}`")]
    UnknownProfile {
        /// Its name.
        profile: String,
        /// The profiles that there are.
        known: Vec<String>,
    },
    /// Two dependencies that may satisfy the same import.
    #[error("dependencies `{first}` and `{second}` may satisfy the same import")]
    DependencyConflict {
        /// One of them.
        first: String,
        /// The other one.
        second: String,
    },
    /// Something that still works but has a better way.
    #[error("{what}")]
    Deprecated {
        /// What is said about it.
        what: String,
        /// The better way.
        instead: String,
    },
    /// A component that is meant to be reached by chaining but cannot be.
    #[error("component `{id}` cannot be reached at `{id}.spin.internal`: it has no HTTP trigger")]
    NotChainable {
        /// Its name.
        id: String,
    },
    /// A file that cannot be read.
    #[error("cannot read `{path}`: {reason}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the operating system says.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// More of something than there may be.
    #[error("{what}: {found} are more than the limit of {limit}")]
    TooMany {
        /// More of what.
        what: String,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A `type` of a backend that there is not.
    #[error("there is no {what} of type `{found}`")]
    UnknownBackend {
        /// What the backend is for.
        what: &'static str,
        /// The type.
        found: String,
        /// The types that there are.
        known: Vec<&'static str>,
        /// The type that may have been meant.
        similar: Option<String>,
    },
    /// An entry of `block_networks` that is none.
    #[error("invalid network: {reason}")]
    BlockedNetwork {
        /// What is wrong with it.
        reason: BlockedNetworkError,
    },
    /// A locked app that needs what this version cannot do.
    #[error("{what}, which this version of Wisp cannot do")]
    Unsupported {
        /// Who needs what.
        what: String,
    },
}

/// A table within the text, said as ` in …`; nothing for the outermost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place(pub(crate) String);

/// A value within the text, said by its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject(pub(crate) String);

/// Whether a problem keeps the text from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does not.
    Warning,
    /// It does.
    Error,
}

/// Something that is wrong, and where.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What is wrong.
    pub rule: Rule,
    /// Whether that keeps the text from being used.
    pub severity: Severity,
    /// The bytes that are at fault; none if the whole text is.
    pub span: Option<Range<usize>>,
    /// Other bytes that matter, and what they are.
    pub related: Vec<(Range<usize>, String)>,
    source: Arc<SourceText>,
}

/// All problems of one text.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    problems: Vec<Problem>,
    omitted_count: usize,
    source: Arc<SourceText>,
}

/// A text and how it is called in messages.
#[derive(Debug)]
pub(crate) struct SourceText {
    name: String,
    text: String,
}

impl Rule {
    /// The stable code of the rule.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "WISP-E0101",
            Self::UnknownKey { .. } => "WISP-E0102",
            Self::MissingKey { .. } => "WISP-E0103",
            Self::WrongType { .. } => "WISP-E0104",
            Self::ManifestVersion { .. } => "WISP-E0105",
            Self::InvalidValue { .. } => "WISP-E0106",
            Self::InvalidName { .. } => "WISP-E0107",
            Self::Exclusive { .. } => "WISP-E0108",
            Self::UnknownComponent { .. } => "WISP-E0109",
            Self::UndefinedVariable { .. } => "WISP-E0110",
            Self::VariableDefault { .. } => "WISP-E0111",
            Self::DuplicateId { .. } => "WISP-E0112",
            Self::Route { .. } => "WISP-E0113",
            Self::ShadowedRoute { .. } => "WISP-E0114",
            Self::AllowedHost { .. } => "WISP-E0115",
            Self::Template { .. } => "WISP-E0116",
            Self::UnknownProfile { .. } => "WISP-E0117",
            Self::DependencyConflict { .. } => "WISP-E0118",
            Self::Deprecated { .. } => "WISP-E0119",
            Self::NotChainable { .. } => "WISP-E0120",
            Self::Unreadable { .. } => "WISP-E0121",
            Self::TooMany { .. } => "WISP-E0122",
            Self::UnknownBackend { .. } => "WISP-E0123",
            Self::BlockedNetwork { .. } => "WISP-E0124",
            Self::Unsupported { .. } => "WISP-E0125",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } | Self::WrongType { .. } => None,
            Self::UnknownKey { similar: Some(similar), .. } => Some(format!("did you mean `{similar}`?")),
            Self::UnknownKey { known, .. } if known.is_empty() => Some("no key may be given here".to_owned()),
            Self::UnknownKey { known, .. } => Some(format!("known keys are {}", listed(known))),
            Self::MissingKey { key, .. } if key == "application" => {
                Some("add a table `[application]` with a `name`".to_owned())
            }
            Self::MissingKey { key, .. } => Some(format!("add `{key} = …`")),
            Self::ManifestVersion { .. } => {
                Some("start the manifest with `spin_manifest_version = 2`".to_owned())
            }
            Self::InvalidValue { hint, .. } | Self::Unreadable { hint, .. } => hint.clone(),
            Self::InvalidName { suggestion, .. } => {
                suggestion.as_ref().map(|name| format!("`{name}` would do"))
            }
            Self::Exclusive { .. } => None,
            Self::UnknownComponent { similar: Some(similar), .. }
            | Self::UndefinedVariable { similar: Some(similar), .. }
            | Self::UnknownBackend { similar: Some(similar), .. } => {
                Some(format!("did you mean `{similar}`?"))
            }
            Self::UnknownComponent { id, has_components, .. } => Some(match has_components {
                true => format!("add a table `[component.{id}]`, or name another component"),
                false => format!("add a table `[component.{id}]`"),
            }),
            Self::UndefinedVariable { name, .. } => {
                Some(format!("add `{name} = {{ required = true }}` or one with a default to `[variables]`"))
            }
            Self::VariableDefault { .. } => {
                Some("give either `default = \"…\"` or `required = true`".to_owned())
            }
            Self::DuplicateId { .. } => Some("give one of them another id".to_owned()),
            Self::Route { reason } => Some(match reason {
                RouteError::WildcardPlace { .. } => {
                    "a route that takes everything below a path ends in `/...`".to_owned()
                }
                _ => "a route is like `/a/b`, `/a/:name` or `/a/...`".to_owned(),
            }),
            Self::ShadowedRoute { .. } => {
                Some("remove one of the two triggers, or change its route".to_owned())
            }
            Self::AllowedHost { reason } => Some(allowed_host_hint(reason)),
            Self::Template { .. } => Some("a place for a variable is written `{{ name }}`".to_owned()),
            Self::UnknownProfile { known, .. } if known.is_empty() => {
                Some("this manifest has no profiles: run without one".to_owned())
            }
            Self::UnknownProfile { known, .. } => {
                Some(format!("the profiles of this manifest are {}", listed(known)))
            }
            Self::DependencyConflict { .. } => {
                Some("name different interfaces, or versions that are not compatible".to_owned())
            }
            Self::Deprecated { instead, .. } => Some(instead.clone()),
            Self::NotChainable { id } => Some(format!(
                "add `[[trigger.http]]` with `route = {{ private = true }}` and `component = \"{id}\"`"
            )),
            Self::TooMany { what, .. } if what == "allowed hosts" => {
                Some("use wildcards such as `*.example.com`, or networks".to_owned())
            }
            Self::TooMany { .. } => Some("split the app into several".to_owned()),
            Self::UnknownBackend { known, .. } => Some(format!("known types are {}", listed(known))),
            Self::Unsupported { .. } => {
                Some("update Wisp, or ask who packed the app for one without it".to_owned())
            }
            Self::BlockedNetwork { .. } => {
                Some("write for example `block_networks = [\"10.0.0.0/8\", \"private\"]`".to_owned())
            }
        }
    }
}

fn allowed_host_hint(reason: &AllowedHostError) -> String {
    match reason {
        AllowedHostError::NoScheme { entry } if entry == "insecure:allow-all" => {
            "to allow everything write `*://*:*`".to_owned()
        }
        AllowedHostError::NoScheme { entry } => format!("write for example `https://{entry}`"),
        AllowedHostError::Path { .. } => "leave the path away".to_owned(),
        AllowedHostError::Wildcard { .. } => {
            "use `*` for any host, or `*.example.com` for all below one".to_owned()
        }
        AllowedHostError::NoPort { entry, .. } => {
            format!("write for example `{}:*` for any port", entry.trim_end_matches('/'))
        }
        _ => "an allowed host is like `https://example.com`, `redis://*.example.com:6379` or \
              `tcp://10.0.0.0/8:*`"
            .to_owned(),
    }
}

/// Names in backticks with commas between them.
fn listed<T: fmt::Display>(names: &[T]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// The one of the candidates that a misspelled name may have been meant to be.
pub(crate) fn most_similar<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // Names from a text are short; nobody misspells a name of this length.
    const MAX_COMPARED_BYTES: usize = 64;
    if name.len() > MAX_COMPARED_BYTES {
        return None;
    }
    let close = candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_COMPARED_BYTES && *candidate != name)
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.chars().count().max(3));
    close.min().map(|(_, candidate)| candidate.to_owned())
}

/// How many letters have to be put in, taken out, replaced or swapped with
/// their neighbour to make one word of the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.to_lowercase().replace('-', "_").chars().collect();
    let to: Vec<char> = to.to_lowercase().replace('-', "_").chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, &from_letter) in from.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, &to_letter) in to.iter().enumerate() {
            let replaced = last[column] + usize::from(from_letter != to_letter);
            let mut best = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            let is_swap =
                row > 0 && column > 0 && from_letter == to[column - 1] && from[row - 1] == to_letter;
            if is_swap {
                best = best.min(before_last[column - 1] + 1);
            }
            current.push(best);
        }
        before_last = std::mem::replace(&mut last, current);
    }
    last[to.len()]
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => Ok(()),
            path => write!(formatter, " in `{path}`"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => formatter.write_str("the file"),
            path => write!(formatter, "`{path}`"),
        }
    }
}

impl Problem {
    /// The stable code of the rule that fired.
    pub fn code(&self) -> &'static str {
        self.rule.code()
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        self.rule.hint()
    }

    /// Line and column where the fault begins, from 1. Columns are counted in
    /// characters.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        let span = self.span.as_ref()?;
        Some(self.source.line_and_column(span.start))
    }

    fn render(&self, paint: Paint, width: usize, out: &mut String) {
        let (word, color) = match self.severity {
            Severity::Error => ("error", RED),
            Severity::Warning => ("warning", YELLOW),
        };
        let title = paint.with(color, &format!("{word}[{}]", self.code()));
        out.push_str(&format!("{title}: {}\n", self.rule));
        let mut excerpts: Vec<(&Range<usize>, &str)> =
            self.related.iter().map(|(span, label)| (span, label.as_str())).collect();
        if let Some(span) = &self.span {
            excerpts.insert(0, (span, ""));
        }
        let gutter = excerpts
            .iter()
            .map(|(span, _)| self.source.line_and_column(span.start).0.to_string().len())
            .max()
            .unwrap_or(1);
        for (index, (span, label)) in excerpts.into_iter().enumerate() {
            let arrow = if index == 0 { "-->" } else { ":::" };
            self.source.render_excerpt(span, label, arrow, gutter, paint, color, width, out);
        }
        if let Some(hint) = self.hint() {
            out.push_str(&format!("{}: {hint}\n", paint.with(CYAN, "hint")));
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.rule, formatter)
    }
}

impl std::error::Error for Problem {}

impl miette::Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.rule.code()))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.rule.hint().map(|hint| Box::new(hint) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&*self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let at_fault = self.span.iter().map(|span| (span, None));
        let related = self.related.iter().map(|(span, label)| (span, Some(label.clone())));
        Some(Box::new(
            at_fault
                .chain(related)
                .map(|(span, label)| miette::LabeledSpan::new(label, span.start, span.len())),
        ))
    }
}

impl Diagnostics {
    pub(crate) fn new(name: &Path, text: &str) -> Self {
        let source = SourceText { name: name.display().to_string(), text: text.to_owned() };
        Self { problems: Vec::new(), omitted_count: 0, source: Arc::new(source) }
    }

    /// Problems with a file that has not been read, so that there is no text.
    pub(crate) fn without_text(name: &Path, rule: Rule) -> Self {
        let mut diagnostics = Self::new(name, "");
        diagnostics.push(Severity::Error, rule, None, Vec::new());
        diagnostics
    }

    pub(crate) fn push(
        &mut self,
        severity: Severity,
        rule: Rule,
        span: Option<Range<usize>>,
        related: Vec<(Range<usize>, String)>,
    ) {
        if self.problems.len() >= MAX_PROBLEMS_COUNT {
            // An error must never be lost to a list full of warnings.
            let last_warning =
                self.problems.iter().rposition(|problem| problem.severity == Severity::Warning);
            self.omitted_count += 1;
            match last_warning {
                Some(position) if severity == Severity::Error => {
                    self.problems.remove(position);
                }
                _ => return,
            }
        }
        let within = |span: Range<usize>| self.source.clamp(span);
        let span = span.map(within);
        let related = related.into_iter().map(|(span, label)| (within(span), label)).collect();
        let source = Arc::clone(&self.source);
        self.problems.push(Problem { rule, severity, span, related, source });
    }

    /// The same, where there is more than one.
    pub(crate) fn of_rules(name: &Path, rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut diagnostics = Self::new(name, "");
        for rule in rules {
            diagnostics.push(Severity::Error, rule, None, Vec::new());
        }
        diagnostics
    }

    /// The same problems, of a text that nobody can look at.
    pub(crate) fn without_places(self, name: &Path) -> Self {
        let mut diagnostics = Self::new(name, "");
        for problem in self.problems {
            diagnostics.push(problem.severity, problem.rule, None, Vec::new());
        }
        diagnostics.omitted_count += self.omitted_count;
        diagnostics
    }

    pub(crate) fn sort(&mut self) {
        self.problems
            .sort_by_key(|problem| problem.span.as_ref().map_or((0, 0), |span| (span.start, span.end)));
    }

    pub(crate) fn text(&self) -> &str {
        &self.source.text
    }

    /// The problems in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether the text cannot be used.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All problems as a person reads them: what is wrong, the line at fault
    /// with a caret below, and a hint. `color` adds escape sequences of
    /// terminals; lines of the text that are wider than `width_columns` are
    /// cut to what is around the fault.
    pub fn render(&self, color: bool, width_columns: usize) -> String {
        let paint = Paint { color };
        let mut out = String::new();
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                out.push('\n');
            }
            problem.render(paint, width_columns, &mut out);
        }
        if self.omitted_count > 0 {
            out.push_str(&format!("\nand {} more\n", self.omitted_count));
        }
        out
    }
}

/// One line for each problem, for logs.
impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{}", self.source.name)?;
            if let Some((line, column)) = problem.line_and_column() {
                write!(formatter, ":{line}:{column}")?;
            }
            write!(formatter, ": {} ({})", problem.rule, problem.code())?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl miette::SourceCode for SourceText {
    fn read_span<'a>(
        &'a self,
        span: &miette::SourceSpan,
        context_lines_before: usize,
        context_lines_after: usize,
    ) -> Result<Box<dyn miette::SpanContents<'a> + 'a>, miette::MietteError> {
        let contents = self.text.read_span(span, context_lines_before, context_lines_after)?;
        Ok(Box::new(miette::MietteSpanContents::new_named(
            self.name.clone(),
            contents.data(),
            *contents.span(),
            contents.line(),
            contents.column(),
            contents.line_count(),
        )))
    }
}

impl SourceText {
    /// The same span, but within the text and between characters.
    fn clamp(&self, span: Range<usize>) -> Range<usize> {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.ceil_char_boundary(span.end.max(start));
        start..end
    }

    fn line_and_column(&self, offset_bytes: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset_bytes)];
        let line = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (line, before[line_start..].chars().count() + 1)
    }

    #[expect(clippy::too_many_arguments, reason = "private, and a struct of them has no meaning")]
    fn render_excerpt(
        &self,
        span: &Range<usize>,
        label: &str,
        arrow: &str,
        gutter: usize,
        paint: Paint,
        color: &'static str,
        width: usize,
        out: &mut String,
    ) {
        let (line, column) = self.line_and_column(span.start);
        let line_start = self.text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = self.text[span.start..].find('\n').map_or(self.text.len(), |end| span.start + end);
        // One column for each character, whatever it is.
        let shown: Vec<char> = self.text[line_start..line_end]
            .chars()
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect();
        let caret_start = column - 1;
        let marked = self.text[span.start..span.end.min(line_end).max(span.start)].chars().count();
        let caret_end = caret_start + marked.max(1);

        let room = width.saturating_sub(gutter + 3).max(20);
        let (cut_start, cut_end) = match shown.len() <= room {
            true => (0, shown.len()),
            false => {
                let start = caret_start.saturating_sub(room / 3).min(shown.len() - room);
                (start, start + room)
            }
        };
        let excerpt: String = shown[cut_start..cut_end].iter().collect();
        let caret_start = caret_start - cut_start;
        let caret_end = (caret_end - cut_start).min(room.max(caret_start + 1));
        let carets = paint.with(color, &"^".repeat(caret_end - caret_start));
        let bar = paint.with(CYAN, "|");
        let number = paint.with(CYAN, &format!("{line:>gutter$}"));
        let space = " ";
        let padding = " ".repeat(caret_start);
        let label = if label.is_empty() { String::new() } else { format!(" {label}") };
        out.push_str(&format!("{space:>gutter$}{} {}:{line}:{column}\n", paint.with(CYAN, arrow), self.name));
        out.push_str(&format!("{space:>gutter$} {bar}\n"));
        out.push_str(format!("{number} {bar} {excerpt}").trim_end());
        out.push_str(&format!("\n{space:>gutter$} {bar} {padding}{carets}{label}\n"));
    }
}

const RED: &str = "1;31";
const YELLOW: &str = "1;33";
const CYAN: &str = "1;36";

#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self.color {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use super::*;

    fn syntax(message: &str) -> Rule {
        Rule::Syntax { message: message.to_owned() }
    }

    #[test]
    fn similar_names() {
        let known = ["source", "description", "files"];
        assert_eq!(most_similar("sorce", known).as_deref(), Some("source"));
        assert_eq!(most_similar("soucre", known).as_deref(), Some("source"));
        assert_eq!(most_similar("file", known).as_deref(), Some("files"));
        assert_eq!(most_similar("color", known), None);
        assert_eq!(most_similar("user_data", ["user-data"]).as_deref(), Some("user-data"));
    }

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let text = format!("{}HERE{}\n", "a".repeat(200), "b".repeat(200));
        let mut diagnostics = Diagnostics::new(Path::new("x.toml"), &text);
        diagnostics.push(Severity::Error, syntax("bad"), Some(200..204), Vec::new());
        let rendered = diagnostics.render(false, 60);
        assert!(rendered.lines().all(|line| line.chars().count() <= 60), "{rendered}");
        assert!(rendered.contains("aHEREb"), "{rendered}");
    }

    #[test]
    fn spans_outside_of_the_text_do_not_panic() {
        let text = "é\n";
        for start in 0..6 {
            for end in 0..6 {
                let mut diagnostics = Diagnostics::new(Path::new("x"), text);
                let span = Range { start, end };
                diagnostics.push(Severity::Error, syntax("bad"), Some(span), Vec::new());
                assert!(diagnostics.render(true, 0).contains("bad"));
                assert!(!diagnostics.to_string().is_empty());
            }
        }
    }

    #[test]
    fn errors_outlive_warnings_when_the_list_is_full() {
        let mut diagnostics = Diagnostics::new(Path::new("x"), "");
        for _ in 0..MAX_PROBLEMS_COUNT + 5 {
            diagnostics.push(Severity::Warning, syntax("meh"), None, Vec::new());
        }
        diagnostics.push(Severity::Error, syntax("bad"), None, Vec::new());
        assert_eq!(diagnostics.iter().count(), MAX_PROBLEMS_COUNT);
        assert!(diagnostics.has_errors());
        assert!(diagnostics.render(false, 80).ends_with("\nand 6 more\n"));
    }
}
