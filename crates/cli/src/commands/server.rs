//! `wisp server`: the cloud in one process.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use wisp_control::model::{GarbageItem, GarbageReport};
use wisp_server::{Facts, Flags, Server, Settings};

use super::common::{parse_listen, stop_signal};
use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, show, table},
    error::Error,
    output,
};

/// Run a cloud: push apps to it with `wisp deploy`, reach each at its own host name.
///
/// Control plane, registry, node and listener in one process, and all that they keep in one
/// folder. The first start prints a link to sign in with. Settings come from flags, then from
/// `wisp.toml`, then from defaults.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ServerCommand {
    #[command(subcommand)]
    command: Option<Operation>,

    /// The file of settings [default: `wisp.toml`, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Everything that the server keeps [default: `wisp-data` in the user's data folder].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Address and port for `http`; port 0 is any free one [default: 127.0.0.1:3000].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// Address and port for `https` [default: none].
    #[arg(long, value_name = "ADDRESS")]
    listen_tls: Option<String>,

    /// The host of the API; apps are at `APP.TEAM.DOMAIN` [default: localhost].
    #[arg(long, value_name = "HOST")]
    domain: Option<String>,

    /// Answer the operator here: health and metrics. There is no password, so choose an address
    /// that only the operator reaches [default: nowhere].
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,

    /// What teams may do: capabilities, destinations, limits (TOML).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// If a server uses the data directory, go on in its place: it hands its sockets over, answers
    /// what it has and ends. No connection is refused and no request fails.
    #[arg(long)]
    take_over: bool,

    /// Print all settings with where each came from, and start nothing.
    #[arg(long)]
    print_config: bool,
}

/// What an operator asks a server that is running.
#[derive(Subcommand)]
enum Operation {
    Clean(Clean),
}

/// Remove what nobody needs any more from a server: images of releases that are gone, and what
/// was made of them.
///
/// The server does that every hour by itself. What was pushed, asked for or deployed within a day
/// stays; how many releases of an app are kept, the policy says. Only for operators.
#[derive(Args)]
struct Clean {
    /// Only show what would go.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

impl Clean {
    fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let method = if self.dry_run { Method::GET } else { Method::POST };
        let report: GarbageReport =
            block_on(async { client.call(method, client.at(&["garbage"]), None::<&()>).await })?;
        show(self.format.format, &report, garbage);
        let count: u64 = report.totals.iter().map(|total| total.count).sum();
        output::note(&match report.is_removed {
            true => format!("{count} removed, {} freed", size(report.bytes)),
            false => format!("{count} would go, {} would be freed", size(report.bytes)),
        });
        Ok(())
    }
}

/// What goes, and how much that is of each kind.
fn garbage(report: &GarbageReport) -> String {
    let kind = |kind| format!("{kind:?}").to_lowercase();
    let item = |item: &GarbageItem| [kind(item.kind), size(item.bytes), item.name.clone()];
    let mut text = table(["kind", "size", "name"], report.items.iter().map(item).collect());
    for total in &report.totals {
        let shown = report.items.iter().filter(|item| item.kind == total.kind).count() as u64;
        if total.count > shown {
            text.push_str(&format!("and {} more of kind {}\n", total.count - shown, kind(total.kind)));
        }
    }
    text
}

/// A size as people say it.
fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

impl ServerCommand {
    pub(crate) fn run(&self) -> Result<(), Error> {
        match &self.command {
            Some(Operation::Clean(clean)) => clean.run(),
            None => self.serve(),
        }
    }

    fn serve(&self) -> Result<(), Error> {
        let settings = Settings::read(self.flags()?)?;
        if self.print_config {
            output::data(&settings.to_toml());
            return Ok(());
        }
        let program = std::env::current_exe().map_err(Error::Start)?;
        wisp_telemetry::start("wisp-server")?;
        let server = Server::start(&settings, program, self.take_over)?;
        announce(server.facts());
        let result = server.run(async {
            stop_signal().await;
        });
        wisp_telemetry::flush();
        Ok(result?)
    }

    fn flags(&self) -> Result<Flags, Error> {
        let address = |flag: &'static str, text: &Option<String>| -> Result<Option<SocketAddr>, Error> {
            text.as_deref().map(|text| parse_listen(flag, text)).transpose()
        };
        Ok(Flags {
            config: self.config.clone(),
            data_dir: self.data_dir.clone(),
            listen: address("--listen", &self.listen)?,
            listen_tls: address("--listen-tls", &self.listen_tls)?,
            domain: self.domain.clone(),
            admin: address("--admin", &self.admin)?,
            policy: self.policy.clone(),
        })
    }
}

/// Says where the server is, and on the first start how to go on.
fn announce(facts: &Facts) {
    let mut text = String::new();
    for (scheme, address) in &facts.addresses {
        text.push_str(&format!("Serving {scheme}://{address}\n"));
    }
    if let Some(admin) = facts.admin {
        text.push_str(&format!("Admin http://{admin}\n"));
    }
    text.push_str(&format!("API {}\n", facts.url));
    output::data(&text);
    output::note(&format!("{} apps, kept in {}", facts.apps_count, facts.data_dir.display()));
    if let Some(certificate) = &facts.local_authority {
        output::note(&format!("browsers trust {}", certificate.display()));
    }
    if let Some(link) = &facts.sign_in_link {
        output::note(&format!(
            "nobody can sign in yet. This link works once, within a day, also in a browser:\n\n  {link}\n\n\
             the next three commands:\n\n  wisp login '{link}' --user NAME --new-team TEAM\n  \
             wisp new hello --template http-rust && cd hello\n  wisp deploy --build\n"
        ));
    }
}
