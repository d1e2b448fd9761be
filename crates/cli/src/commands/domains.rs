//! `wisp domains`: names by which an app is reached.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{CertificateState, CertificateStatus, Domain};

use super::deploy::app_or_here;
use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, moment, show, table},
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
    /// List the domains of an app, with their certificates and why one is missing.
    List {
        /// The app [default: the one of this folder].
        app: Option<String>,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Add a domain. It leads to the app once it is verified.
    #[command(override_usage = "wisp domains add [OPTIONS] [APP] <HOST>")]
    Add {
        #[command(flatten)]
        names: Names,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Look into DNS whether a domain is the app's.
    #[command(override_usage = "wisp domains verify [OPTIONS] [APP] <HOST>")]
    Verify {
        #[command(flatten)]
        names: Names,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Take a domain away from an app.
    #[command(override_usage = "wisp domains remove [OPTIONS] [APP] <HOST>")]
    Remove {
        #[command(flatten)]
        names: Names,
    },
}

/// Which domain of which app. A host name has a dot and the name of an app has none, so that
/// one of them alone is the domain.
#[derive(Args)]
struct Names {
    /// The app [default: the one of this folder].
    #[arg(value_name = "APP")]
    first: Option<String>,
    /// The domain.
    #[arg(value_name = "HOST")]
    second: Option<String>,
}

impl Names {
    /// The app and the domain.
    fn both(&self) -> Result<(String, String), Error> {
        match (&self.first, &self.second) {
            (Some(app), Some(host)) => Ok((app.clone(), host.clone())),
            (Some(host), None) if host.contains('.') => Ok((app_or_here(None)?, host.clone())),
            _ => Err(Error::Missing {
                what: "the domain".to_owned(),
                hint: "name it, such as `www.example.org`".to_owned(),
            }),
        }
    }
}

/// How a certificate is, in a few words.
pub(super) fn certificate(status: &CertificateStatus) -> String {
    let until = |what: &str, at_ms: Option<u64>| {
        at_ms.map(|at_ms| format!(", {what} {}", moment(at_ms))).unwrap_or_default()
    };
    match status.state {
        CertificateState::Valid if status.error.is_some() => {
            format!("valid, expires {}, not renewed yet", status.expires_ms.map(moment).unwrap_or_default())
        }
        CertificateState::Valid => format!("valid{}", until("renewed", status.renews_ms)),
        CertificateState::Local => "local authority".to_owned(),
        CertificateState::Pending => "being obtained".to_owned(),
        CertificateState::Failing => format!("none{}", until("tried again", status.next_try_ms)),
        CertificateState::Paused => format!("none{}", until("asked for", status.next_try_ms)),
        CertificateState::Missing => "when first asked for".to_owned(),
    }
}

/// Why there is no certificate, or no new one, and what to do about it.
pub(super) fn complaint(host: &str, status: &CertificateStatus) -> Option<String> {
    let error = status.error.as_ref()?;
    let when = status.failed_ms.map(|at_ms| format!(", {}", moment(at_ms))).unwrap_or_default();
    let hint = error.hint.as_ref().map(|hint| format!("  hint: {hint}\n")).unwrap_or_default();
    Some(format!("{host} ({}{when}): {}\n{hint}", error.code, error.message))
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
                let app = &app_or_here(app.as_deref())?;
                let domains: Vec<Domain> =
                    client.list(client.at_team(&["apps", app, "domains"]).await?).await?;
                show(format.format, &domains, |domains| {
                    let row = |domain: &Domain| {
                        let state = if domain.is_verified { "verified" } else { "not verified" };
                        let certificate = domain.certificate.as_ref().map(certificate).unwrap_or_default();
                        [domain.host.to_string(), state.to_owned(), certificate]
                    };
                    let rows = table(["domain", "state", "certificate"], domains.iter().map(row).collect());
                    let why =
                        domains.iter().filter_map(|domain| Some((domain, domain.certificate.as_ref()?)));
                    why.filter_map(|(domain, certificate)| complaint(domain.host.as_str(), certificate))
                        .fold(rows, |text, complaint| text + "\n" + &complaint)
                });
            }
            Command::Add { names, format } => {
                let (app, host) = &names.both()?;
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
            Command::Verify { names, format } => {
                let (app, host) = &names.both()?;
                let url = client.at_team(&["apps", app, "domains", host, "verify"]).await?;
                let domain: Domain = client.call(Method::POST, url, None::<&()>).await?;
                show(format.format, &domain, |domain| format!("{} leads to {app}\n", domain.host));
            }
            Command::Remove { names } => {
                let (app, host) = &names.both()?;
                let url = client.at_team(&["apps", app, "domains", host]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("{host} leads to {app} no more"));
            }
        }
        Ok(())
    }
}
