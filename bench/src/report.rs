//! What a bench says: progress for people on standard error, tables and figures
//! on standard output.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use crate::cpu;
use crate::error::Error;

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// One JSON object
    Json,
}

/// The object that `--format json` prints.
#[derive(Serialize)]
pub(crate) struct Result<'bench, Figures> {
    /// The name of the bench.
    pub(crate) bench: &'bench str,
    /// What it measured.
    pub(crate) figures: Figures,
}

/// A table whose columns are as wide as they must be.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these titles.
    pub(crate) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|&title| title.to_owned()).collect()] }
    }

    /// Adds a row with as many cells as there are titles.
    pub(crate) fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table in Markdown; the first two columns are names and stand left.
    pub(crate) fn markdown(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = (0..columns).map(width).collect::<Vec<_>>();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            text.push('|');
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                let cell =
                    if column < 2 { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") };
                text.push_str(&cell);
            }
            text.push('\n');
            if index == 0 {
                text.push('|');
                for (column, &width) in widths.iter().enumerate() {
                    let line = "-".repeat(width);
                    text.push_str(&if column < 2 { format!(" {line} |") } else { format!(" {line}:|") });
                }
                text.push('\n');
            }
        }
        text
    }
}

/// Says what is going on.
pub(crate) fn progress(text: &str) {
    // Nobody is there to be told that standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints the result: figures as JSON, or the text that was made for people.
pub(crate) fn print<Figures: Serialize>(
    format: Format,
    result: &Result<'_, Figures>,
    text: &str,
) -> std::result::Result<(), Error> {
    let mut output = match format {
        Format::Table => text.to_owned(),
        Format::Json => serde_json::to_string(result)
            .map_err(|cause| Error::Usage(format!("cannot write the figures as JSON: {cause}")))?,
    };
    if !output.ends_with('\n') {
        output.push('\n');
    }
    io::stdout().write_all(output.as_bytes()).map_err(Error::io("cannot write to standard output"))
}

/// Writes the text made for people into a file of the repository.
pub(crate) fn save(path: &Path, text: &str) -> std::result::Result<(), Error> {
    std::fs::write(path, text).map_err(Error::writing(path))
}

/// The head of such a text: what was run, where and when.
pub(crate) fn preamble(title: &str, command: &str) -> String {
    format!(
        "# {title}\n\n- Command: `{command}`\n- Machine: {}\n- Date: {}\n",
        cpu::machine(),
        httpdate::fmt_http_date(SystemTime::now())
    )
}

/// A number with as many digits as its size deserves.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A share of two measurements, kept to the digits that mean something.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The middle of some values; of an even number of them, the mean of the two.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get(values.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(number(7.426), "7.43");
        assert_eq!(number(23.94), "23.9");
        assert_eq!(number(118_203.4), "118203");
    }

    #[test]
    fn a_table_lines_up() {
        let mut table = Table::new(&["guest", "server", "rps"]);
        table.push(vec!["Rust".to_owned(), "hyper".to_owned(), "118203".to_owned()]);
        let expected =
            "| guest | server |    rps |\n| ----- | ------ | ------:|\n| Rust  | hyper  | 118203 |\n";
        assert_eq!(table.markdown(), expected);
    }
}
