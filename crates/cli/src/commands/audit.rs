//! `wisp audit`: who did what.

use clap::Args;
use wisp_control::model::{AuditEntry, Page};

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show},
    error::Error,
    output,
};

/// How far what happened stands behind when it did.
const INDENT_COLUMNS: usize = 10;

/// Show who did what in a team, the last first.
#[derive(Args)]
pub(crate) struct Audit {
    /// What belongs to no team: users, teams, sign-ins. Only for operators.
    #[arg(long)]
    server_wide: bool,

    /// How many entries.
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

impl Audit {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let page: Page<AuditEntry> = block_on(async {
            let mut url = match self.server_wide {
                true => client.at(&["audit"]),
                false => client.at_team(&["audit"]).await?,
            };
            url.query_pairs_mut().append_pair("limit", &self.limit.to_string());
            client.get(url).await
        })?;
        show(self.format.format, &page.items, |entries| entries.iter().map(shown).collect());
        Ok(())
    }
}

/// An entry in two lines: in one it is wider than what fits everywhere.
fn shown(entry: &AuditEntry) -> String {
    let mut about = format!("{:INDENT_COLUMNS$}by {} from {}", "", entry.who, entry.from);
    if let Some(detail) = &entry.detail {
        about.push_str(&format!(": {detail}"));
    }
    let when = format!("{:<INDENT_COLUMNS$}", moment(entry.at_ms));
    format!("{when}{} {}\n{}", entry.action, entry.subject, output::wrapped(&about, INDENT_COLUMNS))
}
