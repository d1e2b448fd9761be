//! The programs that an app's build commands call.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use wisp_manifest::App;

use super::{Findings, Fix};
use crate::{build, optimize::binaryen};

/// A program, what it is for, and how to get it.
struct Tool {
    program: &'static str,
    version: &'static [&'static str],
    remedy: &'static str,
}

/// Programs that commands are known to call.
const TOOLS: [Tool; 10] = [
    Tool { program: "cargo", version: &["--version"], remedy: "install Rust with rustup" },
    Tool { program: "npm", version: &["--version"], remedy: "install Node 20 or newer, which brings npm" },
    Tool { program: "node", version: &["--version"], remedy: "install Node 20 or newer" },
    Tool { program: "python3", version: &["--version"], remedy: "install Python 3.10 or newer" },
    Tool {
        program: "componentize-py",
        version: &["--version"],
        remedy: "install it into the environment that builds: `pip install componentize-py`",
    },
    Tool { program: "go", version: &["version"], remedy: "install Go 1.21 or newer" },
    Tool { program: "tinygo", version: &["version"], remedy: "install TinyGo" },
    Tool { program: "zig", version: &["version"], remedy: "install Zig, or `pip install ziglang`" },
    Tool { program: "clang", version: &["--version"], remedy: "install clang with the WASI libraries" },
    Tool { program: "make", version: &["--version"], remedy: "install make" },
];

/// Characters between the words of a command.
const SEPARATORS: [char; 8] = [' ', '\t', '\n', '&', ';', '|', '(', ')'];

/// Looks for the programs and the targets of Rust that the commands name.
pub(super) fn examine(app: &App, findings: &mut Findings) {
    // A circle was reported with the manifest, or will be when it is built.
    let jobs = build::jobs(app, &[]).unwrap_or_default();
    let words: Vec<&str> = jobs
        .iter()
        .flat_map(|job| &job.commands)
        .flat_map(|command| command.split(SEPARATORS))
        .filter(|word| !word.is_empty())
        .collect();
    for tool in TOOLS {
        if !words.contains(&tool.program) {
            continue;
        }
        match output(tool.program, tool.version) {
            Some(version) => {
                let version = version.lines().next().unwrap_or_default().trim().to_owned();
                findings.fine.push(format!("{}: {version}", tool.program));
            }
            None => {
                let what = format!("`{}` is not there, which a build command calls", tool.program);
                findings.problem(true, what, tool.remedy.into(), None);
            }
        }
    }
    if words.contains(&"cargo") {
        rust_targets(&words, findings);
    }
    if !jobs.is_empty() {
        optimizer(findings);
    }
}

/// What `wisp build --optimize` calls. Everything works without it.
fn optimizer(findings: &mut Findings) {
    match binaryen::version() {
        Some(version) => findings.fine.push(format!("{}: {version}", binaryen::PROGRAM)),
        None => findings.problem(
            false,
            format!("`{}` is not there, which `wisp build --optimize` calls", binaryen::PROGRAM),
            "install `binaryen`; `wisp build --optimize` only strips and snapshots without it".into(),
            None,
        ),
    }
}

fn rust_targets(words: &[&str], findings: &mut Findings) {
    let after_flag = words.iter().zip(words.iter().skip(1)).filter(|(flag, _)| **flag == "--target");
    let with_flag = words.iter().filter_map(|word| word.strip_prefix("--target="));
    let mut targets: Vec<&str> = after_flag.map(|(_, target)| *target).chain(with_flag).collect();
    targets.sort_unstable();
    targets.dedup();
    let Some(sysroot) = output("rustc", &["--print", "sysroot"]) else { return };
    for target in targets {
        let folder = PathBuf::from(sysroot.trim()).join("lib/rustlib").join(target).join("lib");
        if has_std(&folder) {
            findings.fine.push(format!("Rust's standard library for {target} is there"));
            continue;
        }
        let command: Vec<String> = ["rustup", "target", "add", target].map(str::to_owned).to_vec();
        let fix = output("rustup", &["--version"]).map(|_| Fix::Run { command: command.clone() });
        findings.problem(
            true,
            format!("Rust's standard library for {target} is not there"),
            format!("install it: `{}`", command.join(" ")),
            fix,
        );
    }
}

fn has_std(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

/// What a program prints; `None` if it is not there or does not work.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
