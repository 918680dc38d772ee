//! Settlement of deliveries: which are unsettled, which acknowledgement frames are sent, and when messages are requeued.

pub(crate) mod ack_timeout;
pub(crate) mod ack_window;
pub(crate) mod frames;
pub(crate) mod in_flight;
pub(crate) mod retry_delays;
