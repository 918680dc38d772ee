//! Makes a message of a line: [`Shape`].

use std::sync::Arc;

use onceward::{Defect, Message, Position};

use crate::config::Format;
use crate::envelope;
use crate::lines::Line;

/// What all messages of one incarnation have in common.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub format: Format,
    pub limit: u64,
    pub origin: Arc<str>,
    pub incarnation: Arc<str>,
}

impl Shape {
    /// The message of `line`. A line that cannot be one carries its defect and its raw bytes.
    pub(crate) fn message(&self, line: &Line, redelivered: bool) -> Message {
        let raw = || Message::builder(line.content.clone());
        let builder = if line.oversize {
            raw().defect(Defect::Oversize { bytes: line.bytes, limit: self.limit })
        } else {
            match self.format {
                Format::Raw => raw(),
                Format::Envelope => match envelope::parse(&line.content) {
                    Err(what) => raw().defect(Defect::Malformed { what }),
                    Ok(parsed) => {
                        let mut builder = Message::builder(parsed.payload);
                        if let Some(id) = parsed.id {
                            builder = builder.message_id(id);
                        }
                        if let Some(order_key) = parsed.order_key {
                            builder = builder.order_key(order_key);
                        }
                        for (name, value) in parsed.headers {
                            builder = builder.header(name, value);
                        }
                        builder
                    }
                },
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
