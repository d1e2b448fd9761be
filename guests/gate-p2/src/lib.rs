//! Middleware of WASI 0.2: hands requests on as they are, and logs their paths.

mod bindings {
    wit_bindgen::generate!({ world: "gate", path: "wit", generate_all });
}

use bindings::{
    exports::wasi::http::incoming_handler::Guest,
    wasi::http::{
        incoming_handler,
        types::{IncomingRequest, ResponseOutparam},
    },
};

struct Gate;

bindings::export!(Gate with_types_in bindings);

impl Guest for Gate {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        println!("the gate saw {}", request.path_with_query().unwrap_or_default());
        incoming_handler::handle(request, response_out);
    }
}
