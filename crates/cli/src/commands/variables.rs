//! `wisp variables`, `wisp secrets`: values that an app gets.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Read as _},
};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{Operation, Variable};

use super::{common::parse_pair, deploy::app_or_here};
use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, show, table},
    error::Error,
    output,
};

/// Variables of an app. A change makes a new release, without building anything.
#[derive(Args)]
pub(crate) struct Variables {
    #[command(subcommand)]
    command: VariablesCommand,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum VariablesCommand {
    /// List the variables that are set. Values of secrets are never shown.
    List {
        /// The app [default: the one of this folder].
        app: Option<String>,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Set variables.
    #[command(override_usage = "wisp variables set [OPTIONS] [APP] <NAME=VALUE>...")]
    Set {
        /// The app [default: the one of this folder].
        #[arg(required = true)]
        app: String,
        /// NAME=VALUE; several are possible.
        #[arg(value_parser = parse_pair, value_name = "NAME=VALUE")]
        values: Vec<(String, String)>,
    },
    /// Take variables their values away.
    Unset {
        /// The app.
        app: String,
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Variables of an app that nobody can read, only the app.
#[derive(Args)]
pub(crate) struct Secrets {
    #[command(subcommand)]
    command: SecretsCommand,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum SecretsCommand {
    /// Set a secret. Its value is read from standard input, or asked for on a terminal.
    Set {
        /// The app.
        app: String,
        /// Its name.
        name: String,
    },
    /// Remove secrets.
    Unset {
        /// The app.
        app: String,
        /// Their names.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Variables {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        match &self.command {
            VariablesCommand::List { app, format } => {
                let app = &app_or_here(app.as_deref())?;
                let url = block_on(client.at_team(&["apps", app, "variables"]))?;
                let variables: Vec<Variable> = block_on(client.list(url))?;
                show(format.format, &variables, |variables| {
                    let row = |variable: &Variable| {
                        let value = variable.value.clone().unwrap_or_else(|| "(secret)".to_owned());
                        [variable.name.clone(), value]
                    };
                    table(["name", "value"], variables.iter().map(row).collect())
                });
                Ok(())
            }
            VariablesCommand::Set { app, values } => {
                let mut set: BTreeMap<_, _> = values.iter().cloned().collect();
                // The name of an app has no `=`.
                let app = match parse_pair(app) {
                    Ok((name, value)) => {
                        set.entry(name).or_insert(value);
                        app_or_here(None)?
                    }
                    Err(_) => app.clone(),
                };
                if set.is_empty() {
                    return Err(Error::Missing {
                        what: "what to set".to_owned(),
                        hint: format!("say it as `wisp variables set {app} NAME=VALUE`"),
                    });
                }
                change(&client, &app, "variables", &json!({ "set": set }))
            }
            VariablesCommand::Unset { app, names } => {
                change(&client, app, "variables", &json!({ "remove": names }))
            }
        }
    }
}

impl Secrets {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        match &self.command {
            SecretsCommand::Set { app, name } => {
                let set: BTreeMap<_, _> = [(name.clone(), read_secret(name)?)].into();
                change(&client, app, "secrets", &json!({ "set": set }))
            }
            SecretsCommand::Unset { app, names } => {
                change(&client, app, "secrets", &json!({ "remove": names }))
            }
        }
    }
}

fn change(client: &Client, app: &str, what: &str, body: &serde_json::Value) -> Result<(), Error> {
    block_on(async {
        let url = client.at_team(&["apps", app, what]).await?;
        let operation: Option<Operation> = client.call_maybe(Method::PATCH, url, Some(body)).await?;
        match operation {
            Some(operation) => {
                let ended = client.follow(operation).await?;
                if let Some(release) = ended.release {
                    output::note(&format!("release {release} of {app} serves with it"));
                }
            }
            None => output::note(&format!("the first release of {app} will have it")),
        }
        Ok(())
    })
}

/// A secret comes in where nobody looks over one's shoulder, and no shell keeps it.
fn read_secret(name: &str) -> Result<String, Error> {
    if std::io::stdin().is_terminal() {
        let asked = dialoguer::Password::new().with_prompt(name).interact();
        return asked.map_err(|_| Error::NotConfirmed);
    }
    let mut value = String::new();
    std::io::stdin()
        .read_to_string(&mut value)
        .map_err(|cause| Error::Read { path: "/dev/stdin".into(), cause })?;
    // A line break at the end is `echo`'s.
    let value = value.strip_suffix('\n').unwrap_or(&value);
    Ok(value.strip_suffix('\r').unwrap_or(value).to_owned())
}
