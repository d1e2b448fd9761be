//! `wisp kv`: what is in a key-value store.

use std::io::{Read as _, Write as _};

use clap::{Args, Subcommand};
use reqwest::Method;

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, show},
    error::Error,
    output,
};

/// Look into a key-value store, and change it.
///
/// A store is named like its app and label: `shop.default`. `wisp resources list` names all.
#[derive(Args)]
pub(crate) struct KeyValue {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum Command {
    /// List keys.
    List {
        /// The store.
        store: String,
        /// Only those that begin so.
        #[arg(long, default_value = "")]
        prefix: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Print the value of a key, as it is.
    Get {
        /// The store.
        store: String,
        /// The key.
        key: String,
    },
    /// Set a key.
    Set {
        /// The store.
        store: String,
        /// The key.
        key: String,
        /// The value [default: what comes from standard input].
        value: Option<String>,
    },
    /// Remove a key.
    Delete {
        /// The store.
        store: String,
        /// The key.
        key: String,
    },
}

impl KeyValue {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        match &self.command {
            Command::List { store, prefix, format } => {
                let mut url = client.at_team(&["key-value", store, "keys"]).await?;
                url.query_pairs_mut().append_pair("prefix", prefix);
                let keys: Vec<String> = client.list(url).await?;
                show(format.format, &keys, |keys| keys.iter().map(|key| format!("{key}\n")).collect());
            }
            Command::Get { store, key } => {
                let url = client.at_team(&["key-value", store, "keys", key]).await?;
                let response = client.finish(client.request(Method::GET, url)).await?;
                let value = response.bytes().await.map_err(|error| Error::Answer(error.to_string()))?;
                // A reader that has gone away is no error of the command.
                drop(std::io::stdout().lock().write_all(&value));
            }
            Command::Set { store, key, value } => {
                let value = match value {
                    Some(value) => value.clone().into_bytes(),
                    None => {
                        let mut value = Vec::new();
                        std::io::stdin()
                            .read_to_end(&mut value)
                            .map_err(|cause| Error::Read { path: "/dev/stdin".into(), cause })?;
                        value
                    }
                };
                let url = client.at_team(&["key-value", store, "keys", key]).await?;
                client.finish(client.request(Method::PUT, url).body(value)).await?;
                output::note(&format!("set {key}"));
            }
            Command::Delete { store, key } => {
                let url = client.at_team(&["key-value", store, "keys", key]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("removed {key}"));
            }
        }
        Ok(())
    }
}
