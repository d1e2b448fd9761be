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
        Error::Several(errors) => {
            for error in errors {
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

/// Prints a warning that is no error.
pub(crate) fn warn(message: &str, hint: &str) {
    let (warning, hint_word, end) = if has_color() {
        ("\x1b[1;33mwarning", "\x1b[1;36mhint", "\x1b[0m")
    } else {
        ("warning", "hint", "")
    };
    print(&format!("{warning}{end}: {message}\n  {hint_word}{end}: {hint}\n"));
}

/// A line broken at spaces where it would be wider than what fits everywhere. What follows
/// is indented; a word that is wider by itself stays whole.
pub(crate) fn wrapped(line: &str, indent: usize) -> String {
    let start = line.len() - line.trim_start().len();
    let (mut text, mut width) = (line[..start].to_owned(), start);
    for (number, word) in line[start..].split(' ').enumerate() {
        let length = word.chars().count();
        if number > 0 && width + 1 + length > DEFAULT_WIDTH_COLUMNS {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            width = indent;
        } else if number > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += length;
    }
    text.push('\n');
    text
}

/// Clears the screen, if there is one.
pub(crate) fn clear_screen() {
    if io::stderr().is_terminal() {
        print("\x1b[2J\x1b[H");
    }
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

/// Whether what people read may have colours.
pub(crate) fn has_color() -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_at_spaces() {
        let text = wrapped(&format!("  {} end", "word ".repeat(20).trim_end()), 4);
        assert!(text.lines().all(|line| line.len() <= DEFAULT_WIDTH_COLUMNS), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("    word")), "{text}");
        assert_eq!(wrapped("  short", 4), "  short\n");
    }
}
