//! What went wrong, for a program to act on and for an operator to read.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::id::SandboxKey;

/// What a caller can do about an [`Error`]. Each kind is one gRPC code, with its name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ErrorKind {
    /// The call was withdrawn: by its caller, or by a Shutdown that outranks it.
    Cancelled = 1,
    /// The request itself is wrong; sending it again changes nothing.
    InvalidArgument = 3,
    /// The deadline passed first. What was begun may still complete.
    DeadlineExceeded = 4,
    /// No sandbox has this name, or none was ever defined.
    NotFound = 5,
    /// The name is taken by another spec.
    AlreadyExists = 6,
    /// This process lacks a right.
    PermissionDenied = 7,
    /// A bound is reached: a full mailbox, too many starts. Try again later.
    ResourceExhausted = 8,
    /// The sandbox, or this machine, is not in a state that permits it.
    FailedPrecondition = 9,
    /// Another command, such as a Shutdown, ended this one.
    Aborted = 10,
    /// The backend or this machine cannot do it at all.
    Unimplemented = 12,
    /// A fault of ours.
    Internal = 13,
    /// The sandbox does not answer now. It may later.
    Unavailable = 14,
}

impl ErrorKind {
    /// The kind of a gRPC status code; nothing for those that no error of ours has.
    pub fn from_grpc_code(code: i32) -> Option<Self> {
        use ErrorKind::*;
        let all = [
            Cancelled,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            Unimplemented,
            Internal,
            Unavailable,
        ];
        all.into_iter().find(|kind| kind.grpc_code() == code)
    }

    /// The gRPC status code of the same name.
    pub fn grpc_code(self) -> i32 {
        self as i32
    }

    /// Its name, as in gRPC: `NotFound`.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Cancelled => "Cancelled",
            ErrorKind::InvalidArgument => "InvalidArgument",
            ErrorKind::DeadlineExceeded => "DeadlineExceeded",
            ErrorKind::NotFound => "NotFound",
            ErrorKind::AlreadyExists => "AlreadyExists",
            ErrorKind::PermissionDenied => "PermissionDenied",
            ErrorKind::ResourceExhausted => "ResourceExhausted",
            ErrorKind::FailedPrecondition => "FailedPrecondition",
            ErrorKind::Aborted => "Aborted",
            ErrorKind::Unimplemented => "Unimplemented",
            ErrorKind::Internal => "Internal",
            ErrorKind::Unavailable => "Unavailable",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A failed call: its [kind](Self::kind), what was tried, on which sandbox, what was found, and what to do.
///
/// It prints as one line: `cannot pause sandbox "default/web-7": it is stopping; wait for it to stop, or shut it
/// down`. The chain of causes is in [`source`](StdError::source). Cloning is cheap: all callers who joined one
/// operation get the same error.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    /// A verb in the infinitive: `pause`. Empty if `found` says everything.
    tried: Cow<'static, str>,
    sandbox: Option<SandboxKey>,
    found: Cow<'static, str>,
    remedy: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind: `tried` is a verb in the infinitive (`pause`), `found` what stood in its way.
    pub fn new(
        kind: ErrorKind,
        tried: impl Into<Cow<'static, str>>,
        found: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            tried: tried.into(),
            sandbox: None,
            found: found.into(),
            remedy: None,
            retry_after: None,
            source: None,
        }))
    }

    /// An error of another process, whose `message` already says all that one of ours would: it prints as that alone.
    pub fn from_remote(kind: ErrorKind, message: impl Into<String>, retry_after: Option<Duration>) -> Self {
        let error = Self::new(kind, "", message.into());
        match retry_after {
            Some(pause) => error.retry_after(pause),
            None => error,
        }
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::new(Inner {
                kind: self.0.kind,
                tried: self.0.tried.clone(),
                sandbox: self.0.sandbox,
                found: self.0.found.clone(),
                remedy: self.0.remedy.clone(),
                retry_after: self.0.retry_after,
                source: self.0.source.clone(),
            });
        }
        change(Arc::get_mut(&mut self.0).expect("just made unique"));
        self
    }

    /// Names the sandbox it happened to.
    pub fn on(self, sandbox: &SandboxKey) -> Self {
        self.edit(|inner| inner.sandbox = Some(*sandbox))
    }

    /// Says what to do about it.
    pub fn remedy(self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|inner| inner.remedy = Some(remedy.into()))
    }

    /// Says when to try again.
    pub fn retry_after(self, pause: Duration) -> Self {
        self.edit(|inner| inner.retry_after = Some(pause))
    }

    /// Keeps what caused it.
    pub fn caused_by(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.edit(|inner| inner.source = Some(Arc::from(source.into())))
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The sandbox it happened to, if it concerns one.
    pub fn sandbox(&self) -> Option<&SandboxKey> {
        self.0.sandbox.as_ref()
    }

    /// How long to wait before trying again, where that is known.
    pub fn retry_hint(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { tried, sandbox, found, remedy, source, .. } = &*self.0;
        if !tried.is_empty() {
            write!(f, "cannot {tried}")?;
            if let Some(key) = sandbox {
                write!(f, " sandbox \"{key}\"")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(found)?;
        if let Some(source) = source {
            write!(f, ": {source}")?;
        }
        if let Some(remedy) = remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_one_line_with_its_remedy() {
        let key = SandboxKey::new("default", "web-7").unwrap();
        let error = Error::new(ErrorKind::FailedPrecondition, "pause", "it is stopping")
            .on(&key)
            .remedy("wait for it to stop, or shut it down");
        assert_eq!(
            error.to_string(),
            "cannot pause sandbox \"default/web-7\": it is stopping; wait for it to stop, or shut it down"
        );
        assert_eq!(error.kind().grpc_code(), 9);
        assert_eq!(ErrorKind::from_grpc_code(9), Some(error.kind()));
        assert_eq!(ErrorKind::from_grpc_code(0), None);
        let remote = Error::from_remote(error.kind(), error.to_string(), None);
        assert_eq!(remote.to_string(), error.to_string());
    }
}
