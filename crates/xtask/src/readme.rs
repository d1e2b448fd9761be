//! The commands in a README, with the answers it promises.
//!
//! A fenced block marked `console` holds commands behind `$ ` and, below each,
//! exactly what it prints. Only `curl` commands are read: they can be run
//! against a server at another address than the README's.

/// Where every README assumes that the app is served: the default of `wisp up`.
const ADDRESS: &str = "localhost:3000";

/// A command and what it must print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub command: String,
    pub answer: String,
}

/// Reads the `curl` commands of a README, in order.
pub(crate) fn promises(text: &str) -> Vec<Promise> {
    let mut promises: Vec<Promise> = Vec::new();
    let mut is_inside = false;
    let mut is_answer = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_inside = line == "```console";
            is_answer = false;
        } else if !is_inside {
            continue;
        } else if let Some(command) = line.strip_prefix("$ ") {
            is_answer = command.starts_with("curl ");
            if is_answer {
                promises.push(Promise { command: command.to_owned(), answer: String::new() });
            }
        } else if let (true, Some(promise)) = (is_answer, promises.last_mut()) {
            promise.answer.push_str(line);
            promise.answer.push('\n');
        }
    }
    promises
}

impl Promise {
    /// The command against a server at `address`, without curl's progress.
    pub(crate) fn command_for(&self, address: &str) -> String {
        self.command.replace(ADDRESS, address).replacen("curl ", "curl --silent --show-error ", 1)
    }

    /// Whether `printed` is what the README says, line by line. Header lines
    /// that curl shows end in a carriage return, which a README cannot show.
    pub(crate) fn is_kept_by(&self, printed: &str) -> bool {
        let lines =
            |text: &str| text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        lines(printed) == lines(&self.answer)
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    const README: &str = "# An app\n\n```console\n$ wisp up\nServing http://127.0.0.1:3000\n```\n\n\
        Then:\n\n```console\n$ curl localhost:3000/a\none\ntwo\n$ curl -d x localhost:3000/b\nthree\n```\n\n\
        ```toml\n$ curl localhost:3000/not-a-command\n```\n";

    #[test]
    fn commands_and_answers_are_paired() {
        let promises = promises(README);
        let pairs: Vec<_> =
            promises.iter().map(|promise| (promise.command.as_str(), promise.answer.as_str())).collect();
        assert_eq!(
            pairs,
            [("curl localhost:3000/a", "one\ntwo\n"), ("curl -d x localhost:3000/b", "three\n")]
        );
    }

    #[test]
    fn another_answer_breaks_a_promise() {
        let promise = Promise { command: "curl localhost:3000/a".to_owned(), answer: "one\n".to_owned() };
        assert!(promise.is_kept_by("one"));
        assert!(promise.is_kept_by("one\r\n"));
        assert!(!promise.is_kept_by("one\ntwo\n"));
        assert_eq!(promise.command_for("127.0.0.1:3004"), "curl --silent --show-error 127.0.0.1:3004/a");
    }
}
