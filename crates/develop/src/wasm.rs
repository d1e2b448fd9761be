//! What a WebAssembly file says about itself.

use std::{fs, path::Path};

use serde::Serialize;
use wasm_metadata::Payload as Metadata;
use wasmparser::{Encoding, Parser, Payload};
use wisp_engine::normalize::normalize;

use crate::Error;

/// The largest file that is read. As large as what the engine takes by default.
const MAX_FILE_BYTES: u64 = 256 << 20;

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
        let mut found: Vec<(Capability, Vec<&str>)> = Vec::new();
        for import in &self.imports {
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

    /// Whether it imports all there is, used or not, as guests in Python do: then its
    /// imports do not say what it does.
    pub fn imports_everything(&self) -> bool {
        self.capabilities().len() >= Capability::ALL.len() - 1
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
        assert!(!wasm.imports_everything());
        assert!(Wasm::of(b"text").is_err());
    }
}
