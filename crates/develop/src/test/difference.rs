//! What differs between what was expected and what there is, for people.

use serde_json::Value as Json;

use super::check::{quoted, same, shown};

/// How many differences are listed; whoever mends those runs the tests again.
const MAX_DIFFERENCES_COUNT: usize = 10;

/// Lines of a text that are compared one by one. Longer texts are shown by their starts.
const MAX_LINES_COUNT: usize = 400;

/// Lines that are the same and shown around those that differ.
const CONTEXT_LINES_COUNT: usize = 2;

/// How a text differs from the expected one, as lines below a message.
pub(super) fn of_texts(expected: &str, found: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let is_short = old.len() < 2 && new.len() < 2;
    if is_short || old == new || old.len().max(new.len()) > MAX_LINES_COUNT {
        return format!("\n  expected: {}\n  found:    {}", quoted(expected), quoted(found));
    }
    let mut text = String::from("\n  `-` is expected, `+` was found");
    for line in lines(&old, &new) {
        text.push_str("\n  ");
        text.push_str(&line);
    }
    text
}

/// The lines of two texts, those that differ with `-` and `+`, and some around them.
fn lines(old: &[&str], new: &[&str]) -> Vec<String> {
    // How many lines are common to what follows two places.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for from_old in (0..old.len()).rev() {
        for from_new in (0..new.len()).rev() {
            common[from_old][from_new] = if old[from_old] == new[from_new] {
                common[from_old + 1][from_new + 1] + 1
            } else {
                common[from_old + 1][from_new].max(common[from_old][from_new + 1])
            };
        }
    }
    let mut all: Vec<(char, &str)> = Vec::new();
    let (mut at_old, mut at_new) = (0, 0);
    while at_old < old.len() || at_new < new.len() {
        if at_old < old.len() && at_new < new.len() && old[at_old] == new[at_new] {
            all.push((' ', old[at_old]));
            (at_old, at_new) = (at_old + 1, at_new + 1);
        } else if at_new >= new.len()
            || (at_old < old.len() && common[at_old + 1][at_new] >= common[at_old][at_new + 1])
        {
            all.push(('-', old[at_old]));
            at_old += 1;
        } else {
            all.push(('+', new[at_new]));
            at_new += 1;
        }
    }
    let is_near = |place: usize| {
        let start = place.saturating_sub(CONTEXT_LINES_COUNT);
        all.iter().take(place + CONTEXT_LINES_COUNT + 1).skip(start).any(|(sign, _)| *sign != ' ')
    };
    let mut shown_lines = Vec::new();
    let mut was_left_out = false;
    for (place, (sign, line)) in all.iter().enumerate() {
        if is_near(place) {
            shown_lines.push(format!("{sign} {}", shown(line)));
            was_left_out = false;
        } else if !was_left_out {
            shown_lines.push("…".into());
            was_left_out = true;
        }
    }
    shown_lines
}

/// How a value of JSON at a path differs from the expected one, as lines below a message.
pub(super) fn of_json(path: &str, expected: &Json, found: &Json) -> String {
    let is_nested = |value: &Json| value.is_object() || value.is_array();
    if !(is_nested(expected) && is_nested(found)) {
        return format!(
            "\n  expected: {}\n  found:    {}",
            shown(&expected.to_string()),
            shown(&found.to_string())
        );
    }
    let mut differences = Vec::new();
    collect(path, Some(expected), Some(found), &mut differences);
    let mut text: String = differences
        .iter()
        .take(MAX_DIFFERENCES_COUNT)
        .map(|difference| format!("\n  {difference}"))
        .collect();
    if differences.len() > MAX_DIFFERENCES_COUNT {
        text.push_str(&format!("\n  … and {} more", differences.len() - MAX_DIFFERENCES_COUNT));
    }
    text
}

fn collect(path: &str, expected: Option<&Json>, found: Option<&Json>, differences: &mut Vec<String>) {
    let inner = |name: &str| match path {
        "$" | "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match (expected, found) {
        (Some(expected), Some(found)) if same(expected, found) => {}
        (Some(Json::Object(expected)), Some(Json::Object(found))) => {
            for (name, expected) in expected {
                collect(&inner(name), Some(expected), found.get(name), differences);
            }
            for (name, found) in found.iter().filter(|(name, _)| !expected.contains_key(*name)) {
                collect(&inner(name), None, Some(found), differences);
            }
        }
        (Some(Json::Array(expected)), Some(Json::Array(found))) => {
            let path = if path == "$" { "" } else { path };
            for place in 0..expected.len().max(found.len()) {
                let path = format!("{path}[{place}]");
                collect(&path, expected.get(place), found.get(place), differences);
            }
        }
        (Some(expected), Some(found)) => differences.push(format!(
            "at `{path}`: expected {}, found {}",
            shown(&expected.to_string()),
            shown(&found.to_string())
        )),
        (Some(expected), None) => {
            differences
                .push(format!("at `{path}`: expected {}, found nothing", shown(&expected.to_string())));
        }
        (None, Some(found)) => {
            differences.push(format!("at `{path}`: expected nothing, found {}", shown(&found.to_string())));
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_that_differ_are_marked() {
        let expected = "one\ntwo\nthree\nfour\nfive\nsix\nseven\n";
        let found = "one\ntwo\nthree\nfour\n5\nsix\nseven\neight\n";
        insta::assert_snapshot!(of_texts(expected, found), @r"

          `-` is expected, `+` was found
          …
            three
            four
          - five
          + 5
            six
            seven
          + eight
        ");
        assert_eq!(of_texts("a", "b"), "\n  expected: \"a\"\n  found:    \"b\"");
        // What differs only in its end is not shown line by line.
        assert_eq!(of_texts("a\nb", "a\nb\n"), "\n  expected: \"a\\nb\"\n  found:    \"a\\nb\\n\"");
    }

    #[test]
    fn places_in_json_that_differ_are_named() {
        let expected = json!({ "id": 1, "items": [{ "name": "tea", "count": 2 }, 7], "old": true });
        let found = json!({ "id": 1.0, "items": [{ "name": "tee", "count": 2 }], "new": null });
        insta::assert_snapshot!(of_json("$", &expected, &found), @r#"

          at `items[0].name`: expected "tea", found "tee"
          at `items[1]`: expected 7, found nothing
          at `old`: expected true, found nothing
          at `new`: expected nothing, found null
        "#);
        insta::assert_snapshot!(of_json("a.b", &json!([1]), &json!([2])), @r"

          at `a.b[0]`: expected 1, found 2
        ");
        assert_eq!(of_json("$", &json!(1), &json!([1])), "\n  expected: 1\n  found:    [1]");
        let many: Vec<_> = (0..30).collect();
        assert!(of_json("$", &json!(many), &json!([])).ends_with("… and 20 more"));
    }
}
