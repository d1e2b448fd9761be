//! Results for machines.

use serde_json::{Value, json};

use super::Results;

/// Results as JSON.
pub fn to_json(results: &Results) -> Value {
    let tests: Vec<_> = results
        .outcomes
        .iter()
        .map(|outcome| {
            let failures: Vec<_> = outcome
                .failures
                .iter()
                .map(|failure| {
                    json!({ "line": failure.line, "message": failure.message, "hint": failure.hint })
                })
                .collect();
            json!({
                "file": outcome.file,
                "line": outcome.line,
                "name": outcome.name,
                "passed": outcome.failures.is_empty(),
                "duration_ms": outcome.duration.as_secs_f64() * 1e3,
                "failures": failures,
                "notes": outcome.notes,
                "output": outcome.output,
                "test_output": outcome.test_output,
            })
        })
        .collect();
    let not_run: Vec<_> =
        results.not_run.iter().map(|(file, name)| json!({ "file": file, "name": name })).collect();
    json!({
        "passed_count": results.passed_count(),
        "failed_count": results.failed_count(),
        "tests": tests,
        "not_run": not_run,
        "recordings": results.recordings,
    })
}

/// Results as JUnit's XML, which most CI systems show.
pub fn to_junit(app: &str, results: &Results) -> String {
    let Results { outcomes, not_run, .. } = results;
    let failed_count = results.failed_count();
    let seconds: f64 = outcomes.iter().map(|outcome| outcome.duration.as_secs_f64()).sum();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed_count}\" skipped=\"{}\" time=\"{seconds:.3}\">\n",
        escaped(app),
        outcomes.len() + not_run.len(),
        not_run.len()
    );
    for outcome in outcomes {
        let file = escaped(&outcome.file.display().to_string());
        let (name, seconds) = (escaped(&outcome.name), outcome.duration.as_secs_f64());
        let start = format!("<testcase classname=\"{file}\" name=\"{name}\" time=\"{seconds:.3}\"");
        if outcome.failures.is_empty() {
            xml.push_str(&format!("{start}/>\n"));
            continue;
        }
        xml.push_str(&format!("{start}>\n"));
        for failure in &outcome.failures {
            let first_line = failure.message.lines().next().unwrap_or_default();
            xml.push_str(&format!(
                "<failure message=\"{}\">{file}:{}: {}</failure>\n",
                escaped(first_line),
                failure.line,
                escaped(&failure.message)
            ));
        }
        for (tag, text) in [("system-out", &outcome.test_output), ("system-err", &outcome.output)] {
            if !text.is_empty() {
                xml.push_str(&format!("<{tag}>{}</{tag}>\n", escaped(text)));
            }
        }
        xml.push_str("</testcase>\n");
    }
    for (file, name) in not_run {
        let (file, name) = (escaped(&file.display().to_string()), escaped(name));
        xml.push_str(&format!("<testcase classname=\"{file}\" name=\"{name}\"><skipped/></testcase>\n"));
    }
    xml.push_str("</testsuite>\n</testsuites>\n");
    xml
}

/// A text between tags or quotes. What XML cannot hold at all is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::test::{Failure, Outcome};

    #[test]
    fn junit_escapes_what_people_write() {
        let outcome = Outcome {
            file: "a.toml".into(),
            line: 3,
            name: "a < b".into(),
            duration: Duration::from_millis(1_500),
            failures: vec![Failure { line: 4, message: "\"x\" & \u{1b}[0m\nmore".into(), hint: None }],
            notes: Vec::new(),
            output: "trap".into(),
            test_output: String::new(),
            recorded: Vec::new(),
        };
        let not_run = vec![("b.toml".into(), "later".into())];
        let results = Results { outcomes: vec![outcome], not_run, recordings: Vec::new() };
        insta::assert_snapshot!(to_junit("shop", &results), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites>
        <testsuite name="shop" tests="2" failures="1" skipped="1" time="1.500">
        <testcase classname="a.toml" name="a &lt; b" time="1.500">
        <failure message="&quot;x&quot; &amp; �[0m">a.toml:4: &quot;x&quot; &amp; �[0m
        more</failure>
        <system-err>trap</system-err>
        </testcase>
        <testcase classname="b.toml" name="later"><skipped/></testcase>
        </testsuite>
        </testsuites>
        "#);
    }
}
