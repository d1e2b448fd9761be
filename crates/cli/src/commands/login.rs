//! `wisp login`, `wisp logout`, `wisp whoami`: who you are on a server.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{DeviceSignIn, NewToken, Whoami as Answer};

use crate::{
    client::{Client, Credentials, FormatFlag, Known, ServerFlags, block_on, parse_server, show},
    error::Error,
    output,
};

/// The code of an answer that says that a sign-in was not confirmed yet.
const PENDING: &str = "WISP-E0913";

/// Sign in to a server.
///
/// Without `--link`, a page is named on which somebody who is signed in types a code. The
/// token that the server gives is kept in your configuration folder, readable by nobody else.
#[derive(Args)]
pub(crate) struct Login {
    /// The server's address, or the one-time link itself.
    #[arg(value_name = "URL")]
    url: String,

    /// The one-time link that the server printed, or that somebody gave to you.
    #[arg(long, value_name = "LINK")]
    link: Option<String>,

    /// What to be called, with a link, if you are new there.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// A team to make at once, with the first link of a new server.
    #[arg(long, value_name = "NAME")]
    new_team: Option<String>,

    /// Trust the certificates in this file (PEM) as well.
    #[arg(long, value_name = "FILE", env = "WISP_CA_FILE")]
    ca_file: Option<PathBuf>,
}

/// Forget the sign-in to a server.
#[derive(Args)]
pub(crate) struct Logout {
    #[command(flatten)]
    server: ServerFlags,
}

/// Show who you are on the server, and what you may do.
#[derive(Args)]
pub(crate) struct Whoami {
    #[command(flatten)]
    server: ServerFlags,

    #[command(flatten)]
    format: FormatFlag,
}

impl Login {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let link =
            self.link.as_deref().or_else(|| self.url.contains("/sign-in?").then_some(self.url.as_str()));
        let server = parse_server(&self.url)?;
        let client = Client::anonymous(server.clone(), self.ca_file.as_deref())?;
        let token = block_on(async {
            match link {
                Some(link) => self.by_link(&client, link).await,
                None => by_code(&client).await,
            }
        })?;
        let mut credentials = Credentials::read()?;
        let known = credentials.servers.entry(server.to_string()).or_insert_with(Known::default);
        known.token.clone_from(&token.secret);
        if let Some(team) = &self.new_team {
            known.team = Some(team.clone());
        }
        credentials.current = Some(server.to_string());
        credentials.write()?;
        let user = token.token.user.map_or_else(|| "a team".to_owned(), |user| user.to_string());
        output::note(&format!("signed in to {server} as {user}"));
        Ok(())
    }

    async fn by_link(&self, client: &Client, link: &str) -> Result<NewToken, Error> {
        let code = link.split_once("code=").map_or(link, |(_, code)| code);
        let mut body = json!({ "code": code });
        if let Some(user) = &self.user {
            body["user"] = json!(user);
        }
        if let Some(team) = &self.new_team {
            body["team"] = json!(team);
        }
        client.call(Method::POST, client.at(&["sign-in"]), Some(&body)).await
    }
}

impl Logout {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let server = client.server().to_string();
        let ended: Result<(), Error> = block_on(async {
            let whoami: Answer = client.get(client.at(&["whoami"])).await?;
            let url = client.at(&["tokens", whoami.token.as_str()]);
            client.send(Method::DELETE, url, None::<&()>).await?;
            Ok(())
        });
        let mut credentials = Credentials::read()?;
        credentials.servers.remove(&server);
        if credentials.current.as_deref() == Some(server.as_str()) {
            credentials.current = None;
        }
        credentials.write()?;
        match ended {
            Ok(()) => output::note(&format!("signed out of {server}")),
            // It is forgotten here all the same, and ends by itself there.
            Err(error) => output::note(&format!("forgot {server}; the token still holds there: {error}")),
        }
        Ok(())
    }
}

impl Whoami {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let answer: Answer = block_on(client.get(client.at(&["whoami"])))?;
        show(self.format.format, &answer, |answer| {
            let user = match &answer.user {
                Some(user) => user.to_string(),
                None => "a team's token".to_owned(),
            };
            let operator = if answer.is_operator { ", operator" } else { "" };
            let mut text = format!("{user}{operator} on {}\n", client.server());
            for team in &answer.teams {
                let role = team.role.map_or("", |role| role.as_str());
                text.push_str(&format!("team {} ({role})\n", team.name));
            }
            let scopes: Vec<&str> = answer.scopes.iter().map(|scope| scope.as_str()).collect();
            text.push_str(&output::wrapped(&format!("scopes: {}", scopes.join(" ")), 8));
            text
        });
        Ok(())
    }
}

async fn by_code(client: &Client) -> Result<NewToken, Error> {
    let machine = std::env::var("HOSTNAME").unwrap_or_else(|_| "a terminal".to_owned());
    let begun: DeviceSignIn =
        client.call(Method::POST, client.at(&["device"]), Some(&json!({ "name": machine }))).await?;
    output::note(&format!("open {} and type the code {}", begun.page, begun.user_code));
    let body = json!({ "device_code": begun.device_code });
    loop {
        let url = client.at(&["device", "token"]);
        match client.call(Method::POST, url, Some(&body)).await {
            Ok(token) => return Ok(token),
            Err(Error::Api(error)) if error.code == PENDING => {
                tokio::time::sleep(Duration::from_secs(begun.interval_seconds.clamp(1, 60))).await;
            }
            Err(error) => return Err(error),
        }
    }
}
