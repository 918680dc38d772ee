//! Makes a message of a line: [`LineDecoder`].

use std::sync::Arc;

use onceward::own_headers::LETTER;
use onceward::{Defect, Message, MessageBuilder, OwnHeaders, Position};

use crate::config::Format;
use crate::dead_letter;
use crate::envelope::{self, Envelope};
use crate::reader::lines::Line;

/// What all messages of one incarnation have in common.
#[derive(Clone, Debug)]
pub(crate) struct LineDecoder {
    pub format: Format,
    pub limit: u64,
    pub origin: Arc<str>,
    pub incarnation: Arc<str>,
    pub own_headers: OwnHeaders,
}

impl LineDecoder {
    /// The message of `line`. A line that cannot be one carries its defect and its raw bytes.
    pub(crate) fn message(&self, line: &Line, redelivered: bool) -> Message {
        let raw = || Message::builder(line.content.clone());
        let builder = if line.oversize {
            raw().defect(Defect::Oversize { bytes: line.bytes, limit: self.limit })
        } else {
            let envelope = match self.format {
                Format::Raw => dead_letter::recognise(&line.content).map(|letter| self.believed(letter?)),
                Format::Envelope => Some(envelope::parse(&line.content)),
            };
            match envelope {
                None => raw(),
                Some(Err(what)) => raw().defect(Defect::Malformed { what }),
                Some(Ok(envelope)) => unpacked(envelope),
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
    /// A raw line is a payload and has no headers: one that nothing proves to be a letter may be neither.
    fn believed(&self, letter: Envelope) -> Result<Envelope, String> {
        let headers = || letter.headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
        let payload = (!letter.null_payload).then_some(&letter.payload[..]);
        match self.own_headers.believes_parts(&LETTER, headers, payload) {
            true => Ok(letter),
            false => Err("it looks like a dead letter of onceward, and nothing proves it".to_owned()),
        }
    }
}

/// The message in an envelope.
fn unpacked(envelope: Envelope) -> MessageBuilder {
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
