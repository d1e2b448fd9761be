//! `wisp releases`, `wisp rollback`: the versions of an app.

use clap::Args;
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{Operation, Release, ReleaseState};

use super::deploy::app_or_here;
use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show, table},
    error::Error,
    output,
};

/// List the releases of an app, the last first.
#[derive(Args)]
pub(crate) struct Releases {
    /// The app [default: the one of this folder].
    app: Option<String>,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

/// Go back to an earlier release, with the variables it had.
#[derive(Args)]
pub(crate) struct Rollback {
    /// The app [default: the one of this folder].
    app: Option<String>,

    /// To which release [default: the one that served before].
    release: Option<u64>,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

impl Releases {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let app = app_or_here(self.app.as_deref())?;
        let client = Client::new(&self.server)?;
        let releases: Vec<Release> =
            block_on(async { client.list(client.at_team(&["apps", &app, "releases"]).await?).await })?;
        show(self.format.format, &releases, |releases| {
            let row = |release: &Release| {
                let state = match release.state {
                    _ if release.is_current => "serves",
                    ReleaseState::Ready => "ready",
                    ReleaseState::Failed => "failed",
                    ReleaseState::Pending => "pending",
                };
                [
                    release.number.to_string(),
                    state.to_owned(),
                    moment(release.created_ms),
                    release.created_by.clone(),
                    release.image.as_str().chars().take("sha256:".len() + 12).collect(),
                    release.note.clone().unwrap_or_default(),
                ]
            };
            table(["release", "state", "made", "by", "image", "note"], releases.iter().map(row).collect())
        });
        Ok(())
    }
}

impl Rollback {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        // The names of apps begin with a letter, so that a number is a release.
        let number = self.app.as_deref().and_then(|app| app.parse::<u64>().ok());
        let (app, release) = match (number, self.release) {
            (Some(number), None) => (app_or_here(None)?, Some(number)),
            (_, release) => (app_or_here(self.app.as_deref())?, release),
        };
        let client = Client::new(&self.server)?;
        let operation = block_on(async {
            let url = client.at_team(&["apps", &app, "rollback"]).await?;
            let body = match release {
                Some(release) => json!({ "release": release }),
                None => json!({}),
            };
            let operation: Operation = client.call(Method::POST, url, Some(&body)).await?;
            client.follow(operation).await
        })?;
        show(self.format.format, &operation, |operation| format!("{}\n", operation.url));
        if let Some(release) = operation.release {
            output::note(&format!("release {release} of {app} serves"));
        }
        Ok(())
    }
}
