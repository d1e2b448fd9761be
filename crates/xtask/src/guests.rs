//! The guests: programs that tests and benches run inside Wisp.

use std::fs;
use std::path::{Path, PathBuf};

use crate::chore::{Chore, Failure, Result, at, cargo, print, run, say};
use crate::wasm_targets;
use crate::{app, chore};

/// A guest and how it comes to be.
struct Guest {
    name: &'static str,
    about: &'static str,
    recipe: Recipe,
}

enum Recipe {
    /// A member of the Rust workspace in `guests`.
    Rust {
        package: &'static str,
        target: &'static str,
        /// Cargo names a library's file with underscores and a program's as it is.
        file: &'static str,
        /// Whether it may be compiled together with those that use `std`: cargo
        /// gives what they share the features that any of them wants.
        has_std: bool,
    },
    /// A folder in `guests` whose `spin.toml` says how to build it.
    App,
}

const P1: &str = "wasm32-wasip1";
const P2: &str = "wasm32-wasip2";

const GUESTS: &[Guest] = &[
    rust("asker", "a dependency that asks for everything (wit-bindgen)", "asker", P2, "asker"),
    rust("attacker", "takes what it can get, for benches (wstd)", "attacker", P2, "attacker"),
    rust("gate", "middleware of WASI 0.3 (wit-bindgen)", "gate", P2, "gate"),
    rust("gate-p2", "middleware of WASI 0.2 (wit-bindgen)", "gate-p2", P2, "gate_p2"),
    rust("hello-p2", "smallest WASI 0.2 HTTP handler (wstd)", "hello-p2", P2, "hello-p2"),
    rust("hello-p3", "smallest WASI 0.3 HTTP handler (spin-sdk 7)", "hello-p3", P2, "hello_p3"),
    rust("rust-sdk5", "probe, spin-sdk 5: WASI 0.2, fermyon:spin@2.0.0", "rust-sdk5", P2, "rust_sdk5"),
    rust("rust-sdk6", "probe, spin-sdk 6: WASI 0.3.0-rc-2026-03-15", "rust-sdk6", P2, "rust_sdk6"),
    rust("rust-sdk7", "probe, spin-sdk 7: WASI 0.3", "rust-sdk7", P2, "rust_sdk7"),
    rust("rust-tests", "tests of rust-sdk7 for `wisp test`, wit-bindgen", "rust-tests", P2, "rust_tests"),
    rust("rust-v1", "probe, Spin 1 interfaces, as a component", "rust-v1", P2, "rust_v1"),
    rust("rust-v1-module", "probe, Spin 1 interfaces, as a core module", "rust-v1", P1, "rust_v1"),
    rust("rust-wagi-p1", "CGI program for WASI preview 1", "rust-wagi", P1, "rust-wagi"),
    rust("rust-wagi-p2", "CGI program for WASI 0.2", "rust-wagi", P2, "rust-wagi"),
    rust("rust-wit", "probe, wasi:keyvalue and wasi:config", "rust-wit", P2, "rust-wit"),
    rust("rust-wstd", "plain wasi:http, no SDK", "rust-wstd", P2, "rust-wstd"),
    without_std("tiny", "a number over WASI 0.2 HTTP, as small as can be, for benches", P2),
    app("as-wagi", "AssemblyScript, WASI preview 1, CGI"),
    app("c-wagi", "C, WASI preview 1, CGI"),
    app("go-wagi", "Go, WASI preview 1, CGI"),
    app("js", "JavaScript, Spin's build tools"),
    app("js-asks", "JavaScript, an app that has a dependency"),
    app("python-hello", "smallest Python guest, spin-sdk 3.4: WASI 0.2, no Spin interfaces"),
    app("python-sdk3", "Python, spin-sdk 3.4: WASI 0.2"),
    app("python-sdk4", "Python, spin-sdk 4.0: WASI 0.3.0-rc-2026-03-15"),
    app("python-sdk5", "Python, spin-sdk 5.0: WASI 0.3"),
    app("python-tests", "Python, tests of rust-sdk7 for `wisp test`, componentize-py 0.25"),
];

const fn rust(
    name: &'static str,
    about: &'static str,
    package: &'static str,
    target: &'static str,
    file: &'static str,
) -> Guest {
    Guest { name, about, recipe: Recipe::Rust { package, target, file, has_std: true } }
}

/// A library whose package, file and guest have one name.
const fn without_std(name: &'static str, about: &'static str, target: &'static str) -> Guest {
    Guest { name, about, recipe: Recipe::Rust { package: name, target, file: name, has_std: false } }
}

const fn app(name: &'static str, about: &'static str) -> Guest {
    Guest { name, about, recipe: Recipe::App }
}

/// Lists what can be built, for people and scripts.
pub(crate) fn list() {
    for guest in GUESTS {
        print(&format!("{:<16} {}", guest.name, guest.about));
    }
}

/// Builds the named guests, or all of them, and says which folder they are in.
///
/// # Errors
/// After all have been tried, if any could not be built.
pub(crate) fn build(chore: &mut Chore, names: &[String]) -> Result<PathBuf> {
    let failed = try_build(chore, names)?;
    match failed.first() {
        None => Ok(chore.guests()),
        Some(_) => {
            let names: Vec<_> = failed.iter().map(|(name, _)| *name).collect();
            Err(Failure::new(format!("these guests could not be built: {}", names.join(", "))))
        }
    }
}

/// As [`build`], but hands back which guests could not be built and why.
pub(crate) fn try_build(chore: &mut Chore, names: &[String]) -> Result<Vec<(&'static str, Failure)>> {
    let mut guests = Vec::new();
    for name in names {
        let guest = GUESTS.iter().find(|guest| guest.name == name).ok_or_else(|| {
            Failure::new(format!("there is no guest `{name}`")).hint("`cargo xtask guests --list` names them")
        })?;
        guests.push(guest);
    }
    if names.is_empty() {
        guests.extend(GUESTS);
    }
    let mut failed = Vec::new();
    if guests.iter().any(|guest| matches!(guest.recipe, Recipe::Rust { .. })) {
        chore.step("Rust's standard library for WebAssembly", |chore| wasm_targets::ensure(chore))?;
    }
    for (target, has_std) in [(P2, true), (P2, false), (P1, true)] {
        let of_target: Vec<_> = guests
            .iter()
            .filter(|guest| match &guest.recipe {
                Recipe::Rust { target: of_guest, has_std: of_std, .. } => {
                    *of_guest == target && *of_std == has_std
                }
                Recipe::App => false,
            })
            .collect();
        if of_target.is_empty() {
            continue;
        }
        let how = if has_std { "" } else { " without std" };
        // One cargo for all: it compiles what they share once, and side by side.
        let result = chore.step(format!("guests for {target}{how}"), |chore| {
            build_rust(chore, target, &of_target.iter().map(|guest| &guest.recipe).collect::<Vec<_>>())?;
            of_target.iter().try_for_each(|guest| finish(chore, guest))
        });
        if let Err(failure) = result {
            failure.report();
            let why = failure.message().to_owned();
            failed.extend(of_target.iter().map(|guest| (guest.name, Failure::new(why.clone()))));
        }
    }
    for guest in guests.iter().filter(|guest| matches!(guest.recipe, Recipe::App)) {
        let result = chore.step(format!("guest {}", guest.name), |chore| {
            app::build(chore, &source(chore, guest), &workplace(chore, guest))?;
            finish(chore, guest)
        });
        if let Err(failure) = result {
            failure.report();
            failed.push((guest.name, failure));
        }
    }
    say(&format!("the guests are in {}", chore.guests().display()));
    Ok(failed)
}

fn source(chore: &Chore, guest: &Guest) -> PathBuf {
    let folder = match guest.recipe {
        Recipe::Rust { package, .. } => package,
        Recipe::App => guest.name,
    };
    chore.root.join("guests").join(folder)
}

fn workplace(chore: &Chore, guest: &Guest) -> PathBuf {
    chore.guests().join("build").join(guest.name)
}

fn build_rust(chore: &Chore, target: &str, recipes: &[&Recipe]) -> Result<()> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked", "--target", target, "--manifest-path"])
        .arg(chore.root.join("guests/Cargo.toml"))
        .env("CARGO_TARGET_DIR", chore.guests().join("rust"));
    for recipe in recipes {
        if let Recipe::Rust { package, .. } = recipe {
            command.args(["--package", package]);
        }
    }
    run(&mut command)
}

/// Puts the guest where tests look for it, alone and as an app to serve.
fn finish(chore: &Chore, guest: &Guest) -> Result<()> {
    let module = chore.guests().join(guest.name).with_extension("wasm");
    let built = match &guest.recipe {
        Recipe::Rust { target, file, .. } => {
            chore.guests().join("rust").join(target).join("release").join(file).with_extension("wasm")
        }
        Recipe::App => {
            let manifest = app::Manifest::read(&source(chore, guest))?;
            let file = manifest.source().ok_or_else(|| Failure::new("a guest without a component"))?;
            workplace(chore, guest).join(file)
        }
    };
    place(&built, &module)?;
    let folder = chore.guests().join("apps").join(guest.name);
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    place(&built, &folder.join(guest.name).with_extension("wasm"))?;
    let manifest = folder.join("spin.toml");
    fs::write(&manifest, manifest_text(guest)).map_err(at(&manifest))
}

/// Copies through a second name, so that nobody ever sees half a file.
fn place(from: &Path, to: &Path) -> Result<()> {
    let part = to.with_extension("part");
    fs::copy(from, &part).map_err(chore::at(from))?;
    fs::rename(&part, to).map_err(chore::at(to))
}

/// An app that lets the guest have everything a test may ask it for.
fn manifest_text(guest: &Guest) -> String {
    let name = guest.name;
    let executor = if name.contains("wagi") { "executor = { type = \"wagi\" }\n" } else { "" };
    format!(
        "# {about}\n\
         spin_manifest_version = 2\n\
         \n\
         [application]\n\
         name = \"{name}\"\n\
         version = \"0.1.0\"\n\
         \n\
         [variables]\n\
         greeting = {{ default = \"good morning\" }}\n\
         \n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"{name}\"\n\
         {executor}\
         \n\
         [component.{name}]\n\
         source = \"{name}.wasm\"\n\
         environment = {{ COLOR = \"green\" }}\n\
         variables = {{ greeting = \"{{{{ greeting }}}}\" }}\n\
         key_value_stores = [\"default\"]\n\
         sqlite_databases = [\"default\"]\n\
         allowed_outbound_hosts = [\"*://*:*\"]\n",
        about = guest.about,
    )
}

#[cfg(test)]
mod unit_tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::*;

    #[test]
    fn every_guest_has_its_sources_and_a_manifest_that_reads() {
        let chore = Chore::new().unwrap();
        for guest in GUESTS {
            assert!(source(&chore, guest).is_dir(), "{} has no folder", guest.name);
            let manifest: app::Manifest = toml::from_str(&manifest_text(guest)).unwrap();
            assert_eq!(manifest.source().unwrap(), Path::new(guest.name).with_extension("wasm"));
        }
    }
}
