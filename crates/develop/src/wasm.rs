//! What a WebAssembly file says about itself.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use serde::Serialize;
use wasm_metadata::Payload as Metadata;
use wasmparser::{Chunk, Encoding, Parser, Payload};
use wisp_engine::normalize::normalize;

use crate::Error;

/// The largest file that is read. As large as what the engine takes by default.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// How much is read at once of a file whose imports are looked for.
const READ_BYTES: u64 = 16 << 10;

/// A file of WebAssembly.
#[derive(Clone, Debug, Serialize)]
pub struct Wasm {
    /// What it is.
    pub kind: Kind,
    /// Its size.
    pub size_bytes: u64,
    /// Where its size comes from.
    pub sizes: Sizes,
    /// What it imports, once it is a component.
    pub imports: Vec<String>,
    /// What it exports, once it is a component.
    pub exports: Vec<String>,
    /// The languages that it was written in, as its producers say.
    pub languages: Vec<String>,
    /// The tools that made it, with their versions.
    pub producers: Vec<String>,
    /// Core modules in it, itself included.
    pub modules_count: usize,
    /// Whether it needs what only WASI 0.3 has: asynchronous functions, streams.
    pub is_concurrent: bool,
}

/// What a file of WebAssembly is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A component.
    Component,
    /// A core module: Wisp makes a component of it.
    Module,
}

/// Bytes of a file by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Functions.
    pub code_bytes: u64,
    /// What memories begin with.
    pub data_bytes: u64,
    /// Names, debug information and other custom sections.
    pub custom_bytes: u64,
    /// Types, imports, exports and the rest.
    pub other_bytes: u64,
}

impl Wasm {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Inspect`] if it is none, [`Error::File`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let size_bytes = fs::metadata(path).map_err(Error::file("read", path))?.len();
        let refused = |message: String| Error::Inspect { path: path.to_owned(), message };
        if size_bytes > MAX_FILE_BYTES {
            return Err(refused(format!("it has more than {} MiB", MAX_FILE_BYTES >> 20)));
        }
        let bytes = fs::read(path).map_err(Error::file("read", path))?;
        Self::of(&bytes).map_err(refused)
    }

    fn of(bytes: &[u8]) -> Result<Self, String> {
        // Rust's, Go's and Zig's modules are read as the components that they will be.
        let component = normalize(bytes).map_err(|error| error.to_string())?;
        let mut wasm = Self {
            kind: Kind::Component,
            size_bytes: bytes.len() as u64,
            sizes: Sizes::default(),
            imports: Vec::new(),
            exports: Vec::new(),
            languages: Vec::new(),
            producers: Vec::new(),
            modules_count: 0,
            is_concurrent: component.flavor.is_concurrent(),
        };
        wasm.read_sizes(bytes).map_err(|error| error.to_string())?;
        // The names as they were given, before the release candidate's are renamed.
        let named = if wasm.kind == Kind::Component { bytes } else { &component.component };
        wasm.read_names(named).map_err(|error| error.to_string())?;
        if let Ok(metadata) = Metadata::from_binary(bytes) {
            wasm.read_metadata(&metadata);
        }
        Ok(wasm)
    }

    fn read_sizes(&mut self, bytes: &[u8]) -> wasmparser::Result<()> {
        let mut is_first = true;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::Version { encoding, .. } => {
                    let is_module = encoding == Encoding::Module;
                    self.modules_count += usize::from(is_module);
                    if is_first && is_module {
                        self.kind = Kind::Module;
                    }
                    is_first = false;
                }
                Payload::CodeSectionStart { range, .. } => self.sizes.code_bytes += range.len() as u64,
                Payload::DataSection(section) => self.sizes.data_bytes += section.range().len() as u64,
                Payload::CustomSection(section) => self.sizes.custom_bytes += section.range().len() as u64,
                _ => {}
            }
        }
        let known = self.sizes.code_bytes + self.sizes.data_bytes + self.sizes.custom_bytes;
        self.sizes.other_bytes = self.size_bytes.saturating_sub(known);
        Ok(())
    }

    fn read_names(&mut self, bytes: &[u8]) -> wasmparser::Result<()> {
        let mut depth = 0;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(imports) if depth == 1 => {
                    for import in imports {
                        self.imports.push(import?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 1 => {
                    for export in exports {
                        self.exports.push(export?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_metadata(&mut self, payload: &Metadata) {
        let fields = payload.metadata().producers.iter().flat_map(|producers| producers.iter());
        for (field, values) in fields {
            for (name, version) in values.iter() {
                let (list, text) = match field.as_str() {
                    "language" => (&mut self.languages, name.clone()),
                    _ if version.is_empty() => (&mut self.producers, name.clone()),
                    _ => (&mut self.producers, format!("{name} {version}")),
                };
                if !list.contains(&text) {
                    list.push(text);
                }
            }
        }
        if let Metadata::Component { children, .. } = payload {
            for child in children {
                self.read_metadata(child);
            }
        }
    }

    /// What it may ask for, each with the imports that say so.
    pub fn capabilities(&self) -> Vec<(Capability, Vec<&str>)> {
        capabilities(&self.imports)
    }
}

/// What these imports ask for, each with those that say so.
pub(crate) fn capabilities(imports: &[String]) -> Vec<(Capability, Vec<&str>)> {
    let mut found: Vec<(Capability, Vec<&str>)> = Vec::new();
    for import in imports {
        if let Some(capability) = Capability::of(import) {
            match found.iter_mut().find(|(known, _)| *known == capability) {
                Some((_, imports)) => imports.push(import),
                None => found.push((capability, vec![import])),
            }
        }
    }
    found.sort_by_key(|(capability, _)| *capability);
    found
}

/// Whether these are all that there is, used or not, as guests in Python import: then they
/// do not say what a guest does.
pub(crate) fn is_everything(capabilities: &[(Capability, Vec<&str>)]) -> bool {
    capabilities.len() >= Capability::ALL.len() - 1
}

/// What a file imports, once it is a component. Passes over what is in a component, which is
/// nearly all of it.
///
/// # Errors
/// As [`Wasm::read`].
pub(crate) fn imports(path: &Path) -> Result<Vec<String>, Error> {
    let refused = |message: String| Error::Inspect { path: path.to_owned(), message };
    let unread = |cause| Error::file("read", path)(cause);
    let mut file = File::open(path).map_err(unread)?;
    let size_bytes = file.metadata().map_err(unread)?.len();
    let (mut parser, mut read, mut found) = (Parser::new(0), Vec::new(), Vec::new());
    let mut is_whole = false;
    loop {
        let (consumed_bytes, passed_over_bytes) = match parser.parse(&read, is_whole) {
            Err(error) => return Err(refused(error.to_string())),
            Ok(Chunk::NeedMoreData(wanted_bytes)) => {
                let before = read.len();
                file.by_ref().take(wanted_bytes.max(READ_BYTES)).read_to_end(&mut read).map_err(unread)?;
                // The parser says so if it must not end here.
                is_whole = read.len() == before;
                continue;
            }
            Ok(Chunk::Parsed { consumed, payload }) => match payload {
                Payload::Version { encoding: Encoding::Module, .. } => {
                    return Wasm::read(path).map(|wasm| wasm.imports);
                }
                Payload::ComponentImportSection(imports) => {
                    for import in imports {
                        let import = import.map_err(|error| refused(error.to_string()))?;
                        found.push(import.name.name.to_owned());
                    }
                    (consumed, 0)
                }
                Payload::ModuleSection { unchecked_range, .. }
                | Payload::ComponentSection { unchecked_range, .. } => (consumed, unchecked_range.len()),
                Payload::End(_) => return Ok(found),
                _ => (consumed, 0),
            },
        };
        read.drain(..consumed_bytes);
        let read_bytes = passed_over_bytes.min(read.len());
        read.drain(..read_bytes);
        if passed_over_bytes > read_bytes {
            let unread_bytes = i64::try_from(passed_over_bytes - read_bytes).unwrap_or(i64::MAX);
            if file.seek(SeekFrom::Current(unread_bytes)).map_err(unread)? > size_bytes {
                return Err(refused("unexpected end".into()));
            }
        }
    }
}

/// Something that a manifest has to grant before a component can use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Key-value stores.
    KeyValue,
    /// SQLite databases.
    Sqlite,
    /// Variables.
    Variables,
    /// HTTP requests to elsewhere.
    Http,
    /// Redis servers.
    Redis,
    /// PostgreSQL servers.
    Postgres,
    /// MySQL servers.
    Mysql,
    /// MQTT brokers.
    Mqtt,
    /// Language models.
    Llm,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::KeyValue,
        Self::Sqlite,
        Self::Variables,
        Self::Http,
        Self::Redis,
        Self::Postgres,
        Self::Mysql,
        Self::Mqtt,
        Self::Llm,
    ];

    /// What an import asks for, if it is something that has to be granted.
    pub fn of(import: &str) -> Option<Self> {
        let interface = import.split('@').next().unwrap_or(import);
        Some(match interface {
            "fermyon:spin/key-value" | "spin:key-value/key-value" => Self::KeyValue,
            "wasi:keyvalue/store" | "wasi:keyvalue/batch" | "wasi:keyvalue/atomics" => Self::KeyValue,
            "fermyon:spin/sqlite" | "spin:sqlite/sqlite" => Self::Sqlite,
            "fermyon:spin/variables" | "fermyon:spin/config" | "spin:variables/variables" => Self::Variables,
            "wasi:config/store" => Self::Variables,
            "wasi:http/outgoing-handler" | "wasi:http/client" | "fermyon:spin/http" => Self::Http,
            "fermyon:spin/redis" | "spin:redis/redis" => Self::Redis,
            "fermyon:spin/postgres" | "spin:postgres/postgres" => Self::Postgres,
            "fermyon:spin/mysql" | "spin:mysql/mysql" => Self::Mysql,
            "fermyon:spin/mqtt" | "spin:mqtt/mqtt" => Self::Mqtt,
            "fermyon:spin/llm" => Self::Llm,
            _ => return None,
        })
    }

    /// What it is called among people.
    pub fn title(self) -> &'static str {
        match self {
            Self::KeyValue => "key-value stores",
            Self::Sqlite => "SQLite databases",
            Self::Variables => "variables",
            Self::Http => "outbound HTTP",
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL",
            Self::Mqtt => "MQTT",
            Self::Llm => "language models",
        }
    }

    /// A line of the manifest that grants it, as an example.
    pub fn grant(self) -> &'static str {
        match self {
            Self::KeyValue => "key_value_stores = [\"default\"]",
            Self::Sqlite => "sqlite_databases = [\"default\"]",
            Self::Variables => "variables = { name = \"{{ name }}\" }",
            Self::Http => "allowed_outbound_hosts = [\"https://example.com\"]",
            Self::Redis => "allowed_outbound_hosts = [\"redis://localhost:6379\"]",
            Self::Postgres => "allowed_outbound_hosts = [\"postgres://localhost:5432\"]",
            Self::Mysql => "allowed_outbound_hosts = [\"mysql://localhost:3306\"]",
            Self::Mqtt => "allowed_outbound_hosts = [\"mqtt://localhost:1883\"]",
            Self::Llm => "ai_models = [\"llama2-chat\"]",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_component_is_read() {
        let bytes = wat::parse_str(
            r#"(component
                (import "fermyon:spin/key-value@2.0.0" (instance))
                (import "wasi:http/outgoing-handler@0.2.3" (instance))
                (core module (memory 1) (data (i32.const 0) "0123456789") (func (export "f")))
                (export "wasi:cli/run@0.2.0" (instance 0)))"#,
        )
        .unwrap();
        let wasm = Wasm::of(&bytes).unwrap();
        assert_eq!(wasm.kind, Kind::Component);
        assert_eq!(wasm.imports, ["fermyon:spin/key-value@2.0.0", "wasi:http/outgoing-handler@0.2.3"]);
        assert_eq!(wasm.exports, ["wasi:cli/run@0.2.0"]);
        assert_eq!(wasm.modules_count, 1);
        assert!(wasm.sizes.data_bytes >= 10 && wasm.sizes.code_bytes > 0);
        let found: Vec<_> = wasm.capabilities().into_iter().map(|(capability, _)| capability).collect();
        assert_eq!(found, [Capability::KeyValue, Capability::Http]);
        assert!(!is_everything(&wasm.capabilities()));
        assert!(Wasm::of(b"text").is_err());
    }

    #[test]
    fn imports_are_found_without_reading_what_is_in_a_component() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wasm");
        let imports_of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            imports(&path)
        };
        let data = "x".repeat(100_000);
        let component = wat::parse_str(format!(
            r#"(component
                (import "a:a/one@1.0.0" (instance))
                (component (import "inner" (func)))
                (core module (memory 2) (data (i32.const 0) "{data}"))
                (import "a:a/two@1.0.0" (instance))
                (core module (func (export "f"))))"#
        ))
        .unwrap();
        assert_eq!(imports_of(&component).unwrap(), ["a:a/one@1.0.0", "a:a/two@1.0.0"]);
        assert_eq!(imports_of(&component).unwrap(), Wasm::of(&component).unwrap().imports);
        let module = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
        let module = wat::parse_str(module).unwrap();
        assert_eq!(imports_of(&module).unwrap(), Wasm::of(&module).unwrap().imports);
        // Torn in a section, or in what is passed over.
        for length in [0, 7, 9, 50_000, component.len() - 1] {
            assert!(imports_of(&component[..length]).is_err(), "{length}");
        }
        assert!(imports_of(b"no WebAssembly at all").is_err());
    }
}
