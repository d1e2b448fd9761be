//! How long a component takes from its mapped image to its first answer: it is loaded as
//! `wisp up` would load it, and asked. Each request finds an instance that was made for it,
//! since a rewound one does not start up.
//!
//! The component runs, so it runs in a world of its own: stores in memory, variables
//! without values, a network in which nothing answers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use wisp_capability::{
    VirtualWorld,
    outbound_http::{Script, Scripted},
    wasi::logs::Follow,
};
use wisp_engine::EngineConfig;
use wisp_manifest::{
    App,
    model::{HttpRoute, HttpTarget, Source, TriggerKind},
};
use wisp_node::{AppSettings, Runtime, RuntimeSettings};

/// Requests before those that count: the first ones find pages that were never touched.
const WARM_UP_COUNT: usize = 3;

/// Requests of which the median is taken.
const REQUESTS_COUNT: usize = 15;

/// How long all of them may take.
const MAX_DURATION: Duration = Duration::from_secs(60);

/// What came of asking a component.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct StartUp {
    /// From the request to the end of the answer, with a new instance: the median.
    pub(super) time: Duration,
    /// The status that it answered with.
    pub(super) status: u16,
}

/// Asks a component of an app, with this file in the place of its own. `None` if no
/// request reaches it.
///
/// # Errors
/// Why it does not answer.
pub(super) fn start_up(
    app: &App,
    component: &str,
    wasm: &Path,
    image_dir: &Path,
) -> Result<Option<StartUp>, String> {
    let Some(path) = path_to(app, component) else { return Ok(None) };
    let mut app = app.clone();
    for (id, known) in &mut app.components {
        if id.as_str() == component {
            known.source = Source::Path(wasm.to_owned());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| error.to_string())?
        .block_on(async {
            let answers = ask(&app, component, &path, image_dir.to_owned());
            tokio::time::timeout(MAX_DURATION, answers)
                .await
                .unwrap_or_else(|_| Err(format!("it did not answer within {MAX_DURATION:?}")))
        })
        .map(Some)
}

async fn ask(app: &App, component: &str, path: &str, image_dir: PathBuf) -> Result<StartUp, String> {
    let runtime = Runtime::start(RuntimeSettings {
        engine: EngineConfig { rewinds: false, ..EngineConfig::default() },
        image_dir: Some(image_dir),
        runtime_config: crate::test::runtime_config(app, false),
        follow: Follow::None,
        ..RuntimeSettings::default()
    })
    .map_err(|error| error.to_string())?;
    let required = app.variables.iter().filter(|(_, variable)| variable.required);
    let settings = AppSettings {
        only_components: vec![component.to_owned()],
        direct_mounts: true,
        variables: required.map(|(name, _)| (name.clone(), String::new().into())).collect(),
        world: VirtualWorld { http: Some(Arc::new(Silence)), ..VirtualWorld::default() },
        ..AppSettings::default()
    };
    let state = Arc::new(runtime.state(None, true));
    let loaded = runtime.load(app, &settings, &state, &Arc::default()).await;
    let loaded = loaded.map_err(|errors| match errors.0.first() {
        Some(error) => error.to_string(),
        None => "it cannot be loaded".to_owned(),
    })?;
    let mut times = Vec::with_capacity(REQUESTS_COUNT);
    let mut status = 0;
    for number in 0..WARM_UP_COUNT + REQUESTS_COUNT {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = format!("http://localhost{path}").parse().map_err(|_| "its route is no path")?;
        let started = Instant::now();
        let response = loaded.http.ask(request).await.map_err(|cut_off| cut_off.to_string())?;
        if number >= WARM_UP_COUNT {
            times.push(started.elapsed());
        }
        status = response.status().as_u16();
    }
    times.sort_unstable();
    Ok(StartUp { time: times[times.len() / 2], status })
}

/// A path that one of its routes takes.
fn path_to(app: &App, component: &str) -> Option<String> {
    app.triggers.iter().find_map(|trigger| {
        let TriggerKind::Http(http) = &trigger.kind else { return None };
        let (HttpTarget::Component { component: target, .. }, HttpRoute::Pattern(pattern)) =
            (&http.target, &http.route)
        else {
            return None;
        };
        let path = || if pattern.prefix().is_empty() { "/".to_owned() } else { pattern.prefix().to_owned() };
        (target.as_str() == component).then(path)
    })
}

/// A network in which nothing answers.
struct Silence;

impl Script for Silence {
    fn answer(&self, _component: &str, _request: &Request<Bytes>) -> Scripted {
        Scripted::Unreachable(Duration::ZERO)
    }

    fn passed_on(&self, _component: &str, _request: &Request<Bytes>, _response: Option<&Response<Bytes>>) {}

    fn refused(&self, _component: &str, _method: &Method, _uri: &Uri) {}

    fn unavailable(&self, _component: &str, _family: &str, _place: &str) {}
}
