//! Placeholder.

use wasmtime::component::Linker;

use crate::{Flavor, Host};

pub(crate) fn add_to_linker(_linker: &mut Linker<Host>, _flavor: Flavor) -> wasmtime::Result<()> {
    Ok(())
}

/// How a component's outbound HTTP requests are sent.
#[derive(Clone, Default)]
pub struct Grant {}

/// The per-instance side of outbound HTTP, called by `wasmtime-wasi-http`.
pub struct Hooks {}

impl Hooks {
    pub(crate) fn new(_grants: &std::sync::Arc<crate::Grants>) -> Self {
        Self {}
    }
}

impl wasmtime_wasi_http::WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        _request: http::Request<wasmtime_wasi_http::WasiBody>,
        _options: Option<wasmtime_wasi_http::RequestOptions>,
        _fut: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<
        dyn Future<
                Output = wasmtime_wasi_http::Result<(
                    http::Response<wasmtime_wasi_http::WasiBody>,
                    Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
                )>,
            > + Send,
    > {
        Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) })
    }
}
