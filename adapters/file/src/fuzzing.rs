//! What the fuzz targets see of this crate; built for them only.

use onceward::Outgoing;

use crate::dead_letter;
use crate::envelope::{self, Envelope};

fn outgoing(envelope: Envelope) -> Outgoing {
    Outgoing {
        id: envelope.id.unwrap_or_default(),
        order_key: envelope.order_key,
        timestamp: envelope.timestamp,
        headers: envelope.headers,
        payload: envelope.payload,
        null_payload: envelope.null_payload,
        ..Outgoing::default()
    }
}

/// The message in an envelope, or what is wrong with it.
pub fn parse(line: &[u8]) -> Result<Outgoing, String> {
    envelope::parse(line).map(outgoing)
}

/// The envelope of a message, its newline included.
pub fn write(message: &Outgoing) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    envelope::write(message, &mut line).ok().map(|()| line)
}

/// The letter that a line of a raw source is.
pub fn recognise(line: &[u8]) -> Option<Result<Outgoing, String>> {
    dead_letter::recognise(line).map(|letter| letter.map(outgoing))
}
