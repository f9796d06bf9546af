//! How a command ends: exit codes for scripts, and failures with a hint for people.
//!
//! **What.** [`Exit`] is the documented table of exit codes; [`Failure`] is an error that knows its code.
//! **Why one type.** Every command returns `anyhow::Error`; what a script must tell apart is a `Failure` inside it.
//! **Invariants.** The numbers are interface: they never change their meaning.

use std::fmt;
use std::process::ExitCode;

use hearth_protocol::api::error::ErrorBody;

/// What the process returns to its caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason that has no code of its own.
    Failed = 1,
    /// The command line or a value in it is wrong; nothing was done.
    Usage = 2,
    /// An image, location or job that was named does not exist (or may not be seen).
    NotFound = 3,
    /// The controller refused: in use, protected, no space, already there, changed meanwhile.
    Refused = 4,
    /// The token is missing, ended, or may not do this.
    Denied = 5,
    /// No controller answered there, or not the one that is trusted.
    Unreachable = 6,
    /// The command waited, and what it waited for ended incomplete: some locations failed.
    Incomplete = 7,
    /// Stopped with Ctrl-C, as a shell numbers it: 128 and the signal.
    Interrupted = 130,
}

/// The table as `hearth --help` shows it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage, nothing was done
  3  not found
  4  refused by the controller (in use, protected, no space, conflict)
  5  denied: token missing, ended or not allowed to do this
  6  controller unreachable or not the trusted one
  7  waited, but some locations failed
  130  stopped with Ctrl-C";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with an exit code and, where one is known, the next step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    /// Code of the process.
    pub(crate) exit: Exit,
    /// What went wrong and where.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// The answer's word for programs.
    pub(crate) code: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, code: None }
    }

    /// Adds what to do next.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What an answer with status 4xx or 5xx means.
    pub(crate) fn from_answer(status: u16, body: Option<ErrorBody>) -> Self {
        let exit = match status {
            400 | 422 => Exit::Usage,
            401 | 403 => Exit::Denied,
            404 => Exit::NotFound,
            405..500 | 507 => Exit::Refused,
            502..505 => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let Some(body) = body else {
            return Self::new(exit, format!("the controller answered with status {status} and no reason"))
                .hint("is this address a Hearth controller? See `hearth doctor`");
        };
        let field = body.field.as_deref().map(field_text).unwrap_or_default();
        let mut failure = Self::new(exit, format!("{}{field}", body.message));
        failure.hint = body.hint;
        failure.code = Some(body.code);
        if failure.hint.is_none() && exit == Exit::Failed {
            failure.hint = Some(format!("the controller's log says more about request {}", body.request_id));
        }
        failure
    }
}

/// Options of the command line whose values the API calls by another name.
const FLAGS: &[(&str, &str)] = &[
    ("expected.sha256", "--sha256"),
    ("expected.sha512", "--sha512"),
    ("expected.md5", "--md5"),
    ("expected.blake3", "--blake3"),
    ("ttl_s", "--ttl"),
    ("min_disk_bytes", "--min-disk"),
    ("min_memory_bytes", "--min-memory"),
    ("disk_bytes", "--disk-size"),
    ("rate_bytes_per_s", "--rate"),
    ("os_type", "--os-type"),
    ("os_language", "--os-language"),
    ("app_platform", "--app-platform"),
    ("disk_driver", "--disk-driver"),
    ("network_driver", "--network-driver"),
];

/// Which part of what was written is meant: the option, where there is one, else the API's word.
fn field_text(field: &str) -> String {
    match FLAGS.iter().find(|(name, _)| *name == field) {
        Some((_, flag)) => format!(" ({flag})"),
        None => format!(" (field {field})"),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Exit code of any error that reached `main`, and the text for stderr.
///
/// A reader that closed the pipe (`hearth image list | head`) is no failure.
#[must_use]
pub(crate) fn report(error: &anyhow::Error) -> (Exit, String) {
    let pipe_closed = error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    });
    if pipe_closed {
        return (Exit::Ok, String::new());
    }
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let exit = failure.map_or(Exit::Failed, |failure| failure.exit);
    let hint = failure.and_then(|failure| failure.hint.as_ref());
    // Who pressed Ctrl-C knows that it is no error.
    let label = if exit == Exit::Interrupted { "" } else { "error: " };
    let mut text = format!("{label}{error:#}\n");
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    (exit, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(hint: Option<&str>, field: Option<&str>) -> ErrorBody {
        ErrorBody {
            code: "no_space".into(),
            message: "host cn-1 has no room for image noble".into(),
            hint: hint.map(Into::into),
            field: field.map(Into::into),
            request_id: "r-1".into(),
        }
    }

    #[test]
    fn each_status_has_its_code() {
        let cases = [
            (400, Exit::Usage),
            (401, Exit::Denied),
            (403, Exit::Denied),
            (404, Exit::NotFound),
            (409, Exit::Refused),
            (412, Exit::Refused),
            (413, Exit::Refused),
            (500, Exit::Failed),
            (503, Exit::Unreachable),
            (507, Exit::Refused),
        ];
        for (status, exit) in cases {
            assert_eq!(Failure::from_answer(status, Some(body(None, None))).exit, exit, "{status}");
        }
    }

    #[test]
    fn a_failure_shows_message_and_hint() {
        let failure = Failure::from_answer(507, Some(body(Some("free 3 GiB"), Some("to"))));
        let (exit, text) = report(&anyhow::Error::new(failure).context("prewarm"));
        assert_eq!(exit, Exit::Refused);
        let expected = "error: prewarm: host cn-1 has no room for image noble (field to)\nhint: free 3 GiB\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_person_reads_options_and_no_fields() {
        let said = |field| Failure::from_answer(400, Some(body(None, Some(field)))).message;
        assert!(said("expected.sha256").ends_with("noble (--sha256)"), "{}", said("expected.sha256"));
        assert!(said("images[1]").ends_with("(field images[1])"), "{}", said("images[1]"));
        let wrong_password = body(Some("the domain is `default`"), None);
        assert_eq!(
            Failure::from_answer(401, Some(wrong_password)).hint.as_deref(),
            Some("the domain is `default`")
        );
    }

    #[test]
    fn who_presses_ctrl_c_reads_no_error() {
        let stopped = Failure::new(Exit::Interrupted, "stopped at 76 MiB");
        assert_eq!(report(&stopped.into()), (Exit::Interrupted, "stopped at 76 MiB\n".to_owned()));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(report(&anyhow::Error::new(pipe)), (Exit::Ok, String::new()));
        assert_eq!(report(&anyhow::anyhow!("odd")), (Exit::Failed, "error: odd\n".to_owned()));
    }
}
