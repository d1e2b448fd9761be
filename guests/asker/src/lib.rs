//! A dependency that asks the host for everything that can be asked for, and says what
//! came of it: what Rust's debug format makes of the result.

mod bindings {
    wit_bindgen::generate!({
        world: "wisp:composed/dependency@1.0.0",
        path: ["../../wit/deps/fermyon-spin@2.0.0", "wit"],
        generate_all,
    });
}

use std::{
    env,
    fmt::Debug,
    fs,
    net::{TcpStream, ToSocketAddrs as _, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

use bindings::{
    exports::wisp::composed::asker::Guest,
    fermyon::spin::{key_value, llm, mqtt, mysql, postgres, redis, sqlite, variables},
};
use wasip2::http::{
    outgoing_handler,
    types::{Fields, OutgoingRequest, Scheme},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Nobody listens there: whoever may connect is refused by the machine.
const NOBODY: &str = "127.0.0.1:1";

struct Asker;

bindings::export!(Asker with_types_in bindings);

impl Guest for Asker {
    fn ask(what: String) -> String {
        match what.as_str() {
            "key-value" => told(key_value::Store::open("default").map(drop)),
            "sqlite" => told(sqlite::Connection::open("default").map(drop)),
            "variables" => told(variables::get("greeting")),
            "redis" => {
                let opened = redis::Connection::open(&format!("redis://{NOBODY}"));
                told(opened.and_then(|connection| connection.get("key")).map(drop))
            }
            "postgres" => {
                let opened = postgres::Connection::open(&format!("postgres://{NOBODY}/db"));
                told(opened.map(drop))
            }
            "mysql" => told(mysql::Connection::open(&format!("mysql://{NOBODY}/db")).map(drop)),
            "mqtt" => {
                let opened = mqtt::Connection::open(&format!("mqtt://{NOBODY}"), "", "", 1);
                told(opened.map(drop))
            }
            "llm" => told(llm::infer("llama2-chat", "hello", None).map(|result| result.text)),
            "http" => {
                let request = OutgoingRequest::new(Fields::new());
                request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
                request.set_authority(Some(NOBODY)).expect("an authority");
                told(outgoing_handler::handle(request, None).map(drop))
            }
            "environment" => told(env::var("COLOR")),
            "files" => told(fs::read_to_string("/note.txt").map_err(|error| error.kind())),
            "tcp" => told(TcpStream::connect(NOBODY).map(drop).map_err(|error| error.kind())),
            "udp" => told(UdpSocket::bind("127.0.0.1:0").map(drop).map_err(|error| error.kind())),
            "dns" => told("localhost:1".to_socket_addrs().map(drop).map_err(|error| error.kind())),
            // What every component has.
            "clock" => told(Ok::<_, ()>(std::time::SystemTime::now() > std::time::UNIX_EPOCH)),
            other => format!("`{other}` cannot be asked for"),
        }
    }

    fn count() -> u32 {
        COUNT.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn told<T: Debug, E: Debug>(result: Result<T, E>) -> String {
    match result {
        Ok(value) => format!("ok: {value:?}"),
        Err(error) => format!("error: {error:?}"),
    }
}
