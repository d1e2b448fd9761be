//! What commands need to speak to a server: who to ask, as whom, and how answers are read.
//!
//! Where somebody signed in is kept in `credentials.json` in the user's configuration folder,
//! readable by nobody else. `WISP_SERVER`, `WISP_TOKEN` and `WISP_TEAM` win over it.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io::{ErrorKind, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use clap::{Args, ValueEnum};
use reqwest::{Method, Response, StatusCode, Url};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wisp_control::model::{ErrorAnswer, ErrorBody, Operation, Page, Progress, Whoami};

use crate::{error::Error, output};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest error answer that is read.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// How long one question about an operation waits for news.
const WAIT_MS: u64 = 20_000;

/// Most pages of a list that are shown: half a million items.
const MAX_PAGES_COUNT: usize = 1_000;

/// Flags of every command that asks a server.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerFlags {
    /// The server's address [default: where you signed in last].
    #[arg(long, value_name = "URL", env = "WISP_SERVER", global = true)]
    pub(crate) server: Option<String>,

    /// A token, instead of the one of your sign-in.
    #[arg(long, value_name = "TOKEN", env = "WISP_TOKEN", hide_env_values = true, global = true)]
    pub(crate) token: Option<String>,

    /// The team [default: your only one, or what `wisp team use` chose].
    #[arg(long, value_name = "NAME", env = "WISP_TEAM", global = true)]
    pub(crate) team: Option<String>,

    /// Trust the certificates in this file (PEM) as well.
    #[arg(long, value_name = "FILE", env = "WISP_CA_FILE", global = true)]
    pub(crate) ca_file: Option<PathBuf>,
}

/// How results look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Plain,
    /// For programs.
    Json,
}

/// A flag of every command that prints something.
#[derive(Args, Clone, Copy)]
pub(crate) struct FormatFlag {
    /// How results look.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: OutputFormat,
}

/// A server, and who asks it.
pub(crate) struct Client {
    http: reqwest::Client,
    server: Url,
    token: Option<String>,
    team: OnceLock<String>,
}

/// Where somebody signed in.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The server that is asked if nobody says otherwise.
    #[serde(default)]
    pub(crate) current: Option<String>,
    /// What is known of each server.
    #[serde(default)]
    pub(crate) servers: BTreeMap<String, Known>,
}

/// What is known of a server.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Known {
    /// The token of the sign-in.
    pub(crate) token: String,
    /// The team that is meant if nobody says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) team: Option<String>,
}

/// Runs what waits for a server.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?.block_on(work)
}

impl Client {
    /// The server that flags, environment and sign-in lead to.
    pub(crate) fn new(flags: &ServerFlags) -> Result<Self, Error> {
        let credentials = Credentials::read()?;
        let server = flags.server.clone().or_else(|| credentials.current.clone());
        let server = parse_server(&server.ok_or(Error::NotSignedIn)?)?;
        let known = credentials.servers.get(server.as_str());
        Ok(Self {
            http: http_client(flags.ca_file.as_deref())?,
            token: flags.token.clone().or_else(|| known.map(|known| known.token.clone())),
            team: flags
                .team
                .clone()
                .or_else(|| known.and_then(|known| known.team.clone()))
                .map(OnceLock::from)
                .unwrap_or_default(),
            server,
        })
    }

    /// A server that is asked as nobody yet.
    pub(crate) fn anonymous(server: Url, ca_file: Option<&Path>) -> Result<Self, Error> {
        Ok(Self { http: http_client(ca_file)?, server, token: None, team: OnceLock::new() })
    }

    /// The server's address.
    pub(crate) fn server(&self) -> &Url {
        &self.server
    }

    /// The token, for those who speak to the registry.
    #[expect(dead_code, reason = "a deploy pushes with it")]
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The team that is meant.
    pub(crate) async fn team(&self) -> Result<String, Error> {
        if let Some(team) = self.team.get() {
            return Ok(team.clone());
        }
        let whoami: Whoami = self.get(self.at(&["whoami"])).await?;
        match whoami.teams.as_slice() {
            [only] => Ok(self.team.get_or_init(|| only.name.to_string()).clone()),
            teams => Err(Error::WhichTeam(teams.iter().map(|team| team.name.to_string()).collect())),
        }
    }

    /// An address of the API: each part is a segment, whatever is in it.
    pub(crate) fn at(&self, parts: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(parts);
        }
        url
    }

    /// An address below the team that is meant.
    pub(crate) async fn at_team(&self, parts: &[&str]) -> Result<Url, Error> {
        let team = self.team().await?;
        let mut all = vec!["teams", team.as_str()];
        all.extend(parts);
        Ok(self.at(&all))
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, Error> {
        read(self.send(Method::GET, url, None::<&()>).await?).await
    }

    /// Reads all pages of a list.
    pub(crate) async fn list<T: DeserializeOwned>(&self, url: Url) -> Result<Vec<T>, Error> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES_COUNT {
            let mut url = url.clone();
            url.query_pairs_mut().append_pair("limit", "500");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let page: Page<T> = self.get(url).await?;
            items.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        Ok(items)
    }

    /// Sends something and reads what comes of it.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        read(self.send(method, url, body).await?).await
    }

    /// Sends something, and reads what comes of it if there is anything.
    pub(crate) async fn call_maybe<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<Option<T>, Error> {
        let response = self.send(method, url, body).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            _ => read(response).await.map(Some),
        }
    }

    /// Sends a JSON body, if there is one. What the server refuses is an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<Response, Error> {
        let request = self.request(method, url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.finish(request).await
    }

    /// A request that is not sent yet, with the token.
    pub(crate) fn request(&self, method: Method, url: Url) -> reqwest::RequestBuilder {
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request. What the server refuses is an error.
    pub(crate) async fn finish(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| Error::Unreachable {
            server: self.server.to_string(),
            cause: cause_of(&error),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.unwrap_or_default();
        let shown = bytes.get(..bytes.len().min(MAX_ERROR_BYTES)).unwrap_or_default();
        Err(Error::Api(match serde_json::from_slice::<ErrorAnswer>(shown) {
            Ok(answer) => Box::new(answer.error),
            Err(_) => Box::new(ErrorBody {
                code: "WISP-E0514".to_owned(),
                message: format!("the server answered {status}, not as Wisp does"),
                hint: Some("check that the address is that of a Wisp server".to_owned()),
            }),
        }))
    }

    /// Follows an operation to its end and says how each step went.
    pub(crate) async fn follow(&self, begun: Operation) -> Result<Operation, Error> {
        let mut operation = begun;
        let mut shown = 0;
        loop {
            for step in operation.steps.iter().skip(shown) {
                let Some(duration_us) = step.duration_us else { break };
                shown += 1;
                let state = if step.progress == Progress::Failed { "failed" } else { "done" };
                let detail = step.detail.as_deref().map(|detail| format!(" ({detail})")).unwrap_or_default();
                output::note(&format!(
                    "  {:<10} {state} in {}{detail}",
                    step.name,
                    milliseconds(duration_us)
                ));
            }
            match operation.progress {
                Progress::Done => return Ok(operation),
                Progress::Failed => {
                    let error = operation.error.take().unwrap_or_else(|| ErrorBody {
                        code: "WISP-E0514".to_owned(),
                        message: "the operation failed, and the server does not say why".to_owned(),
                        hint: None,
                    });
                    return Err(Error::Api(Box::new(error)));
                }
                Progress::Waiting | Progress::Running => {}
            }
            let seen: u64 = operation
                .steps
                .iter()
                .map(|step| match step.progress {
                    Progress::Waiting => 0,
                    Progress::Running => 1,
                    Progress::Done | Progress::Failed => 2,
                })
                .sum();
            let mut url = self.at_team(&["operations", operation.id.as_str()]).await?;
            url.query_pairs_mut()
                .append_pair("wait_ms", &WAIT_MS.to_string())
                .append_pair("seen", &seen.to_string());
            operation = self.get(url).await?;
        }
    }
}

impl Credentials {
    /// What is kept; nothing if nobody has signed in.
    pub(crate) fn read() -> Result<Self, Error> {
        let path = Self::path();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::Credentials { path, message: error.to_string() }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Error::Credentials { path, message: error.to_string() }),
        }
    }

    /// Keeps it, readable by nobody else.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let path = Self::path();
        let failed =
            |error: std::io::Error| Error::Credentials { path: path.clone(), message: error.to_string() };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        let temporary = path.with_extension("new");
        // One that is left over may be readable by others.
        drop(fs::remove_file(&temporary));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }

    fn path() -> PathBuf {
        let from =
            |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        from("XDG_CONFIG_HOME")
            .or_else(|| from("HOME").map(|home| home.join(".config")))
            .unwrap_or_else(std::env::temp_dir)
            .join("wisp/credentials.json")
    }
}

/// Prints a result: `plain` makes it readable.
pub(crate) fn show<T: Serialize>(format: OutputFormat, value: &T, plain: impl FnOnce(&T) -> String) {
    match format {
        OutputFormat::Json => {
            let text = serde_json::to_string_pretty(value).unwrap_or_default();
            output::data(&format!("{text}\n"));
        }
        OutputFormat::Plain => output::data(&plain(value)),
    }
}

/// A table with aligned columns.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut widths = heads.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head = line(&heads.map(|head| head.to_uppercase()));
    rows.iter().map(line).fold(head, |text, line| text + &line)
}

/// A moment as people say it: how long ago it was, or how far off it is.
pub(crate) fn moment(at_ms: u64) -> String {
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        .unwrap_or_default();
    let seconds = now_ms.abs_diff(at_ms) / 1_000;
    let span = match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    };
    if at_ms > now_ms { format!("in {span}") } else { format!("{span} ago") }
}

/// Asks whether to go on, on a terminal. Elsewhere somebody has to have said `--yes`.
pub(crate) fn confirm(question: &str, is_agreed: bool) -> Result<(), Error> {
    if is_agreed {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::NotConfirmed);
    }
    let answer = dialoguer::Confirm::new().with_prompt(question).default(false).interact();
    match answer {
        Ok(true) => Ok(()),
        _ => Err(Error::NotConfirmed),
    }
}

/// Reads a server's address: `localhost:3000` will do.
pub(crate) fn parse_server(text: &str) -> Result<Url, Error> {
    let wrong = |message: String| Error::Flag {
        flag: "--server",
        value: text.to_owned(),
        message,
        hint: "name an address such as `https://wisp.example` or `http://localhost:3000`",
    };
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let mut url = Url::parse(&full).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("it is no address of a web server".to_owned()));
    }
    url.set_query(None);
    url.set_fragment(None);
    url.set_path("/");
    Ok(url)
}

/// Milliseconds with as many digits as are worth reading.
pub(crate) fn milliseconds(duration_us: u64) -> String {
    match duration_us {
        0..10_000 => format!("{}.{} ms", duration_us / 1_000, duration_us % 1_000 / 100),
        _ => format!("{} ms", duration_us / 1_000),
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let bytes = response.bytes().await.map_err(|error| Error::Answer(cause_of(&error)))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Answer(error.to_string()))
}

fn http_client(ca_file: Option<&Path>) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("wisp/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca_file {
        let pem = fs::read(path).map_err(|cause| Error::Read { path: path.to_owned(), cause })?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| Error::Flag {
            flag: "--ca-file",
            value: path.display().to_string(),
            message: cause_of(&error),
            hint: "name a file with certificates in PEM",
        })?;
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| Error::Answer(cause_of(&error)))
}

/// The innermost cause says what happened; the others say it again.
fn cause_of(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn servers_are_addresses() {
        assert_eq!(parse_server("localhost:3000").unwrap().as_str(), "http://localhost:3000/");
        assert_eq!(parse_server("https://wisp.example/a?b").unwrap().as_str(), "https://wisp.example/");
        assert!(parse_server("ftp://wisp.example").is_err());
        assert!(parse_server("").is_err());
    }

    #[test]
    fn tables_are_aligned() {
        let rows = vec![["a".to_owned(), "bcd".to_owned()], ["longer".to_owned(), "e".to_owned()]];
        assert_eq!(table(["name", "x"], rows), "NAME    X\na       bcd\nlonger  e\n");
    }
}
