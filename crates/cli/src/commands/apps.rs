//! `wisp apps`, `wisp info`, `wisp rm`: the apps of a team.

use clap::Args;
use reqwest::Method;
use wisp_control::model::{AppDetails, AppSummary, Operation};

use super::{
    deploy::app_or_here,
    domains::{certificate, complaint},
};
use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, confirm, moment, show, table},
    error::Error,
    output,
};

/// List the apps of a team.
#[derive(Args)]
pub(crate) struct Apps {
    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

/// Show an app: where it answers, how it is, what belongs to it.
#[derive(Args)]
pub(crate) struct Info {
    /// The app [default: the one of this folder].
    app: Option<String>,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

/// Remove an app. Its resources stay.
#[derive(Args)]
pub(crate) struct Remove {
    /// The app.
    app: String,

    /// Do not ask.
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    server: ServerFlags,
}

impl Apps {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let apps: Vec<AppSummary> = block_on(async { client.list(client.at_team(&["apps"]).await?).await })?;
        show(self.format.format, &apps, |apps| {
            let row = |app: &AppSummary| {
                let release = app.release.map_or_else(|| "-".to_owned(), |release| release.to_string());
                [app.name.to_string(), release, moment(app.created_ms), app.url.clone()]
            };
            table(["name", "release", "made", "url"], apps.iter().map(row).collect())
        });
        Ok(())
    }
}

impl Info {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let app = app_or_here(self.app.as_deref())?;
        let client = Client::new(&self.server)?;
        let details: AppDetails =
            block_on(async { client.get(client.at_team(&["apps", &app]).await?).await })?;
        show(self.format.format, &details, plain);
        Ok(())
    }
}

impl Remove {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        confirm(&format!("remove app {}? its resources stay", self.app), self.yes)?;
        block_on(async {
            let url = client.at_team(&["apps", &self.app]).await?;
            let operation: Operation = client.call(Method::DELETE, url, None::<&()>).await?;
            client.follow(operation).await
        })?;
        output::note(&format!("removed app {}", self.app));
        Ok(())
    }
}

fn plain(details: &AppDetails) -> String {
    let mut text = format!("{}/{}\n  url        {}\n", details.app.team, details.app.name, details.app.url);
    let release = details.app.release.map_or_else(|| "none yet".to_owned(), |release| release.to_string());
    text.push_str(&format!("  release    {release}\n"));
    if let Some(image) = &details.image {
        text.push_str(&format!("  image      {image}\n"));
    }
    let message = details.health.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    text.push_str(&format!("  health     {}{message}\n", details.health.state));
    if let Some(status) = &details.certificate {
        text.push_str(&format!("  https      {}\n", certificate(status)));
        if let Some(complaint) = complaint("its own host", status) {
            text.push_str(&format!("             {complaint}"));
        }
    }
    for link in &details.links {
        text.push_str(&format!("  {:<10} {} is {}\n", link.kind, link.label, link.resource));
    }
    for domain in &details.domains {
        let state = if domain.is_verified { "verified" } else { "not verified" };
        text.push_str(&format!("  domain     {} ({state})\n", domain.host));
    }
    if let Some(operation) = &details.operation {
        text.push_str(&format!("  running    operation {operation}\n"));
    }
    text
}
