//! Names of the headers that carry AMQP properties.

/// The prefix of headers that carry what AMQP keeps outside the header table.
pub(crate) const PREFIX: &str = "amqp-";
pub(crate) const CONTENT_TYPE: &str = "amqp-content-type";
pub(crate) const CONTENT_ENCODING: &str = "amqp-content-encoding";
pub(crate) const CORRELATION_ID: &str = "amqp-correlation-id";
pub(crate) const REPLY_TO: &str = "amqp-reply-to";
pub(crate) const TYPE: &str = "amqp-type";
pub(crate) const APP_ID: &str = "amqp-app-id";
pub(crate) const PRIORITY: &str = "amqp-priority";
