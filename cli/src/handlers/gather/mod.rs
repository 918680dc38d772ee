//! Messages that share a call to their handler, such as a line to a worker process or a request over HTTP.

mod queue;
mod run;

pub(super) use queue::{ReplyReceiver, RunQueue, receive};
pub(super) use run::{Asked, GatheredRun, RunReply, StopReason};
