//! `cargo xtask bench`: builds the benches and what they measure, and runs one.

use std::process::Command;

use crate::chore::{Chore, Result, cargo, run as run_command};
use crate::{guests, tools};

/// Benches that build apps, and programs that their commands call.
const BUILDING: [&str; 2] = ["optimize", "start"];
const BUILD_TOOLS: [&str; 5] = ["cargo", "npm", "componentize-py", "zig", "go"];

/// Minutes that the soak runs in CI: some thousand apps come and go in that time, so
/// that what each leaves behind is seen.
const SOAK_MINUTES: &str = "1";
/// The guests that it serves.
const SOAK_GUESTS: [&str; 3] = ["tiny", "hello-p2", "js"];

/// Builds `wisp` and the benches' own program, optimised and into the same
/// folder, where benches look for `wisp`; passes everything else on.
pub(crate) fn run(chore: &Chore, arguments: &[String]) -> Result<()> {
    run_command(
        cargo()
            .args(["build", "--release", "--package", "wisp", "--package", "wisp-bench"])
            .env("CARGO_TARGET_DIR", &chore.target)
            .current_dir(&chore.root),
    )?;
    let mut bench = Command::new(chore.target.join("release/wisp-bench"));
    bench.args(arguments).current_dir(&chore.root);
    if arguments.first().is_some_and(|name| BUILDING.contains(&name.as_str())) {
        tools::servers()?;
        // The Python guest whose tools are those of the template and the example.
        let python = chore.root.join("examples/python-hello");
        let commands = BUILD_TOOLS.map(str::to_owned);
        tools::Environment::for_commands(chore, &python, &commands)?.apply(&mut bench)?;
    }
    run_command(&mut bench)
}

/// As the last step of `cargo xtask ci`: the short form of the soak, which fails if
/// memory, descriptors or mappings grow. The features of dependencies are settled for
/// the whole workspace, as they are for the tests before.
pub(crate) fn soak(chore: &mut Chore) -> Result<()> {
    guests::build(chore, &SOAK_GUESTS.map(str::to_owned))?;
    chore.step("soak", |chore| {
        run_command(cargo().args(["build", "--workspace", "--bins"]).current_dir(&chore.root))?;
        run_command(
            Command::new(chore.target.join("debug/wisp-bench"))
                .args(["soak", "--check", "--minutes", SOAK_MINUTES, "--guests"])
                .arg(chore.guests())
                .current_dir(&chore.root),
        )
    })
}
