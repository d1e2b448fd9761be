//! How results and errors look.

use std::io::{self, IsTerminal as _, Write as _};

use crate::error::Error;

/// Width of diagnostics where the terminal does not say.
const DEFAULT_WIDTH_COLUMNS: usize = 80;

/// Prints an error, or all of them, to standard error.
pub(crate) fn print_error(error: &Error) {
    match error {
        Error::Diagnostics(diagnostics) | Error::Image(wisp_image::Error::App(diagnostics)) => {
            print_diagnostics(diagnostics);
        }
        Error::Load(errors) => {
            for error in &errors.0 {
                print_one(error.code(), &error.to_string(), error.hint());
            }
        }
        other => print_one(other.code().unwrap_or("WISP-E0500"), &other.to_string(), other.hint()),
    }
}

/// Prints what is wrong with a file that a person wrote, with the lines in question.
pub(crate) fn print_diagnostics(diagnostics: &wisp_manifest::Diagnostics) {
    let rendered = diagnostics.render(has_color(), DEFAULT_WIDTH_COLUMNS);
    print(&format!("{}\n", rendered.trim_end()));
}

/// Prints a line for people.
pub(crate) fn note(text: &str) {
    print(&format!("{text}\n"));
}

fn print_one(code: &str, message: &str, hint: Option<String>) {
    let (error, hint_word, end) =
        if has_color() { ("\x1b[1;31merror", "\x1b[1;36mhint", "\x1b[0m") } else { ("error", "hint", "") };
    let mut text = format!("{error}[{code}]{end}: {message}\n");
    if let Some(hint) = hint {
        text.push_str(&format!("  {hint_word}{end}: {hint}\n"));
    }
    print(&text);
}

fn has_color() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes to standard error. If that fails there is nobody left to tell.
fn print(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes data to standard output.
///
/// A reader that has gone away is no error of the command.
pub(crate) fn data(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
