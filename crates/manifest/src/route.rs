//! Which HTTP path belongs to which trigger.
//!
//! A [`RoutePattern`] is a path of segments:
//!
//! | written | matches |
//! | --- | --- |
//! | `/a/b` | exactly that path, with or without slashes at its end |
//! | `/users/:id` | any one segment in the place of `:id` |
//! | `/files/:name.:kind` | a segment with a dot; `:name` ends at the first one |
//! | `/api/...`, `/api/*` | `/api`, `/api/` and everything below |
//!
//! A missing first slash is added, and one at the end is taken away. Paths are
//! compared as they came over the wire: nothing is decoded, letters keep their
//! case, and two slashes in the middle are not one.
//!
//! When several patterns match, the most specific one wins: from left to
//! right, text beats text with a name in it, which beats a name alone, which
//! beats the end wildcard; see [`RoutePattern::cmp_specificity`].
//!
//! A [`RouteTable`] holds the patterns of an app. A path that one pattern
//! spells out is found by one hash look-up. Otherwise the patterns that begin
//! with the same segment are tried, then those that begin with a name. Nothing
//! is allocated unless a pattern with names in it is tried.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The longest route that is accepted: what common servers take as a whole
/// request line is eight times as much.
pub const MAX_ROUTE_BYTES: usize = 1024;

/// The pattern of an HTTP trigger's route.
#[derive(Clone)]
pub struct RoutePattern {
    /// As written, with its first slash and without one at the end.
    normalized: Arc<str>,
    segments: Vec<Segment>,
    has_wildcard: bool,
}

/// What stands between two slashes of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(Arc<str>),
    /// Text and names with dots between them: `:name.json`.
    Mixed(Vec<Piece>),
    Name(Arc<str>),
}

/// What stands between two dots of a segment that has a name in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Arc<str>),
    Name(Arc<str>),
}

/// Why a text is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The text is longer than [`MAX_ROUTE_BYTES`].
    #[error("a route has at most {MAX_ROUTE_BYTES} bytes, this one has {length_bytes}")]
    TooLong {
        /// How long it is.
        length_bytes: usize,
    },
    /// A wildcard that is not at the end, or has something beside it.
    #[error("`{segment}` may only be the last segment of a route")]
    WildcardPlace {
        /// The segment at fault.
        segment: String,
    },
    /// A `:` without a name, or with one that cannot be part of a header.
    #[error("`{name}` is no name for a segment: use letters, digits, `-` and `_`")]
    Name {
        /// What follows the `:`.
        name: String,
    },
    /// A name that stands twice in the same route.
    #[error("the name `:{name}` stands twice in this route")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A character that no path can have.
    #[error("a route has no control characters")]
    Control,
}

/// What a path's match with a pattern gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// The segments that stood in the place of names, in order of the pattern.
    /// Not allocated if the pattern has no names.
    pub named: Vec<(&'a str, &'a str)>,
    /// What stood in the place of the wildcard: empty, or with its first
    /// slash, and with one slash at the end if the path had any there.
    /// `None` if the pattern has no wildcard.
    pub trailing_wildcard: Option<&'a str>,
}

/// The routes of an app.
#[derive(Clone, Debug)]
pub struct RouteTable<T> {
    entries: Vec<(RoutePattern, T)>,
    /// Patterns without names and wildcards, by their path without slashes
    /// around it.
    exact: HashMap<Box<str>, usize>,
    /// The others that begin with a segment of text, by that segment, most
    /// specific first.
    by_first_segment: HashMap<Box<str>, Vec<usize>>,
    /// The rest, most specific first. A pattern that begins with text is more
    /// specific than any of them.
    rest: Vec<usize>,
}

/// A route that can never match, since a later one has the same pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowedRoute {
    /// Position of the route that lost, in the order they were given.
    pub shadowed: usize,
    /// Position of the route that took its place.
    pub by: usize,
}

impl RoutePattern {
    /// Takes a route apart.
    ///
    /// # Errors
    /// When it does not follow the grammar of this module.
    pub fn parse(route: &str) -> Result<Self, RouteError> {
        if route.len() > MAX_ROUTE_BYTES {
            return Err(RouteError::TooLong { length_bytes: route.len() });
        }
        if route.contains(char::is_control) {
            return Err(RouteError::Control);
        }
        let without_last = route.strip_suffix('/').unwrap_or(route);
        let normalized: Arc<str> = match without_last.starts_with('/') {
            true => without_last.into(),
            false => format!("/{without_last}").into(),
        };

        let mut written: Vec<&str> = normalized.split('/').filter(|segment| !segment.is_empty()).collect();
        let has_wildcard = written.pop_if(|last| matches!(*last, "..." | "*")).is_some();
        let segments = written.into_iter().map(Segment::parse).collect::<Result<Vec<_>, _>>()?;

        let pattern = Self { normalized, segments, has_wildcard };
        let mut names: Vec<&str> = pattern.names().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(RouteError::DuplicateName { name: pair[0].to_owned() }),
            None => Ok(pattern),
        }
    }

    /// The route as it was written, but with its first slash and without one
    /// at the end.
    pub fn as_str(&self) -> &str {
        &self.normalized
    }

    /// The same without the wildcard at its end: the part of the path that
    /// every match begins with. Empty for `/...`.
    pub fn prefix(&self) -> &str {
        let route: &str = &self.normalized;
        match self.has_wildcard {
            true => route.strip_suffix("/...").or(route.strip_suffix("/*")).unwrap_or(route),
            false => route,
        }
    }

    /// Whether it ends in `/...` or `/*`.
    pub fn has_wildcard(&self) -> bool {
        self.has_wildcard
    }

    /// The names in it, in order, without their colons.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().flat_map(|segment| {
            let (alone, pieces): (Option<&str>, &[Piece]) = match segment {
                Segment::Text(_) => (None, &[]),
                Segment::Name(name) => (Some(name), &[]),
                Segment::Mixed(pieces) => (None, pieces),
            };
            alone.into_iter().chain(pieces.iter().filter_map(|piece| match piece {
                Piece::Name(name) => Some(&**name),
                Piece::Text(_) => None,
            }))
        })
    }

    /// Matches a path, which starts with `/` and has no query.
    pub fn matches<'a>(&'a self, path: &'a str) -> Option<RouteMatch<'a>> {
        if !path.starts_with('/') {
            return None;
        }
        let mut rest = Some(path.trim_matches('/')).filter(|trimmed| !trimmed.is_empty());
        let mut named = Vec::new();
        for segment in &self.segments {
            let whole = rest?;
            let (first, after) = match whole.split_once('/') {
                Some((first, after)) => (first, Some(after)),
                None => (whole, None),
            };
            segment.matches(first, &mut named)?;
            rest = after;
        }
        match (self.has_wildcard, rest) {
            (false, Some(_)) => None,
            (false, None) => Some(RouteMatch { named, trailing_wildcard: None }),
            (true, rest) => Some(RouteMatch { named, trailing_wildcard: Some(wildcard_part(path, rest)) }),
        }
    }

    /// Orders patterns by which one wins when both match the same path: the
    /// winner is `Less`. Two patterns are `Equal` only if they match the very
    /// same paths, or if no path can match both.
    pub fn cmp_specificity(&self, other: &Self) -> Ordering {
        let segments = self.segments.iter().zip(&other.segments);
        let first_difference =
            segments.map(|(mine, theirs)| mine.cmp_specificity(theirs)).find(|order| order.is_ne());
        first_difference.unwrap_or_else(|| {
            // More segments before a wildcard, then the end before a wildcard.
            let length = other.segments.len().cmp(&self.segments.len());
            length.then(self.has_wildcard.cmp(&other.has_wildcard))
        })
    }

    /// Whether both match the very same paths, whatever their names.
    pub fn is_same_shape(&self, other: &Self) -> bool {
        self.shape() == other.shape()
    }

    /// The pattern with its names taken out.
    fn shape(&self) -> String {
        let mut shape = String::with_capacity(self.normalized.len());
        for segment in &self.segments {
            shape.push('/');
            match segment {
                Segment::Text(text) => shape.push_str(text),
                Segment::Name(_) => shape.push(':'),
                Segment::Mixed(pieces) => {
                    for (index, piece) in pieces.iter().enumerate() {
                        if index > 0 {
                            shape.push('.');
                        }
                        match piece {
                            Piece::Text(text) => shape.push_str(text),
                            Piece::Name(_) => shape.push(':'),
                        }
                    }
                }
            }
        }
        if self.has_wildcard {
            shape.push_str("/*");
        }
        shape
    }

    /// The path that it spells out, without slashes around it, if it has
    /// neither names nor a wildcard.
    fn exact_path(&self) -> Option<String> {
        if self.has_wildcard {
            return None;
        }
        let texts: Option<Vec<&str>> = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => Some(&**text),
                Segment::Mixed(_) | Segment::Name(_) => None,
            })
            .collect();
        Some(texts?.join("/"))
    }
}

/// The part of a path that a wildcard stands for. `rest` is that part without
/// slashes around it, if there is any.
fn wildcard_part<'a>(path: &'a str, rest: Option<&'a str>) -> &'a str {
    let has_last_slash = path.len() > 1 && path.ends_with('/');
    let trimmed_length_bytes = path.trim_end_matches('/').len();
    match rest {
        // The path is all slashes, or ends where the wildcard begins.
        None if trimmed_length_bytes == 0 => "/",
        None if has_last_slash => "/",
        None => "",
        Some(rest) => {
            let start = trimmed_length_bytes - rest.len() - 1;
            let end = trimmed_length_bytes + usize::from(has_last_slash);
            &path[start..end]
        }
    }
}

impl Segment {
    fn parse(written: &str) -> Result<Self, RouteError> {
        // Three dots are the wildcard; a `*` may only stand within text.
        if written == "..." || written.starts_with('*') {
            return Err(RouteError::WildcardPlace { segment: written.to_owned() });
        }
        let pieces = written.split('.').map(Piece::parse).collect::<Result<Vec<_>, RouteError>>()?;
        let names_count = pieces.iter().filter(|piece| matches!(piece, Piece::Name(_))).count();
        match (names_count, pieces.as_slice()) {
            (0, _) => Ok(Self::Text(written.into())),
            (1, [Piece::Name(name)]) => Ok(Self::Name(name.clone())),
            _ => Ok(Self::Mixed(pieces)),
        }
    }

    fn matches<'a>(&'a self, part: &'a str, named: &mut Vec<(&'a str, &'a str)>) -> Option<()> {
        match self {
            Self::Text(text) => (part == &**text).then_some(()),
            Self::Name(name) => {
                named.push((name, part));
                Some(())
            }
            Self::Mixed(pieces) => {
                let mut rest = Some(part);
                for (index, piece) in pieces.iter().enumerate() {
                    let whole = rest?;
                    let is_last = index + 1 == pieces.len();
                    // A name at the end takes all that is left, dots too.
                    let (first, after) = match whole.split_once('.') {
                        Some((first, after)) if !is_last => (first, Some(after)),
                        _ => (whole, None),
                    };
                    match piece {
                        Piece::Text(text) if first == &**text => {}
                        Piece::Text(_) => return None,
                        Piece::Name(name) => named.push((name, first)),
                    }
                    rest = after;
                }
                rest.is_none().then_some(())
            }
        }
    }

    fn cmp_specificity(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Mixed(mine), Self::Mixed(theirs)) => {
                let pieces = mine.iter().zip(theirs);
                let first_difference =
                    pieces.map(|(mine, theirs)| mine.rank().cmp(&theirs.rank())).find(|order| order.is_ne());
                first_difference.unwrap_or_else(|| theirs.len().cmp(&mine.len()))
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Text(_) => 0,
            Self::Mixed(_) => 1,
            Self::Name(_) => 2,
        }
    }
}

impl Piece {
    fn parse(written: &str) -> Result<Self, RouteError> {
        let Some(name) = written.strip_prefix(':') else {
            return Ok(Self::Text(written.into()));
        };
        let is_name_character =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        match !name.is_empty() && name.chars().all(is_name_character) {
            true => Ok(Self::Name(name.into())),
            false => Err(RouteError::Name { name: name.to_owned() }),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Text(_) => 0,
            Self::Name(_) => 1,
        }
    }
}

impl fmt::Display for RoutePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.normalized)
    }
}

impl fmt::Debug for RoutePattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.normalized, formatter)
    }
}

/// Two patterns are equal if they were written the same, up to the slashes
/// around them.
impl PartialEq for RoutePattern {
    fn eq(&self, other: &Self) -> bool {
        self.normalized == other.normalized
    }
}

impl Eq for RoutePattern {}

impl<T> RouteTable<T> {
    /// Makes a table of these routes. Of several with the same pattern the
    /// last one stays; which ones it shadows is told beside the table.
    pub fn new(routes: impl IntoIterator<Item = (RoutePattern, T)>) -> (Self, Vec<ShadowedRoute>) {
        let mut last_by_shape: HashMap<String, usize> = HashMap::new();
        let mut shadowed = Vec::new();
        let mut entries: Vec<(RoutePattern, T)> = Vec::new();
        for (position, (pattern, value)) in routes.into_iter().enumerate() {
            if let Some(earlier) = last_by_shape.insert(pattern.shape(), position) {
                shadowed.push(ShadowedRoute { shadowed: earlier, by: position });
            }
            entries.push((pattern, value));
        }
        let mut exact = HashMap::new();
        let mut patterns = Vec::new();
        for position in last_by_shape.into_values() {
            match entries[position].0.exact_path() {
                Some(path) => {
                    exact.insert(path.into_boxed_str(), position);
                }
                None => patterns.push(position),
            }
        }
        patterns.sort_unstable_by(|&left, &right| {
            let (left_pattern, right_pattern) = (&entries[left].0, &entries[right].0);
            // Order of the manifest where nothing else decides: the same
            // manifest always makes the same table.
            left_pattern.cmp_specificity(right_pattern).then(left.cmp(&right))
        });
        let mut by_first_segment: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        let mut rest = Vec::new();
        for position in patterns {
            match entries[position].0.segments.first() {
                Some(Segment::Text(text)) => {
                    by_first_segment.entry((&**text).into()).or_default().push(position);
                }
                Some(Segment::Mixed(_) | Segment::Name(_)) | None => rest.push(position),
            }
        }
        (Self { entries, exact, by_first_segment, rest }, shadowed)
    }

    /// The most specific route that matches a path, which starts with `/` and
    /// has no query.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<(&'a RoutePattern, &'a T, RouteMatch<'a>)> {
        if !path.starts_with('/') {
            return None;
        }
        let trimmed = path.trim_matches('/');
        if let Some(&position) = self.exact.get(trimmed) {
            let (pattern, value) = &self.entries[position];
            return Some((pattern, value, RouteMatch::default()));
        }
        let first_segment = trimmed.split('/').next().unwrap_or_default();
        let begin_alike = self.by_first_segment.get(first_segment).map_or(&[][..], Vec::as_slice);
        begin_alike.iter().chain(&self.rest).find_map(|&position| {
            let (pattern, value) = &self.entries[position];
            Some((pattern, value, pattern.matches(path)?))
        })
    }

    /// All routes in the order they were given, also the shadowed ones.
    pub fn iter(&self) -> impl Iterator<Item = (&RoutePattern, &T)> {
        self.entries.iter().map(|(pattern, value)| (pattern, value))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn table(routes: &[&'static str]) -> RouteTable<&'static str> {
        let parsed = routes.iter().map(|route| (RoutePattern::parse(route).unwrap(), *route));
        RouteTable::new(parsed).0
    }

    fn found(table: &RouteTable<&'static str>, path: &str) -> Option<&'static str> {
        table.find(path).map(|(_, route, _)| *route)
    }

    #[test]
    fn slashes_are_normalised() {
        for (written, normalized) in
            [("", "/"), ("/", "/"), ("a", "/a"), ("/a/", "/a"), ("/a/.../", "/a/..."), ("/a//", "/a/")]
        {
            assert_eq!(RoutePattern::parse(written).unwrap().as_str(), normalized);
        }
    }

    #[test]
    fn wildcard_part_keeps_its_slashes() {
        for (route, path, part) in [
            ("/x/...", "/x", Some("")),
            ("/x/...", "/x/", Some("/")),
            ("/x/...", "/x/y", Some("/y")),
            ("/x/...", "/x/y/", Some("/y/")),
            ("/x/...", "/x/y//", Some("/y/")),
            ("/x/...", "/x//y", Some("//y")),
            ("/x/...", "/xy", None),
            ("/x/...", "/", None),
            ("/x/*", "/x/y/z", Some("/y/z")),
            ("/...", "/", Some("/")),
            ("/...", "/a/b", Some("/a/b")),
            ("/...", "//a", Some("/a")),
            ("/...", "", None),
            ("/:a/...", "/b", Some("")),
            ("/:a/...", "/b/c", Some("/c")),
        ] {
            let pattern = RoutePattern::parse(route).unwrap();
            let matched = pattern.matches(path);
            assert_eq!(matched.map(|matched| matched.trailing_wildcard.unwrap()), part, "{route} {path}");
        }
    }

    #[test]
    fn names_are_captured() {
        let pattern = RoutePattern::parse("/users/:id/files/:name.:kind").unwrap();
        let matched = pattern.matches("/users/7/files/a.tar.gz").unwrap();
        assert_eq!(matched.named, [("id", "7"), ("name", "a"), ("kind", "tar.gz")]);
        assert_eq!(matched.trailing_wildcard, None);
        assert!(pattern.matches("/users/7/files/a").is_none());
        assert!(pattern.matches("/users/7").is_none());
        assert_eq!(pattern.names().collect::<Vec<_>>(), ["id", "name", "kind"]);
    }

    #[test]
    fn the_most_specific_route_wins_whatever_the_order() {
        let mut routes =
            ["/...", "/a/...", "/a", "/a/:x", "/a/b", "/a/:x.json", "/:y/b", "/a/b/...", "/:y/..."];
        for _ in 0..routes.len() {
            routes.rotate_left(1);
            let table = table(&routes);
            for (path, route) in [
                ("/", "/..."),
                ("/a", "/a"),
                ("/a/", "/a"),
                ("/a/b", "/a/b"),
                ("/a/c", "/a/:x"),
                ("/a/c.json", "/a/:x.json"),
                ("/a/b/c", "/a/b/..."),
                ("/a/c/d", "/a/..."),
                ("/c/b", "/:y/b"),
                ("/c/d", "/:y/..."),
                ("/c", "/:y/..."),
            ] {
                assert_eq!(found(&table, path), Some(route), "{path}");
            }
        }
    }

    #[test]
    fn the_last_of_equal_routes_stays() {
        let routes =
            ["/a", "/:x", "/a/", "/:y", "a"].map(|route| (RoutePattern::parse(route).unwrap(), route));
        let (table, shadowed) = RouteTable::new(routes);
        assert_eq!(
            shadowed,
            [
                ShadowedRoute { shadowed: 0, by: 2 },
                ShadowedRoute { shadowed: 1, by: 3 },
                ShadowedRoute { shadowed: 2, by: 4 },
            ]
        );
        assert_eq!(found(&table, "/a"), Some("a"));
        assert_eq!(found(&table, "/b"), Some("/:y"));
    }

    #[test]
    fn faults() {
        for bad in ["/.../a", "/*/a", "/a/*b", "/:", "/:a b", "/:a/:a", "/:a.:a", "/a\nb"] {
            assert!(RoutePattern::parse(bad).is_err(), "{bad}");
        }
        assert!(RoutePattern::parse(&"a".repeat(MAX_ROUTE_BYTES + 1)).is_err());
    }

    #[test]
    fn prefix_has_no_wildcard() {
        for (route, prefix) in [("/...", ""), ("/a/...", "/a"), ("/a/*", "/a"), ("/a", "/a"), ("/", "/")] {
            assert_eq!(RoutePattern::parse(route).unwrap().prefix(), prefix);
        }
    }

    const ROUTE: &str = "(/(a|b|:x|:x\\.a|:x\\.:y|a\\.b|:y)){0,3}(/\\.\\.\\.|/\\*)?";

    proptest! {
        #[test]
        fn never_panics(route in "(/|\\.|\\*|:|a|b|é|\\.\\.\\.){0,12}", path in "(/|\\.|a|b|é){0,8}") {
            if let Ok(pattern) = RoutePattern::parse(&route) {
                pattern.matches(&path);
                // What is written normally stays as it is.
                let again = RoutePattern::parse(pattern.as_str()).unwrap();
                prop_assert!(again.is_same_shape(&pattern));
            }
        }

        /// The table's answer is one that matches, and no other that matches
        /// is more specific.
        #[test]
        fn table_agrees_with_patterns(
            routes in prop::collection::vec(ROUTE, 0..8),
            path in "(/(a|b|c|a\\.b|c\\.a|)){0,4}",
        ) {
            let patterns: Vec<RoutePattern> =
                routes.iter().filter_map(|route| RoutePattern::parse(route).ok()).collect();
            let (table, _) = RouteTable::new(patterns.iter().map(|pattern| (pattern.clone(), ())));
            let matching: Vec<&RoutePattern> =
                patterns.iter().filter(|pattern| pattern.matches(&path).is_some()).collect();
            match table.find(&path) {
                None => prop_assert!(matching.is_empty()),
                Some((found, (), matched)) => {
                    prop_assert_eq!(found.matches(&path).unwrap(), matched);
                    for other in matching {
                        prop_assert!(found.cmp_specificity(other).is_le(), "{other} {found}");
                    }
                }
            }
        }
    }
}
