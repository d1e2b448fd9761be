//! The programs that Wisp is compared with, and where built things are.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::Error;
use crate::guest::{self, Guest};
use crate::report::progress;

/// The version of Wasmtime's command that is compared with: the one that Wisp
/// builds on, so that the engine below is the same.
const WASMTIME_VERSION: &str = "48.0.8";

/// The features that `wasmtime serve` has in this comparison: all that speed it
/// up, that it needs for WASI 0.2 and 0.3, and that Wisp's engine has too. The
/// rest of its default features are other sub-commands, other compilers, and
/// hooks for profilers and debuggers.
const WASMTIME_FEATURES: &[&str] = &[
    "addr2line",
    "backtrace",
    "compile",
    "component-model",
    "component-model-async",
    "cranelift",
    "demangle",
    "gc",
    "gc-drc",
    "gc-null",
    "logging",
    "parallel-compilation",
    "pooling-allocator",
    "run",
    "serve",
    "threads",
    "wat",
];

/// What "tuned" means: the flags by which `wasmtime serve` resets an instance at
/// the least cost. Without the page map scan, keeping memory resident would
/// clear all of it for each request and be slower than the default.
pub(crate) const WASMTIME_TUNED_FLAGS: &[&str] = &[
    "-O",
    "pooling-allocator=y",
    "-O",
    "pooling-pagemap-scan=yes",
    "-O",
    "pooling-memory-keep-resident=33554432",
    "-O",
    "pooling-table-keep-resident=1048576",
    "-O",
    "pooling-decommit-batch-size=64",
    "-O",
    "pooling-max-unused-warm-slots=1000",
];

/// The folder of the repository that is searched upwards for.
const ROOT_MARKER: &str = "bench/Cargo.toml";

/// What of the root manifest decides how fast a program is that it builds.
#[derive(Deserialize)]
struct RootManifest {
    profile: Profiles,
}

#[derive(Deserialize)]
struct Profiles {
    release: ReleaseProfile,
}

/// The settings that a program from elsewhere must share with `wisp`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ReleaseProfile {
    lto: Option<toml::Value>,
    codegen_units: Option<toml::Value>,
    opt_level: Option<toml::Value>,
    panic: Option<toml::Value>,
}

/// Where what is measured comes from; every bench takes these options.
#[derive(clap::Args)]
pub(crate) struct Sources {
    /// The `wisp` to measure; the one beside this program unless told
    #[arg(long, value_name = "FILE")]
    wisp: Option<PathBuf>,
    /// Folder of built guests; they are built unless this is given
    #[arg(long, value_name = "FOLDER")]
    guests: Option<PathBuf>,
}

impl Sources {
    /// The `wisp` to measure.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn wisp(&self) -> Result<PathBuf, Error> {
        match &self.wisp {
            Some(path) => std::path::absolute(path).map_err(Error::reading(path)),
            None => wisp(),
        }
    }

    /// The files of these guests, which are built unless they are given.
    ///
    /// # Errors
    /// If one cannot be built or is not there.
    pub(crate) fn guests(&self, guests: &[Guest]) -> Result<Vec<PathBuf>, Error> {
        let folder = match &self.guests {
            Some(folder) => folder.clone(),
            None => guest::build(guests)?,
        };
        guests.iter().map(|guest| guest.file(&folder)).collect()
    }
}

/// The `cargo` that runs this, or the one on the path.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where cargo put this program: the folder above `release/`.
pub(crate) fn target_folder() -> Result<PathBuf, Error> {
    let program = std::env::current_exe().map_err(Error::io("cannot find this program's file"))?;
    let folder = program.ancestors().nth(2).map(Path::to_path_buf);
    folder.ok_or_else(|| Error::Usage(format!("`{}` is not where cargo puts programs", program.display())))
}

/// The `wisp` that was built beside this program.
fn wisp() -> Result<PathBuf, Error> {
    let program = std::env::current_exe().map_err(Error::io("cannot find this program's file"))?;
    let path = program.with_file_name("wisp");
    if path.exists() {
        Ok(path)
    } else {
        Err(Error::Missing { path, hint: "build it with `cargo build --release -p wisp`".to_owned() })
    }
}

/// `wasmtime`, built with the release profile of this repository unless it is
/// there already; a first build takes some ten minutes on two cores.
pub(crate) fn wasmtime() -> Result<PathBuf, Error> {
    let target = target_folder()?;
    let folder = target.join("bench-tools");
    let program = folder.join("bin/wasmtime");
    let settings = release_settings()?;
    let arguments = [
        "install",
        "wasmtime-cli",
        "--version",
        WASMTIME_VERSION,
        "--locked",
        "--force",
        "--no-default-features",
        "--features",
        &WASMTIME_FEATURES.join(","),
    ]
    .map(str::to_owned);
    // Cargo does not know with which profile something was installed, so what
    // was asked for is written down beside it.
    let recipe = format!(
        "{}\n{}\n",
        settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "),
        arguments.join(" ")
    );
    let recipe_path = folder.join("wasmtime.recipe");
    if program.exists() && fs::read_to_string(&recipe_path).is_ok_and(|built| built == recipe) {
        return Ok(program);
    }
    progress(&format!("building wasmtime {WASMTIME_VERSION} with this repository's release profile"));
    let mut command = Command::new(cargo());
    command.args(&arguments).arg("--root").arg(&folder).env("CARGO_TARGET_DIR", &target).envs(settings);
    run_to_end(&mut command)?;
    fs::write(&recipe_path, recipe).map_err(Error::writing(&recipe_path))?;
    Ok(program)
}

/// Compiles a guest with `wasmtime` so that each start of `wasmtime serve` maps
/// it instead of compiling it; flags that concern the pool do not change it.
pub(crate) fn wasmtime_compiled(wasmtime: &Path, guest: Guest, source: &Path) -> Result<PathBuf, Error> {
    let path = target_folder()?.join("bench-tools").join(guest.name()).with_extension("cwasm");
    let mut command = Command::new(wasmtime);
    command.arg("compile").arg(source).arg("-o").arg(&path);
    run_to_end(&mut command)?;
    Ok(path)
}

/// The first line that `program --version` prints.
pub(crate) fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| "unknown version".to_owned())
}

/// Runs a program to its end; what it prints is progress, not data.
pub(crate) fn run_to_end(command: &mut Command) -> Result<(), Error> {
    let text = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    progress(&format!("running `{text}`"));
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .map_err(Error::io(format!("cannot start `{text}`")))?;
    if status.success() { Ok(()) } else { Err(Error::Command { command: text, status }) }
}

/// The release profile of the repository as environment variables for cargo.
fn release_settings() -> Result<Vec<(String, String)>, Error> {
    let path = repository_root()?.join("Cargo.toml");
    let text = fs::read_to_string(&path).map_err(Error::reading(&path))?;
    settings_of(&text).map_err(|cause| Error::Usage(format!("`{}`: {cause}", path.display())))
}

/// The release profile in the text of a root manifest.
fn settings_of(manifest: &str) -> Result<Vec<(String, String)>, toml::de::Error> {
    let release = toml::from_str::<RootManifest>(manifest)?.profile.release;
    let settings = [
        ("LTO", release.lto),
        ("CODEGEN_UNITS", release.codegen_units),
        ("OPT_LEVEL", release.opt_level),
        ("PANIC", release.panic),
    ];
    Ok(settings
        .into_iter()
        .filter_map(|(name, value)| {
            let text = match value? {
                toml::Value::String(text) => text,
                other => other.to_string(),
            };
            Some((format!("CARGO_PROFILE_RELEASE_{name}"), text))
        })
        .collect())
}

/// The folder at or above the current one that holds the repository.
fn repository_root() -> Result<PathBuf, Error> {
    let start = std::env::current_dir().map_err(Error::io("cannot find the current folder"))?;
    let root = start.ancestors().find(|folder| folder.join(ROOT_MARKER).exists());
    root.map(Path::to_path_buf)
        .ok_or_else(|| Error::Usage(format!("`{}` is not inside the repository", start.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_profile_becomes_settings() {
        let text = "[workspace]\n[profile.release]\nlto = \"thin\"\ncodegen-units = 8\ndebug = 1\n";
        let expected = [("CARGO_PROFILE_RELEASE_LTO", "thin"), ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "8")];
        let settings = settings_of(text).unwrap_or_else(|error| unreachable!("{error}"));
        assert!(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(expected));
    }

    #[test]
    fn the_repository_has_a_release_profile() {
        assert!(release_settings().is_ok_and(|settings| !settings.is_empty()));
    }
}
