//! What a bench says: progress for people on standard error, tables and figures
//! on standard output.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::cpu;
use crate::error::Error;
use crate::plot::Plot;

/// What becomes of the result; every bench takes these options.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write the table into this file as well, and the plot beside it
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// One JSON object
    Json,
}

/// Where it was measured, and how busy that machine was before; in the figures of every
/// bench.
#[derive(Clone, Serialize)]
pub(crate) struct Conditions {
    machine: String,
    load_average_before: String,
}

/// The object that `--format json` prints.
#[derive(Serialize)]
struct Result<'bench, Figures> {
    /// The name of the bench.
    bench: &'bench str,
    /// What it measured.
    figures: &'bench Figures,
}

/// A table whose columns are as wide as they must be.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Conditions {
    /// Those of now: to be asked before the bench makes the machine busy.
    pub(crate) fn now() -> Self {
        Self { machine: cpu::machine(), load_average_before: cpu::load_average() }
    }
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

impl Output {
    /// Prints the result, and writes what is to be saved.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn finish<Figures: Serialize>(
        &self,
        bench: &str,
        figures: &Figures,
        text: &str,
        plot: Option<&Plot>,
    ) -> std::result::Result<(), Error> {
        if let Some(path) = &self.save {
            let shown = path.with_extension("svg");
            let name = shown.file_name().unwrap_or_default().to_string_lossy();
            let text = match plot {
                Some(plot) => format!("{text}\n![{}]({name})\n", plot.title),
                None => text.to_owned(),
            };
            std::fs::write(path, text).map_err(Error::writing(path))?;
            if let Some(plot) = plot {
                std::fs::write(&shown, plot.svg()).map_err(Error::writing(&shown))?;
            }
        }
        let mut output = match self.format {
            Format::Table => text.to_owned(),
            Format::Json => serde_json::to_string(&Result { bench, figures })
                .map_err(|cause| Error::Usage(format!("cannot write the figures as JSON: {cause}")))?,
        };
        if !output.ends_with('\n') {
            output.push('\n');
        }
        io::stdout().write_all(output.as_bytes()).map_err(Error::io("cannot write to standard output"))
    }
}

impl Target {
    /// Whether a figure is what it is to be.
    pub(crate) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

/// A table of figures by name, each with its target where it has one.
pub(crate) fn figures_table(figures: &BTreeMap<String, f64>, targets: &[(&str, Target)]) -> String {
    let mut table = Table::new(&["figure", "target", "measured", "met"]);
    for (name, &value) in figures {
        let target = targets.iter().find(|(of, _)| of == name).map(|(_, target)| *target);
        let bound = match target {
            Some(Target::AtMost(bound)) => format!("≤ {bound}"),
            Some(Target::AtLeast(bound)) => format!("≥ {bound}"),
            None => String::new(),
        };
        let is_met = target.map_or("", |target| if target.is_met_by(value) { "yes" } else { "no" });
        table.push(vec![format!("`{name}`"), bound, number(value), is_met.to_owned()]);
    }
    format!("## Figures\n\n{}", table.markdown())
}

/// The head of such a text: what was run, where, when, and how busy the machine was
/// before.
pub(crate) fn preamble(title: &str, conditions: &Conditions) -> String {
    let Conditions { machine, load_average_before } = conditions;
    format!(
        "# {title}\n\n- Command: `{}`\n- Machine: {machine}\n- Date: {}\n\
         - Load average before: {load_average_before}\n",
        command(std::env::args().skip(1)),
        httpdate::fmt_http_date(SystemTime::now())
    )
}

/// The command that was given, without what only says where things are.
fn command(mut arguments: impl Iterator<Item = String>) -> String {
    let mut text = "cargo xtask bench".to_owned();
    while let Some(argument) = arguments.next() {
        let (name, has_value) =
            argument.split_once('=').map_or((argument.as_str(), false), |(name, _)| (name, true));
        if matches!(name, "--wisp" | "--guests" | "--save" | "--format") {
            if !has_value {
                arguments.next();
            }
            continue;
        }
        text.push(' ');
        text.push_str(&argument);
    }
    text
}

/// Bytes as mebibytes.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// A number with as many digits as its size deserves.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
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
    fn the_command_says_what_was_measured_but_not_where() {
        let arguments = ["http", "--wisp", "/x/wisp", "--save=/x/y.md", "--seconds", "2"].map(str::to_owned);
        assert_eq!(command(arguments.into_iter()), "cargo xtask bench http --seconds 2");
    }

    #[test]
    fn figures_stand_beside_their_targets() {
        let figures = [("a".to_owned(), 3.0), ("b".to_owned(), 7.0), ("c".to_owned(), 1.0)].into();
        let text = figures_table(&figures, &[("a", Target::AtMost(3.0)), ("b", Target::AtLeast(8.0))]);
        let rows = text.lines().skip(4).collect::<Vec<_>>();
        assert_eq!(
            rows,
            [
                "| `a`    | ≤ 3    |     3.00 | yes |",
                "| `b`    | ≥ 8    |     7.00 |  no |",
                "| `c`    |        |     1.00 |     |"
            ]
        );
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(number(7.426), "7.43");
        assert_eq!(number(23.94), "23.9");
        assert_eq!(number(0.00123), "0.00123");
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
