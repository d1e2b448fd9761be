//! The filters that templates may use beside Liquid's own.

use std::fmt;

use heck::{ToKebabCase as _, ToSnakeCase as _, ToUpperCamelCase as _};
use liquid_core::{
    Error, Filter, FilterReflection, ParseFilter, Result, Runtime, Value, ValueView,
    parser::{FilterArguments, ParameterReflection},
};

/// A filter without parameters that makes a text of a text.
#[derive(Clone, Copy)]
pub(super) struct TextFilter {
    name: &'static str,
    description: &'static str,
    convert: fn(&str) -> String,
}

/// All of them; the names are Spin's.
pub(super) const ALL: [TextFilter; 5] = [
    TextFilter {
        name: "kebab_case",
        description: "words of lower case with `-` between them",
        convert: |text| text.to_kebab_case(),
    },
    TextFilter {
        name: "snake_case",
        description: "words of lower case with `_` between them",
        convert: |text| text.to_snake_case(),
    },
    TextFilter {
        name: "pascal_case",
        description: "words that begin with a capital letter, nothing between them",
        convert: |text| text.to_upper_camel_case(),
    },
    TextFilter {
        name: "dotted_pascal_case",
        description: "as pascal_case, in each part between dots",
        convert: |text| {
            let parts: Vec<_> = text.split('.').map(|part| part.to_upper_camel_case()).collect();
            parts.join(".")
        },
    },
    TextFilter {
        name: "http_wildcard",
        description: "a route that takes all paths below it",
        convert: wildcard,
    },
];

fn wildcard(route: &str) -> String {
    let route = route.strip_suffix("/...").unwrap_or(route);
    format!("{}/...", route.strip_suffix('/').unwrap_or(route))
}

impl FilterReflection for TextFilter {
    fn name(&self) -> &str {
        self.name
    }

    fn description(&self) -> &str {
        self.description
    }

    fn positional_parameters(&self) -> &'static [ParameterReflection] {
        &[]
    }

    fn keyword_parameters(&self) -> &'static [ParameterReflection] {
        &[]
    }
}

impl ParseFilter for TextFilter {
    fn parse(&self, mut arguments: FilterArguments<'_>) -> Result<Box<dyn Filter>> {
        if arguments.positional.next().is_some() || arguments.keyword.next().is_some() {
            return Err(Error::with_msg(format!("the filter `{}` takes no arguments", self.name)));
        }
        Ok(Box::new(*self))
    }

    fn reflection(&self) -> &dyn FilterReflection {
        self
    }
}

impl Filter for TextFilter {
    fn evaluate(&self, input: &dyn ValueView, _runtime: &dyn Runtime) -> Result<Value> {
        let text = input.as_scalar().ok_or_else(|| Error::with_msg("a text is expected"))?;
        Ok(Value::scalar((self.convert)(&text.into_cow_str())))
    }
}

impl fmt::Debug for TextFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl fmt::Display for TextFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_do_as_they_are_named() {
        let of = |name: &str, text: &str| {
            ALL.iter().find(|filter| filter.name == name).map(|filter| (filter.convert)(text))
        };
        assert_eq!(of("kebab_case", "My first App").as_deref(), Some("my-first-app"));
        assert_eq!(of("snake_case", "my-first.app").as_deref(), Some("my_first_app"));
        assert_eq!(of("pascal_case", "my-first app").as_deref(), Some("MyFirstApp"));
        assert_eq!(of("dotted_pascal_case", "my-app.core").as_deref(), Some("MyApp.Core"));
        for (route, expected) in
            [("/", "/..."), ("/a", "/a/..."), ("/a/", "/a/..."), ("/a/...", "/a/..."), ("/...", "/...")]
        {
            assert_eq!(of("http_wildcard", route).as_deref(), Some(expected), "{route}");
        }
    }
}
