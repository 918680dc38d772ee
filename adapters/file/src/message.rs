//! Decodes lines into messages: [`LineDecoder`].

use std::sync::Arc;

use onceward::adapter::Defect;
use onceward::own_headers::LETTER;
use onceward::{Message, MessageBuilder, OwnHeaders, Position};

use crate::config::Format;
use crate::dead_letter;
use crate::envelope::{self, Envelope};
use crate::reader::lines::Line;

/// Decodes the lines of one incarnation of a source.
#[derive(Clone, Debug)]
pub(crate) struct LineDecoder {
    pub format: Format,
    pub limit: u64,
    pub origin: Arc<str>,
    pub incarnation: Arc<str>,
    pub own_headers: OwnHeaders,
}

impl LineDecoder {
    /// The message in `line`. An invalid line becomes a message with a defect and the raw bytes.
    pub(crate) fn message(&self, line: &Line, redelivered: bool) -> Message {
        let raw = || Message::builder(line.content.clone());
        let builder = if line.oversize {
            raw().defect(Defect::Oversize { bytes: line.bytes, limit: self.limit })
        } else {
            let envelope = match self.format {
                Format::Raw => dead_letter::recognise(&line.content).map(|letter| self.trusted(letter?)),
                Format::Envelope => Some(envelope::parse(&line.content)),
            };
            match envelope {
                None => raw(),
                Some(Err(what)) => raw().defect(Defect::Malformed { what }),
                Some(Ok(envelope)) => from_envelope(envelope),
            }
        };
        let incarnation = Arc::clone(&self.incarnation);
        builder
            .position(Position { incarnation, partition: 0, offset: line.start })
            .origin(Arc::clone(&self.origin))
            .redelivered(redelivered)
            .build()
    }
}

impl LineDecoder {
    /// The dead letter in a raw line, if it is trusted. Otherwise the line is neither a letter nor a payload.
    fn trusted(&self, letter: Envelope) -> Result<Envelope, String> {
        let headers = || letter.headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
        let payload = (!letter.null_payload).then_some(&letter.payload[..]);
        match self.own_headers.believes_parts(&LETTER, headers, payload) {
            true => Ok(letter),
            false => Err("it looks like a dead letter of onceward, and is not authenticated".to_owned()),
        }
    }
}

/// The message in an envelope.
fn from_envelope(envelope: Envelope) -> MessageBuilder {
    let mut builder = Message::builder(envelope.payload);
    if envelope.null_payload {
        builder = builder.null_payload();
    }
    if let Some(id) = envelope.id {
        builder = builder.message_id(id);
    }
    if let Some(order_key) = envelope.order_key {
        builder = builder.order_key(order_key);
    }
    if let Some(timestamp) = envelope.timestamp {
        builder = builder.timestamp(timestamp);
    }
    for (name, value) in envelope.headers {
        builder = builder.header(name, value);
    }
    builder
}
