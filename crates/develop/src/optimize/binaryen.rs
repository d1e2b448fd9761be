//! `wasm-opt` of Binaryen, a program of its own: makes core modules smaller and quicker.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use wasmparser::{KnownCustom, Name, Parser, Payload};

use super::sections;
use crate::Error;

/// The program.
pub(crate) const PROGRAM: &str = "wasm-opt";

/// How it is told to work. `-O2` does all that pays within reason; the next level takes
/// twice as long for hundredths.
const ARGUMENTS: [&str; 9] = [
    "-O2",
    // What the toolchains of today use and Wasmtime takes. Modules do not always say it.
    "--enable-bulk-memory",
    "--enable-extended-const",
    "--enable-multivalue",
    "--enable-mutable-globals",
    "--enable-nontrapping-float-to-int",
    "--enable-reference-types",
    "--enable-sign-ext",
    "--enable-simd",
];

/// Keeps the names of functions. Where there are none it makes some up.
const KEEP_NAMES: &str = "--debuginfo";

/// How long it may take for one module. Of the largest that there are, the engines of
/// JavaScript and Python, it needs about a minute.
const MAX_DURATION: Duration = Duration::from_secs(600);

/// How often to look whether it has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// Modules that are smaller are adapters and shims: there is nothing to win.
const MIN_MODULE_BYTES: usize = 4 << 10;

/// How much of what it says is shown.
const MAX_MESSAGE_BYTES: usize = 300;

/// What it did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Modules that became smaller.
    pub(super) smaller_count: usize,
    /// Modules that are as they were.
    pub(super) same_count: usize,
}

/// What it calls itself; `None` if it is not there.
pub(crate) fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Optimises the core modules of a file. A module that does not become smaller, or that it
/// cannot read, stays as it is.
///
/// # Errors
/// What it said about the first module that failed, if there is no other; [`Error::File`]
/// where it cannot be given its input.
pub(super) fn optimize(wasm: &[u8], folder: &Path) -> Result<(Vec<u8>, Done, Vec<String>), Error> {
    let mut done = Done::default();
    let (mut complaints, mut failure) = (Vec::new(), None);
    let changed = sections::change_modules(wasm, &mut |module| {
        if failure.is_some() || module.len() < MIN_MODULE_BYTES {
            done.same_count += 1;
            return None;
        }
        match one(module, folder) {
            Ok(Ok(smaller)) if smaller.len() < module.len() => {
                done.smaller_count += 1;
                return Some(smaller);
            }
            Ok(Ok(_)) => {}
            Ok(Err(complaint)) => complaints.push(complaint),
            Err(error) => failure = Some(error),
        }
        done.same_count += 1;
        None
    });
    match (failure, changed) {
        (Some(error), _) => Err(error),
        (None, Ok(changed)) => Ok((changed, done, complaints)),
        (None, Err(error)) => Ok((wasm.to_owned(), done, vec![error.to_string()])),
    }
}

/// One module: smaller, or what the program has against it.
fn one(module: &[u8], folder: &Path) -> Result<Result<Vec<u8>, String>, Error> {
    let (input, output) = (folder.join("in.wasm"), folder.join("out.wasm"));
    fs::write(&input, module).map_err(Error::file("write", &input))?;
    let mut child = Command::new(PROGRAM)
        .args(ARGUMENTS)
        .args(names_functions(module).then_some(KEEP_NAMES))
        .arg(&input)
        .arg("--output")
        .arg(&output)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| Error::Program { program: PROGRAM.into(), cause })?;
    // It is read while the program runs, which would wait for somebody to do so otherwise.
    let said = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut said = Vec::new();
            drop(pipe.read_to_end(&mut said));
            String::from_utf8_lossy(&said).into_owned()
        })
    });
    let end = Instant::now() + MAX_DURATION;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(LOOK_PERIOD),
            _ => {
                drop(child.kill());
                drop(child.wait());
                break None;
            }
        }
    };
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let Some(status) = status else {
        return Ok(Err(format!("{PROGRAM} was not done within {MAX_DURATION:?}")));
    };
    if !status.success() {
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        let said: String = said.chars().take(MAX_MESSAGE_BYTES).collect();
        return Ok(Err(format!("{PROGRAM} fails: {said}")));
    }
    let smaller = fs::read(&output).map_err(Error::file("read", &output))?;
    Ok(match validate(&smaller) {
        Ok(()) => Ok(smaller),
        Err(message) => Err(format!("what {PROGRAM} made is not valid: {message}")),
    })
}

/// Whether a module has names for its functions.
fn names_functions(module: &[u8]) -> bool {
    let sections = Parser::new(0).parse_all(module).filter_map(Result::ok);
    let mut names = sections.filter_map(|payload| match payload {
        Payload::CustomSection(section) => match section.as_known() {
            KnownCustom::Name(names) => Some(names),
            _ => None,
        },
        _ => None,
    });
    names.any(|names| names.into_iter().any(|name| matches!(name, Ok(Name::Function(_)))))
}

/// Whether the engine would take it, as far as the validator knows.
pub(super) fn validate(wasm: &[u8]) -> Result<(), String> {
    wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all())
        .validate_all(wasm)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn only_names_of_functions_are_names_of_functions() {
        let named = |text: &str| names_functions(&wat::parse_str(text).unwrap());
        assert!(named("(module (func $f))"));
        assert!(!named("(module $m (func))"));
        assert!(!named("(module (func))"));
    }
}
