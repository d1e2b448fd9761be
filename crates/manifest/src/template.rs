//! Text with places for variables: `https://{{ host }}/v1`.
//!
//! `{{`, a variable's name with any white space around it, `}}`. There is no
//! escape: a value that must contain two braces comes from a variable.

use std::fmt;
use std::sync::Arc;

use crate::id::{InvalidName, VariableName};

/// The longest template that is accepted.
///
/// A value of this size does not fit into a header or an environment anyway.
pub const MAX_TEMPLATE_BYTES: usize = 64 * 1024;

/// The longest text that [`Template::expand`] makes.
///
/// A template can name one large variable very often, so the limit on the
/// template's own size does not bound its result.
pub const MAX_EXPANDED_BYTES: usize = 1024 * 1024;

/// Text with places for variables, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    source: Arc<str>,
    parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text that stands for itself.
    Text(Arc<str>),
    /// The place of a variable.
    Variable(VariableName),
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The text is longer than [`MAX_TEMPLATE_BYTES`].
    #[error("a template has at most {MAX_TEMPLATE_BYTES} bytes, this one has {length_bytes}")]
    TooLong {
        /// How long it is.
        length_bytes: usize,
    },
    /// A `{{` without its `}}`.
    #[error("`{{{{` without a closing `}}}}`")]
    Unclosed {
        /// Where the braces are, in bytes from the start of the text.
        offset_bytes: usize,
    },
    /// Nothing between `{{` and `}}`.
    #[error("nothing between `{{{{` and `}}}}`")]
    Empty {
        /// Where the braces are, in bytes from the start of the text.
        offset_bytes: usize,
    },
    /// What stands between the braces is no variable's name.
    #[error("`{name}` is no variable's name: {reason}")]
    Name {
        /// Where the braces are, in bytes from the start of the text.
        offset_bytes: usize,
        /// What stands between them.
        name: String,
        /// What is wrong with it.
        reason: InvalidName,
    },
}

/// Why a template could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError<E> {
    /// The source of variables refused.
    #[error("variable `{name}`: {cause}")]
    Lookup {
        /// Which variable was asked for.
        name: VariableName,
        /// What the source of variables said.
        cause: E,
    },
    /// The result would be longer than [`MAX_EXPANDED_BYTES`].
    #[error("the filled-in text would have more than {MAX_EXPANDED_BYTES} bytes")]
    TooLong,
}

impl Template {
    /// Takes a text apart.
    ///
    /// # Errors
    /// When braces are unclosed or empty, or hold something else than a name.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { length_bytes: text.len() });
        }
        let mut parts = Vec::new();
        let mut offset_bytes = 0;
        while let Some((before, after)) = text[offset_bytes..].split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            offset_bytes += before.len();
            let Some((inside, _)) = after.split_once("}}") else {
                return Err(TemplateError::Unclosed { offset_bytes });
            };
            let name = inside.trim();
            if name.is_empty() {
                return Err(TemplateError::Empty { offset_bytes });
            }
            match VariableName::new(name) {
                Ok(name) => parts.push(Part::Variable(name)),
                Err(reason) => {
                    let name = name.to_owned();
                    return Err(TemplateError::Name { offset_bytes, name, reason });
                }
            }
            offset_bytes += "{{".len() + inside.len() + "}}".len();
        }
        if offset_bytes < text.len() {
            parts.push(Part::Text(text[offset_bytes..].into()));
        }
        Ok(Self { source: text.into(), parts })
    }

    /// The text as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The pieces in order. Two pieces of text never follow each other, and
    /// none is empty.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The names of the variables in it, in order; a name may come twice.
    pub fn variables(&self) -> impl Iterator<Item = &VariableName> {
        self.parts.iter().filter_map(|part| match part {
            Part::Variable(name) => Some(name),
            Part::Text(_) => None,
        })
    }

    /// The text itself if it has no places for variables.
    pub fn as_literal(&self) -> Option<&str> {
        match self.variables().next() {
            None => Some(&self.source),
            Some(_) => None,
        }
    }

    /// Fills the places in. `lookup` is called once for each place, in order.
    ///
    /// # Errors
    /// The first error of `lookup`, or that the result is too long.
    pub fn expand<V: AsRef<str>, E>(
        &self,
        mut lookup: impl FnMut(&VariableName) -> Result<V, E>,
    ) -> Result<String, ExpandError<E>> {
        let mut expanded = String::with_capacity(self.source.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => expanded.push_str(text),
                Part::Variable(name) => {
                    let value =
                        lookup(name).map_err(|cause| ExpandError::Lookup { name: name.clone(), cause })?;
                    let value = value.as_ref();
                    if expanded.len() + value.len() > MAX_EXPANDED_BYTES {
                        return Err(ExpandError::TooLong);
                    }
                    expanded.push_str(value);
                }
            }
        }
        Ok(expanded)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.source)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, formatter)
    }
}

impl TemplateError {
    /// Which bytes of the text are at fault.
    pub fn range(&self, text: &str) -> std::ops::Range<usize> {
        match self {
            Self::TooLong { .. } => 0..text.len(),
            Self::Unclosed { offset_bytes } => *offset_bytes..text.len(),
            Self::Empty { offset_bytes } | Self::Name { offset_bytes, .. } => {
                let end = text[*offset_bytes..]
                    .find("}}")
                    .map_or(text.len(), |end| offset_bytes + end + "}}".len());
                *offset_bytes..end
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn text(value: &str) -> Part {
        Part::Text(value.into())
    }

    fn variable(name: &str) -> Part {
        Part::Variable(VariableName::new(name).unwrap())
    }

    #[test]
    fn parts() {
        for (source, parts) in [
            ("", vec![]),
            ("plain", vec![text("plain")]),
            ("{{a}}", vec![variable("a")]),
            ("{{ a_b }}", vec![variable("a_b")]),
            ("{{\ta\n}}", vec![variable("a")]),
            ("x{{a}}y{{ b }}", vec![text("x"), variable("a"), text("y"), variable("b")]),
            ("{ a } }} {", vec![text("{ a } }} {")]),
            ("ä{{a}}ö", vec![text("ä"), variable("a"), text("ö")]),
        ] {
            assert_eq!(Template::parse(source).unwrap().parts(), parts, "{source}");
        }
    }

    #[test]
    fn faults_and_their_place() {
        for (source, range) in [
            ("ab{{ c", 2..6),
            ("{{}}", 0..4),
            ("x{{  }}y", 1..7),
            ("x{{ A }}y", 1..8),
            ("{{ a-b }}", 0..9),
            ("{{{ a }}}", 0..8),
            ("{{ a }} {{", 8..10),
        ] {
            let error = Template::parse(source).unwrap_err();
            assert_eq!(error.range(source), range, "{source}: {error}");
        }
        assert!(Template::parse(&"a".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    }

    #[test]
    fn expansion_stops_at_the_first_error_and_at_the_limit() {
        let template = Template::parse("{{ a }}-{{ b }}").unwrap();
        let lookup = |name: &VariableName| match name.as_str() {
            "a" => Ok("1"),
            _ => Err("no such variable"),
        };
        assert_eq!(
            template.expand(lookup),
            Err(ExpandError::Lookup { name: VariableName::new("b").unwrap(), cause: "no such variable" })
        );
        let large = "x".repeat(MAX_EXPANDED_BYTES);
        assert_eq!(template.expand(|_| Ok::<_, ()>(large.as_str())), Err(ExpandError::TooLong));
        assert_eq!(template.expand(|_| Ok::<_, ()>("1")).unwrap(), "1-1");
    }

    proptest! {
        #[test]
        fn never_panics_and_keeps_its_source(source in "(\\{\\{|\\}\\}|[a-z_ {}é])*") {
            match Template::parse(&source) {
                Ok(template) => {
                    prop_assert_eq!(template.source(), &source);
                    // Each variable put back in braces means the same template.
                    let again = template
                        .expand(|name| Ok::<_, ()>(format!("{{{{{name}}}}}")))
                        .unwrap();
                    let again = Template::parse(&again).unwrap();
                    prop_assert_eq!(again.parts(), template.parts());
                }
                Err(error) => {
                    prop_assert!(source.get(error.range(&source)).is_some());
                }
            }
        }
    }
}
