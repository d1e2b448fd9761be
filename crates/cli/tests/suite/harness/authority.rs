//! A certificate authority, and a clock that a test moves.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::json;

use super::{Output, WAIT_LIMIT, skip};

/// Pebble, Let's Encrypt's authority for tests, and names that all lead to this machine. Ends
/// with the test.
pub(crate) struct Authority {
    children: Vec<Child>,
    /// The table of `wisp.toml` that leads to it.
    pub(crate) settings: String,
    roots_url: String,
    own_certificate: PathBuf,
}

/// The clock of a process as Debian's `faketime` shows it: it goes on from where a test put it.
/// What is measured in it (timers, limits) is not moved.
pub(crate) struct MovedClock {
    library: PathBuf,
    file: PathBuf,
}

impl Authority {
    /// Starts one that looks for hosts at these ports; `None` if it is not installed.
    pub(crate) fn start(folder: &Path, http_port: u16, https_port: u16) -> Option<Self> {
        if !is_installed("pebble") || !is_installed("pebble-challtestsrv") {
            skip("Debian's package `pebble` is not installed; `cargo xtask setup` does that");
            return None;
        }
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (directory, management, names) = (free(), free(), free());
        let dns = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (certificate, key) = (folder.join("pebble.pem"), folder.join("pebble.key"));
        fs::write(&certificate, own.cert.pem()).unwrap();
        fs::write(&key, own.signing_key.serialize_pem()).unwrap();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{directory}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": http_port,
            "tlsPort": https_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": Self::LIFE_DAYS * 86_400,
        }});
        fs::write(folder.join("pebble.json"), config.to_string()).unwrap();
        let start = |command: &mut Command, says: &str| {
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            Output::of(child.stdout.take().unwrap()).wait_for_text(says);
            child
        };
        let names = start(
            Command::new("pebble-challtestsrv")
                .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
                .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
                .args(["-dns01", &dns.to_string(), "-management", &format!("127.0.0.1:{names}")]),
            "Starting management server",
        );
        let pebble = start(
            Command::new("pebble")
                .arg("-config")
                .arg(folder.join("pebble.json"))
                .args(["-dnsserver", &dns.to_string()])
                .env("PEBBLE_VA_NOSLEEP", "1"),
            "ACME directory available",
        );
        let settings = format!(
            "[acme]\ndirectory_url = \"https://localhost:{directory}/dir\"\nroot_certificate = \"pebble.pem\"\n"
        );
        let roots_url = format!("https://localhost:{management}/roots/0");
        Some(Self { children: vec![names, pebble], settings, roots_url, own_certificate: certificate })
    }

    /// How long its certificates hold.
    pub(crate) const LIFE_DAYS: u64 = 90;

    /// The certificate that its others are verified with, as PEM.
    pub(crate) fn root(&self) -> String {
        // It says that it is there a moment before it listens.
        let end = Instant::now() + WAIT_LIMIT;
        loop {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--cacert"]).arg(&self.own_certificate);
            let answer = curl.arg(&self.roots_url).output().unwrap();
            if answer.status.success() {
                return String::from_utf8(answer.stdout).unwrap();
            }
            assert!(Instant::now() < end, "{}", String::from_utf8_lossy(&answer.stderr));
        }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl MovedClock {
    /// A clock that is right so far; `None` if `faketime` is not installed.
    pub(crate) fn new(folder: &Path) -> Option<Self> {
        let library = fs::read_dir("/usr/lib").into_iter().flatten().find_map(|entry| {
            let path = entry.unwrap().path().join("faketime/libfaketimeMT.so.1");
            path.is_file().then_some(path)
        });
        let Some(library) = library else {
            skip("Debian's package `faketime` is not installed; `cargo xtask setup` does that");
            return None;
        };
        let clock = Self { library, file: folder.join("clock") };
        clock.show(0);
        Some(clock)
    }

    /// Moves it so many days from now.
    pub(crate) fn show(&self, days: u64) {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("+{days}d\n")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// What a process has to have in its environment to see it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let (library, file) = (self.library.display(), self.file.display());
        [
            ("LD_PRELOAD", library.to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

/// Whether a program is on the PATH.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
