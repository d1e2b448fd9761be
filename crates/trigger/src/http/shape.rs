//! How a guest sees its request: the full URL and the `spin-*` headers.
//!
//! A request that goes to a route carries where it matched, as Spin guests
//! expect. Values that depend on the route alone are made once and shared;
//! making a header from them costs a reference count.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri};
use wisp_manifest::route::{RouteMatch, RoutePattern};

const PATH_INFO: HeaderName = HeaderName::from_static("spin-path-info");
const FULL_URL: HeaderName = HeaderName::from_static("spin-full-url");
const MATCHED_ROUTE: HeaderName = HeaderName::from_static("spin-matched-route");
const BASE_PATH: HeaderName = HeaderName::from_static("spin-base-path");
const RAW_COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-raw-component-route");
const COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-component-route");
const CLIENT_ADDRESS: HeaderName = HeaderName::from_static("spin-client-addr");

/// How many headers are added to a request, beside one per named segment.
const ADDED_HEADERS_COUNT: usize = 7;

/// What comes with a request from its connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// `ip:port` of the client.
    pub(super) client: HeaderValue,
    /// How it was reached.
    pub(super) scheme: uri::Scheme,
}

impl Connection {
    pub(super) fn new(client: std::net::SocketAddr, is_tls: bool) -> Self {
        Self {
            client: value(&client.to_string()),
            scheme: if is_tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP },
        }
    }

    /// A request that another component of the app made.
    pub(super) fn local() -> Self {
        Self { client: HeaderValue::from_static("0.0.0.0:0"), scheme: uri::Scheme::HTTP }
    }
}

/// The headers of a route that are the same for each of its requests.
#[derive(Debug)]
pub(super) struct RouteHeaders {
    matched_route: HeaderValue,
    component_route: HeaderValue,
    path_match_names: Vec<(String, HeaderName)>,
}

impl RouteHeaders {
    /// The route, as the manifest writes it.
    pub(super) fn matched_route(&self) -> &HeaderValue {
        &self.matched_route
    }

    pub(super) fn of(route: &RoutePattern) -> Self {
        Self {
            matched_route: value(route.as_str()),
            component_route: value(route.prefix()),
            path_match_names: route
                .names()
                .filter_map(|name| {
                    let header = format!("spin-path-match-{}", name.to_lowercase().replace('_', "-"));
                    Some((name.to_owned(), HeaderName::try_from(header).ok()?))
                })
                .collect(),
        }
    }
}

/// Why a request cannot be given to a guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("the request has no Host header")]
    NoHost,
    #[error("the Host header is not a host name with an optional port")]
    BadHost,
    #[error("the Host header contradicts the URL")]
    HostContradictsUrl,
    #[error("a header value is not UTF-8")]
    HeaderNotUtf8,
}

/// Makes the URI absolute: scheme of the listener, authority of the `Host` header.
pub(super) fn absolute_uri(
    uri: &Uri,
    headers: &HeaderMap,
    connection: &Connection,
) -> Result<Uri, BadRequest> {
    let host = match headers.get(header::HOST) {
        None => None,
        Some(host) => Some(uri::Authority::try_from(host.as_bytes()).map_err(|_| BadRequest::BadHost)?),
    };
    let authority = match (uri.authority(), host) {
        (Some(authority), None) => authority.clone(),
        (Some(authority), Some(host)) if *authority == host => host,
        (Some(_), Some(_)) => return Err(BadRequest::HostContradictsUrl),
        (None, Some(host)) => host,
        (None, None) => return Err(BadRequest::NoHost),
    };
    let mut parts = uri::Parts::default();
    parts.scheme = Some(connection.scheme.clone());
    parts.authority = Some(authority);
    parts.path_and_query =
        Some(uri.path_and_query().cloned().unwrap_or_else(|| uri::PathAndQuery::from_static("/")));
    Uri::from_parts(parts).map_err(|_| BadRequest::BadHost)
}

/// Refuses header values that a guest could not represent.
pub(super) fn check_headers(headers: &HeaderMap) -> Result<(), BadRequest> {
    let is_text = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
    };
    if headers.values().all(is_text) { Ok(()) } else { Err(BadRequest::HeaderNotUtf8) }
}

/// Adds the headers that tell a guest how it was reached and removes those that
/// concern only the connection.
pub(super) fn add_headers(
    headers: &mut HeaderMap,
    uri: &Uri,
    route: &RouteHeaders,
    matched: &RouteMatch<'_>,
    connection: &Connection,
) {
    headers.reserve(ADDED_HEADERS_COUNT + matched.named.len());
    headers.remove(header::CONNECTION);
    headers.insert(PATH_INFO, value(matched.trailing_wildcard.unwrap_or_default()));
    headers.insert(FULL_URL, full_url(uri));
    headers.insert(MATCHED_ROUTE, route.matched_route.clone());
    headers.insert(BASE_PATH, HeaderValue::from_static("/"));
    headers.insert(RAW_COMPONENT_ROUTE, route.matched_route.clone());
    headers.insert(COMPONENT_ROUTE, route.component_route.clone());
    headers.insert(CLIENT_ADDRESS, connection.client.clone());
    for (name, segment) in &matched.named {
        if let Some((_, header)) = route.path_match_names.iter().find(|(known, _)| known == name) {
            headers.insert(header, value(segment));
        }
    }
}

/// Adds the headers of a request from another component: there is no route, the
/// whole path is path information.
pub(super) fn add_local_headers(headers: &mut HeaderMap, uri: &Uri, connection: &Connection) {
    headers.remove(header::CONNECTION);
    headers.insert(PATH_INFO, value(uri.path()));
    headers.insert(FULL_URL, full_url(uri));
    headers.insert(BASE_PATH, HeaderValue::from_static("/"));
    headers.insert(CLIENT_ADDRESS, connection.client.clone());
}

/// Removes headers that concern only the connection, for a guest that has not asked to be told
/// how it was reached; and what a client says about that, which it might believe.
pub(super) fn remove_headers(headers: &mut HeaderMap) {
    headers.remove(header::CONNECTION);
    let is_ours = |name: &&HeaderName| name.as_str().starts_with("spin-");
    let sent: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    for name in sent {
        headers.remove(name);
    }
}

/// Removes the name by which one component calls another.
pub(super) fn remove_internal_host(headers: &mut HeaderMap) {
    if headers.get(header::HOST).is_some_and(|host| is_internal_host(host.as_bytes())) {
        headers.remove(header::HOST);
    }
}

fn is_internal_host(host: &[u8]) -> bool {
    let name = host.split(|byte| *byte == b':').next().unwrap_or_default();
    name.ends_with(b".spin.internal")
}

fn full_url(uri: &Uri) -> HeaderValue {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", uri::Authority::as_str);
    let path = uri.path_and_query().map_or("/", uri::PathAndQuery::as_str);
    let mut url = Vec::with_capacity(scheme.len() + 3 + authority.len() + path.len());
    for part in [scheme, "://", authority, path] {
        url.extend_from_slice(part.as_bytes());
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(url)).unwrap_or(HeaderValue::from_static(""))
}

/// Paths and routes are visible ASCII or UTF-8, both of which a header may hold;
/// anything else becomes empty.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text)
        .or_else(|_| HeaderValue::from_bytes(text.as_bytes()))
        .unwrap_or(HeaderValue::from_static(""))
}
