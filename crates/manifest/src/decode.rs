//! From TOML to structs, with every fault on the way and where it is.
//!
//! serde stops at the first error and forgets where values came from. Here a
//! struct that is declared with [`table!`] is three things at once: the type,
//! its JSON schema (through schemars), and a decoder that goes on after a
//! fault: an optional value that is broken counts as absent, a required one is
//! an empty [`Required`], and either way the fault has been noted.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Diagnostics, Place, Rule, Severity, Subject, most_similar};
use crate::model::FreeTable;

pub(crate) type Value<'i> = Spanned<DeValue<'i>>;

/// Where something stands in the text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// A value that must be there. It is empty only after a fault was noted.
#[derive(Clone, Debug)]
pub(crate) struct Required<T>(pub(crate) Option<T>);

/// A table with free keys, in the order of the text. A value that is broken is
/// `None`, so that its key still counts as given.
#[derive(Clone, Debug)]
pub(crate) struct Entries<T>(pub(crate) Vec<(At<String>, Option<At<T>>)>);

/// A value of any shape, which nobody looks at.
#[derive(Clone, Debug)]
pub(crate) struct Any;

/// What the decoder knows while it walks: where it is, and what was wrong.
pub(crate) struct Context {
    pub(crate) diagnostics: Diagnostics,
    errors_count: usize,
    path: Vec<String>,
}

pub(crate) trait Decode: Sized {
    /// Reads a value. `None`: it could not be read, and that was noted.
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self>;

    /// What an absent key of a table means. `None` stands for a fault of ours:
    /// the fields of tables are either `Option`s or [`Required`].
    fn absent(_table: Span, _key: &str, _context: &mut Context) -> Option<Self> {
        None
    }
}

/// Whether a table may have keys that nothing is known about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// No: they are errors.
    Error,
    /// No, except for the key that tells the tables of an enum apart.
    ErrorExceptTag,
    /// Yes: they are probably misspelled, which is worth a warning.
    Warning,
}

/// Declares a struct that is read from a TOML table.
///
/// `closed` tables take no other keys, `variant`s of a [`tagged!`] enum take
/// its tag too, `open` ones take any with a warning. All fields implement [`Decode`]; those that may be absent are `Option`s, the
/// others [`Required`].
macro_rules! table {
    (@unknown closed) => { $crate::decode::Unknown::Error };
    (@unknown variant) => { $crate::decode::Unknown::ErrorExceptTag };
    (@unknown open) => { $crate::decode::Unknown::Warning };
    (
        $(#[$meta:meta])*
        $openness:ident struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident: $type:ty, )*
        }
    ) => {
        #[derive(Clone, Debug, schemars::JsonSchema)]
        $(#[$meta])*
        #[schemars(deny_unknown_fields, transform = $crate::schema::$openness)]
        pub(crate) struct $name {
            $( $(#[$field_meta])* pub(crate) $field: $type, )*
            /// Whether something in this table was wrong, so that what seems
            /// to be absent may just be broken.
            #[schemars(skip)]
            #[expect(clippy::allow_attributes, reason = "only some tables have keys that exclude others")]
            #[allow(dead_code, reason = "only some tables have keys that exclude others")]
            pub(crate) is_damaged: bool,
        }

        impl $name {
            pub(crate) const KEYS: &'static [&'static str] =
                &[$( $crate::decode::key_of(stringify!($field)), )*];
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                value: &$crate::decode::Value<'_>,
                context: &mut $crate::decode::Context,
            ) -> Option<Self> {
                let table = context.table(value)?;
                let before = context.errors_count();
                context.report_unknown(table, Self::KEYS, $crate::decode::table!(@unknown $openness));
                $( let $field = context.field::<$type>(value, table, $crate::decode::key_of(stringify!($field))); )*
                let is_damaged = context.errors_count() > before;
                Some(Self { $( $field: $field?, )* is_damaged })
            }
        }
    };
}
pub(crate) use table;

/// Declares an enum that is read from values of different shapes.
///
/// `text` is a string, `flag` a boolean, `list` an array, `keyed "k"` a table
/// that has the key `k`, and `table` any other table.
macro_rules! union {
    (@matches text, $value:expr) => { $value.get_ref().is_str() };
    (@matches flag, $value:expr) => { $value.get_ref().is_bool() };
    (@matches list, $value:expr) => { $value.get_ref().is_array() };
    (@matches table, $value:expr) => { $value.get_ref().is_table() };
    (@matches keyed $key:literal, $value:expr) => {
        $value.get_ref().as_table().is_some_and(|table| table.contains_key($key))
    };
    (@expected text) => { "a string" };
    (@expected flag) => { "a boolean" };
    (@expected list) => { "an array" };
    (@expected table) => { "a table" };
    (@expected keyed $key:literal) => { concat!("a table with `", $key, "`") };
    (
        $(#[$meta:meta])*
        enum $name:ident {
            $( $(#[$variant_meta:meta])* $shape:ident $($key:literal)? => $variant:ident($type:ty), )*
        }
    ) => {
        #[derive(Clone, Debug, schemars::JsonSchema)]
        $(#[$meta])*
        #[schemars(untagged)]
        pub(crate) enum $name {
            $( $(#[$variant_meta])* $variant($type), )*
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                value: &$crate::decode::Value<'_>,
                context: &mut $crate::decode::Context,
            ) -> Option<Self> {
                $(
                    if $crate::decode::union!(@matches $shape $($key)?, value) {
                        return <$type as $crate::decode::Decode>::decode(value, context)
                            .map(Self::$variant);
                    }
                )*
                context.wrong_type(value, &[$( $crate::decode::union!(@expected $shape $($key)?), )*]);
                None
            }
        }
    };
}
pub(crate) use union;

/// Declares an enum of tables that a key `type` tells apart.
macro_rules! tagged {
    (
        $(#[$meta:meta])*
        enum $name:ident, $what:literal {
            $( $(#[$variant_meta:meta])* $tag:literal => $variant:ident($type:ty), )*
        }
    ) => {
        #[derive(Clone, Debug, schemars::JsonSchema)]
        $(#[$meta])*
        #[schemars(tag = "type")]
        pub(crate) enum $name {
            $( $(#[$variant_meta])* #[schemars(rename = $tag)] $variant($type), )*
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                value: &$crate::decode::Value<'_>,
                context: &mut $crate::decode::Context,
            ) -> Option<Self> {
                let tag = context.tag(value, $what, &[$( $tag, )*])?;
                match tag.as_str() {
                    $( $tag => <$type as $crate::decode::Decode>::decode(value, context).map(Self::$variant), )*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use tagged;

/// The key of a field: its name, without the mark of a raw identifier.
pub(crate) const fn key_of(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// The key that tells the tables of a [`tagged!`] enum apart. It is known in
/// all of them.
const TAG: &str = "type";

impl Context {
    pub(crate) fn new(diagnostics: Diagnostics) -> Self {
        Self { diagnostics, errors_count: 0, path: Vec::new() }
    }

    pub(crate) fn errors_count(&self) -> usize {
        self.errors_count
    }

    pub(crate) fn error(&mut self, span: Span, rule: Rule) {
        self.errors_count += 1;
        self.diagnostics.push(Severity::Error, rule, Some(span.into()), Vec::new());
    }

    /// An error that no place in the text is to blame for.
    pub(crate) fn error_nowhere(&mut self, rule: Rule) {
        self.errors_count += 1;
        self.diagnostics.push(Severity::Error, rule, None, Vec::new());
    }

    pub(crate) fn error_with(&mut self, span: Span, rule: Rule, related: Vec<(Span, String)>) {
        self.errors_count += 1;
        let related = related.into_iter().map(|(span, label)| (span.into(), label)).collect();
        self.diagnostics.push(Severity::Error, rule, Some(span.into()), related);
    }

    pub(crate) fn warning(&mut self, span: Span, rule: Rule) {
        self.diagnostics.push(Severity::Warning, rule, Some(span.into()), Vec::new());
    }

    pub(crate) fn warning_with(&mut self, span: Span, rule: Rule, related: Vec<(Span, String)>) {
        let related = related.into_iter().map(|(span, label)| (span.into(), label)).collect();
        self.diagnostics.push(Severity::Warning, rule, Some(span.into()), related);
    }

    /// Goes one step further down, so that messages name the place.
    pub(crate) fn enter(&mut self, step: &str) {
        let is_plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        self.path.push(match !step.is_empty() && step.chars().all(is_plain) {
            true => format!(".{step}"),
            false => format!(".{step:?}"),
        });
    }

    /// Goes down along a path that is ours.
    pub(crate) fn enter_path(&mut self, path: &'static str) {
        self.path.push(format!(".{path}"));
    }

    /// Goes back up to where [`enter`](Self::enter) was called.
    pub(crate) fn leave(&mut self) {
        self.path.pop();
    }

    /// Does something one step further down.
    pub(crate) fn within<R>(&mut self, step: &str, action: impl FnOnce(&mut Self) -> R) -> R {
        self.enter(step);
        let result = action(self);
        self.leave();
        result
    }

    fn within_index<R>(&mut self, index: usize, action: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(format!("[{index}]"));
        let result = action(self);
        self.path.pop();
        result
    }

    fn joined_path(&self) -> String {
        let joined = self.path.concat();
        joined.strip_prefix('.').unwrap_or(&joined).to_owned()
    }

    /// The table that is being read, as part of a message.
    pub(crate) fn place(&self) -> Place {
        Place(self.joined_path())
    }

    /// The value that is being read, as the beginning of a message.
    pub(crate) fn subject(&self) -> Subject {
        Subject(self.joined_path())
    }

    pub(crate) fn wrong_type(&mut self, value: &Value<'_>, expected: &[&str]) {
        // Tables with certain keys are among all tables.
        let any_table = expected.contains(&"a table");
        let expected: Vec<&str> = expected
            .iter()
            .copied()
            .filter(|shape| !(any_table && shape.starts_with("a table with ")))
            .collect();
        let expected = match expected.as_slice() {
            [] => String::new(),
            [only] => (*only).to_owned(),
            [first @ .., last] => format!("{} or {last}", first.join(", ")),
        };
        let found = article(value.get_ref());
        let rule = Rule::WrongType { place: self.subject(), expected, found };
        self.error(span_of(value), rule);
    }

    pub(crate) fn invalid(&mut self, span: Span, reason: impl Into<String>, hint: Option<&str>) {
        let hint = hint.map(str::to_owned);
        let rule = Rule::InvalidValue { place: self.subject(), reason: reason.into(), hint };
        self.error(span, rule);
    }

    /// Where a part of a string stands in the text, as exactly as its way of
    /// being written allows.
    pub(crate) fn part_of(&self, string: &At<String>, part: Range<usize>) -> Span {
        let written = self.diagnostics.text().get(Range::from(string.span)).unwrap_or_default();
        let quotes = ["\"\"\"", "'''", "\"", "'"];
        let start = quotes.iter().find_map(|quote| {
            let inside = written.strip_prefix(quote)?.strip_suffix(quote)?;
            // The first line break within three quotes does not count.
            let skipped = [0, 1, 2]
                .into_iter()
                .find(|&skipped| inside.get(skipped..).is_some_and(|inside| inside == string.value))?;
            Some(string.span.start + quote.len() + skipped)
        });
        match start {
            Some(start) => Span { start: start + part.start, end: start + part.end },
            None => string.span,
        }
    }

    pub(crate) fn table<'v, 'i>(&mut self, value: &'v Value<'i>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, &["a table"]);
        }
        table
    }

    /// Notes the keys of a table that are not among the known ones.
    pub(crate) fn report_unknown(
        &mut self,
        table: &DeTable<'_>,
        known: &'static [&'static str],
        unknown: Unknown,
    ) {
        for key in in_order(table.keys()) {
            let name = key.get_ref().as_ref();
            if known.contains(&name) || (name == TAG && unknown == Unknown::ErrorExceptTag) {
                continue;
            }
            let rule = Rule::UnknownKey {
                key: name.to_owned(),
                place: self.place(),
                similar: most_similar(name, known.iter().copied()),
                known: known.to_vec(),
            };
            match unknown {
                Unknown::Error | Unknown::ErrorExceptTag => self.error(key.span().into(), rule),
                Unknown::Warning => self.warning(key.span().into(), rule),
            }
        }
    }

    /// Reads the value of a key of a table.
    pub(crate) fn field<T: Decode>(
        &mut self,
        value: &Value<'_>,
        table: &DeTable<'_>,
        key: &str,
    ) -> Option<T> {
        match table.get(key) {
            Some(found) => self.within(key, |context| T::decode(found, context)),
            None => T::absent(span_of(value), key, self),
        }
    }

    /// Reads the key that tells the tables of an enum apart.
    pub(crate) fn tag(
        &mut self,
        value: &Value<'_>,
        what: &'static str,
        known: &[&'static str],
    ) -> Option<String> {
        let table = self.table(value)?;
        let tag = self.field::<Required<At<String>>>(value, table, TAG)?.0?;
        if !known.contains(&tag.value.as_str()) {
            let similar = most_similar(&tag.value, known.iter().copied());
            let known = known.to_vec();
            self.error(tag.span, Rule::UnknownBackend { what, found: tag.value, known, similar });
            return None;
        }
        Some(tag.value)
    }
}

/// The entries of a table come sorted by name; people read them as written.
fn in_order<'k, 'i: 'k>(
    keys: impl Iterator<Item = &'k Spanned<Cow<'i, str>>>,
) -> Vec<&'k Spanned<Cow<'i, str>>> {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_by_key(|key| key.span().start);
    keys
}

/// The type of a value, with its article.
fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

pub(crate) fn span_of(value: &Value<'_>) -> Span {
    value.span().into()
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

impl From<Span> for Range<usize> {
    fn from(span: Span) -> Self {
        span.start..span.end
    }
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Required<T> {
    pub(crate) fn as_ref(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T> Entries<T> {
    /// The entries whose values could be read.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&At<String>, &At<T>)> {
        self.0.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }
}

impl<T: Decode> Decode for At<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        Some(Self { value: T::decode(value, context)?, span: span_of(value) })
    }
}

/// A broken value counts as absent; that it is broken has been noted.
impl<T: Decode> Decode for Option<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        Some(T::decode(value, context))
    }

    fn absent(_: Span, _: &str, _: &mut Context) -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Required<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        Some(Self(T::decode(value, context)))
    }

    fn absent(table: Span, key: &str, context: &mut Context) -> Option<Self> {
        let rule = Rule::MissingKey { key: key.to_owned(), place: context.place() };
        context.error(table, rule);
        Some(Self(None))
    }
}

impl<T: Decode> Decode for Box<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        T::decode(value, context).map(Self::new)
    }
}

impl Decode for String {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.clone().into_owned()),
            _ => {
                context.wrong_type(value, &["a string"]);
                None
            }
        }
    }
}

impl Decode for bool {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => {
                context.wrong_type(value, &["a boolean"]);
                None
            }
        }
    }
}

macro_rules! decode_integer {
    ($($integer:ident)*) => {
        $(
            impl Decode for $integer {
                fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
                    let DeValue::Integer(integer) = value.get_ref() else {
                        context.wrong_type(value, &["an integer"]);
                        return None;
                    };
                    let parsed = Self::from_str_radix(integer.as_str(), integer.radix()).ok();
                    if parsed.is_none() {
                        let reason =
                            format!("a number from {} to {} is needed", Self::MIN, Self::MAX);
                        context.invalid(span_of(value), reason, None);
                    }
                    parsed
                }
            }
        )*
    };
}
decode_integer!(u16 u32 u64);

/// Values that are broken are left out.
impl<T: Decode> Decode for Vec<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            context.wrong_type(value, &["an array"]);
            return None;
        };
        let items = array.iter().enumerate();
        Some(
            items
                .filter_map(|(index, item)| context.within_index(index, |context| T::decode(item, context)))
                .collect(),
        )
    }
}

impl<T: Decode> Decode for Entries<T> {
    fn decode(value: &Value<'_>, context: &mut Context) -> Option<Self> {
        let table = context.table(value)?;
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let decoded = entries.into_iter().map(|(key, value)| {
            let name = key.get_ref().clone().into_owned();
            let value = context.within(&name, |context| At::decode(value, context));
            (At { value: name, span: key.span().into() }, value)
        });
        Some(Self(decoded.collect()))
    }
}

impl Decode for Any {
    fn decode(_: &Value<'_>, _: &mut Context) -> Option<Self> {
        Some(Self)
    }
}

/// A value without its place. Numbers that JSON has no form for, and dates,
/// become strings.
fn to_json(value: &DeValue<'_>) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        DeValue::String(text) => Json::String(text.clone().into_owned()),
        DeValue::Boolean(flag) => Json::Bool(*flag),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix());
            number.map_or_else(|_| Json::String(integer.as_str().to_owned()), Json::from)
        }
        DeValue::Float(float) => {
            let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            number.map_or_else(|| Json::String(float.as_str().to_owned()), Json::Number)
        }
        DeValue::Datetime(datetime) => Json::String(datetime.to_string()),
        DeValue::Array(array) => Json::Array(array.iter().map(|item| to_json(item.get_ref())).collect()),
        DeValue::Table(table) => Json::Object(to_free_table(table)),
    }
}

pub(crate) fn to_free_table(table: &DeTable<'_>) -> FreeTable {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let converted = entries
        .into_iter()
        .map(|(key, value)| (key.get_ref().clone().into_owned(), to_json(value.get_ref())));
    converted.collect()
}

/// The wrappers of this module do not show in the schema.
macro_rules! transparent_schema {
    ($($wrapper:ident)*) => {
        $(
            impl<T: JsonSchema> JsonSchema for $wrapper<T> {
                fn inline_schema() -> bool {
                    T::inline_schema()
                }

                fn schema_name() -> Cow<'static, str> {
                    T::schema_name()
                }

                fn schema_id() -> Cow<'static, str> {
                    T::schema_id()
                }

                fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                    T::json_schema(generator)
                }
            }
        )*
    };
}
transparent_schema!(At Required);

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("EntriesOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        schemars::json_schema!({ "type": "object", "additionalProperties": value })
    }
}

impl JsonSchema for Any {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Any".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!(true)
    }
}
