//! WAGI: commands that speak CGI.
//!
//! The request is in environment variables, arguments and standard input; the
//! response is what the command prints: header lines, an empty line, the body.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request};
use http_body_util::{BodyExt as _, Limited};
use wasmtime::component::InstancePre;
use wasmtime_wasi::{
    I32Exit,
    p2::{
        bindings::CommandIndices,
        pipe::{MemoryInputPipe, MemoryOutputPipe},
    },
};
use wasmtime_wasi_http::WasiBody;
use wisp_capability::{Host, outbound_http::LocalDepth, wasi::Overrides};
use wisp_manifest::model::WagiSettings;

use super::{Component, Failure, Reply, RequestBody, whole};

/// The largest request body that is buffered for a command.
const MAX_INPUT_BYTES: usize = 64 << 20;

/// The largest response that a command may print.
const MAX_OUTPUT_BYTES: usize = 64 << 20;

pub(in crate::http) struct Entry {
    pre: InstancePre<Host>,
    indices: CommandIndices,
    argv: String,
}

impl Entry {
    pub(super) fn new(pre: InstancePre<Host>, settings: &WagiSettings) -> wasmtime::Result<Self> {
        Ok(Self { indices: CommandIndices::new(&pre)?, pre, argv: settings.argv.clone() })
    }

    pub(super) async fn serve(
        &self,
        component: &Component,
        request: http::Request<RequestBody>,
        reply: Reply,
    ) -> Result<(), Failure> {
        let (parts, body) = request.into_parts();
        let Ok(input) = Limited::new(body, MAX_INPUT_BYTES).collect().await else {
            let mut response = http::Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            reply.set(Ok(response));
            return Ok(());
        };
        let input = input.to_bytes();
        let output = MemoryOutputPipe::new(MAX_OUTPUT_BYTES);
        let overrides = Overrides {
            environment: environment(&parts, input.len()),
            arguments: arguments(&self.argv, &parts),
            stdin: Some(Box::new(MemoryInputPipe::new(input))),
            stdout: Some(Box::new(output.clone())),
        };
        let mut host = component.limited(Host::with_overrides(component.grants.clone(), overrides));
        if let Some(depth) = parts.extensions.get::<LocalDepth>() {
            host.set_local_depth(*depth);
        }
        let start = Instant::now();
        let mut store = component.store(host, &reply);
        let instantiation = self.pre.instantiate_async(&mut store);
        let (instance, memory) = component.instantiate(instantiation).await;
        let instance = instance?;
        if let Some(memory) = &memory {
            memory.begin(&mut store, &instance).await?;
        }
        let command = self.indices.load(&mut store, &instance)?;
        reply.usage().set_instantiate(start.elapsed());
        match command.wasi_cli_run().call_run(&mut store).await {
            Ok(Ok(())) => {}
            Ok(Err(())) => tracing::warn!(component = %component.grants.component, "the command failed"),
            Err(error) => match error.downcast_ref::<I32Exit>() {
                // CGI programs often end with `exit(0)`; other codes are worth a
                // word, but what was printed is the response all the same.
                Some(I32Exit(0)) => {}
                Some(I32Exit(code)) => {
                    tracing::warn!(component = %component.grants.component, code, "the command failed");
                }
                None => return Err(error.into()),
            },
        }
        drop(store);
        reply.set(parse_output(output.contents()).map_err(|error| error.to_string()));
        Ok(())
    }
}

/// What the command's arguments are: `${SCRIPT_NAME}` and `${ARGS}` filled in.
fn arguments(argv: &str, parts: &request::Parts) -> Vec<String> {
    let script_name = header_text(&parts.headers, "spin-component-route");
    let query = parts.uri.query().unwrap_or_default();
    argv.split_whitespace()
        .flat_map(|word| match word {
            "${SCRIPT_NAME}" => vec![script_name.clone()],
            "${ARGS}" => query.split('&').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
            other => vec![other.replace("${SCRIPT_NAME}", &script_name)],
        })
        .collect()
}

/// The request as CGI variables.
fn environment(parts: &request::Parts, input_bytes: usize) -> Vec<(String, String)> {
    let header = |name: &str| header_text(&parts.headers, name);
    let authority = parts.uri.authority();
    let client = header("spin-client-addr");
    let client_address = client.rsplit_once(':').map_or(client.as_str(), |(address, _)| address);
    let default_port = if parts.uri.scheme_str() == Some("https") { "443" } else { "80" };
    let mut variables: Vec<(String, String)> = [
        ("AUTH_TYPE", String::new()),
        ("CONTENT_LENGTH", input_bytes.to_string()),
        ("CONTENT_TYPE", header("content-type")),
        ("GATEWAY_INTERFACE", "CGI/1.1".into()),
        ("PATH_INFO", header("spin-path-info")),
        ("PATH_TRANSLATED", header("spin-path-info")),
        ("QUERY_STRING", parts.uri.query().unwrap_or_default().into()),
        ("REMOTE_ADDR", client_address.into()),
        ("REMOTE_HOST", client_address.into()),
        ("REMOTE_USER", String::new()),
        ("REQUEST_METHOD", parts.method.to_string()),
        ("SCRIPT_NAME", header("spin-component-route")),
        ("SERVER_NAME", authority.map_or_else(String::new, |authority| authority.host().into())),
        (
            "SERVER_PORT",
            authority
                .and_then(http::uri::Authority::port_u16)
                .map_or_else(|| default_port.into(), |port| port.to_string()),
        ),
        ("SERVER_PROTOCOL", format!("{:?}", parts.version)),
        ("SERVER_SOFTWARE", "WAGI/1".into()),
        ("X_BASE_PATH", header("spin-base-path")),
        ("X_COMPONENT_ROUTE", header("spin-component-route")),
        ("X_FULL_URL", header("spin-full-url")),
        ("X_MATCHED_ROUTE", header("spin-matched-route")),
        ("X_RAW_COMPONENT_ROUTE", header("spin-raw-component-route")),
        ("X_RAW_PATH_INFO", header("spin-path-info")),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    for name in parts.headers.keys() {
        // A client must not set `HTTP_PROXY` of a program that makes requests, nor
        // see its credentials spread to everything the program starts.
        if matches!(name.as_str(), "proxy" | "authorization" | "connection") {
            continue;
        }
        let variable = format!("HTTP_{}", name.as_str().to_uppercase().replace('-', "_"));
        variables.push((variable, header(name.as_str())));
    }
    variables
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

/// Why what a command printed is no response.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum OutputError {
    #[error("the command printed no empty line after its headers")]
    NoHeaderEnd,
    #[error("the command printed a header that is none: `{0}`")]
    BadHeader(String),
    #[error("the command printed neither `Content-Type` nor `Location` nor `Status`")]
    NoRequiredHeader,
}

/// Takes a CGI response apart.
fn parse_output(output: Bytes) -> Result<http::Response<WasiBody>, OutputError> {
    let mut headers = HeaderMap::new();
    let mut status = None;
    let mut rest = output.clone();
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(OutputError::NoHeaderEnd)?;
        let line = rest.split_to(end + 1);
        let line = line.trim_ascii();
        if line.is_empty() {
            break;
        }
        let bad = || OutputError::BadHeader(String::from_utf8_lossy(line).into_owned());
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(bad)?;
        let (name, text) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"status") {
            let code = text.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            status = Some(StatusCode::from_bytes(code).map_err(|_| bad())?);
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_bytes(text).map_err(|_| bad())?);
    }
    let is_redirect = headers.contains_key(header::LOCATION);
    if status.is_none() && !is_redirect && !headers.contains_key(header::CONTENT_TYPE) {
        return Err(OutputError::NoRequiredHeader);
    }
    let mut response = http::Response::new(whole(rest));
    *response.status_mut() = status.unwrap_or(if is_redirect { StatusCode::FOUND } else { StatusCode::OK });
    *response.headers_mut() = headers;
    Ok(response)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use futures::FutureExt as _;

    use super::*;

    fn parse(text: &'static str) -> Result<(u16, Vec<String>, String), OutputError> {
        let response = parse_output(Bytes::from_static(text.as_bytes()))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().now_or_never().unwrap().unwrap().to_bytes();
        let headers = parts.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
        Ok((parts.status.as_u16(), headers.collect(), String::from_utf8(body.to_vec()).unwrap()))
    }

    #[test]
    fn output_is_headers_and_body() {
        let expected = (200, vec!["content-type=text/plain".into(), "x-a=1".into()], "hi\n\nthere".into());
        assert_eq!(parse("Content-Type: text/plain\r\nX-A:1\r\n\r\nhi\n\nthere"), Ok(expected.clone()));
        assert_eq!(parse("Content-Type: text/plain\nX-A:1\n\nhi\n\nthere"), Ok(expected));
    }

    #[test]
    fn status_and_location_stand_for_themselves() {
        assert_eq!(parse("Status: 404 Not Found\n\n").unwrap().0, 404);
        assert_eq!(parse("Location: /x\n\n").unwrap().0, 302);
        assert_eq!(parse("Status: 301\nLocation: /x\n\n").unwrap().0, 301);
    }

    #[test]
    fn what_is_no_response_is_refused() {
        assert_eq!(parse("hello"), Err(OutputError::NoHeaderEnd));
        assert_eq!(parse("hello\n\n"), Err(OutputError::BadHeader("hello".into())));
        assert_eq!(parse("X-A: 1\n\nbody"), Err(OutputError::NoRequiredHeader));
        assert_eq!(parse("Status: no\n\n"), Err(OutputError::BadHeader("Status: no".into())));
    }
}
