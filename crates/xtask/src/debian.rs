//! Packages of the Debian archive: installed where that is allowed, or only
//! fetched and unpacked where a newer suite has what this machine's lacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::chore::{Failure, Result, at, output, run_quietly, say, succeeds};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Servers and other programs that tests start: the program that is looked for, and its package.
pub(crate) const TEST_SERVERS: &[(&str, &str)] = &[
    // Let's Encrypt's authority for tests, with its name server.
    ("pebble", "pebble"),
    // Moves the clock of a process.
    ("faketime", "faketime"),
    // The registry that Docker ships.
    ("docker-registry", "docker-registry"),
    // No server, but a client that is not ours.
    ("skopeo", "skopeo"),
    // What `wisp build --optimize` calls.
    ("wasm-opt", "binaryen"),
    // It stops at lines of guests.
    ("gdb", "gdb"),
];

/// A second, private set of package lists that leaves the machine's alone.
pub(crate) struct Archive {
    folder: PathBuf,
    options: Vec<String>,
}

/// Installs packages of this machine's own suite.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let wanted = packages.join(" ");
    if !succeeds("apt-get", &["--version"]) {
        return Err(Failure::new(format!("this machine has no apt-get to install {wanted} with"))
            .hint("install them with this system's own package manager"));
    }
    if output(Command::new("id").arg("-u"))? != "0" {
        return Err(Failure::new(format!("{wanted}: not installed, and only root can install packages"))
            .hint(format!("run `sudo apt-get install --yes {wanted}` and try again")));
    }
    say(&format!("installing the Debian packages {wanted}"));
    run_quietly(Command::new("apt-get").args(["update", "--quiet"]))?;
    run_quietly(
        Command::new("apt-get")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

impl Archive {
    /// Reads the lists of `suite` from the archive that this machine's own apt
    /// is set up for; fails where that archive has no such suite.
    pub(crate) fn open(folder: &Path, suite: &str) -> Result<Self> {
        let address = own_address()?;
        let folder = folder.join(suite);
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(at(&part))?;
        }
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let sources = folder.join("sources.list");
        fs::write(&sources, format!("deb {signed}{address} {suite} main\n")).map_err(at(&sources))?;
        let status = folder.join("state/status");
        fs::write(&status, "").map_err(at(&status))?;
        let shown = folder.display();
        let options = [
            format!("Dir::Etc::SourceList={shown}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={shown}/state"),
            format!("Dir::State::Lists={shown}/lists"),
            format!("Dir::State::status={shown}/state/status"),
            format!("Dir::Cache={shown}/cache"),
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=1".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ];
        let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect();
        let archive = Self { folder, options };
        say(&format!("reading the package lists of Debian {suite}"));
        output(archive.command("apt-get").args(["update", "--quiet"]))?;
        Ok(archive)
    }

    /// The newest version of `package` that starts with `prefix`.
    pub(crate) fn version(&self, package: &str, prefix: &str) -> Option<String> {
        let table = output(self.command("apt-cache").args(["madison", package])).ok()?;
        table
            .lines()
            .filter_map(|row| row.split('|').nth(1))
            .map(str::trim)
            .find(|version| version.starts_with(prefix))
            .map(str::to_owned)
    }

    /// The packages whose name matches `pattern`.
    pub(crate) fn search(&self, pattern: &str) -> Vec<String> {
        output(self.command("apt-cache").args(["search", "--names-only", pattern]))
            .unwrap_or_default()
            .lines()
            .filter_map(|row| row.split(" - ").next())
            .map(str::to_owned)
            .collect()
    }

    /// Fetches `packages` (`NAME` or `NAME=VERSION`) and unpacks them below
    /// `into`; nothing is installed.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let downloads = self.folder.join("downloads");
        if downloads.exists() {
            fs::remove_dir_all(&downloads).map_err(at(&downloads))?;
        }
        fs::create_dir_all(&downloads).map_err(at(&downloads))?;
        say(&format!("fetching {}", packages.join(" ")));
        output(self.command("apt-get").arg("download").args(packages).current_dir(&downloads))?;
        fs::create_dir_all(into).map_err(at(into))?;
        for entry in fs::read_dir(&downloads).map_err(at(&downloads))? {
            let package = entry.map_err(at(&downloads))?.path();
            output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(into))?;
        }
        fs::remove_dir_all(&downloads).map_err(at(&downloads))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// The name of this machine's suite, such as `bookworm`.
pub(crate) fn own_suite() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(str::to_owned)
}

/// The address of the archive that this machine's apt uses.
fn own_address() -> Result<String> {
    let suite = own_suite().ok_or_else(|| Failure::new("this is no Debian system"))?;
    let table = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))?;
    table
        .lines()
        .filter_map(|row| row.split_once(' '))
        .find(|(_, release)| *release == suite)
        .map(|(address, _)| address.to_owned())
        .ok_or_else(|| Failure::new(format!("apt is not set up for the suite {suite}")))
}
