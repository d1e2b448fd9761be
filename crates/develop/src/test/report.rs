//! Results for machines.

use serde_json::{Value, json};

use super::Outcome;

/// Results as JSON.
pub fn to_json(outcomes: &[Outcome]) -> Value {
    let tests: Vec<_> = outcomes
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
                "note": outcome.note,
                "output": outcome.output,
            })
        })
        .collect();
    let failed_count = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    json!({ "passed_count": outcomes.len() - failed_count, "failed_count": failed_count, "tests": tests })
}

/// Results as JUnit's XML, which most CI systems show.
pub fn to_junit(app: &str, outcomes: &[Outcome]) -> String {
    let failed_count = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    let seconds: f64 = outcomes.iter().map(|outcome| outcome.duration.as_secs_f64()).sum();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed_count}\" time=\"{seconds:.3}\">\n",
        escaped(app),
        outcomes.len()
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
        if !outcome.output.is_empty() {
            xml.push_str(&format!("<system-err>{}</system-err>\n", escaped(&outcome.output)));
        }
        xml.push_str("</testcase>\n");
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
    use crate::test::Failure;

    #[test]
    fn junit_escapes_what_people_write() {
        let outcome = Outcome {
            file: "a.toml".into(),
            line: 3,
            name: "a < b".into(),
            duration: Duration::from_millis(1_500),
            failures: vec![Failure { line: 4, message: "\"x\" & \u{1b}[0m\nmore".into(), hint: None }],
            note: None,
            output: "trap".into(),
        };
        insta::assert_snapshot!(to_junit("shop", &[outcome]), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites>
        <testsuite name="shop" tests="1" failures="1" time="1.500">
        <testcase classname="a.toml" name="a &lt; b" time="1.500">
        <failure message="&quot;x&quot; &amp; �[0m">a.toml:4: &quot;x&quot; &amp; �[0m
        more</failure>
        <system-err>trap</system-err>
        </testcase>
        </testsuite>
        </testsuites>
        "#);
    }
}
