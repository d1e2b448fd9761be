//! A chore: its folders, its steps and how long they took, what was skipped.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Why a chore could not be done.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
}

/// What every chore needs at hand.
pub(crate) struct Chore {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target: PathBuf,
    started: Instant,
    steps: Vec<Step>,
    skipped: Vec<Skip>,
    summary: Option<String>,
}

/// A check that could not run.
struct Skip {
    what: String,
    why: String,
}

struct Step {
    name: String,
    took: Duration,
    passed: bool,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn report(&self) {
        say(&format!("error: {}", self.message));
        if let Some(hint) = &self.hint {
            say(&format!("hint: {hint}"));
        }
    }
}

/// Turns an input or output error into a failure that names the path.
pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |error| Failure::new(format!("`{}`: {error}", path.display()))
}

/// Prints a line for people.
#[expect(clippy::print_stderr, reason = "a chore speaks to people; this is the one place it does")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints a line that scripts may read.
#[expect(clippy::print_stdout, reason = "the one place where a chore writes data")]
pub(crate) fn print(line: &str) {
    println!("{line}");
}

impl Chore {
    pub(crate) fn new() -> Result<Self> {
        // Cargo tells where this crate is; two levels up is the repository.
        let manifest_folder = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_folder
            .ancestors()
            .nth(2)
            .map(Path::to_path_buf)
            .ok_or_else(|| Failure::new("cannot tell where the repository is"))?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(&folder).map_err(at(Path::new(&folder)))?,
            None => root.join("target"),
        };
        Ok(Self {
            root,
            target,
            started: Instant::now(),
            steps: Vec::new(),
            skipped: Vec::new(),
            summary: None,
        })
    }

    /// Where guests and the toolchains that build them are.
    pub(crate) fn guests(&self) -> PathBuf {
        self.target.join("guests")
    }

    /// Runs one step, says so, and takes its time.
    pub(crate) fn step<T>(
        &mut self,
        name: impl Into<String>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let name = name.into();
        say(&format!("==> {name}"));
        let started = Instant::now();
        let result = work(self);
        self.steps.push(Step { name, took: started.elapsed(), passed: result.is_ok() });
        result
    }

    /// Notes a check that cannot run here; the end of the chore lists them.
    pub(crate) fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.skipped.push(Skip { what: what.into(), why: why.into() });
    }

    /// Keeps the line that is to be the last of all, for people and scripts.
    pub(crate) fn summarise(&mut self, line: String) {
        self.summary = Some(line);
    }

    /// How many checks could not run so far.
    pub(crate) fn skipped_count(&self) -> u64 {
        self.skipped.len() as u64
    }

    /// Prints the steps, what was skipped, why it failed and the summary, and
    /// turns the outcome into an exit code.
    pub(crate) fn finish(self, result: Result<()>) -> ExitCode {
        let mut table = String::new();
        for step in &self.steps {
            let outcome = if step.passed { "" } else { "  FAILED" };
            let _ = writeln!(table, "  {:>8}  {}{outcome}", duration(step.took), step.name);
        }
        if !table.is_empty() {
            say(&format!("\nSteps:\n{table}  {:>8}  in all", duration(self.started.elapsed())));
        }
        for skip in &self.skipped {
            say(&format!("SKIPPED {}: {}", skip.what, skip.why));
        }
        let result = result.and_then(|()| {
            if self.skipped.is_empty() || !in_ci() {
                return Ok(());
            }
            Err(Failure::new("checks were skipped, and CI skips nothing")
                .hint("install what they need, or unset CI to allow it"))
        });
        if let Err(failure) = &result {
            failure.report();
        }
        if let Some(line) = &self.summary {
            print(line);
        }
        if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Whether the machine that runs this is a CI machine (`CI=true`).
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// Minutes and seconds, or seconds with one decimal.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{}m {:02}s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1}s", duration.as_secs_f64())
    }
}

/// Cargo itself. The variables that cargo sets for a program it runs are taken
/// out, or they would look like settings to the inner one.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    without_cargo_variables(&mut command);
    command
}

/// Takes out what `cargo run` put into the environment of this program.
pub(crate) fn without_cargo_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            command.env_remove(name);
        }
    }
}

/// Runs a command with its output shown, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    say(&format!("$ {}", line(command)));
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("`{}` failed: {status}", line(command)))) }
}

/// Runs a command whose output matters only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    say(&format!("$ {}", line(command)));
    let output = command.stdin(Stdio::null()).output().map_err(|error| cannot_start(command, &error))?;
    if output.status.success() {
        return Ok(());
    }
    say(String::from_utf8_lossy(&output.stdout).trim_end());
    say(String::from_utf8_lossy(&output.stderr).trim_end());
    Err(Failure::new(format!("`{}` failed: {}", line(command), output.status)))
}

/// Runs a command, shows its output as it comes and hands over every line of
/// its stdout. Whether it succeeded is for the caller to judge.
pub(crate) fn run_watching(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<bool> {
    say(&format!("$ {}", line(command)));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| cannot_start(command, &error))?;
    if let Some(stdout) = child.stdout.take() {
        for text in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
            say(&text);
            watch(&text);
        }
    }
    let status = child.wait().map_err(|error| cannot_start(command, &error))?;
    Ok(status.success())
}

/// What a command prints on stdout, without the line break at its end.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(format!(
            "`{}` failed: {}: {}",
            line(command),
            output.status,
            errors.trim_end()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Whether a command can be run and succeeds.
pub(crate) fn succeeds(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot run `{}`: {error}", command.get_program().to_string_lossy()))
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.is_empty() || argument.contains([' ', '&', '|', '$', '(']) {
            let _ = write!(text, " '{argument}'");
        } else {
            let _ = write!(text, " {argument}");
        }
    }
    text
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_millis(1234)), "1.2s");
        assert_eq!(duration(Duration::from_secs(125)), "2m 05s");
    }

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("sh");
        command.args(["-c", "a && b"]);
        assert_eq!(line(&command), "sh -c 'a && b'");
    }
}
