//! `wisp logs`: what an app logged.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use futures::StreamExt as _;
use reqwest::Method;
use wisp_control::LogRecord;

use super::{common::parse_duration, deploy::app_or_here};
use crate::{
    client::{Client, FormatFlag, OutputFormat, ServerFlags, block_on},
    error::Error,
    output,
};

/// Longest line that is kept while its end is waited for.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Show what an app logged.
#[derive(Args)]
pub(crate) struct Logs {
    /// The app [default: the one of this folder].
    app: Option<String>,

    /// Go on with what comes.
    #[arg(long, short)]
    follow: bool,

    /// Only what is not older, such as `10m`.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,

    /// Only lines with this text.
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,

    /// Only what belongs to this request.
    #[arg(long, value_name = "ID")]
    request: Option<String>,

    /// Only the last so many lines.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    last: usize,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

impl Logs {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        let app = app_or_here(self.app.as_deref())?;
        let mut url = client.at_team(&["apps", &app, "logs"]).await?;
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("last", &self.last.to_string());
            if self.follow {
                query.append_pair("follow", "true");
            }
            if let Some(since) = self.since {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                query.append_pair("since_ms", &now.saturating_sub(since).as_millis().to_string());
            }
            for (name, value) in [("contains", &self.grep), ("request", &self.request)] {
                if let Some(value) = value {
                    query.append_pair(name, value);
                }
            }
        }
        let response = client.finish(client.request(Method::GET, url)).await?;
        let mut data = response.bytes_stream();
        let mut rest = Vec::new();
        while let Some(piece) = data.next().await {
            rest.extend_from_slice(&piece.map_err(|error| Error::Answer(error.to_string()))?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                self.print(&line);
            }
            if rest.len() > MAX_LINE_BYTES {
                return Err(Error::Answer("a line of the log has no end".to_owned()));
            }
        }
        Ok(())
    }

    fn print(&self, line: &[u8]) {
        let record = serde_json::from_slice::<LogRecord>(line);
        match (self.format.format, record) {
            (OutputFormat::Plain, Ok(record)) => {
                let component = record.component.map(|component| format!(" {component}")).unwrap_or_default();
                let text = record.text.trim_end();
                output::data(&format!("{} {}{component} {text}\n", time_of(record.at_ms), record.stream));
            }
            _ => output::data(&String::from_utf8_lossy(line)),
        }
    }
}

/// The time of day in UTC: `12:34:56.789`.
fn time_of(at_ms: u64) -> String {
    let seconds = at_ms / 1_000;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60, at_ms % 1_000)
}
