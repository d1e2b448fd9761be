//! An app's routes and the components behind them.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request};
use http_body_util::BodyExt as _;
use tokio_util::task::TaskTracker;
use wasmtime::component::Linker;
use wasmtime_wasi_http::WasiBody;
use wisp_capability::{
    Host, Linkers,
    outbound_http::{LocalDispatch, LocalSlot, LocalTarget},
};
use wisp_engine::{Engine, LoadedComponent};
use wisp_manifest::{
    id::ComponentId,
    model::{App, Executor, HttpRoute, HttpTarget, StaticResponse, TriggerKind},
    route::{RoutePattern, RouteTable},
};

use super::{
    account::Account,
    body::{RequestBody, ResponseBody, whole},
    commons::Commons,
    component::{Component, ComponentSpec, content_length, status},
    executor::Entry,
    outcomes::Outcomes,
    shape::{self, BadRequest, Connection, RouteHeaders},
    trace::{Answering, Trace},
};
use crate::Error;

/// Paths below this belong to the platform, whatever an app routes.
const RESERVED_PREFIX: &str = "/.well-known/spin/";

/// An app that is ready to answer requests.
pub struct HttpApp {
    name: Arc<str>,
    /// The name that its operator knows it by.
    account: Arc<Account>,
    release: Option<u64>,
    version: Option<String>,
    routes: RouteTable<Route>,
    components: Vec<(ComponentId, Arc<Component>)>,
    outcomes: Arc<Outcomes>,
    /// Where its components' requests to each other find it.
    slot: LocalSlot,
    local: OnceLock<Arc<dyn LocalDispatch>>,
}

/// What answers requests of one route.
struct Route {
    headers: RouteHeaders,
    /// The component's id, or that of the trigger where no component runs.
    name: Arc<str>,
    target: Target,
}

enum Target {
    Component(Arc<Component>),
    Static(StaticAnswer),
}

/// A response from the manifest, made once.
#[derive(Clone)]
struct StaticAnswer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// A response began, but its component failed before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response broke off")]
pub struct CutOff;

/// Bounds of a request's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    pub(super) max_bytes: u64,
    pub(super) stall_timeout: Duration,
}

/// Puts an app together: its components one by one, then its routes.
pub struct HttpAppBuilder<'engine> {
    engine: &'engine Engine,
    linkers: &'engine Linkers,
    commons: Arc<Commons>,
    account: Arc<Account>,
    tracker: TaskTracker,
    outcomes: Arc<Outcomes>,
    release: Option<u64>,
    components: Vec<(ComponentId, Executor, Arc<Component>)>,
}

impl<'engine> HttpAppBuilder<'engine> {
    /// An app without components yet, with what it shares with other apps and its
    /// account. `tracker` knows of guests that go on after their response.
    pub fn new(
        engine: &'engine Engine,
        linkers: &'engine Linkers,
        commons: Arc<Commons>,
        account: Arc<Account>,
        tracker: TaskTracker,
    ) -> Self {
        let (outcomes, components) = (Arc::default(), Vec::new());
        Self { engine, linkers, commons, account, tracker, outcomes, release: None, components }
    }

    /// Which release of the app this is, where there are releases.
    #[must_use]
    pub fn release(self, release: Option<u64>) -> Self {
        Self { release, ..self }
    }

    /// Counts how requests end in `outcomes`, which outlives the app.
    #[must_use]
    pub fn outcomes(self, outcomes: Arc<Outcomes>) -> Self {
        Self { outcomes, ..self }
    }

    /// Whether a component could be added: finds its handler and links it, and keeps
    /// nothing.
    ///
    /// # Errors
    /// As [`HttpAppBuilder::component`].
    pub fn check(
        linkers: &Linkers,
        id: &ComponentId,
        loaded: &LoadedComponent,
        executor: &Executor,
    ) -> Result<(), Error> {
        let linker = linker(linkers, id, loaded)?;
        Entry::link(linker, id.as_str(), loaded, executor, None).map(drop)
    }

    /// Adds a component, called in one way; call it again for another executor.
    ///
    /// # Errors
    /// If it exports no handler or several, or imports what is not provided.
    pub fn component(&mut self, id: &ComponentId, spec: ComponentSpec) -> Result<(), Error> {
        let linker = linker(self.linkers, id, &spec.loaded)?;
        let executor = spec.executor.clone();
        let shared = (&self.commons, &self.account);
        let component = Component::new(self.engine, linker, id, spec, shared, self.tracker.clone())?;
        self.components.push((id.clone(), executor, Arc::new(component)));
        Ok(())
    }

    /// Connects the manifest's routes with the components that were added. Routes
    /// of components that were not are left out. `local` is where the components'
    /// requests to each other arrive.
    pub fn build(self, app: &App, local: &LocalSlot) -> Arc<HttpApp> {
        let find = |id: &ComponentId, executor: &Executor| {
            self.components
                .iter()
                .find(|(known, how, _)| known == id && how == executor)
                .map(|(_, _, component)| component.clone())
        };
        let mut routes = Vec::new();
        for trigger in &app.triggers {
            let TriggerKind::Http(http) = &trigger.kind else { continue };
            let HttpRoute::Pattern(pattern) = &http.route else { continue };
            let (name, target) = match &http.target {
                HttpTarget::Component { component: id, executor } => match find(id, executor) {
                    Some(component) => (id.as_arc().clone(), Target::Component(component)),
                    None => continue,
                },
                HttpTarget::Static(response) => {
                    (trigger.id.as_arc().clone(), Target::Static(StaticAnswer::new(response)))
                }
            };
            routes.push((pattern.clone(), Route { headers: RouteHeaders::of(pattern), name, target }));
        }
        // Routes that another one shadows were reported when the manifest was read.
        let (routes, _shadowed) = RouteTable::new(routes);
        HttpApp {
            name: app.name.clone(),
            account: self.account,
            release: self.release,
            version: app.version.clone(),
            routes,
            components: self.components.into_iter().map(|(id, _, component)| (id, component)).collect(),
            outcomes: self.outcomes,
            slot: local.clone(),
            local: OnceLock::new(),
        }
        .known_to_itself()
    }
}

fn linker<'linkers>(
    linkers: &'linkers Linkers,
    id: &ComponentId,
    loaded: &LoadedComponent,
) -> Result<&'linkers Linker<Host>, Error> {
    let refused = |error| Error::Link { component: id.to_string(), message: format!("{error:#}") };
    linkers.of(loaded).map_err(refused)
}

impl HttpApp {
    fn known_to_itself(self) -> Arc<Self> {
        let app = Arc::new(self);
        let dispatch: Arc<dyn LocalDispatch> = Arc::new(Local(Arc::downgrade(&app)));
        app.slot.set(Arc::downgrade(&dispatch));
        // The slot holds it weakly; the app keeps it alive.
        drop(app.local.set(dispatch));
        app
    }

    /// The same app with other code for those of its components that are of the same
    /// source. All else is shared with this one, and what its components ask of each other
    /// is answered by the other one from now on.
    ///
    /// # Errors
    /// If that code cannot be linked.
    pub fn with_code(&self, linkers: &Linkers, newer: &LoadedComponent) -> Result<Arc<Self>, Error> {
        let mut components = Vec::with_capacity(self.components.len());
        for (id, component) in &self.components {
            let component = match *component.source() == newer.digest {
                false => component.clone(),
                true => {
                    let linker = linker(linkers, id, newer)?;
                    Arc::new(component.with_code(linker, id, newer.clone())?)
                }
            };
            components.push((id.clone(), component));
        }
        let renewed = |component: &Arc<Component>| {
            let position = self.components.iter().position(|(_, known)| Arc::ptr_eq(known, component));
            position.map_or_else(|| component.clone(), |position| components[position].1.clone())
        };
        let routes = self.routes.iter().map(|(pattern, route)| {
            let target = match &route.target {
                Target::Component(component) => Target::Component(renewed(component)),
                Target::Static(answer) => Target::Static(answer.clone()),
            };
            let headers = RouteHeaders::of(pattern);
            (pattern.clone(), Route { headers, name: route.name.clone(), target })
        });
        let (routes, _shadowed) = RouteTable::new(routes);
        let app = Self {
            name: self.name.clone(),
            account: self.account.clone(),
            release: self.release,
            version: self.version.clone(),
            routes,
            components,
            outcomes: self.outcomes.clone(),
            slot: self.slot.clone(),
            local: OnceLock::new(),
        };
        Ok(app.known_to_itself())
    }

    /// The routes and what answers each, in order of precedence.
    pub fn routes(&self) -> impl Iterator<Item = (&RoutePattern, &str)> {
        self.routes.iter().map(|(pattern, route)| (pattern, &*route.name))
    }

    /// The app's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Drops instances that were idle for too long; tells how often that is worth
    /// doing, if the app has any.
    pub fn sweep(&self) -> Option<Duration> {
        self.components.iter().filter_map(|(_, component)| component.sweep()).min()
    }

    /// Where requests go that stay within the app: for a test, which is as if it were one of
    /// its components. It does not keep the app alive.
    pub fn local(&self) -> Option<Arc<dyn LocalDispatch>> {
        self.local.get().cloned()
    }

    /// Sends the app a request without a client, and waits for the end of its
    /// response: whether it works at all. Counts as a request like any other.
    pub async fn probe(&self, host: &str, path: &str) -> StatusCode {
        let uri = Uri::builder().scheme("http").authority(host).path_and_query(path).build();
        let Ok(uri) = uri else { return StatusCode::BAD_REQUEST };
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = uri;
        match self.ask(request).await {
            Ok(response) => response.status(),
            Err(CutOff) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Sends the app a request without a client, and gathers its response. Its URI has
    /// a scheme and a host. Counts as a request like any other.
    ///
    /// # Errors
    /// [`CutOff`] if the response began and then broke off.
    pub async fn ask(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, CutOff> {
        let connection = Connection::local();
        let request = request.map(|body| RequestBody::local(whole(body)));
        let response = match self.try_answer(request, &connection, u64::MAX).await {
            Ok(response) => response,
            Err(bad) => bad_request(&bad),
        };
        let (parts, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => {
                self.outcomes.count(parts.status);
                Ok(http::Response::from_parts(parts, body.to_bytes()))
            }
            Err(_) => {
                self.outcomes.count(StatusCode::INTERNAL_SERVER_ERROR);
                Err(CutOff)
            }
        }
    }

    /// Answers a request from the network.
    pub(super) async fn answer(
        &self,
        request: http::Request<RequestBody>,
        connection: &Connection,
        limits: BodyLimits,
    ) -> http::Response<ResponseBody> {
        let response = match self.try_answer(request, connection, limits.max_bytes).await {
            Ok(response) => response,
            Err(bad) => bad_request(&bad),
        };
        self.outcomes.count(response.status());
        response
    }

    async fn try_answer(
        &self,
        request: http::Request<RequestBody>,
        connection: &Connection,
        max_body_bytes: u64,
    ) -> Result<http::Response<ResponseBody>, BadRequest> {
        let (mut parts, body) = request.into_parts();
        let uri = shape::absolute_uri(&parts.uri, &parts.headers, connection)?;
        if let Some(reserved) = uri.path().strip_prefix(RESERVED_PREFIX) {
            return Ok(self.answer_reserved(reserved));
        }
        let Some((_, route, matched)) = self.routes.find(uri.path()) else {
            return Ok(self.told(status(StatusCode::NOT_FOUND), None, &mut parts, &uri, connection));
        };
        match &route.target {
            Target::Static(answer) => {
                Ok(self.told(answer.response(), Some(route), &mut parts, &uri, connection))
            }
            Target::Component(component) => {
                let max_body_bytes = max_body_bytes.min(component.max_request_body_bytes());
                if content_length(&parts.headers).is_some_and(|length| length > max_body_bytes) {
                    let response = status(StatusCode::PAYLOAD_TOO_LARGE);
                    return Ok(self.told(response, Some(route), &mut parts, &uri, connection));
                }
                shape::check_headers(&parts.headers)?;
                let trace = self.trace(component, Some(route), &mut parts, &uri, connection);
                if component.omits_spin_headers {
                    shape::remove_headers(&mut parts.headers);
                } else {
                    shape::add_headers(&mut parts.headers, &uri, &route.headers, &matched, connection);
                }
                parts.uri = uri.clone();
                Ok(component.answer(http::Request::from_parts(parts, body), trace).await)
            }
        }
    }

    /// Begins to tell of a request that a component answers, if anybody listens.
    fn trace(
        &self,
        component: &Component,
        route: Option<&Route>,
        parts: &mut request::Parts,
        uri: &Uri,
        connection: &Connection,
    ) -> Option<Box<Trace>> {
        let who = Answering {
            app: self.account.shared_name(),
            component: &component.grants.component,
            release: self.release,
            route: route.map(|route| route.headers.matched_route()),
        };
        Trace::begin(&who, parts, uri, connection)
    }

    /// Tells of a request that is answered without a guest, if anybody listens.
    fn told(
        &self,
        response: http::Response<ResponseBody>,
        route: Option<&Route>,
        parts: &mut request::Parts,
        uri: &Uri,
        connection: &Connection,
    ) -> http::Response<ResponseBody> {
        if wisp_telemetry::export().is_some() {
            let who = Answering {
                app: self.account.shared_name(),
                component: &Arc::default(),
                release: self.release,
                route: route.map(|route| route.headers.matched_route()),
            };
            if let Some(trace) = Trace::begin(&who, parts, uri, connection) {
                trace.end_without_guest(response.status());
            }
        }
        response
    }

    fn answer_reserved(&self, name: &str) -> http::Response<ResponseBody> {
        match name {
            "health" => http::Response::new(ResponseBody::full("OK")),
            "info" => {
                let mut info = serde_json::json!({ "name": &*self.name });
                if let Some(version) = &self.version {
                    info["version"] = version.as_str().into();
                }
                let mut response = http::Response::new(ResponseBody::full(info.to_string()));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    /// Answers a request of one of the app's own components.
    async fn answer_local(
        &self,
        target: LocalTarget,
        request: http::Request<WasiBody>,
    ) -> wasmtime_wasi_http::Result<http::Response<WasiBody>> {
        let connection = Connection::local();
        let (mut parts, body) = request.into_parts();
        let body = RequestBody::local(body);
        let invalid = |_| wasmtime_wasi_http::Error::HttpRequestUriInvalid;
        let response = match target {
            LocalTarget::Component(id) => {
                let Some((_, component)) = self.components.iter().find(|(known, _)| known.as_str() == id)
                else {
                    return Err(wasmtime_wasi_http::Error::DestinationNotFound);
                };
                let uri = shape::absolute_uri(&parts.uri, &HeaderMap::new(), &connection).map_err(invalid)?;
                let trace = self.trace(component, None, &mut parts, &uri, &connection);
                shape::remove_internal_host(&mut parts.headers);
                if component.omits_spin_headers {
                    shape::remove_headers(&mut parts.headers);
                } else {
                    shape::add_local_headers(&mut parts.headers, &uri, &connection);
                }
                parts.uri = uri;
                component.answer(http::Request::from_parts(parts, body), trace).await
            }
            LocalTarget::Route => {
                let uri = shape::absolute_uri(&self_uri(&parts.uri), &HeaderMap::new(), &connection)
                    .map_err(invalid)?;
                match self.routes.find(uri.path()) {
                    None => status(StatusCode::NOT_FOUND),
                    Some((_, Route { target: Target::Static(answer), .. }, _)) => answer.response(),
                    Some((_, route, matched)) => {
                        let Target::Component(component) = &route.target else {
                            return Ok(status(StatusCode::NOT_FOUND).map(ResponseBody::into_wasi));
                        };
                        let trace = self.trace(component, Some(route), &mut parts, &uri, &connection);
                        if component.omits_spin_headers {
                            shape::remove_headers(&mut parts.headers);
                        } else {
                            let headers = &mut parts.headers;
                            shape::add_headers(headers, &uri, &route.headers, &matched, &connection);
                        }
                        parts.uri = uri.clone();
                        component.answer(http::Request::from_parts(parts, body), trace).await
                    }
                }
            }
        };
        Ok(response.map(ResponseBody::into_wasi))
    }
}

/// How chained requests find back to the app. The app holds its components, which
/// hold this, hence weakly.
struct Local(Weak<HttpApp>);

impl LocalDispatch for Local {
    fn dispatch(
        &self,
        target: LocalTarget,
        request: http::Request<WasiBody>,
    ) -> BoxFuture<'static, wasmtime_wasi_http::Result<http::Response<WasiBody>>> {
        let app = self.0.upgrade();
        async move {
            match app {
                Some(app) => app.answer_local(target, request).await,
                None => Err(wasmtime_wasi_http::Error::DestinationUnavailable),
            }
        }
        .boxed()
    }
}

impl StaticAnswer {
    fn new(response: &StaticResponse) -> Self {
        let headers = response
            .headers
            .iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
            })
            .collect();
        Self {
            status: StatusCode::from_u16(response.status_code).unwrap_or_default(),
            headers,
            body: response.body.clone().unwrap_or_default().into(),
        }
    }

    fn response(&self) -> http::Response<ResponseBody> {
        let mut response = http::Response::new(ResponseBody::full(self.body.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

fn bad_request(bad: &BadRequest) -> http::Response<ResponseBody> {
    let mut response = http::Response::new(ResponseBody::full(format!("{bad}\n")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// A request to the app itself may lack an authority.
fn self_uri(uri: &Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    if parts.authority.is_none() {
        parts.authority = Some(http::uri::Authority::from_static("self.alt"));
        parts.scheme = Some(http::uri::Scheme::HTTP);
    }
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}
