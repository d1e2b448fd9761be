//! Code that is made in a hurry, and the optimized code that takes its place.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use crate::{
    compiled_images::edited_js,
    harness::{App, Running, START_LIMIT, WAIT_LIMIT, alone, available, finish, have, wisp},
};

/// Connections that ask all the time. More would take the cores for as long as they ask:
/// what optimizes gives way to what answers.
const CLIENTS_COUNT: usize = 2;

/// Requests that are answered after something, to see its effect.
const ENOUGH_COUNT: usize = 20;

fn tiered(app: App) -> App {
    app.own_cache().environment("WISP_COMPILER", "tiered")
}

/// The names of the images of an app's own cache, sorted.
fn images(folder: PathBuf) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".cwasm"));
    names.sort();
    names
}

fn is_baseline(name: &str) -> bool {
    name.ends_with("-baseline.cwasm")
}

/// Waits until optimized code was swapped in, and hands back what is said of it. A debug build
/// on a busy machine takes its time.
fn optimized(app: &Running) -> String {
    match app.stderr.try_wait_for(|line| line.contains("optimized in"), START_LIMIT) {
        Some(line) => line,
        None => panic!("nothing was optimized:\n{}", app.stderr.text()),
    }
}

/// Counts, and waits for numbers.
#[derive(Default)]
struct Counter {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Counter {
    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits until there are so many more than now.
    fn wait_for_more(&self, more_count: usize) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = *count + more_count;
        let (count, waited) =
            self.changed.wait_timeout_while(count, WAIT_LIMIT, |count| *count < wanted).unwrap();
        assert!(!waited.timed_out(), "only {} answers, not {wanted}", *count);
    }
}

#[test]
fn baseline_code_is_served_at_once_and_optimized_code_takes_over_under_load() {
    let Some(guest) = edited_js("Hello, first!\n") else { return };
    let _alone = alone();
    let app = tiered(App::new("").arguments(["-f", "app.wasm"]).file("app.wasm", guest)).start();
    app.stderr.wait_for_text("by the baseline compiler");
    let names = images(app.path("cache/images"));
    assert!(
        names.len() == 2 && names.iter().all(|name| is_baseline(name)),
        "the image and its code: {names:?}"
    );

    let (answered, stop) = (Counter::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS_COUNT)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = app.connect();
                    while !stop.load(Ordering::Relaxed) {
                        connection.request("GET", "/", &[], b"");
                        assert_eq!(connection.response().expect(), "Hello, first!\n");
                        answered.add();
                    }
                })
            })
            .collect();
        answered.wait_for_more(ENOUGH_COUNT);
        let said = optimized(&app);
        assert!(said.contains("later starts map the result"), "{said}");
        answered.wait_for_more(ENOUGH_COUNT);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });

    let stderr = app.stderr.clone();
    let app = app.stop();
    assert!(!stderr.text_at_end().contains("warning"), "{}", stderr.text());
    let names = images(app.path("cache/images"));
    assert!(names.len() == 2 && !names.iter().any(|name| is_baseline(name)), "{names:?}");

    let again = app.start();
    assert_eq!(again.get("/").expect(), "Hello, first!\n");
    let stderr = again.stderr.clone();
    again.stop();
    let said = stderr.text_at_end();
    assert!(!said.contains("compiled in") && !said.contains("optimized"), "{said}");
}

#[test]
fn a_build_leaves_what_is_served_at_once_and_optimized_later() {
    if !have(&["python-sdk5"]) {
        return;
    }
    let _alone = alone();
    let app = tiered(App::of("python-sdk5", ""));
    let mut build: Command = wisp();
    build
        .arg("build")
        .current_dir(app.path(""))
        .env("WISP_CACHE_DIR", app.path("cache"))
        .env("WISP_COMPILER", "tiered");
    let built = finish(build);
    assert!(built.status.success(), "{}", built.stderr);
    let names = images(app.path("cache/images"));
    assert!(names.len() == 2 && names.iter().all(|name| is_baseline(name)), "{names:?}");

    let app = app.start();
    assert!(!app.stderr.text().contains("compiled"), "{}", app.stderr.text());
    assert!(app.get("/").expect().starts_with("Hello"));
    optimized(&app);
    assert!(app.get("/").expect().starts_with("Hello"));
    // Who ends it does not wait for what it may still be doing.
    app.stop();
}

#[test]
fn a_process_ends_while_it_optimizes() {
    let Some(guest) = edited_js("Hello, other!\n") else { return };
    let _alone = alone();
    let app = tiered(App::new("").arguments(["-f", "app.wasm"]).file("app.wasm", guest)).start();
    assert_eq!(app.get("/").expect(), "Hello, other!\n");
    let app = app.stop();
    let again = app.start();
    assert!(!again.stderr.text().contains("compiled in"), "{}", again.stderr.text());
    assert_eq!(again.get("/").expect(), "Hello, other!\n");
}

#[test]
fn guests_run_on_baseline_code_as_on_optimized_code() {
    let baseline = |guest: &str, settings: &str| {
        App::of(guest, settings).environment("WISP_COMPILER", "baseline").start()
    };
    for guest in available(&["rust-sdk5", "rust-sdk7", "rust-v1"]) {
        let app = baseline(guest, &format!("[component.{guest}.tool.wisp.limits]\ncpu_time = \"300ms\""));
        // Instances are rewound in between.
        for _ in 0..3 {
            assert_eq!(app.get("/count").expect(), "1", "{guest}");
        }
        assert_eq!(app.get("/spin").status, 504, "{guest}");
        assert_eq!(app.get("/trap").status, 500, "{guest}");
        app.stderr.wait_for_text("deliberate_trap");
        assert_eq!(app.ok("/memory", &[("mb", "8")]), 8 << 20, "{guest}");
        assert_eq!(app.get("/").status, 200, "{guest}");
    }
    for guest in available(&["js", "python-hello", "python-sdk3", "python-sdk4", "python-sdk5"]) {
        let app = baseline(guest, "");
        for _ in 0..3 {
            assert_eq!(app.get("/").status, 200, "{guest}");
        }
    }
}
