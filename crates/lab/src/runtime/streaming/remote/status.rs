//! How it ended, in the words of each protocol version.

use serde_json::json;

/// The end of an exec or attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command has ended with this exit code.
    Exited(i32),
    /// It could not be run, or not be waited for.
    Failed(String),
}

impl Outcome {
    /// A `metav1.Status` as protocol versions 4 and 5 have it on the error stream.
    pub(super) fn json(&self) -> Vec<u8> {
        let status = match self {
            Outcome::Exited(0) => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.message(),
                "reason": "InternalError",
                "details": {"causes": [{"message": self.cause()}]},
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }

    /// The bare message of the versions before; nothing when all went well.
    pub(super) fn message(&self) -> String {
        match self {
            Outcome::Exited(0) => String::new(),
            Outcome::Exited(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Outcome::Failed(_) => format!("Internal error occurred: {}", self.cause()),
        }
    }

    fn cause(&self) -> String {
        match self {
            Outcome::Exited(_) => String::new(),
            Outcome::Failed(why) => format!("error executing command in container: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_stands_among_the_causes() {
        let status: serde_json::Value = serde_json::from_slice(&Outcome::Exited(42).json()).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "42"})
        );
        let success: serde_json::Value = serde_json::from_slice(&Outcome::Exited(0).json()).unwrap();
        assert_eq!(success["status"], "Success");
    }

    #[test]
    fn a_command_that_could_not_run_is_an_internal_error() {
        let status: serde_json::Value = serde_json::from_slice(&Outcome::Failed("x".into()).json()).unwrap();
        assert_eq!(
            status["message"],
            "Internal error occurred: error executing command in container: x"
        );
    }
}
