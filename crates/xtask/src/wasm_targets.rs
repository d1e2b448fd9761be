//! The standard library for WebAssembly.
//!
//! A ladder: a target that is there already is left alone; then `rustup` is
//! asked, for a bounded time; then the standard library is built from Debian's
//! `rust-src` of exactly this compiler's version with Debian's `wasi-libc`, for
//! machines that reach a Debian mirror and crates but no toolchain server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chore::{Chore, Failure, Result, at, cargo, output, run_quietly, say};
use crate::debian::Archive;

/// What the guests need: components, and modules of WASI preview 1.
pub(crate) const TARGETS: [&str; 2] = ["wasm32-wasip2", "wasm32-wasip1"];

/// How long `rustup` may take for one target. A standard library is about
/// 25 MB; a server that cannot be reached is noticed within seconds only if it
/// refuses, and otherwise never.
const RUSTUP_TIMEOUT_SECONDS: u64 = 90;

/// The suites that may have this compiler's sources, most likely first.
const SUITES: [&str; 4] = ["trixie-backports", "sid", "trixie", "forky"];

/// The compiler that cargo will use.
struct Toolchain {
    sysroot: PathBuf,
    version: String,
    commit: String,
    host: String,
}

/// Makes sure that `cargo build --target …` works for every target.
pub(crate) fn ensure(chore: &Chore) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let mut missing = Vec::new();
    for target in TARGETS {
        if toolchain.has(target) && toolchain.links(chore, target).is_ok() {
            say(&format!("{target}: already there"));
        } else {
            missing.push(target);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = ask_rustup(&toolchain, missing);
    if missing.is_empty() {
        return Ok(());
    }
    build_from_debian(chore, &toolchain, &missing)
}

impl Toolchain {
    fn find() -> Result<Self> {
        let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
        let verbose = output(Command::new(sysroot.join("bin/rustc")).arg("-vV"))?;
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .ok_or_else(|| Failure::new(format!("`rustc -vV` says no {name}")))
        };
        Ok(Self {
            version: field("release:")?,
            commit: field("commit-hash:")?,
            host: field("host:")?,
            sysroot,
        })
    }

    /// Where the libraries of a target are.
    fn folder(&self, target: &str) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(target)
    }

    fn has(&self, target: &str) -> bool {
        fs::read_dir(self.folder(target).join("lib")).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
        })
    }

    /// Compiles and links a real program: libraries that are only half there
    /// are found now and not in the middle of a build.
    fn links(&self, chore: &Chore, target: &str) -> Result<()> {
        let folder = chore.guests().join("tools/smoke");
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let program = folder.join(format!("{target}.rs"));
        let module = folder.join(format!("{target}.wasm"));
        fs::write(&program, "fn main() { println!(\"{:?}\", std::env::args().next()); }\n")
            .map_err(at(&program))?;
        output(
            Command::new(self.sysroot.join("bin/rustc"))
                .args(["--edition", "2024", "-O", "--target", target, "-o"])
                .args([&module, &program]),
        )?;
        let bytes = fs::read(&module).map_err(at(&module))?;
        if bytes.starts_with(b"\0asm") {
            Ok(())
        } else {
            Err(Failure::new(format!("`{}` is no WebAssembly", module.display())))
        }
    }
}

/// Asks rustup for the targets and hands back those that it did not add.
fn ask_rustup<'a>(toolchain: &Toolchain, missing: Vec<&'a str>) -> Vec<&'a str> {
    if std::env::var_os("XTASK_WITHOUT_RUSTUP").is_some() {
        return missing;
    }
    // Only where this very compiler is the one that rustup has in charge:
    // otherwise it would change another toolchain.
    let in_charge = output(Command::new("rustup").args(["which", "rustc"]))
        .is_ok_and(|path| Path::new(&path).starts_with(&toolchain.sysroot));
    if !in_charge {
        return missing;
    }
    let mut left = Vec::new();
    let mut answers = true;
    for target in missing {
        // One refusal is enough: the timeout is not spent once per target.
        let added = answers
            && output(
                Command::new("timeout")
                    .args(["-k", "2", &RUSTUP_TIMEOUT_SECONDS.to_string()])
                    .args(["rustup", "target", "add", target]),
            )
            .is_ok();
        if added && toolchain.has(target) {
            say(&format!("{target}: installed by rustup"));
        } else {
            answers = false;
            left.push(target);
        }
    }
    if !left.is_empty() {
        say(&format!("rustup did not add {}", left.join(" and ")));
    }
    left
}

/// Builds the standard library from Debian's copy of its sources.
fn build_from_debian(chore: &Chore, toolchain: &Toolchain, missing: &[&str]) -> Result<()> {
    let work = chore.guests().join("tools/std");
    let sources = work.join("sources");
    let (mut has_sources, mut has_libc) = (false, false);
    if sources.exists() {
        fs::remove_dir_all(&sources).map_err(at(&sources))?;
    }
    for suite in SUITES {
        if has_sources && has_libc {
            break;
        }
        say(&format!("looking for rust-src {} and wasi-libc in Debian {suite}", toolchain.version));
        let Ok(archive) = Archive::open(&work.join("apt"), suite) else { continue };
        let mut packages = Vec::new();
        if let (false, Some(version)) =
            (has_sources, archive.version("rust-src", &format!("{}+", toolchain.version)))
        {
            packages.push(format!("rust-src={version}"));
            has_sources = true;
        }
        if let (false, Some(version)) = (has_libc, archive.version("wasi-libc", "")) {
            packages.push(format!("wasi-libc={version}"));
            has_libc = true;
        }
        if !packages.is_empty() {
            archive.unpack(&packages, &sources)?;
        }
    }
    if !has_sources || !has_libc {
        return Err(Failure::new(format!(
            "no Debian suite within reach has rust-src {} and wasi-libc",
            toolchain.version
        ))
        .hint(format!("install the targets by other means: `rustup target add {}`", missing.join(" "))));
    }
    let library = find_library(&sources.join("usr/src"))?;
    // Debian takes files out of the vendored crates, so cargo fetches the real
    // ones, by the checksums of the library's own Cargo.lock.
    let vendored = library.join("vendor");
    if vendored.exists() {
        fs::remove_dir_all(&vendored).map_err(at(&vendored))?;
    }
    for target in missing {
        build_target(toolchain, &work, &sources, &library, target)?;
        toolchain.links(chore, target)?;
        say(&format!("{target}: built from Debian's sources"));
    }
    Ok(())
}

fn find_library(folder: &Path) -> Result<PathBuf> {
    fs::read_dir(folder)
        .map_err(at(folder))?
        .flatten()
        .map(|entry| entry.path().join("library"))
        .find(|library| library.join("sysroot/Cargo.toml").exists())
        .ok_or_else(|| Failure::new("rust-src has no library/sysroot: its layout has changed"))
}

fn build_target(
    toolchain: &Toolchain,
    work: &Path,
    sources: &Path,
    library: &Path,
    target: &str,
) -> Result<()> {
    let candidates: &[&str] = match target {
        "wasm32-wasip1" => &["wasm32-wasip1", "wasm32-wasi"],
        _ => &["wasm32-wasip2"],
    };
    let libc = candidates
        .iter()
        .map(|name| sources.join("usr/lib").join(name))
        .find(|folder| folder.join("libc.a").exists())
        .ok_or_else(|| Failure::new(format!("wasi-libc has no libc.a for {target}")))?;
    let build = work.join("target");
    // The flags that the compiler's own build uses: without the first, nobody
    // could link against the result.
    let flags = [
        "-Zforce-unstable-if-unmarked".to_owned(),
        "-Clto=off".to_owned(),
        format!("--remap-path-prefix={}=/rustc/{}/library", library.display(), toolchain.commit),
        format!("-Lnative={}", libc.display()),
    ];
    let mut command = cargo();
    run_quietly(
        command
            .args(["build", "--quiet", "--locked", "--profile", "dist", "--target", target])
            .args(["--manifest-path", "sysroot/Cargo.toml", "--no-default-features"])
            .args(["--features", "panic-unwind backtrace"])
            .current_dir(library)
            .env("RUSTC", toolchain.sysroot.join("bin/rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_TARGET_DIR", &build)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("__CARGO_DEFAULT_LIB_METADATA", "stablestd")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("RUSTC_WORKSPACE_WRAPPER"),
    )?;
    let folder = toolchain.folder(target);
    let staging = folder.with_file_name(format!(".{target}.staging"));
    let libraries = staging.join("lib");
    let startup = libraries.join("self-contained");
    fs::create_dir_all(&startup).map_err(at(&startup))?;
    let built = build.join(target).join("dist/deps");
    for entry in fs::read_dir(&built).map_err(at(&built))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libsysroot-") {
            fs::copy(entry.path(), libraries.join(&name)).map_err(at(&entry.path()))?;
        }
    }
    for name in ["libc.a", "crt1-command.o", "crt1-reactor.o"] {
        fs::copy(libc.join(name), startup.join(name)).map_err(at(&libc.join(name)))?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(at(&folder))?;
    }
    fs::rename(&staging, &folder).map_err(at(&folder))?;
    let linker = toolchain.sysroot.join("lib/rustlib").join(&toolchain.host).join("bin/wasm-component-ld");
    if target == "wasm32-wasip2" && !linker.exists() {
        say("this toolchain has no wasm-component-ld: installing it with cargo");
        run_quietly(cargo().args(["install", "wasm-component-ld", "--locked"]))?;
    }
    Ok(())
}
