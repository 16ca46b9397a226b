//! Every metric this crate reports: name, unit, meaning. Nothing here has a label per sandbox.
//!
//! Metrics go through the `metrics` facade; without a recorder they cost next to nothing. Ping reports none.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::model::{ExitReason, Operation, Phase};

/// Counter: operations that backends were asked for, by `operation` and `outcome` (`ok`, or the kind of error).
pub const OPERATIONS: &str = "sandkeeper_operations_total";
/// Histogram, seconds: how long they took, by `operation`.
pub const OPERATION_SECONDS: &str = "sandkeeper_operation_seconds";
/// Histogram, seconds: how long starts waited for a permit.
pub const START_QUEUE_SECONDS: &str = "sandkeeper_start_queue_seconds";
/// Counter: phases entered, by `phase`.
pub const PHASES: &str = "sandkeeper_phases_entered_total";
/// Counter: lives that ended, by `reason`.
pub const EXITS: &str = "sandkeeper_exits_total";
/// Counter: calls refused because a mailbox was full.
pub const MAILBOX_FULL: &str = "sandkeeper_mailbox_full_total";
/// Counter: calls dropped unexecuted because their deadline had passed.
pub const EXPIRED_CALLS: &str = "sandkeeper_expired_calls_total";
/// Counter: actors that failed and were replaced.
pub const OWNERS_REPLACED: &str = "sandkeeper_owners_replaced_total";
/// Counter: sandboxes whose actor failed too often to be replaced again.
pub const OWNERS_GIVEN_UP: &str = "sandkeeper_owners_given_up_total";
/// Counter: registry actors that failed and were replaced.
pub const REGISTRY_REPLACED: &str = "sandkeeper_registry_replaced_total";
/// Histogram: changes that the journal wrote in one transaction.
pub const JOURNAL_BATCH_CHANGES: &str = "sandkeeper_journal_batch_changes";
/// Histogram, seconds: how long such a transaction took, until it was durable.
pub const JOURNAL_COMMIT_SECONDS: &str = "sandkeeper_journal_commit_seconds";
/// Counter: groups of changes that the journal could not write, retries included.
pub const JOURNAL_FAILURES: &str = "sandkeeper_journal_failures_total";
/// Counter: damaged files of the journal that were set aside.
pub const JOURNAL_SET_ASIDE: &str = "sandkeeper_journal_set_aside_total";
/// Counter: damaged records that the journal had in quarantine when it was opened.
pub const JOURNAL_DAMAGED: &str = "sandkeeper_journal_damaged_records_total";

/// Gives the recorder in force units and descriptions. Call it once, after installing a recorder.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_histogram};
    describe_counter!(OPERATIONS, "operations that backends were asked for, by operation and outcome");
    describe_histogram!(OPERATION_SECONDS, Unit::Seconds, "how long operations took, by operation");
    describe_histogram!(START_QUEUE_SECONDS, Unit::Seconds, "how long starts waited for a permit");
    describe_counter!(PHASES, "phases entered, by phase");
    describe_counter!(EXITS, "lives that ended, by reason");
    describe_counter!(MAILBOX_FULL, "calls refused because a mailbox was full");
    describe_counter!(EXPIRED_CALLS, "calls dropped because their deadline had passed");
    describe_counter!(OWNERS_REPLACED, "actors that failed and were replaced");
    describe_counter!(OWNERS_GIVEN_UP, "sandboxes whose actor failed too often to be replaced again");
    describe_counter!(REGISTRY_REPLACED, "registry actors that failed and were replaced");
    describe_histogram!(JOURNAL_BATCH_CHANGES, "changes that the journal wrote in one transaction");
    describe_histogram!(JOURNAL_COMMIT_SECONDS, Unit::Seconds, "how long a transaction of the journal took");
    describe_counter!(JOURNAL_FAILURES, "groups of changes that the journal could not write");
    describe_counter!(JOURNAL_SET_ASIDE, "damaged files of the journal that were set aside");
    describe_counter!(
        JOURNAL_DAMAGED,
        "damaged records that the journal had in quarantine when it was opened"
    );
}

pub(crate) fn operation(operation: Operation, took: Duration, outcome: Result<(), ErrorKind>) {
    let operation = match operation {
        Operation::Create => "create",
        Operation::Start => "start",
        Operation::Pause => "pause",
        Operation::Resume => "resume",
        Operation::Ask => "ask",
        Operation::Kill => "kill",
        Operation::Delete => "delete",
        Operation::Reattach => "reattach",
    };
    let outcome = match outcome {
        Ok(()) => "ok",
        Err(kind) => kind.name(),
    };
    metrics::counter!(OPERATIONS, "operation" => operation, "outcome" => outcome).increment(1);
    metrics::histogram!(OPERATION_SECONDS, "operation" => operation).record(took.as_secs_f64());
}

pub(crate) fn start_queued(waited: Duration) {
    metrics::histogram!(START_QUEUE_SECONDS).record(waited.as_secs_f64());
}

pub(crate) fn phase_entered(phase: Phase) {
    metrics::counter!(PHASES, "phase" => phase.name()).increment(1);
}

pub(crate) fn exited(reason: ExitReason) {
    metrics::counter!(EXITS, "reason" => reason.name()).increment(1);
}

pub(crate) fn journal_committed(changes: usize, took: Duration) {
    metrics::histogram!(JOURNAL_BATCH_CHANGES).record(changes as f64);
    metrics::histogram!(JOURNAL_COMMIT_SECONDS).record(took.as_secs_f64());
}

pub(crate) fn journal_failed() {
    metrics::counter!(JOURNAL_FAILURES).increment(1);
}

pub(crate) fn journal_set_aside() {
    metrics::counter!(JOURNAL_SET_ASIDE).increment(1);
}

pub(crate) fn journal_damaged(records: usize) {
    metrics::counter!(JOURNAL_DAMAGED).increment(records as u64);
}
