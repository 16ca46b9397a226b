//! How a command ends when it does not end well.

use std::io;

use crate::error::{Error, ErrorKind};

/// Why it ends.
#[derive(Debug)]
pub(in crate::surface) enum Failure {
    /// Somebody refused or failed.
    Error(Error),
    /// The same, and it ends with another code than the error's own.
    Coded(Error, u8),
    /// The command line is wrong beyond what its definition says.
    Usage(String),
    /// What it had to say could not be written.
    Output(io::Error),
    /// All was said; this is the code.
    Said(u8),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

/// The code for an error of this kind. `EXIT_CODES` in the arguments says it to users.
pub(super) fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidArgument => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::FailedPrecondition | ErrorKind::AlreadyExists | ErrorKind::Aborted => 4,
        ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::ResourceExhausted => 5,
        _ => 1,
    }
}

impl Failure {
    /// The code it ends with.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failure::Error(error) => code(error.kind()),
            Failure::Coded(_, code) | Failure::Said(code) => *code,
            Failure::Usage(_) => 2,
            // Whoever reads us has had enough, and that is no fault.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Output(_) => 1,
        }
    }

    /// What is wrong, if it is an error and not yet said.
    pub(super) fn error(&self) -> Option<Error> {
        match self {
            Failure::Error(error) | Failure::Coded(error, _) => Some(error.clone()),
            Failure::Usage(text) => {
                let error = Error::new(ErrorKind::InvalidArgument, "", text.clone());
                Some(error.remedy("see --help"))
            }
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
            Failure::Output(error) => {
                Some(Error::new(ErrorKind::Internal, "write the answer", error.to_string()))
            }
            Failure::Said(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_documented_code() {
        use ErrorKind::*;
        for (expected, kinds) in [
            (1, &[Cancelled, PermissionDenied, Unimplemented, Internal][..]),
            (2, &[InvalidArgument]),
            (3, &[NotFound]),
            (4, &[FailedPrecondition, AlreadyExists, Aborted]),
            (5, &[Unavailable, DeadlineExceeded, ResourceExhausted]),
        ] {
            for kind in kinds {
                assert_eq!(code(*kind), expected, "{kind}");
            }
        }
    }

    #[test]
    fn a_reader_that_has_had_enough_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.code(), 0);
        assert!(failure.error().is_none());
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)).code(), 1);
    }
}
