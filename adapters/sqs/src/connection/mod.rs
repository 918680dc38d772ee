//! Clients for SQS: endpoint, TLS and response limits, and the health of repeated operations.

pub(crate) mod endpoint;
pub(crate) mod operation_health;
mod require_tls;
mod response_limit;

pub(crate) use require_tls::PlaintextEndpoint;
