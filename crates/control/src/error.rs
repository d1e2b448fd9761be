//! What goes wrong in the control plane.

use std::{path::PathBuf, time::Duration};

use crate::{
    names::InvalidName,
    platform::{PlatformError, PlatformErrorKind},
};

/// What goes wrong in the control plane. Each has a stable code, a status of HTTP, and says
/// the same to everybody who may not know more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No credential, or none that holds.
    #[error("this needs a token that is valid")]
    Unauthenticated,
    /// It does not exist, or not for the one who asks: there is no telling.
    #[error("there is no such {noun}, or it is not yours to see")]
    NotFound {
        /// What was looked for.
        noun: &'static str,
    },
    /// The caller belongs here, but may not do this.
    #[error("this needs the scope `{scope}`")]
    Forbidden {
        /// The scope that is missing.
        scope: &'static str,
        /// Whether it is the role that lacks it, not the token.
        is_role: bool,
    },
    /// A name does not follow its grammar.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// What was sent is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The name is taken.
    #[error("there is a {noun} of this name already")]
    Exists {
        /// What there is.
        noun: &'static str,
    },
    /// It is in use, or what it needs is not there.
    #[error("{message}")]
    Conflict {
        /// What stands in the way.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A quota of the policy, or a limit of the control plane, is reached.
    #[error("{what} reached: at most {limit}")]
    Quota {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// The operator's policy refuses what the manifest asks for.
    #[error("{}", .0.join("; "))]
    Refused(Vec<String>),
    /// The release does what somebody has to agree to.
    #[error("{}", approval_text(.0))]
    ApprovalNeeded(Vec<String>),
    /// The idempotency key came with another request before.
    #[error("this `Idempotency-Key` was used for another request")]
    KeyReused,
    /// The first request with this idempotency key is not answered yet.
    #[error("the first request with this `Idempotency-Key` is still running")]
    KeyBusy,
    /// The body is larger than anything that may come here.
    #[error("the body has more than {limit_bytes} bytes")]
    TooLarge {
        /// How much there may be.
        limit_bytes: usize,
    },
    /// Somebody tries too often.
    #[error("too many attempts")]
    TooManyAttempts {
        /// When to try again.
        retry_after: Duration,
    },
    /// The sign-in was not confirmed yet.
    #[error("the sign-in waits for its confirmation")]
    SignInPending,
    /// The sign-in, link or code is over: used, refused, or too old.
    #[error("this code is not valid, or not any more")]
    CodeInvalid,
    /// The state's file is there but cannot be used.
    #[error("the state `{path}` cannot be opened: {message}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The state was written by a later version of Wisp.
    #[error("the state has version {found}, this Wisp knows versions up to {known}")]
    Newer {
        /// The version of the file.
        found: i64,
        /// The last version that is known.
        known: i64,
    },
    /// The state does not work.
    #[error("the state does not answer: {0}")]
    State(String),
    /// The key that secrets are wrapped with cannot be had.
    #[error("the envelope key cannot be had: {0}")]
    EnvelopeKey(String),
    /// A secret cannot be opened: another key wrapped it, or it was altered.
    #[error("a secret cannot be opened with this envelope key")]
    Sealed,
    /// The machine gives no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
    /// The operator's policy file is wrong.
    #[error("{}", .0.join("\n"))]
    Policy(Vec<String>),
    /// The machine could not.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The address is there, but not for this method.
    #[error("this address does not answer to this method")]
    Method,
    /// The process is stopping.
    #[error("the control plane is stopping")]
    Stopping,
}

/// What callers of this crate get.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn approval_text(reasons: &[String]) -> String {
    format!("this needs approval: {}", reasons.join("; "))
}

impl Error {
    /// The stable code.
    pub fn code(&self) -> &str {
        match self {
            Self::Unauthenticated => "WISP-E0901",
            Self::NotFound { .. } => "WISP-E0902",
            Self::Forbidden { .. } => "WISP-E0903",
            Self::Name(_) | Self::Invalid(_) => "WISP-E0904",
            Self::Exists { .. } => "WISP-E0905",
            Self::Conflict { .. } => "WISP-E0906",
            Self::Quota { .. } => "WISP-E0907",
            Self::Refused(_) => "WISP-E0908",
            Self::ApprovalNeeded(_) => "WISP-E0909",
            Self::KeyReused | Self::KeyBusy => "WISP-E0910",
            Self::TooLarge { .. } => "WISP-E0911",
            Self::TooManyAttempts { .. } => "WISP-E0912",
            Self::SignInPending => "WISP-E0913",
            Self::CodeInvalid => "WISP-E0914",
            Self::Open { .. } => "WISP-E0915",
            Self::Newer { .. } => "WISP-E0916",
            Self::State(_) => "WISP-E0917",
            Self::EnvelopeKey(_) => "WISP-E0918",
            Self::Sealed => "WISP-E0919",
            Self::Random => "WISP-E0920",
            Self::Policy(_) => "WISP-E0921",
            Self::Stopping => "WISP-E0922",
            Self::Method => "WISP-E0923",
            Self::Platform(error) => &error.code,
        }
    }

    /// All codes that this crate gives, for the page that explains them.
    pub const CODES_COUNT: u32 = 23;

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Unauthenticated => {
                "sign in with `wisp login`, or send `Authorization: Bearer wisp_…` with a token that has not expired"
            }
            Self::NotFound { .. } => "check the spelling, and with `wisp whoami` who you are",
            Self::Forbidden { scope, is_role: true } => {
                return Some(format!("ask an owner of the team for a role that has `{scope}`"));
            }
            Self::Forbidden { scope, is_role: false } => {
                return Some(format!("use a token that was made with `--scope {scope}`"));
            }
            Self::Exists { .. } => "choose another name, or use the one that is there",
            Self::Quota { .. } => {
                "remove what is not needed, or ask the operator to raise it in the policy file"
            }
            Self::Refused(_) => {
                "take it out of the manifest, or ask the operator to allow it in the policy file"
            }
            Self::ApprovalNeeded(_) => "approve what is named: `wisp deploy` asks, `--approve` answers",
            Self::KeyReused => "use a new key for each request; the same only to send it again",
            Self::KeyBusy => "send it again in a moment",
            Self::TooLarge { .. } => "send less at once",
            Self::TooManyAttempts { .. } => "wait as long as `Retry-After` says",
            Self::SignInPending => "open the page that was shown and type the code",
            Self::CodeInvalid => "ask for a new one; each holds for a short time and works once",
            Self::Open { .. } => {
                "check the path and its permissions, and that no other server uses the folder"
            }
            Self::Newer { .. } => "run the Wisp that wrote it, or a later one",
            Self::State(_) => "look into the server's log; check the disk's free space",
            Self::EnvelopeKey(_) => "give 32 bytes as 64 hexadecimal digits, readable by nobody else",
            Self::Sealed => "start the server with the key that it was started with before",
            Self::Stopping => "send it again in a moment",
            Self::Conflict { hint, .. } => return hint.clone(),
            Self::Platform(error) => return error.hint.clone(),
            Self::Name(_) | Self::Invalid(_) | Self::Random | Self::Policy(_) | Self::Method => return None,
        };
        Some(text.to_owned())
    }

    /// The status of an answer that says this.
    pub fn status(&self) -> http::StatusCode {
        use http::StatusCode as S;
        match self {
            Self::Unauthenticated => S::UNAUTHORIZED,
            Self::NotFound { .. } => S::NOT_FOUND,
            Self::Forbidden { .. } => S::FORBIDDEN,
            Self::Name(_) | Self::Invalid(_) | Self::CodeInvalid => S::BAD_REQUEST,
            Self::Exists { .. } | Self::Conflict { .. } | Self::Quota { .. } | Self::KeyBusy => S::CONFLICT,
            Self::Refused(_) | Self::ApprovalNeeded(_) | Self::KeyReused => S::UNPROCESSABLE_ENTITY,
            Self::TooLarge { .. } => S::PAYLOAD_TOO_LARGE,
            Self::TooManyAttempts { .. } => S::TOO_MANY_REQUESTS,
            Self::SignInPending => S::PRECONDITION_REQUIRED,
            Self::Stopping => S::SERVICE_UNAVAILABLE,
            Self::Method => S::METHOD_NOT_ALLOWED,
            Self::Open { .. }
            | Self::Newer { .. }
            | Self::State(_)
            | Self::EnvelopeKey(_)
            | Self::Sealed
            | Self::Random
            | Self::Policy(_) => S::INTERNAL_SERVER_ERROR,
            Self::Platform(error) => match error.kind {
                PlatformErrorKind::NotFound => S::NOT_FOUND,
                PlatformErrorKind::Refused => S::UNPROCESSABLE_ENTITY,
                PlatformErrorKind::Quota => S::CONFLICT,
                PlatformErrorKind::Failed => S::BAD_GATEWAY,
            },
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::State(error.to_string())
    }
}
