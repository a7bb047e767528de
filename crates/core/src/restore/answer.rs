//! Describes what `nrt-backup plan --json` prints, as far as the server reads it.

use serde::{Deserialize, Serialize};

use crate::inventory::Failure;

/// One step of a plan, and one row of `nrt_restore_plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Counts from 1.
    pub step: i32,
    /// What is done.
    pub action: String,
    /// What somebody would type for it; empty where nothing is.
    #[serde(default)]
    pub command: String,
    /// What is to be known about it.
    #[serde(default)]
    pub detail: String,
}

/// The answer: the steps, or why there are none. Whatever else it holds is for others.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Answer {
    Refused { error: Failure },
    Planned { steps: Vec<Step> },
}

/// How a plan did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPlan {
    /// The target cannot be reached.
    Refused(Failure),
    /// The command failed, with its last words.
    Failed(String),
}

/// Reads how `nrt-backup plan --json` ended: its exit code, its standard output, and what else it
/// wrote.
///
/// # Errors
///
/// That it refused, or did not do what it is there for.
pub fn read(exit: Option<i32>, stdout: Option<&str>, rest: &str) -> Result<Vec<Step>, NoPlan> {
    let answer = stdout.map(serde_json::from_str::<Answer>);
    match (exit, answer) {
        (Some(0), Some(Ok(Answer::Planned { steps }))) => Ok(steps),
        (Some(1), Some(Ok(Answer::Refused { error }))) => Err(NoPlan::Refused(error)),
        (exit, _) => {
            let last = rest.lines().map(str::trim).rfind(|line| !line.is_empty());
            let how = match exit {
                Some(0) => Some("its answer is no plan".to_string()),
                // It says itself why.
                Some(_) if last.is_some() => None,
                Some(code) => Some(format!("it ended with exit code {code}")),
                None => Some("it was killed".to_string()),
            };
            let words: Vec<&str> = how.as_deref().into_iter().chain(last).collect();
            Err(NoPlan::Failed(words.join(": ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_the_rest_is_left_to_others() {
        let text = r#"{"source":"s3:b/main","steps":[
            {"step":1,"action":"fetch","command":"nrt-backup restore","detail":"3 GB","bytes":7},
            {"step":2,"action":"start"}]}"#;
        let steps = read(Some(0), Some(text), "a warning\n").expect("a plan");
        assert_eq!(
            (steps.len(), &*steps[0].command, &*steps[1].detail),
            (2, "nrt-backup restore", "")
        );
        assert_eq!(read(Some(0), Some(r#"{"steps":[]}"#), ""), Ok(vec![]));
    }

    #[test]
    fn a_refusal_is_one_and_anything_else_is_a_failure() {
        let refusal = r#"{"error":{"message":"in the future","hint":"Take an earlier one."}}"#;
        let refused = NoPlan::Refused(Failure {
            message: "in the future".to_string(),
            hint: "Take an earlier one.".to_string(),
        });
        assert_eq!(read(Some(1), Some(refusal), "words"), Err(refused));
        let failed = |words: &str| Err(NoPlan::Failed(words.to_string()));
        for (exit, stdout, rest, words) in [
            (Some(0), Some(refusal), "", "its answer is no plan"),
            (Some(1), Some(r#"{"steps":[]}"#), "", "it ended with exit code 1"),
            (Some(2), Some(refusal), "error: one\n\n  the last \n\n", "the last"),
            (Some(0), Some("{"), "", "its answer is no plan"),
            (Some(0), Some(""), "", "its answer is no plan"),
            (
                Some(0),
                None,
                "the answer has more than 5 bytes\n",
                "its answer is no plan: the answer has more than 5 bytes",
            ),
            (None, Some(r#"{"steps":[]}"#), "", "it was killed"),
            (None, Some(""), "fetching\n", "it was killed: fetching"),
        ] {
            assert_eq!(read(exit, stdout, rest), failed(words), "{exit:?} {stdout:?}");
        }
    }
}
