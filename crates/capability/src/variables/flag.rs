//! The argument of `--variable`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wisp_manifest::id::VariableName;

use super::Value;
use super::environment::read_text;
use crate::Error;

/// Values from an argument of `--variable`: `NAME=VALUE`, `NAME=@FILE` (the value
/// is the file's whole text), or `@FILE.json` or `@FILE.toml` (a table of names and
/// texts). Relative paths start at `base_directory`.
///
/// # Errors
/// When it has another form, names no variable, or its file cannot be used.
/// No error quotes a value.
pub fn parse_flag(argument: &str, base_directory: &Path) -> Result<Vec<(VariableName, Value)>, Error> {
    if let Some(path) = argument.strip_prefix('@') {
        return parse_file(argument, &base_directory.join(path));
    }
    let Some((name, value)) = argument.split_once('=') else {
        // Without `=` all of it may be a value that lost its name.
        return Err(invalid("VALUE", "it has neither a `=` nor a leading `@`"));
    };
    let shown = format!("{name}=…");
    let name = parse_name(&shown, name)?;
    let value = match value.strip_prefix('@') {
        None => value.into(),
        Some(path) => {
            let path = base_directory.join(path);
            read_text(&path).map_err(|cause| unreadable(path, cause))?.into()
        }
    };
    Ok(vec![(name, value)])
}

fn parse_file(argument: &str, path: &Path) -> Result<Vec<(VariableName, Value)>, Error> {
    // Errors of the parsers quote the text, so only the place is taken from them.
    let parse: fn(&str) -> Result<BTreeMap<String, String>, String> =
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => |text| {
                serde_json::from_str(text)
                    .map_err(|error| format!("line {}, column {}", error.line(), error.column()))
            },
            Some("toml") => |text| {
                toml::from_str(text).map_err(|error| {
                    let start = error.span().map_or(0, |span| span.start);
                    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
                    format!("line {line}")
                })
            },
            _ => return Err(invalid(argument, "the file's name ends neither in `.json` nor in `.toml`")),
        };
    let text = read_text(path).map_err(|cause| unreadable(path.to_owned(), cause))?;
    let values = parse(&text).map_err(|place| {
        unreadable(path.to_owned(), format!("it is not a table of names and texts, see {place}"))
    })?;
    values.into_iter().map(|(name, value)| Ok((parse_name(argument, &name)?, value.into()))).collect()
}

fn parse_name(argument: &str, name: &str) -> Result<VariableName, Error> {
    VariableName::new(name)
        .map_err(|cause| invalid(argument, format!("`{name}` is no variable's name: {cause}")))
}

fn invalid(argument: &str, cause: impl ToString) -> Error {
    Error::VariableFlag { argument: argument.to_owned(), cause: cause.to_string() }
}

fn unreadable(path: PathBuf, cause: impl ToString) -> Error {
    Error::VariableFile { path, cause: cause.to_string() }
}
