//! How results and errors look.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::error::ErrorKind;

use crate::error::Error;

/// The exit code of a command that was used wrongly.
const USED_WRONGLY: u8 = 2;

/// Width where the terminal does not say, or there is none.
const DEFAULT_WIDTH_COLUMNS: usize = 80;

/// Longer lines are hard to read, however wide the terminal is.
const MAX_WIDTH_COLUMNS: usize = 100;

/// A command between backticks stays on one line unless it is longer: people copy it.
const MAX_UNBROKEN_COLUMNS: usize = 60;

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
        Error::Packages(errors) => {
            for error in errors {
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

/// Prints what is wrong with the arguments, or the help that was asked for.
pub(crate) fn print_usage(error: &clap::Error) -> ExitCode {
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help || !error.use_stderr() {
        // Clap has broken its lines.
        error.exit();
    }
    let said = error.render();
    let said = if has_color() { said.ansi().to_string() } else { said.to_string() };
    print(&said.lines().map(|line| wrapped(line, 2)).collect::<String>());
    ExitCode::from(USED_WRONGLY)
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
    let warning = painted("warning", "1;33");
    print(&said(&format!("{warning}: {message}"), Some(hint), width()));
}

/// A line broken at spaces where it would be wider than what fits everywhere. What follows
/// is indented; a word that is wider by itself stays whole.
pub(crate) fn wrapped(line: &str, indent: usize) -> String {
    wrapped_at(line, indent, width())
}

fn wrapped_at(line: &str, indent: usize, columns: usize) -> String {
    let start = line.len() - line.trim_start().len();
    let (mut text, mut width) = (line[..start].to_owned(), start);
    for (number, word) in words(&line[start..]).into_iter().enumerate() {
        let length = console::measure_text_width(&word);
        if number > 0 && width + 1 + length > columns {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            width = indent;
        } else if number > 0 {
            text.push(' ');
            width += 1;
        }
        text.push_str(&word);
        width += length;
    }
    text.push('\n');
    text
}

/// What lies between spaces; what lies between backticks is one word if it is short.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut joined: Vec<&str> = Vec::new();
    for part in text.split(' ') {
        joined.push(part);
        let quotes_count: usize = joined.iter().map(|part| part.matches('`').count()).sum();
        if quotes_count.is_multiple_of(2) {
            words.push(joined.join(" "));
            joined.clear();
        } else if joined.iter().map(|part| part.len() + 1).sum::<usize>() > MAX_UNBROKEN_COLUMNS {
            words.extend(joined.drain(..).map(str::to_owned));
        }
    }
    words.extend(joined.into_iter().map(str::to_owned));
    words
}

/// How wide lines for people may be: `COLUMNS`, else the terminal's width.
pub(crate) fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse::<usize>().ok());
    let shown = || Some(usize::from(console::Term::stderr().size_checked()?.1).min(MAX_WIDTH_COLUMNS));
    said.or_else(shown).filter(|columns| *columns > 0).unwrap_or(DEFAULT_WIDTH_COLUMNS)
}

/// A size in bytes, with one digit after the point.
pub(crate) fn bytes(count: u64) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let of = |unit: u64| count as f64 / unit as f64;
    match count {
        0..KIB => format!("{count} B"),
        KIB..MIB => format!("{:.1} KiB", of(KIB)),
        _ => format!("{:.1} MiB", of(MIB)),
    }
}

/// Clears the screen, if there is one.
pub(crate) fn clear_screen() {
    if io::stderr().is_terminal() {
        print("\x1b[2J\x1b[H");
    }
}

fn print_one(code: &str, message: &str, hint: Option<String>) {
    let error = painted("error", "1;31");
    let (head, rest) = (format!("{error}[{code}]: {message}"), hint);
    print(&said(&head, rest.as_deref(), width()));
}

/// A message of one or several lines, and what to do about it.
fn said(message: &str, hint: Option<&str>, columns: usize) -> String {
    let mut text: String = message.lines().map(|line| wrapped_at(line, 2, columns)).collect();
    let hint_word = painted("hint", "1;36");
    for (number, line) in hint.into_iter().flat_map(str::lines).enumerate() {
        let start = if number == 0 { format!("  {hint_word}: ") } else { "        ".to_owned() };
        text.push_str(&wrapped_at(&format!("{start}{line}"), 8, columns));
    }
    text
}

/// A word in a colour, where there are any.
fn painted(word: &str, color: &str) -> String {
    if has_color() { format!("\x1b[{color}m{word}\x1b[0m") } else { word.to_owned() }
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
        let text = wrapped_at(&format!("  {} end", "word ".repeat(20).trim_end()), 4, 80);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("    word")), "{text}");
        assert_eq!(wrapped_at("  short", 4, 80), "  short\n");
    }

    #[test]
    fn commands_stay_whole_and_colours_have_no_width() {
        let text = wrapped_at("do this: `wisp up --listen 127.0.0.1:3000`, then that", 2, 30);
        assert_eq!(text, "do this:\n  `wisp up --listen 127.0.0.1:3000`,\n  then that\n");
        let long = format!("`{}`", "word ".repeat(20).trim_end());
        assert!(wrapped_at(&long, 0, 80).lines().count() > 1, "nobody copies that");
        assert_eq!(wrapped_at("\x1b[1;31merror\x1b[0m: it is", 2, 12), "\x1b[1;31merror\x1b[0m: it is\n");
    }

    #[test]
    fn a_message_and_its_hint_keep_their_lines() {
        let text = said("first\nsecond", Some("do\nor do not"), 80);
        assert_eq!(text, "first\nsecond\n  hint: do\n        or do not\n");
    }
}
