//! Components that test an app: `wisp:test`.
//!
//! For: running one test of such a component in an instance of its own
//! ([`TestComponent`]), and handing its calls to whoever runs tests ([`Bench`]).
//!
//! Not for: what a test's world consists of, or what its result means. That is the
//! business of who runs tests.
//!
//! A test component is a guest like any other: what it imports of WASI it gets, with the
//! clock and the random numbers of its world. HTTP requests that it sends itself, with
//! `wasi:http`, go to the app if they are for `http://self.alt`; nothing else can be
//! reached.
//!
//! A call that makes no sense, such as for a store that the app does not have, is a trap
//! with a message: nothing of the test that comes after it would mean anything.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use http::{Method, Request, Response};
use wasmtime::{
    Store,
    component::{HasSelf, InstancePre},
};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};
use wisp_engine::{InstanceLimits, Limiter, LoadedComponent, preempt};

use crate::{
    Grants, Host, Linkers, VirtualTime, key_value,
    outbound_http::{LocalDispatch, LocalTarget},
    sqlite,
    wasi::StandardStream,
};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:test/test",
        imports: { default: async | trappable },
        exports: { default: async },
    });
}

use bindings::wisp::test::{
    app, clock, key_value as test_key_value, logs, outbound, sqlite as test_sqlite, variables,
};

/// Linear memory of one instance. Test components are small programs, or interpreters
/// with some.
const MAX_MEMORY_BYTES: usize = 1 << 30;

/// Open handles of one instance; what it forgets to close ends with its test.
const MAX_HANDLES_COUNT: usize = 10_000;

/// The most names that one component may have for its tests. Each is an instance and a
/// load of the app.
pub const MAX_TESTS_COUNT: usize = 10_000;

/// The longest name of a test, in bytes: it is printed on one line.
pub const MAX_NAME_BYTES: usize = 1_000;

/// Whoever runs a test, as the test's component sees it. An error ends the test.
pub trait Bench: Send + Sync {
    /// Sends the app a request. The inner error says why the answer has no end.
    fn send(
        self: Arc<Self>,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Result<Response<Bytes>, String>, String>>;

    /// Where requests go that the component sends to the app by itself.
    fn app(self: Arc<Self>) -> BoxFuture<'static, Result<Arc<dyn LocalDispatch>, String>>;

    /// The clock.
    fn time(&self) -> &VirtualTime;

    /// Sets a variable for the app's next request.
    fn set_variable(&self, name: &str, value: String) -> Result<(), String>;

    /// The app's stores.
    fn stores(&self) -> &key_value::Stores;

    /// The app's databases.
    fn databases(&self) -> &sqlite::Databases;

    /// Expects a call of the app.
    fn expect(&self, call: ExpectedCall) -> Result<(), String>;

    /// The app's calls so far.
    fn calls(&self) -> Vec<Call>;

    /// What the app's components wrote so far.
    fn written(&self, stream: StandardStream) -> String;
}

/// A call that an app is expected to make.
pub struct ExpectedCall {
    /// Its method.
    pub method: Method,
    /// Its whole URL; `*` is anything.
    pub url: String,
    /// How it ends.
    pub answer: ExpectedAnswer,
    /// How long the answer takes.
    pub delay: Duration,
    /// How often it is made; `None` is at least once.
    pub times: Option<usize>,
}

/// How an expected call ends.
pub enum ExpectedAnswer {
    /// With this response.
    Response(Response<Bytes>),
    /// As if no server were there.
    Unreachable,
    /// The manifest does not allow it.
    Refused,
}

/// A call that an app made.
#[derive(Clone, Debug)]
pub struct Call {
    /// The component that made it.
    pub component: String,
    /// The request, as far as it was gathered.
    pub request: Request<Bytes>,
    /// How it ended.
    pub outcome: CallOutcome,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// With a response.
    Answered,
    /// As if no server were there.
    Unreachable,
    /// The manifest does not allow it.
    Refused,
    /// Nobody expected it.
    Unexpected,
}

/// Why a test, or the naming of tests, came to no end of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Trap {
    /// What happened, in one line.
    pub message: String,
    /// Which functions were being run, innermost first; empty if that is not known.
    pub backtrace: Vec<String>,
}

/// A component with tests, linked.
pub struct TestComponent {
    loaded: LoadedComponent,
    pre: InstancePre<Host>,
    indices: bindings::TestIndices,
}

impl TestComponent {
    /// Links a component.
    ///
    /// # Errors
    /// What it imports that is not there, or lacks to be a component with tests.
    pub fn link(linkers: &Linkers, loaded: LoadedComponent) -> Result<Self, String> {
        let link = || {
            let mut linker = linkers.of(&loaded)?.clone();
            bindings::Test::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?;
            let pre = linker.instantiate_pre(&loaded.component)?;
            let indices = bindings::TestIndices::new(&pre)?;
            Ok::<_, wasmtime::Error>((pre, indices))
        };
        let (pre, indices) = link().map_err(|error| format!("{error:#}"))?;
        Ok(Self { loaded, pre, indices })
    }

    /// The names of its tests.
    ///
    /// # Errors
    /// [`Trap`], also for names that break a limit or are not unique.
    pub async fn names(&self, grants: Arc<Grants>) -> Result<Vec<String>, Trap> {
        let (mut store, test) = self.instantiate(grants).await?;
        let names = test.wisp_test_tests().call_names(&mut store).await.map_err(|error| trap(&error))?;
        let wrong = |message: String| Err(Trap { message, backtrace: Vec::new() });
        if names.len() > MAX_TESTS_COUNT {
            return wrong(format!("it has {} tests, the limit is {MAX_TESTS_COUNT}", names.len()));
        }
        let mut known = HashSet::with_capacity(names.len());
        for (number, name) in names.iter().enumerate() {
            if name.trim().is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
                return wrong(format!("the name of test {} is empty, too long or no line", number + 1));
            }
            if !known.insert(name) {
                return wrong(format!("two tests are called `{name}`"));
            }
        }
        Ok(names)
    }

    /// Runs a test; the inner error is its own.
    ///
    /// # Errors
    /// [`Trap`].
    pub async fn run(&self, name: &str, grants: Arc<Grants>) -> Result<Result<(), String>, Trap> {
        let (mut store, test) = self.instantiate(grants).await?;
        test.wisp_test_tests().call_run(&mut store, name).await.map_err(|error| trap(&error))
    }

    async fn instantiate(&self, grants: Arc<Grants>) -> Result<(Store<Host>, bindings::Test), Trap> {
        let mut store = Store::new(self.loaded.component.engine(), Host::new(grants));
        let limits = InstanceLimits { memory_bytes: MAX_MEMORY_BYTES, ..InstanceLimits::default() };
        let extra_bytes = self.loaded.extra_memory_bytes();
        store.data_mut().limiter = Limiter::new(limits, None).with_extra(extra_bytes);
        store.data_mut().set_max_handles(MAX_HANDLES_COUNT);
        store.set_max_component_handles(MAX_HANDLES_COUNT);
        store.limiter(|host| &mut host.limiter);
        preempt(&mut store);
        let instantiation = self.pre.instantiate_async(&mut store);
        let (instance, memory) = match &self.loaded.memory {
            None => (instantiation.await, None),
            Some(memory) => memory.scope(instantiation).await,
        };
        if let (Some(memory), Ok(instance)) = (&memory, &instance) {
            memory.begin(&mut store, instance).await.map_err(|error| trap(&error))?;
        }
        let test = instance.and_then(|instance| self.indices.load(&mut store, &instance));
        test.map_err(|error| trap(&error)).map(|test| (store, test))
    }
}

/// What became of a guest, in words. A message of ours is the root of the error.
fn trap(error: &wasmtime::Error) -> Trap {
    let backtrace = error.downcast_ref::<wasmtime::WasmBacktrace>().map(|backtrace| {
        // One line a frame, after a heading.
        backtrace.to_string().lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
    });
    Trap { message: error.root_cause().to_string(), backtrace: backtrace.unwrap_or_default() }
}

/// Hands requests that a test component sends by itself to the app.
pub struct ToApp(pub Weak<dyn Bench>);

impl LocalDispatch for ToApp {
    fn dispatch(
        &self,
        target: LocalTarget,
        request: Request<WasiBody>,
    ) -> BoxFuture<'static, Result<Response<WasiBody>, HttpError>> {
        let Some(bench) = self.0.upgrade() else {
            return ready(Err(HttpError::DestinationUnavailable)).boxed();
        };
        async move {
            let app = bench.app().await.map_err(|message| HttpError::InternalError(Some(message)))?;
            app.dispatch(target, request).await
        }
        .boxed()
    }
}

impl Host {
    fn bench(&self) -> wasmtime::Result<&Arc<dyn Bench>> {
        let bench = self.grants.bench.as_ref();
        bench.ok_or_else(|| refused("tests are named before one is run: there is no app here"))
    }
}

/// An error that ends the test.
fn refused(message: impl Into<String>) -> wasmtime::Error {
    wasmtime::Error::msg(message.into())
}

impl app::Host for Host {
    async fn send(&mut self, request: app::Request) -> wasmtime::Result<Result<app::Response, String>> {
        let app::Request { method, path, headers, body } = request;
        if !path.starts_with('/') {
            return Err(refused(format!("the path `{path}` does not begin with `/`")));
        }
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = method.parse().map_err(|_| refused(format!("`{method}` is no method")))?;
        *request.headers_mut() = header_map(headers)?;
        let host = request.headers_mut().remove(http::header::HOST);
        let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let uri = format!("http://{host}{path}").parse();
        *request.uri_mut() = uri.map_err(|_| refused(format!("`{path}` is no path")))?;
        let answered = self.bench()?.clone().send(request).await.map_err(refused)?;
        Ok(answered.map(|response| app::Response {
            status: response.status().as_u16(),
            headers: header_list(response.headers()),
            body: response.into_body().into(),
        }))
    }
}

impl clock::Host for Host {
    async fn now_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.bench()?.time().now().as_millis()).unwrap_or(u64::MAX))
    }

    async fn set_ms(&mut self, unix_ms: u64) -> wasmtime::Result<()> {
        self.bench()?.time().set(Duration::from_millis(unix_ms));
        Ok(())
    }

    async fn advance_ms(&mut self, duration_ms: u64) -> wasmtime::Result<()> {
        self.bench()?.time().advance(Duration::from_millis(duration_ms));
        Ok(())
    }
}

impl variables::Host for Host {
    async fn set(&mut self, name: String, value: String) -> wasmtime::Result<()> {
        self.bench()?.set_variable(&name, value).map_err(refused)
    }
}

impl test_key_value::Host for Host {
    async fn get(&mut self, store: String, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        let bench = self.bench()?.clone();
        bench.stores().get(&store, &key).await.map_err(|error| refused(error.to_string()))
    }

    async fn set(&mut self, store: String, key: String, value: Vec<u8>) -> wasmtime::Result<()> {
        let bench = self.bench()?.clone();
        bench.stores().set(&store, &key, value).await.map_err(|error| refused(error.to_string()))
    }

    async fn delete(&mut self, store: String, key: String) -> wasmtime::Result<()> {
        let bench = self.bench()?.clone();
        bench.stores().delete(&store, &key).await.map_err(|error| refused(error.to_string()))
    }

    async fn keys(&mut self, store: String) -> wasmtime::Result<Vec<String>> {
        let bench = self.bench()?.clone();
        bench.stores().keys(&store).await.map_err(|error| refused(error.to_string()))
    }
}

impl test_sqlite::Host for Host {
    async fn execute(
        &mut self,
        database: String,
        statement: String,
        parameters: Vec<test_sqlite::Value>,
    ) -> wasmtime::Result<Vec<Vec<test_sqlite::Value>>> {
        let bench = self.bench()?.clone();
        let _busy = self.grants.world.busy();
        let parameters = parameters.into_iter().map(from_test).collect();
        let rows = bench.databases().run(&database, statement, parameters).await;
        let rows = rows.map_err(|error| refused(error.to_string()))?;
        Ok(rows.into_iter().map(|row| row.into_iter().map(to_test).collect()).collect())
    }
}

impl outbound::Host for Host {
    async fn expect(&mut self, call: outbound::ExpectedCall) -> wasmtime::Result<()> {
        let outbound::ExpectedCall { method, url, answer, delay_ms, times } = call;
        let method = method.parse().map_err(|_| refused(format!("`{method}` is no method")))?;
        let answer = match answer {
            outbound::Answer::Unreachable => ExpectedAnswer::Unreachable,
            outbound::Answer::Refused => ExpectedAnswer::Refused,
            outbound::Answer::Response(response) => {
                let app::Response { status, headers, body } = response;
                let mut response = Response::new(Bytes::from(body));
                *response.status_mut() =
                    status.try_into().map_err(|_| refused(format!("`{status}` is no status")))?;
                *response.headers_mut() = header_map(headers)?;
                ExpectedAnswer::Response(response)
            }
        };
        let times = times.map(|times| usize::try_from(times).unwrap_or(usize::MAX));
        let delay = Duration::from_millis(delay_ms);
        let call = ExpectedCall { method, url, answer, delay, times };
        self.bench()?.expect(call).map_err(refused)
    }

    async fn calls(&mut self) -> wasmtime::Result<Vec<outbound::Call>> {
        let calls = self.bench()?.calls();
        Ok(calls
            .into_iter()
            .map(|Call { component, request, outcome }| outbound::Call {
                component,
                method: request.method().to_string(),
                url: request.uri().to_string(),
                headers: header_list(request.headers()),
                body: request.into_body().into(),
                outcome: match outcome {
                    CallOutcome::Answered => outbound::Outcome::Answered,
                    CallOutcome::Unreachable => outbound::Outcome::Unreachable,
                    CallOutcome::Refused => outbound::Outcome::Refused,
                    CallOutcome::Unexpected => outbound::Outcome::Unexpected,
                },
            })
            .collect())
    }
}

impl logs::Host for Host {
    async fn stdout(&mut self) -> wasmtime::Result<String> {
        Ok(self.bench()?.written(StandardStream::Stdout))
    }

    async fn stderr(&mut self) -> wasmtime::Result<String> {
        Ok(self.bench()?.written(StandardStream::Stderr))
    }
}

fn header_map(headers: Vec<(String, String)>) -> wasmtime::Result<http::HeaderMap> {
    let mut map = http::HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let header = http::HeaderName::try_from(&name);
        let header = header.map_err(|_| refused(format!("`{name}` is no name for a header")))?;
        let value = http::HeaderValue::try_from(value);
        map.append(header, value.map_err(|_| refused(format!("the value of `{name}` is none")))?);
    }
    Ok(map)
}

fn header_list(headers: &http::HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

fn from_test(value: test_sqlite::Value) -> sqlite::Value {
    match value {
        test_sqlite::Value::Null => sqlite::Value::Null,
        test_sqlite::Value::Integer(number) => sqlite::Value::Integer(number),
        test_sqlite::Value::Real(number) => sqlite::Value::Real(number),
        test_sqlite::Value::Text(text) => sqlite::Value::Text(text),
        test_sqlite::Value::Blob(bytes) => sqlite::Value::Blob(bytes),
    }
}

fn to_test(value: sqlite::Value) -> test_sqlite::Value {
    match value {
        sqlite::Value::Null => test_sqlite::Value::Null,
        sqlite::Value::Integer(number) => test_sqlite::Value::Integer(number),
        sqlite::Value::Real(number) => test_sqlite::Value::Real(number),
        sqlite::Value::Text(text) => test_sqlite::Value::Text(text),
        sqlite::Value::Blob(bytes) => test_sqlite::Value::Blob(bytes),
    }
}
