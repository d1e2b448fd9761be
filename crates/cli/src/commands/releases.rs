//! `wisp releases`, `wisp rollback`: the versions of an app.

use clap::Args;
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{Operation, Release, ReleaseState};

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show, table},
    error::Error,
    output,
};

/// List the releases of an app, the last first.
#[derive(Args)]
pub(crate) struct Releases {
    /// The app.
    app: String,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

/// Go back to an earlier release, with the variables it had.
#[derive(Args)]
pub(crate) struct Rollback {
    /// The app.
    app: String,

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
        let client = Client::new(&self.server)?;
        let releases: Vec<Release> =
            block_on(async { client.list(client.at_team(&["apps", &self.app, "releases"]).await?).await })?;
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
        let client = Client::new(&self.server)?;
        let operation = block_on(async {
            let url = client.at_team(&["apps", &self.app, "rollback"]).await?;
            let body = match self.release {
                Some(release) => json!({ "release": release }),
                None => json!({}),
            };
            let operation: Operation = client.call(Method::POST, url, Some(&body)).await?;
            client.follow(operation).await
        })?;
        show(self.format.format, &operation, |operation| format!("{}\n", operation.url));
        if let Some(release) = operation.release {
            output::note(&format!("release {release} of {} serves", self.app));
        }
        Ok(())
    }
}
