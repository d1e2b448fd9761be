//! The toolchains of other languages: found on this machine, or fetched.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use sha2::{Digest, Sha256};

use crate::chore::{Chore, Failure, Result, at, cargo, output, run, run_quietly, say, succeeds};
use crate::debian::{self, Archive};
use crate::wasm_targets;

/// The release of Zig, whose C compiler comes with a WASI library. Zig changes
/// between minor releases.
const ZIG_PACKAGE: &str = "ziglang==0.17.0";

/// What the collector of the suite decodes OTLP with: the protocol's own definitions.
const COLLECTOR_PACKAGE: &str = "opentelemetry-proto==1.45.2";

/// What editors check manifests with, as its makers publish it for Node.
const TAPLO_PACKAGE: &str = "@taplo/cli@0.7.0";

/// The first Go that knows `GOOS=wasip1`.
const GO_MINIMUM_MINOR: u32 = 21;

/// The first Node that the JavaScript toolchain runs on.
const NODE_MINIMUM_MAJOR: u32 = 18;

/// Something that a fresh machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    /// C and C++ compilers, and curl
    Basics,
    /// Rust's standard library for WebAssembly
    WasmTargets,
    /// Node and npm, for the JavaScript guests
    Node,
    /// Python environments, one for each SDK's pinned versions
    Python,
    /// Zig's C compiler, for the C guests
    Zig,
    /// Go, for the Go guests
    Go,
    /// Servers and other programs that tests start
    Servers,
    /// cargo-deny, for `cargo xtask ci`
    CargoDeny,
}

/// What a build command has to find in its environment.
#[derive(Default)]
pub(crate) struct Environment {
    folders: Vec<PathBuf>,
    variables: Vec<(&'static str, OsString)>,
}

/// `cargo xtask setup`.
pub(crate) fn setup(chore: &mut Chore, only: &[Tool]) -> Result<()> {
    let tools = if only.is_empty() { Tool::value_variants() } else { only };
    let mut failed = Vec::new();
    for tool in tools {
        if let Err(failure) = chore.step(tool.title(), |chore| tool.ensure(chore)) {
            failure.report();
            failed.push(tool.title());
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(format!("this machine still lacks: {}", failed.join(", "))))
    }
}

impl Tool {
    fn title(self) -> &'static str {
        match self {
            Self::Basics => "C compilers and curl",
            Self::WasmTargets => "Rust's standard library for WebAssembly",
            Self::Node => "Node and npm",
            Self::Python => "Python environments",
            Self::Zig => "Zig",
            Self::Go => "Go",
            Self::Servers => "servers for tests",
            Self::CargoDeny => "cargo-deny",
        }
    }

    fn ensure(self, chore: &Chore) -> Result<()> {
        match self {
            Self::Basics => basics(),
            Self::WasmTargets => wasm_targets::ensure(chore),
            Self::Node => node(),
            Self::Python => crate::app::folders_with(chore, "requirements.txt")?
                .iter()
                .try_for_each(|folder| python_environment(chore, &folder.join("requirements.txt")).map(drop)),
            Self::Zig => zig(chore).map(drop),
            Self::Go => go(chore).map(drop),
            Self::Servers => servers().and_then(|()| collector(chore)).and_then(|()| taplo(chore)),
            Self::CargoDeny => cargo_deny(chore).map(drop),
        }
    }
}

impl Environment {
    /// Finds out from an app's build commands which toolchains it needs, makes
    /// sure that they are there, and gathers what the commands must see.
    pub(crate) fn for_commands(chore: &Chore, source: &Path, commands: &[String]) -> Result<Self> {
        let mut environment = Self::default();
        let needs = |program: &str| {
            commands
                .iter()
                .any(|command| command.split([' ', '\t', '&', ';', '|']).any(|word| word == program))
        };
        if needs("cargo") {
            wasm_targets::ensure(chore)?;
        }
        if needs("npm") {
            node()?;
        }
        if needs("componentize-py") {
            let folder = python_environment(chore, &source.join("requirements.txt"))?;
            environment.folders.push(folder.join("bin"));
            environment.variables.push(("VIRTUAL_ENV", folder.into_os_string()));
        }
        if needs("zig") {
            environment.folders.push(zig(chore)?);
        }
        if needs("go") {
            environment.folders.extend(go(chore)?);
            environment.variables.push(("GOTOOLCHAIN", "local".into()));
            // Go's own default is below the home folder; everything that a
            // chore writes belongs into the target folder.
            environment.variables.push(("GOCACHE", chore.guests().join("tools/go-cache").into_os_string()));
        }
        Ok(environment)
    }

    /// Gives a command this environment.
    pub(crate) fn apply(&self, command: &mut Command) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.folders.iter().cloned().chain(std::env::split_paths(&path));
        let path = std::env::join_paths(folders)
            .map_err(|error| Failure::new(format!("a folder cannot be in PATH: {error}")))?;
        command.env("PATH", path);
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        Ok(())
    }
}

/// What the bundled SQLite and the fuzzer are compiled with, and what the
/// READMEs' commands call.
pub(crate) fn basics() -> Result<()> {
    let mut missing: Vec<_> = [("cc", "build-essential"), ("c++", "build-essential"), ("curl", "curl")]
        .into_iter()
        .filter(|(program, _)| !succeeds(program, &["--version"]))
        .map(|(_, package)| package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        say("cc, c++ and curl: already there");
        return Ok(());
    }
    debian::install(&missing)
}

/// What tests start beside Wisp itself.
pub(crate) fn servers() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian has some where only root looks.
    let folders: Vec<_> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).collect();
    let mut missing: Vec<_> = debian::TEST_SERVERS
        .iter()
        .filter(|(program, _)| !folders.iter().any(|folder| folder.join(program).is_file()))
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        say("servers for tests: already there");
        return Ok(());
    }
    debian::install(&missing)
}

/// The Python environment in which the suite runs its collector of OpenTelemetry's; the
/// suite looks for it by this name.
pub(crate) fn collector(chore: &Chore) -> Result<()> {
    let folder = chore.guests().join("tools/otlp-collector");
    let ready = folder.join(COLLECTOR_PACKAGE);
    if ready.exists() {
        say(&format!("{COLLECTOR_PACKAGE}: already there"));
        return Ok(());
    }
    make_python_environment(&folder)?;
    say(&format!("installing {COLLECTOR_PACKAGE} into {}", folder.display()));
    run_quietly(Command::new(folder.join("bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        COLLECTOR_PACKAGE,
    ]))?;
    fs::write(&ready, "").map_err(at(&ready))
}

/// Installs taplo where the suite looks for it.
pub(crate) fn taplo(chore: &Chore) -> Result<()> {
    let folder = chore.guests().join("tools/taplo");
    if folder.join("node_modules/.bin/taplo").exists() {
        say(&format!("{TAPLO_PACKAGE}: already there"));
        return Ok(());
    }
    node()?;
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    say(&format!("installing {TAPLO_PACKAGE} into {}", folder.display()));
    run_quietly(
        Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
            .arg(&folder)
            .arg(TAPLO_PACKAGE),
    )
}

fn node() -> Result<()> {
    let version = output(Command::new("node").arg("--version")).ok();
    let new_enough = version
        .as_deref()
        .and_then(|version| version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok())
        .is_some_and(|major| major >= NODE_MINIMUM_MAJOR);
    if new_enough && succeeds("npm", &["--version"]) {
        say(&format!("node {} and npm: already there", version.unwrap_or_default()));
        return Ok(());
    }
    debian::install(&["nodejs", "npm"])
}

/// An environment with what a `requirements.txt` pins. Two folders that pin
/// the same share it.
fn python_environment(chore: &Chore, requirements: &Path) -> Result<PathBuf> {
    let text = fs::read(requirements).map_err(at(requirements))?;
    let digest = hex::encode(Sha256::digest(&text));
    let folder = chore.guests().join("tools").join(format!("python-{}", &digest[..12]));
    let ready = folder.join("ready");
    let pins = String::from_utf8_lossy(&text).lines().collect::<Vec<_>>().join(" ");
    if ready.exists() {
        say(&format!("{pins}: already there"));
        return Ok(folder);
    }
    make_python_environment(&folder)?;
    say(&format!("installing {pins} into {}", folder.display()));
    run_quietly(
        Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements),
    )?;
    fs::write(&ready, "").map_err(at(&ready))?;
    Ok(folder)
}

fn make_python_environment(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(at(folder))?;
    }
    let make = || run_quietly(Command::new("python3").args(["-m", "venv"]).arg(folder));
    // Debian keeps `venv` in a package of its own, and says so only when asked
    // to make an environment.
    if !succeeds("python3", &["-c", "import venv, ensurepip"]) {
        debian::install(&["python3", "python3-venv"])?;
    }
    make()
}

/// A folder with a `zig` to put on the path.
fn zig(chore: &Chore) -> Result<PathBuf> {
    let tools = chore.guests().join("tools");
    let bin = tools.join("zig-bin");
    let wrapper = bin.join("zig");
    let environment = tools.join("zig");
    let ready = environment.join(ZIG_PACKAGE);
    if ready.exists() && wrapper.exists() {
        say(&format!("{ZIG_PACKAGE}: already there"));
        return Ok(bin);
    }
    make_python_environment(&environment)?;
    say(&format!("installing {ZIG_PACKAGE} into {}", environment.display()));
    run_quietly(Command::new(environment.join("bin/python")).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        ZIG_PACKAGE,
    ]))?;
    // The Python package brings no `zig` of that name, only a module.
    fs::create_dir_all(&bin).map_err(at(&bin))?;
    let python = environment.join("bin/python");
    fs::write(&wrapper, format!("#!/bin/sh\nexec '{}' -m ziglang \"$@\"\n", python.display()))
        .map_err(at(&wrapper))?;
    make_executable(&wrapper)?;
    fs::write(&ready, "").map_err(at(&ready))?;
    Ok(bin)
}

fn make_executable(path: &Path) -> Result<()> {
    run_quietly(Command::new("chmod").arg("+x").arg(path))
}

/// The folder to put on the path for `go`; none where it is there already.
fn go(chore: &Chore) -> Result<Option<PathBuf>> {
    if let Ok(version) = output(Command::new("go").arg("version"))
        && go_minor(&version).is_some_and(|minor| minor >= GO_MINIMUM_MINOR)
    {
        say(&format!("{version}: already there"));
        return Ok(None);
    }
    let tools = chore.guests().join("tools");
    let folder = tools.join("go");
    let bin = folder.join("bin");
    if succeeds(bin.join("go"), &["version"]) {
        say("go: already there");
        return Ok(Some(bin));
    }
    // A compiler of this age is in the backports of Debian's stable suites. It
    // needs nothing but its own folder, so it is unpacked and not installed.
    let suites = debian::own_suite().map(|suite| format!("{suite}-backports"));
    for suite in suites.into_iter().chain(["trixie-backports".to_owned()]) {
        let Ok(archive) = Archive::open(&tools.join("go-apt"), &suite) else { continue };
        let newest = archive
            .search(r"^golang-1\.[0-9]+-go$")
            .iter()
            .filter_map(|name| name.strip_prefix("golang-1.")?.strip_suffix("-go")?.parse::<u32>().ok())
            .filter(|minor| *minor >= GO_MINIMUM_MINOR)
            .max();
        let Some(minor) = newest else { continue };
        say(&format!("unpacking go 1.{minor} of Debian {suite} into {}", folder.display()));
        let unpacked = tools.join("go-unpacked");
        if unpacked.exists() {
            fs::remove_dir_all(&unpacked).map_err(at(&unpacked))?;
        }
        archive.unpack(&[format!("golang-1.{minor}-go"), format!("golang-1.{minor}-src")], &unpacked)?;
        if !folder.exists() {
            std::os::unix::fs::symlink(unpacked.join(format!("usr/lib/go-1.{minor}")), &folder)
                .map_err(at(&folder))?;
        }
        if succeeds(bin.join("go"), &["version"]) {
            return Ok(Some(bin));
        }
    }
    Err(Failure::new(format!("there is no Go 1.{GO_MINIMUM_MINOR} or newer"))
        .hint("install Go and put it on the PATH"))
}

/// `21` of `go version go1.21.3 linux/amd64`.
fn go_minor(version: &str) -> Option<u32> {
    version.split_whitespace().nth(2)?.strip_prefix("go1.")?.split('.').next()?.parse().ok()
}

/// The program behind `cargo deny`; an existing one of any version will do. It
/// takes minutes to compile, so what it would gain by being optimised is less
/// than what that costs.
pub(crate) fn cargo_deny(chore: &Chore) -> Result<PathBuf> {
    let name = "cargo-deny";
    let folder = chore.target.join("tools");
    let own = folder.join("bin").join(name);
    for program in [PathBuf::from(name), own.clone()] {
        if succeeds(&program, &["--version"]) {
            say(&format!("{}: already there", program.display()));
            return Ok(program);
        }
    }
    say(&format!("installing {name} into {}; this takes some minutes", folder.display()));
    run(cargo().args(["install", name, "--locked", "--debug", "--root"]).arg(&folder))?;
    Ok(own)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_with_and_without_a_patch_number() {
        assert_eq!(go_minor("go version go1.21.3 linux/amd64"), Some(21));
        assert_eq!(go_minor("go version go1.26 linux/arm64"), Some(26));
        assert_eq!(go_minor("zig version 0.17.0"), None);
    }
}
