//! Compiled images: made once, found again, never trusted blindly.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::harness::{App, Running, alone, have};

/// How much sooner a second start answers than the first one.
const REQUIRED_RATIO: f64 = 20.0;

/// From the command to the first response.
fn first_response(app: App) -> (Running, Duration) {
    let before = Instant::now();
    let app = app.start();
    let text = app.get("/").expect();
    let elapsed = before.elapsed();
    assert!(text.starts_with("Hello"), "{text}");
    (app, elapsed)
}

/// That a component was compiled, which is said before the app serves.
fn assert_compiled(app: &Running) {
    app.stderr.wait_for_text("compiled in");
}

/// Ends an app; that nothing was compiled.
fn stop_mapped(app: Running) -> App {
    let stderr = app.stderr.clone();
    let app = app.stop();
    let text = stderr.text_at_end();
    assert!(!text.contains("compiled in"), "{text}");
    app
}

fn images(app: &App) -> Vec<PathBuf> {
    let folder = app.path("cache/images");
    let mut images: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Beside them is the list of sources.
    images.retain(|path| path.extension().is_some_and(|extension| extension == "cwasm"));
    images.sort();
    images
}

#[test]
fn a_second_start_maps_what_the_first_one_compiled() {
    if !have(&["python-sdk5"]) {
        return;
    }
    let _alone = alone();
    let (first, cold) = first_response(App::of("python-sdk5", "").own_cache());
    assert_compiled(&first);
    let mut app = first.stop();
    assert_eq!(images(&app).len(), 2, "the image and its code");
    // The best of three: other tests run on this machine at the same time.
    let mut warm = Duration::MAX;
    for _ in 0..3 {
        let (second, elapsed) = first_response(app);
        warm = warm.min(elapsed);
        app = stop_mapped(second);
    }
    let ratio = cold.as_secs_f64() / warm.as_secs_f64();
    eprintln!(
        "first response after {cold:?} with nothing compiled, after {warm:?} with an image: {ratio:.0} times sooner"
    );
    assert!(ratio >= REQUIRED_RATIO, "{cold:?} and {warm:?} are only {ratio:.1} apart");
}

/// Starts once, does something to the image, starts again.
fn after(damage: impl Fn(&PathBuf)) -> Option<Running> {
    if !have(&["rust-sdk7"]) {
        return None;
    }
    let (first, _) = first_response(App::of("rust-sdk7", "").own_cache());
    let app = first.stop();
    let [image] = images(&app).try_into().expect("one image");
    let sound = fs::read(&image).unwrap();
    damage(&image);
    let (second, _) = first_response(app);
    assert_compiled(&second);
    assert_eq!(fs::read(&image).unwrap().len(), sound.len(), "it was replaced by a sound one");
    Some(second)
}

/// That the image was found to be damaged, and then that the next start has a sound one.
fn assert_repaired(app: Running, reason: &str) {
    let line = app.stderr.wait_for_text("compiled image is damaged, compiling again");
    assert!(line.starts_with("warning"), "{line}");
    assert!(line.contains(reason), "{line}");
    let (third, _) = first_response(app.stop());
    stop_mapped(third);
}

#[test]
fn a_deleted_image_is_made_again() {
    let Some(app) = after(|image| fs::remove_file(image).unwrap()) else { return };
    let stderr = app.stderr.clone();
    app.stop();
    assert!(!stderr.text_at_end().contains("warning"), "{}", stderr.text());
}

#[test]
fn a_truncated_image_is_made_again() {
    for keep in [0_u64, 30, 100_000] {
        let Some(app) = after(|image| {
            fs::OpenOptions::new().write(true).open(image).unwrap().set_len(keep).unwrap();
        }) else {
            return;
        };
        assert_repaired(app, if keep == 100_000 { "trailer" } else { "truncated" });
    }
}

#[test]
fn a_flipped_byte_is_found_wherever_it_is() {
    // The beginning, the code in the middle, the checksum, the end.
    for place in [0.0, 0.1, 0.5, 0.9, 1.0] {
        let Some(app) = after(|image| {
            let mut bytes = fs::read(image).unwrap();
            let last = bytes.len() - 1;
            bytes[(last as f64 * place) as usize] ^= 1;
            fs::write(image, bytes).unwrap();
        }) else {
            return;
        };
        assert_repaired(app, if place == 1.0 { "trailer" } else { "checksum" });
    }
}

#[test]
fn something_else_under_the_name_of_an_image_is_not_loaded() {
    let Some(app) = after(|image| fs::write(image, b"\x7fELF and nothing that a compiler wrote").unwrap())
    else {
        return;
    };
    assert_repaired(app, "truncated");
}

#[test]
fn a_component_that_changed_is_compiled() {
    if !have(&["rust-sdk7", "rust-wstd"]) {
        return;
    }
    let guest = |name: &str| fs::read(crate::harness::guest(name).unwrap()).unwrap();
    let app = App::new("").own_cache().arguments(["-f", "app.wasm"]);
    let app = app.file("app.wasm", guest("rust-sdk7"));
    let (first, _) = first_response(app);
    assert_eq!(first.get("/").expect(), "Hello from a probe\n");
    let app = first.stop().file("app.wasm", guest("rust-wstd"));
    let (second, _) = first_response(app);
    assert_compiled(&second);
    assert_eq!(second.get("/").expect(), "Hello from plain wasi:http, you asked for /\n");
    let app = second.stop().file("app.wasm", guest("rust-sdk7"));
    let (third, _) = first_response(app);
    assert_eq!(third.get("/").expect(), "Hello from a probe\n");
    stop_mapped(third);
}

#[test]
fn equal_components_are_compiled_once() {
    if !have(&["rust-wstd"]) {
        return;
    }
    let wasm = fs::read(crate::harness::guest("rust-wstd").unwrap()).unwrap();
    let app = App::new(
        r#"
        spin_manifest_version = 2
        [application]
        name = "equal"
        [[trigger.http]]
        route = "/one/..."
        component = "one"
        [[trigger.http]]
        route = "/two/..."
        component = "two"
        [component.one]
        source = "one.wasm"
        [component.two]
        source = "two.wasm"
        "#,
    )
    .file("one.wasm", &wasm)
    .file("two.wasm", &wasm)
    .own_cache()
    .start();
    assert_eq!(app.get("/one/").status, 200);
    assert_eq!(app.get("/two/").status, 200);
    assert_eq!(images(&app.stop()).len(), 1);
}

/// The JavaScript guest as a person's edit leaves it: another answer, of the same length, in
/// the snapshot that the toolchain took.
pub(crate) fn edited_js(greeting: &str) -> Option<Vec<u8>> {
    const GREETING: &[u8] = b"Hello, world!\n";
    assert_eq!(greeting.len(), GREETING.len());
    let mut edited = fs::read(crate::harness::guest("js")?).unwrap();
    let places: Vec<usize> = edited
        .windows(GREETING.len())
        .enumerate()
        .filter_map(|(at, bytes)| (bytes == GREETING).then_some(at))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        edited[at..at + GREETING.len()].copy_from_slice(greeting.as_bytes());
    }
    Some(edited)
}

#[test]
fn components_of_one_toolchain_have_their_code_compiled_once() {
    let (Some(one), Some(other)) = (edited_js("Hello, first!\n"), edited_js("Hello, other!\n")) else {
        return;
    };
    let _alone = alone();
    let app = App::new("").own_cache().arguments(["-f", "app.wasm"]).file("app.wasm", one);
    let (first, _) = first_response(app);
    assert_compiled(&first);
    assert_eq!(first.get("/").expect(), "Hello, first!\n");
    let (second, _) = first_response(first.stop().file("app.wasm", other));
    second.stderr.wait_for_text("its code was compiled before");
    assert_eq!(second.get("/").expect(), "Hello, other!\n");
    let app = stop_mapped(second);
    let of_code = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("code-");
    let (codes, images): (Vec<PathBuf>, Vec<PathBuf>) = images(&app).into_iter().partition(of_code);
    assert_eq!((codes.len(), images.len()), (1, 2));

    // Code that was altered is as if it were not there, for both.
    let mut altered = fs::read(&codes[0]).unwrap();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    fs::write(&codes[0], altered).unwrap();
    let (third, _) = first_response(app);
    assert_compiled(&third);
    assert_repaired(third, "checksum");
}

#[test]
fn the_cache_can_be_left_out() {
    if !have(&["rust-wstd"]) {
        return;
    }
    let app = App::of("rust-wstd", "").own_cache().arguments(["--disable-cache"]);
    let (app, _) = first_response(app);
    assert_compiled(&app);
    let app = app.stop();
    assert!(!app.path("cache/images").exists());
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_with_a_way_out() {
    if !have(&["rust-wstd"]) {
        return;
    }
    let refused = App::of("rust-wstd", "").own_cache().file("cache", "a file, not a folder").refused();
    assert!(refused.stderr.contains("error[WISP-E0206]"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--disable-cache"), "{}", refused.stderr);
}
