//! `wisp token`: tokens for scripts and pipelines.

use clap::{Args, Subcommand};
use reqwest::{Method, Url};
use serde_json::json;
use wisp_control::model::{NewToken, Token as Answer};

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show},
    error::Error,
    output,
};

/// Tokens for scripts and pipelines.
#[derive(Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum Command {
    /// List your tokens, or the team's.
    List {
        /// Those for the team, its own and its members'.
        #[arg(long)]
        of_team: bool,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Make a token. It is shown once.
    Create {
        /// What to call it.
        name: String,
        /// What it may be used for, such as `apps:deploy`; several are possible.
        #[arg(long = "scope", value_name = "SCOPE", required = true)]
        scopes: Vec<String>,
        /// It stands for the team and not for you: for a pipeline.
        #[arg(long)]
        of_team: bool,
        /// For how many days it holds.
        #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=1825))]
        expires_in_days: u64,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// End a token.
    Remove {
        /// Its id.
        id: String,
        /// It is one of the team's.
        #[arg(long)]
        of_team: bool,
    },
}

impl Token {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        match &self.command {
            Command::List { of_team, format } => {
                let tokens: Vec<Answer> = client.list(place(client, *of_team, &["tokens"]).await?).await?;
                show(format.format, &tokens, |tokens| tokens.iter().map(shown).collect());
            }
            Command::Create { name, scopes, of_team, expires_in_days, format } => {
                let body = json!({
                    "name": name,
                    "scopes": scopes,
                    "expires_in_seconds": expires_in_days * 24 * 60 * 60,
                });
                let url = place(client, *of_team, &["tokens"]).await?;
                let made: NewToken = client.call(Method::POST, url, Some(&body)).await?;
                show(format.format, &made, |made| format!("{}\n", made.secret));
                output::note("keep it: it is not shown again");
            }
            Command::Remove { id, of_team } => {
                let url = place(client, *of_team, &["tokens", id]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("token {id} holds no more"));
            }
        }
        Ok(())
    }
}

/// A token in several lines: what it may do is more than fits in one.
fn shown(token: &Answer) -> String {
    const INDENT_COLUMNS: usize = 10;

    let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
    let mut text = format!("{}\n", token.name);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&output::wrapped(&format!("  {name:<7} {value}"), INDENT_COLUMNS));
        }
    };
    row("id", Some(token.id.to_string()));
    row("team", token.team.as_ref().map(ToString::to_string));
    row("ends", token.expires_ms.map(moment));
    row("used", token.used_ms.map(moment));
    row("scopes", Some(scopes.join(" ")));
    text
}

async fn place(client: &Client, of_team: bool, parts: &[&str]) -> Result<Url, Error> {
    match of_team {
        true => client.at_team(parts).await,
        false => Ok(client.at(parts)),
    }
}
