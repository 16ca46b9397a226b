//! The embedded Linux backend.
