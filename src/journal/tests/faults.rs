//! Faults while it runs.
