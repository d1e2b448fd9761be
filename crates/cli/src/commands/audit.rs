//! `wisp audit`: who did what.

use clap::Args;
use wisp_control::model::{AuditEntry, Page};

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show, table},
    error::Error,
};

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
        show(self.format.format, &page.items, |entries| {
            let row = |entry: &AuditEntry| {
                [
                    moment(entry.at_ms),
                    entry.who.clone(),
                    entry.from.clone(),
                    entry.action.clone(),
                    entry.subject.clone(),
                    entry.detail.clone().unwrap_or_default(),
                ]
            };
            table(["when", "who", "from", "what", "to", "detail"], entries.iter().map(row).collect())
        });
        Ok(())
    }
}
