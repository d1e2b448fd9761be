//! `wisp domains`: names by which an app is reached.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use wisp_control::model::Domain;

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, show, table},
    error::Error,
    output,
};

/// Domains of an app.
#[derive(Args)]
pub(crate) struct Domains {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum Command {
    /// List the domains of an app.
    List {
        /// The app.
        app: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Add a domain. It leads to the app once it is verified.
    Add {
        /// The app.
        app: String,
        /// The domain.
        host: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Look into DNS whether a domain is the app's.
    Verify {
        /// The app.
        app: String,
        /// The domain.
        host: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Take a domain away from an app.
    Remove {
        /// The app.
        app: String,
        /// The domain.
        host: String,
    },
}

impl Domains {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        match &self.command {
            Command::List { app, format } => {
                let domains: Vec<Domain> =
                    client.list(client.at_team(&["apps", app, "domains"]).await?).await?;
                show(format.format, &domains, |domains| {
                    let row = |domain: &Domain| {
                        let state = if domain.is_verified { "verified" } else { "not verified" };
                        [domain.host.to_string(), state.to_owned()]
                    };
                    table(["domain", "state"], domains.iter().map(row).collect())
                });
            }
            Command::Add { app, host, format } => {
                let url = client.at_team(&["apps", app, "domains"]).await?;
                let domain: Domain = client.call(Method::POST, url, Some(&json!({ "host": host }))).await?;
                show(format.format, &domain, |domain| {
                    let proof = &domain.proof;
                    format!(
                        "put one of these into DNS, then `wisp domains verify {app} {host}`:\n  \
                         {host} CNAME {}\n  {} TXT {}\n",
                        proof.cname, proof.txt_name, proof.txt_value
                    )
                });
            }
            Command::Verify { app, host, format } => {
                let url = client.at_team(&["apps", app, "domains", host, "verify"]).await?;
                let domain: Domain = client.call(Method::POST, url, None::<&()>).await?;
                show(format.format, &domain, |domain| format!("{} leads to {app}\n", domain.host));
            }
            Command::Remove { app, host } => {
                let url = client.at_team(&["apps", app, "domains", host]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("{host} leads to {app} no more"));
            }
        }
        Ok(())
    }
}
