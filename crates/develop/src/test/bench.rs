//! One test on its bench: the app loaded into a world of its own.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use wisp_capability::{
    VirtualTime, key_value,
    outbound_http::{LocalDispatch, LocalSlot},
    sqlite,
    test_component::{Bench as ForComponent, Call, ExpectedCall, TestComponent, ToApp, Trap},
    wasi::StandardStream,
};
use wisp_manifest::{App, id::VariableName, model::Limits};
use wisp_node::{AppSettings, AppState, Runtime};
use wisp_trigger::http::HttpApp;

use super::{
    Failure, check,
    file::{Outbound, Setup, Test, Then},
    output::{Output, Outputs},
    world::World,
};

/// The largest response: it is held in memory to be compared.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// What all tests have in common.
pub(super) struct Common {
    pub(super) app: Arc<App>,
    pub(super) runtime: Runtime,
    pub(super) outputs: Arc<Outputs>,
    /// Calls go out, and values of variables may come from the environment.
    pub(super) is_recording: bool,
}

/// One test on its bench.
pub(super) struct Bench {
    common: Arc<Common>,
    world: World,
    state: Arc<AppState>,
    settings: Mutex<AppSettings>,
    /// Loaded when it is first asked, and again when a variable has changed since.
    loaded: tokio::sync::Mutex<Option<Arc<HttpApp>>>,
    /// What the test is called in logs.
    log_name: String,
    /// Where the test begins in its file.
    line: usize,
}

impl Bench {
    /// # Errors
    /// What is wrong with the test, in words.
    pub(super) fn new(
        common: &Arc<Common>,
        setup: &Setup,
        world: World,
        log_name: String,
        line: usize,
    ) -> Result<Self, String> {
        let mut settings = AppSettings {
            direct_mounts: true,
            use_variables_providers: false,
            log_name: Some(log_name.clone()),
            ceilings: Limits { response_body_bytes: Some(MAX_RESPONSE_BYTES), ..Limits::default() },
            world: world.virtual_world(),
            ..AppSettings::default()
        };
        for (name, value) in &setup.variables {
            settings.variables.push((variable(name)?, value.clone().into()));
        }
        if common.is_recording {
            // What calls are recorded with is nothing to be written into a test.
            for name in common.app.variables.keys() {
                if let Some(value) = from_environment(name.as_str()) {
                    settings.variables.retain(|(known, _)| known != name);
                    settings.variables.push((name.clone(), value.into()));
                }
            }
        }
        Ok(Self {
            state: Arc::new(common.runtime.state(None, true)),
            common: common.clone(),
            world,
            settings: Mutex::new(settings),
            loaded: tokio::sync::Mutex::default(),
            log_name,
            line,
        })
    }

    pub(super) fn world(&self) -> &World {
        &self.world
    }

    pub(super) fn state(&self) -> &Arc<AppState> {
        &self.state
    }

    /// Puts keys and tables into stores before the app is loaded.
    pub(super) fn fill(&self, change: impl FnOnce(&mut AppSettings)) {
        change(&mut self.settings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The app, ready to answer.
    pub(super) async fn http(&self) -> Result<Arc<HttpApp>, Vec<Failure>> {
        let mut loaded = self.loaded.lock().await;
        if let Some(app) = &*loaded {
            return Ok(app.clone());
        }
        let settings = {
            let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            let first = settings.clone();
            // They are there from now on.
            settings.key_values.clear();
            settings.sql_statements.clear();
            first
        };
        let Common { app, runtime, .. } = &*self.common;
        match runtime.load(app, &settings, &self.state, &Arc::default()).await {
            Ok(app) => Ok(loaded.insert(app.http).clone()),
            Err(errors) => Err(errors.0.iter().map(|error| self.not_loaded(error)).collect()),
        }
    }

    fn not_loaded(&self, error: &wisp_node::Error) -> Failure {
        Failure {
            line: self.line,
            message: format!("the app cannot be loaded: {error} ({})", error.code()),
            hint: match error {
                wisp_node::Error::Capability(wisp_capability::Error::VariablesMissing { .. }) => {
                    Some("give it a value in the test: `variables = { NAME = \"…\" }`".into())
                }
                error => error.hint(),
            },
        }
    }

    /// Runs a test of a component.
    pub(super) async fn run_component(
        self: &Arc<Self>,
        component: &TestComponent,
        name: &str,
    ) -> Result<Result<(), String>, Trap> {
        let bench: Arc<dyn ForComponent> = self.clone();
        let weak: Weak<dyn ForComponent> = Arc::downgrade(&bench);
        let to_app: Arc<dyn LocalDispatch> = Arc::new(ToApp(weak));
        let local = LocalSlot::default();
        local.set(Arc::downgrade(&to_app));
        let world = self.world.virtual_world();
        let grants = self.common.runtime.test_grants(&self.log_name, &world, Some(bench), &local);
        let grants = grants.map_err(|error| Trap { message: error.to_string(), backtrace: Vec::new() })?;
        component.run(name, Arc::new(grants)).await
    }

    pub(super) fn manifest(&self) -> &App {
        &self.common.app
    }

    /// Compares what the app's components wrote with what a test expects of it.
    pub(super) fn check_output(&self, test: &Test) -> Vec<Failure> {
        let Then { stdout, stderr, .. } = &test.then;
        let mut failures = Vec::new();
        for (expected, stream, what) in [
            (stdout, StandardStream::Stdout, "what components wrote to standard output"),
            (stderr, StandardStream::Stderr, "what components wrote to standard error"),
        ] {
            if let Some((line, matcher)) = expected {
                failures.extend(check::written(what, *line, matcher, &self.flushed().of(stream)));
            }
        }
        failures
    }

    /// What was written so far, by the app's components or the test's.
    fn flushed(&self) -> Output {
        self.common.runtime.flush_logs();
        self.common.outputs.get(&self.log_name)
    }
}

impl ForComponent for Bench {
    fn send(
        self: Arc<Self>,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Result<Response<Bytes>, String>, String>> {
        async move {
            let app = self.http().await.map_err(|failures| in_words(&failures))?;
            // In a task of its own: no guest can run while another one is being polled.
            let answered = tokio::spawn(async move { app.ask(request).await }).await;
            let answered = answered.map_err(|error| format!("the app's answer was given up: {error}"))?;
            Ok(answered.map_err(|cut_off| cut_off.to_string()))
        }
        .boxed()
    }

    fn app(self: Arc<Self>) -> BoxFuture<'static, Result<Arc<dyn LocalDispatch>, String>> {
        async move {
            let app = self.http().await.map_err(|failures| in_words(&failures))?;
            app.local().ok_or_else(|| "the app takes no requests".to_owned())
        }
        .boxed()
    }

    fn time(&self) -> &VirtualTime {
        self.world.time()
    }

    fn set_variable(&self, name: &str, value: String) -> Result<(), String> {
        let name = variable(name)?;
        if !self.common.app.variables.contains_key(&name) {
            return Err(format!("the app has no variable `{}`", name.as_str()));
        }
        let mut loaded = self.loaded.try_lock().map_err(|_| "the app is being loaded".to_owned())?;
        self.fill(|settings| {
            settings.variables.retain(|(known, _)| *known != name);
            settings.variables.push((name, value.into()));
        });
        *loaded = None;
        Ok(())
    }

    fn stores(&self) -> &key_value::Stores {
        self.state.stores()
    }

    fn databases(&self) -> &sqlite::Databases {
        self.state.databases()
    }

    fn expect(&self, call: ExpectedCall) -> Result<(), String> {
        self.world.expect(Outbound::of_component(self.line, call)?)
    }

    fn calls(&self) -> Vec<Call> {
        self.world.calls()
    }

    fn written(&self, stream: StandardStream) -> String {
        self.flushed().of(stream)
    }
}

/// Names the tests of a component.
pub(super) async fn names(common: &Common, component: &TestComponent) -> Result<Vec<String>, Trap> {
    let world = World::new(&Setup::default(), &[], super::recording::Recording::None);
    let local = LocalSlot::default();
    let grants = common.runtime.test_grants("names", &world.virtual_world(), None, &local);
    let grants = grants.map_err(|error| Trap { message: error.to_string(), backtrace: Vec::new() })?;
    component.names(Arc::new(grants)).await
}

/// Loads a component with tests. Blocks.
///
/// # Errors
/// What is wrong with it, in words, and what to do.
pub(super) fn load(common: &Common, path: &Path) -> Result<TestComponent, (String, Option<String>)> {
    let engine = common.runtime.engine();
    if !path.exists() {
        let hint = "`wisp test --build` builds it, if `[component.build]` says how";
        return Err((format!("there is no `{}`", path.display()), Some(hint.into())));
    }
    let loaded = engine
        .load_file(path)
        .map_err(|error| (format!("`{}` cannot be loaded: {error}", path.display()), error.hint()))?;
    TestComponent::link(common.runtime.linkers(), loaded).map_err(|message| {
        let hint = "a component with tests is one of the world `wisp:test/test@0.1.0`; `wisp test --wit` \
                    prints it";
        (format!("`{}` is no component with tests: {message}", path.display()), Some(hint.into()))
    })
}

fn variable(name: &str) -> Result<VariableName, String> {
    VariableName::new(name).map_err(|error| format!("`{name}` is no name for a variable: {error}"))
}

/// The value of a variable as `wisp up` would find it in the environment.
pub(super) fn from_environment(name: &str) -> Option<String> {
    std::env::var(format!("SPIN_VARIABLE_{}", name.to_ascii_uppercase())).ok()
}

fn in_words(failures: &[Failure]) -> String {
    failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("; ")
}
