//! `wisp resources`: key-value stores and databases, and which apps have them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use wisp_control::model::{Link, ResourceSummary};

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, confirm, show, table},
    error::Error,
    output,
};

/// How much of a file is sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// Key-value stores and databases of a team, and which apps have them.
#[derive(Args)]
pub(crate) struct Resources {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    server: ServerFlags,
}

/// What a resource is.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A key-value store.
    KeyValue,
    /// An SQLite database.
    Sqlite,
}

#[derive(Subcommand)]
enum Command {
    /// List the team's resources.
    List(FormatFlag),
    /// Show a resource and how much it holds.
    Info {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Make a resource.
    Create {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// How many bytes it may hold.
        #[arg(long, value_name = "BYTES")]
        quota: Option<u64>,
    },
    /// Give a resource another name. Links stay.
    Rename {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Its new name.
        new_name: String,
    },
    /// Give a resource another quota.
    Quota {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// How many bytes it may hold.
        bytes: u64,
    },
    /// Put a resource behind a label of an app.
    Link {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// The app.
        #[arg(long)]
        app: String,
        /// The label that the app's manifest gives to it.
        #[arg(long, default_value = "default")]
        label: String,
    },
    /// Take a resource away from a label of an app. Its data stays.
    Unlink {
        /// What it is.
        kind: Kind,
        /// The app.
        #[arg(long)]
        app: String,
        /// The label.
        #[arg(long, default_value = "default")]
        label: String,
    },
    /// Write all data of a resource to a file.
    Export {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// The file. It must not be there yet.
        file: PathBuf,
    },
    /// Replace all data of a resource with what was exported.
    Import {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// The file.
        file: PathBuf,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Remove a resource that no app has, and all its data.
    Remove {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

impl Resources {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        match &self.command {
            Command::List(format) => {
                let resources: Vec<ResourceSummary> =
                    client.list(client.at_team(&["resources"]).await?).await?;
                show(format.format, &resources, |resources| {
                    let row = |resource: &ResourceSummary| {
                        [
                            resource.kind.to_string(),
                            resource.name.to_string(),
                            resource.quota_bytes.to_string(),
                            links(resource),
                        ]
                    };
                    table(["kind", "name", "quota (bytes)", "apps"], resources.iter().map(row).collect())
                });
            }
            Command::Info { kind, name, format } => {
                let url = client.at_team(&["resources", kind.as_str(), name]).await?;
                let resource: ResourceSummary = client.get(url).await?;
                show(format.format, &resource, |resource| {
                    format!(
                        "{} {}\n  holds  {} of {} bytes\n  apps   {}\n",
                        resource.kind,
                        resource.name,
                        resource.used_bytes.unwrap_or_default(),
                        resource.quota_bytes,
                        links(resource)
                    )
                });
            }
            Command::Create { kind, name, quota } => {
                let mut body = json!({ "kind": kind.as_str(), "name": name });
                if let Some(quota) = quota {
                    body["quota_bytes"] = json!(quota);
                }
                let url = client.at_team(&["resources"]).await?;
                let _: ResourceSummary = client.call(Method::POST, url, Some(&body)).await?;
                output::note(&format!("made {} {name}", kind.as_str()));
            }
            Command::Rename { kind, name, new_name } => {
                let url = client.at_team(&["resources", kind.as_str(), name]).await?;
                let body = json!({ "name": new_name });
                let _: ResourceSummary = client.call(Method::PATCH, url, Some(&body)).await?;
                output::note(&format!("{name} is called {new_name} now"));
            }
            Command::Quota { kind, name, bytes } => {
                let url = client.at_team(&["resources", kind.as_str(), name]).await?;
                let body = json!({ "quota_bytes": bytes });
                let _: ResourceSummary = client.call(Method::PATCH, url, Some(&body)).await?;
                output::note(&format!("{name} may hold {bytes} bytes now"));
            }
            Command::Link { kind, name, app, label } => {
                let url = client.at_team(&["apps", app, "links", kind.as_str(), label]).await?;
                let _: Link = client.call(Method::PUT, url, Some(&json!({ "resource": name }))).await?;
                output::note(&format!("{app} finds {name} as {label}"));
            }
            Command::Unlink { kind, app, label } => {
                let url = client.at_team(&["apps", app, "links", kind.as_str(), label]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("{app} has no {} {label} any more", kind.as_str()));
            }
            Command::Export { kind, name, file } => export(client, *kind, name, file).await?,
            Command::Import { kind, name, file, yes } => {
                confirm(&format!("replace all data of {name}?"), *yes)?;
                let data = tokio::fs::File::open(file)
                    .await
                    .map_err(|cause| Error::Read { path: file.clone(), cause })?;
                let pieces = futures::stream::try_unfold(data, async |mut data| {
                    let mut piece = vec![0; PIECE_BYTES];
                    let length_bytes = data.read(&mut piece).await?;
                    piece.truncate(length_bytes);
                    Ok::<_, std::io::Error>((length_bytes > 0).then_some((piece, data)))
                });
                let url = client.at_team(&["resources", kind.as_str(), name, "data"]).await?;
                client
                    .finish(client.request(Method::PUT, url).body(reqwest::Body::wrap_stream(pieces)))
                    .await?;
                output::note(&format!("{name} holds what is in {}", file.display()));
            }
            Command::Remove { kind, name, yes } => {
                confirm(&format!("remove {} {name} and all its data?", kind.as_str()), *yes)?;
                let url = client.at_team(&["resources", kind.as_str(), name]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("removed {} {name}", kind.as_str()));
            }
        }
        Ok(())
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::KeyValue => "key-value",
            Self::Sqlite => "sqlite",
        }
    }
}

async fn export(client: &Client, kind: Kind, name: &str, file: &PathBuf) -> Result<(), Error> {
    let failed = |cause| Error::Write { path: file.clone(), cause };
    let url = client.at_team(&["resources", kind.as_str(), name, "data"]).await?;
    let response = client.finish(client.request(Method::GET, url)).await?;
    let mut written =
        tokio::fs::OpenOptions::new().write(true).create_new(true).open(file).await.map_err(failed)?;
    let mut data = response.bytes_stream();
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|error| Error::Answer(error.to_string()))?;
        written.write_all(&piece).await.map_err(failed)?;
    }
    written.sync_all().await.map_err(failed)?;
    output::note(&format!("{} holds what is in {name}", file.display()));
    Ok(())
}

fn links(resource: &ResourceSummary) -> String {
    let links = resource.links.iter().map(|link| format!("{} as {}", link.app, link.label));
    links.collect::<Vec<_>>().join(", ")
}
