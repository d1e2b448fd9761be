//! What can go wrong between bytes and an instance.

use std::path::PathBuf;

/// Why a component could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not WebAssembly at all.
    #[error("the file is not WebAssembly: {found}")]
    NotWebAssembly {
        /// What the bytes look like instead.
        found: String,
    },
    /// The bytes begin like WebAssembly but do not validate.
    #[error("the WebAssembly is invalid: {message}")]
    Invalid {
        /// The validator's words, with the offset of the first defect.
        message: String,
    },
    /// A core module could not be made into a component.
    #[error("the core module cannot be made into a component: {message}")]
    Componentize {
        /// What the encoder said.
        message: String,
    },
    /// The component could not be rewired to the final WASI 0.3 interfaces.
    #[error("the component uses a WASI 0.3 release candidate in a way that cannot be adapted: {message}")]
    Adapt {
        /// What the composer said.
        message: String,
    },
    /// The compiler refused the component.
    #[error("the component does not compile: {message}")]
    Compile {
        /// What the compiler said.
        message: String,
    },
    /// The store of compiled images cannot be used.
    #[error("the compiled-image store `{}` cannot be used: {cause}", path.display())]
    ImageStore {
        /// The file or folder in question.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The source file cannot be read.
    #[error("`{}` cannot be read: {cause}", path.display())]
    Read {
        /// The source file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The source is larger than Wisp accepts.
    #[error("`{}` is {size_bytes} bytes long; at most {max_bytes} are accepted", path.display())]
    TooLarge {
        /// The source file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Compiling took longer than it may.
    #[error("the component was not compiled within {limit:?}")]
    CompileTime {
        /// The limit.
        limit: std::time::Duration,
    },
    /// There is no compiled image that the control plane signed.
    #[error("there is no compiled image of it that this control plane has signed: {reason}")]
    Unsigned {
        /// What there is instead.
        reason: String,
    },
    /// The key that signs compiled images cannot be used.
    #[error("the key `{}` cannot be used: {message}", path.display())]
    SigningKey {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The engine itself cannot start.
    #[error("the WebAssembly engine does not start: {cause}")]
    Configuration {
        /// What Wasmtime said. Not a `source`: it is not a standard error.
        cause: wasmtime::Error,
    },
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotWebAssembly { .. } => "WISP-E0201",
            Self::Invalid { .. } => "WISP-E0202",
            Self::Componentize { .. } => "WISP-E0203",
            Self::Adapt { .. } => "WISP-E0204",
            Self::Compile { .. } => "WISP-E0205",
            Self::ImageStore { .. } => "WISP-E0206",
            Self::Read { .. } => "WISP-E0207",
            Self::TooLarge { .. } => "WISP-E0208",
            Self::Configuration { .. } => "WISP-E0209",
            Self::CompileTime { .. } => "WISP-E0210",
            Self::Unsigned { .. } => "WISP-E0211",
            Self::SigningKey { .. } => "WISP-E0212",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotWebAssembly { .. } => {
                "`source` must name a compiled `.wasm` file; was the app built?".into()
            }
            Self::Invalid { .. } => {
                "build the component again; if the error stays, its toolchain is newer or older than the \
                 component model of Wasmtime 48"
                    .into()
            }
            Self::Componentize { .. } => {
                "core modules need the WASI preview 1 interface (`wasi_snapshot_preview1`) or bindings from \
                 wit-bindgen 0.5 or newer; build for `wasm32-wasip2` where the toolchain can"
                    .into()
            }
            Self::Adapt { .. } => "build the component with an SDK that targets WASI 0.3.0".into(),
            Self::Compile { .. } => {
                "check the component with `wasm-tools validate`; please report it if that succeeds".into()
            }
            Self::ImageStore { .. } => {
                "name a folder that can be written with `--cache-dir`, or use `--disable-cache`".into()
            }
            Self::Read { .. } => "build the app first, or correct `source` in the manifest".into(),
            Self::TooLarge { .. } => {
                "strip debug information from the component, or raise `--max-source-bytes`".into()
            }
            Self::CompileTime { .. } => {
                "make the component smaller, its functions above all, or raise `--max-compile-time`".into()
            }
            Self::Unsigned { .. } => {
                "deploy the app again: it is compiled again, and the result signed".into()
            }
            Self::SigningKey { .. } => {
                "restore the key from a backup, or remove the file and deploy all apps again".into()
            }
            Self::Configuration { .. } => {
                "a limit of the operating system on address space (`ulimit -v`) may be too low; \
                 `--disable-pooling` needs far less of it"
                    .into()
            }
        })
    }
}
