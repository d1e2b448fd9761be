//! `wisp deploy`: an app from this machine to a server.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use reqwest::{Method, StatusCode, Url, header};
use serde::Serialize;
use serde_json::json;
use wisp_control::{
    Asked, ImageDescription,
    model::{AppSummary, ErrorBody, Operation, Plan, Progress},
};
use wisp_image::{Image, Layer, PackOptions};
use wisp_manifest::{App, MANIFEST_FILE_NAME};

use super::{
    build::build_app,
    common::{composed, unwrap_checked},
    packages::fetched,
};
use crate::{
    client::{Client, FormatFlag, OutputFormat, ServerFlags, block_on, confirm, milliseconds},
    error::Error,
    output,
};

/// The longest name of an app that a server takes.
const MAX_NAME_BYTES: usize = 39;

/// The type of an image's manifest.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bring an app to serve on a server.
///
/// Packs the app, pushes what the server lacks, shows what the new release can do and the one
/// before could not, and follows the release until it serves and the one before has answered
/// its last request. Whatever fails before leaves the release that serves as it is.
#[derive(Args)]
pub(crate) struct Deploy {
    /// The app: a `spin.toml`, or a folder with one.
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".", alias = "from-file")]
    from: PathBuf,

    /// What the app is called on the server [default: its name in the manifest].
    #[arg(long, value_name = "NAME")]
    app: Option<String>,

    /// Build the app first, as `wisp build` does.
    #[arg(long)]
    build: bool,

    /// Read the components with this profile of the manifest.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Set a variable of the app: `NAME=VALUE`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::common::parse_pair)]
    variable: Vec<(String, String)>,

    /// What to say about the release.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,

    /// Agree to everything that the policy wants somebody to agree to.
    #[arg(short, long)]
    yes: bool,

    /// Only show what would change.
    #[arg(long)]
    plan: bool,

    #[command(flatten)]
    server: ServerFlags,

    #[command(flatten)]
    format: FormatFlag,
}

/// What a deploy came to, for scripts.
#[derive(Serialize)]
struct Report {
    app: String,
    release: Option<u64>,
    url: String,
    image: String,
    steps: Vec<Timed>,
    total_ms: f64,
}

/// A step and how long it took.
#[derive(Serialize)]
struct Timed {
    step: String,
    ms: f64,
}

impl Deploy {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let app = fetched(unwrap_checked(App::read(&self.from, self.profile.as_deref()))?, None)?;
        if self.build {
            let settings =
                wisp_develop::build::Settings { has_color: output::has_color(), ..Default::default() };
            build_app(&app, &settings)?;
        }
        let started = Instant::now();
        let mut steps = Vec::new();
        let name = match &self.app {
            Some(name) => name.clone(),
            None => name_of(&app.name)?,
        };
        let image = wisp_image::pack(&composed(&app)?, &PackOptions::default())?;
        timed(&mut steps, "pack", started.elapsed(), &format!("{} KiB", image.size().div_ceil(1 << 10)));
        block_on(self.deploy(&app, &name, &image, started, steps))
    }

    /// A refusal with the line of the manifest that asks: images do not have the lines of what
    /// they were made of, but whoever deploys has the manifest at hand.
    fn with_lines(&self, refused: &str, app: &App) -> String {
        let path = if self.from.is_dir() { self.from.join(MANIFEST_FILE_NAME) } else { self.from.clone() };
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let description = ImageDescription::of_app(app, &text);
        for component in &description.components {
            let asked = [
                &component.outbound,
                &component.key_value_stores,
                &component.sqlite_databases,
                &component.ai_models,
            ];
            for Asked { value, line } in asked.into_iter().flatten() {
                let written = format!("`{value}` of component `{}` ({MANIFEST_FILE_NAME})", component.id);
                if let (true, Some(line)) = (refused.contains(&written), line) {
                    let place = format!("({MANIFEST_FILE_NAME})");
                    return refused.replacen(&place, &format!("({MANIFEST_FILE_NAME}:{line})"), 1);
                }
            }
        }
        refused.to_owned()
    }

    async fn deploy(
        &self,
        app: &App,
        name: &str,
        image: &Image,
        started: Instant,
        mut steps: Vec<Timed>,
    ) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let team = client.team().await?;
        make_app(&client, name).await?;
        let pushing = Instant::now();
        let pushed = push(&client, &team, name, image).await?;
        timed(&mut steps, "push", pushing.elapsed(), &pushed);

        let planning = Instant::now();
        let variables: serde_json::Map<_, _> =
            self.variable.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let asked = json!({ "image": image.digest.to_string(), "variables": variables });
        let url = client.at_team(&["apps", name, "plans"]).await?;
        let mut plan: Plan = client.call(Method::POST, url, Some(&asked)).await?;
        plan.refused = plan.refused.iter().map(|refused| self.with_lines(refused, app)).collect();
        timed(&mut steps, "plan", planning.elapsed(), "");
        show_plan(&plan);
        if self.plan {
            if self.format.format == OutputFormat::Json {
                output::data(&format!("{}\n", serde_json::to_string_pretty(&plan).unwrap_or_default()));
            }
            return Ok(());
        }
        if !plan.refused.is_empty() {
            return Err(refused(&plan.refused));
        }
        if !plan.approvals.is_empty() {
            confirm("agree, and deploy?", self.yes)?;
        }
        let approve: Vec<&str> = plan.approvals.iter().map(|approval| approval.key.as_str()).collect();
        let mut asked = json!({
            "image": image.digest.to_string(),
            "variables": variables,
            "approve": approve,
        });
        if let Some(note) = &self.note {
            asked["note"] = note.as_str().into();
        }
        let url = client.at_team(&["apps", name, "releases"]).await?;
        let begun: Operation = client.call(Method::POST, url, Some(&asked)).await?;
        let done = client.follow(begun).await?;
        for step in done.steps.iter().filter(|step| step.progress == Progress::Done) {
            let us = step.duration_us.unwrap_or_default();
            steps.push(Timed { step: step.name.clone(), ms: us as f64 / 1_000.0 });
        }
        let total = started.elapsed();
        let report = Report {
            app: format!("{team}/{name}"),
            release: done.release.map(|release| release.0),
            url: done.url.clone(),
            image: image.digest.to_string(),
            steps,
            total_ms: total.as_secs_f64() * 1_000.0,
        };
        let release = report.release.map(|number| format!(" release {number}")).unwrap_or_default();
        output::note(&format!("{}{release} serves after {}", report.app, milliseconds(microseconds(total))));
        match self.format.format {
            OutputFormat::Json => {
                output::data(&format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default()));
            }
            OutputFormat::Plain => output::data(&format!("{}\n", report.url)),
        }
        Ok(())
    }
}

/// Notes how long a step took, and says so.
fn timed(steps: &mut Vec<Timed>, step: &str, took: Duration, detail: &str) {
    let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    output::note(&format!("  {step:<10} done in {}{detail}", milliseconds(microseconds(took))));
    steps.push(Timed { step: step.to_owned(), ms: took.as_secs_f64() * 1_000.0 });
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A name as servers take it, of the name in a manifest, which is free text.
fn name_of(text: &str) -> Result<String, Error> {
    let mut name = String::new();
    for character in text.chars() {
        let character = character.to_ascii_lowercase();
        match character {
            'a'..='z' => name.push(character),
            '0'..='9' if !name.is_empty() => name.push(character),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.truncate(MAX_NAME_BYTES);
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        return Err(Error::Flag {
            flag: "--app",
            value: text.to_owned(),
            message: "the name in the manifest has no letter that a host name could have".into(),
            hint: "say what to call the app on the server: `--app NAME`",
        });
    }
    Ok(name.to_owned())
}

/// The app that a command is about: the one that is named, or the one of the folder that it
/// is run in, by the name that `wisp deploy` gives it.
pub(crate) fn app_or_here(named: Option<&str>) -> Result<String, Error> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let folder = Path::new(".");
    if !folder.join(MANIFEST_FILE_NAME).exists() {
        return Err(Error::Missing {
            what: "the name of an app".to_owned(),
            hint: "name it, or run this in the folder of an app, where its `spin.toml` is".to_owned(),
        });
    }
    let read = App::read(folder, None).map_err(|problems| Error::Diagnostics(Box::new(problems)))?;
    name_of(&read.value.name)
}

/// Makes the app, if it is not there.
async fn make_app(client: &Client, name: &str) -> Result<(), Error> {
    match client.get::<serde_json::Value>(client.at_team(&["apps", name]).await?).await {
        Ok(_) => return Ok(()),
        Err(Error::Api(error)) if error.code == NOT_FOUND => {}
        Err(error) => return Err(error),
    }
    let url = client.at_team(&["apps"]).await?;
    match client.call::<AppSummary>(Method::POST, url, Some(&json!({ "name": name }))).await {
        Ok(_) => Ok(()),
        // Somebody else was faster.
        Err(Error::Api(error)) if error.code == EXISTS => Ok(()),
        Err(error) => Err(error),
    }
}

/// The codes of the control plane that a deploy goes on after.
const NOT_FOUND: &str = "WISP-E0902";
const EXISTS: &str = "WISP-E0905";

/// Sends the blobs that the registry lacks, then the manifest. Says what was sent.
async fn push(client: &Client, team: &str, app: &str, image: &Image) -> Result<String, Error> {
    let at = |parts: &[&str]| -> Url {
        let mut url = client.server().clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v2", team, app]).extend(parts);
        }
        url
    };
    let (mut sent_count, mut sent_bytes) = (0_u64, 0_u64);
    for Layer { descriptor, content } in image.layers.values() {
        let digest = descriptor.digest.to_string();
        let there = client.finish(client.request(Method::HEAD, at(&["blobs", &digest]))).await;
        match there {
            Ok(_) => continue,
            Err(Error::Api(_)) => {}
            Err(error) => return Err(error),
        }
        let begun = client.finish(client.request(Method::POST, at(&["blobs", "uploads", ""]))).await?;
        let location = begun.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let location = location.and_then(|location| client.server().join(location).ok());
        let mut location =
            location.ok_or_else(|| Error::Answer("it does not say where to push to".into()))?;
        location.query_pairs_mut().append_pair("digest", &digest);
        let body = reqwest::Body::wrap_stream(content.stream());
        let sending = client
            .request(Method::PUT, location)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, descriptor.size)
            .body(body);
        let done = client.finish(sending).await?;
        if done.status() != StatusCode::CREATED {
            return Err(Error::Answer(format!("it answers a push with {}", done.status())));
        }
        sent_count += 1;
        sent_bytes += descriptor.size;
    }
    let digest = image.digest.to_string();
    let sending = client
        .request(Method::PUT, at(&["manifests", &digest]))
        .header(header::CONTENT_TYPE, MANIFEST_TYPE)
        .body(image.manifest.clone());
    client.finish(sending).await?;
    let total_count = image.layers.len();
    Ok(format!("{sent_count} of {total_count} blobs, {} KiB", sent_bytes.div_ceil(1 << 10)))
}

/// Says what the release would change.
fn show_plan(plan: &Plan) {
    let current = plan.current.map(|number| format!("compared with release {number}:"));
    if let (Some(current), false) = (&current, plan.changes.is_empty()) {
        output::note(current);
    }
    for change in &plan.changes {
        output::note(&format!("  {change}"));
    }
    for resource in &plan.new_resources {
        output::note(&format!(
            "  makes {} `{}` for label `{}`",
            resource.kind, resource.name, resource.label
        ));
    }
    for backend in &plan.backends {
        output::note(&format!("  {backend}"));
    }
    for refused in &plan.refused {
        output::note(&format!("  refused: {refused}"));
    }
    for approval in &plan.approvals {
        output::note(&format!("  to be agreed to: {}", approval.reason));
    }
}

fn refused(reasons: &[String]) -> Error {
    Error::Api(Box::new(ErrorBody {
        code: "WISP-E0908".to_owned(),
        message: reasons.join("; "),
        hint: Some("change the manifest, or ask the operator to change the policy".to_owned()),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn names_of_manifests_become_names_of_hosts() {
        for (text, name) in [
            ("hello", "hello"),
            ("My App_2", "my-app-2"),
            ("  -- x --", "x"),
            ("2fast", "fast"),
            ("ünï", "n"),
        ] {
            assert_eq!(name_of(text).unwrap(), name, "{text}");
        }
        assert_eq!(name_of(&"a-".repeat(60)).unwrap().len(), 39);
        assert!(name_of("42").is_err());
    }
}
