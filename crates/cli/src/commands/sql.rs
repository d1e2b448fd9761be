//! `wisp sql`: a statement in a database.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use wisp_control::SqlAnswer;

use crate::{
    client::{Client, FormatFlag, ServerFlags, block_on, show},
    error::Error,
    output,
};

/// Run an SQL statement in a database.
///
/// A database is named like its app and label: `shop.default`. `wisp resources list` names
/// all.
#[derive(Args)]
pub(crate) struct Sql {
    /// The database.
    database: String,

    /// The statement.
    statement: String,

    /// Values of its parameters: numbers, `null`, `true`, `false`, or texts.
    parameters: Vec<String>,

    /// Let it change something.
    #[arg(long)]
    write: bool,

    /// How many rows may come back.
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    max_rows: usize,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

impl Sql {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        let parameters: Vec<Value> = self.parameters.iter().map(|text| parameter(text)).collect();
        let body = json!({
            "statement": self.statement,
            "parameters": parameters,
            "may_write": self.write,
            "max_rows": self.max_rows,
        });
        let answer: SqlAnswer = block_on(async {
            let url = client.at_team(&["sqlite", &self.database, "query"]).await?;
            client.call(Method::POST, url, Some(&body)).await
        })?;
        show(self.format.format, &answer, rows);
        if self.write {
            output::note(&format!("{} rows changed", answer.changed_rows));
        }
        if answer.is_truncated {
            output::note("there are more rows; `--max-rows` shows them");
        }
        Ok(())
    }
}

/// A word of the command line as a value: what reads as JSON and is no text, array or object
/// is that; everything else is a text.
fn parameter(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// Rows with tabs between their cells, below the columns' names.
fn rows(answer: &SqlAnswer) -> String {
    if answer.columns.is_empty() {
        return String::new();
    }
    let cell = |value: &Value| match value {
        Value::String(text) => text.replace(['\t', '\n'], " "),
        other => other.to_string(),
    };
    let line = |cells: Vec<String>| format!("{}\n", cells.join("\t"));
    let head = line(answer.columns.clone());
    answer.rows.iter().fold(head, |text, row| text + &line(row.iter().map(cell).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_values() {
        assert_eq!(parameter("7"), json!(7));
        assert_eq!(parameter("null"), Value::Null);
        assert_eq!(parameter("[1]"), json!("[1]"));
        assert_eq!(parameter("shop"), json!("shop"));
    }
}
