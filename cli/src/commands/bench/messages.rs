//! The messages of a run: which are copies, and what each of them holds: [`Messages`].

use bytes::Bytes;
use onceward::{Error, ErrorKind, Key, KeyExtractor, KeySource, Message, Outgoing};
use serde_json::{Map, Value};

use crate::config::{Config, KeyPart, OrderBy, Ordering};
use crate::handlers::Mark;

/// So many order keys take turns.
const ORDER_KEYS: u64 = 1_000;

/// How many messages a run has, and what they look like.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    /// All, copies included.
    pub(super) total: u64,
    /// How many of a hundred are copies.
    pub(super) copies_percent: u64,
    /// The size of a payload, where what it has to hold fits.
    pub(super) size: usize,
    run: u32,
    keys: Vec<KeyPart>,
    order: Vec<KeyPart>,
    has_record_keys: bool,
    carries_headers: bool,
}

/// Where the keys of messages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// From what they hold.
    Content,
    /// From their place in the source, which is different for a copy.
    Position,
}

impl Messages {
    /// `total` messages with all that the keys and the order of `config` are taken from.
    pub(super) fn new(config: &Config, total: u32, copies_percent: u32, size: u32) -> Self {
        let order = match (config.ordering(), &config.pipeline.order_by) {
            (Ordering::Key, Some(OrderBy::Source(source))) => source.parts().to_vec(),
            _ => Vec::new(),
        };
        Self {
            total: total.into(),
            copies_percent: copies_percent.into(),
            size: usize::try_from(size).unwrap_or(usize::MAX),
            run: 0,
            keys: config.key.from.iter().flat_map(|source| source.parts().to_vec()).collect(),
            order,
            has_record_keys: config.source.plugin().facts().has_record_keys,
            carries_headers: true,
        }
    }

    /// Those of one run, for a source of its own.
    pub(super) fn of_run(&self, run: u32, total: u64, carries_headers: bool) -> Self {
        Self { run, total, carries_headers, ..self.clone() }
    }

    /// How many different ones there are.
    pub(super) fn distinct(&self) -> u64 {
        self.total - self.copies_before(self.total)
    }

    /// How often each message is to be handled, by number: once, or once for each copy.
    pub(super) fn expected(&self, deduplicates: bool) -> Vec<u16> {
        let distinct = usize::try_from(self.distinct()).unwrap_or(usize::MAX);
        if deduplicates {
            return vec![1; distinct];
        }
        let mut expected = vec![0_u16; distinct];
        for index in 0..self.total {
            let number = usize::try_from(self.number(index)).ok();
            if let Some(copies) = number.and_then(|number| expected.get_mut(number)) {
                *copies = copies.saturating_add(1);
            }
        }
        expected
    }

    fn copies_before(&self, index: u64) -> u64 {
        index * self.copies_percent / 100
    }

    /// The number of the message that is published at `index`: a new one, or that of an earlier one.
    pub(super) fn number(&self, index: u64) -> u64 {
        let distinct = index - self.copies_before(index);
        if self.copies_before(index + 1) == self.copies_before(index) {
            return distinct;
        }
        fastrand::Rng::with_seed(index ^ (u64::from(self.run) << 32)).u64(0..distinct)
    }

    /// The message with this number.
    pub(super) fn outgoing(&self, number: u64, destination: &str) -> Outgoing {
        let mark = Mark { run: self.run, number };
        let value = mark.to_string();
        let lane = format!("lane-{}", number % ORDER_KEYS);
        let mut message = Outgoing { destination: destination.to_owned(), ..Outgoing::default() };
        let mut fields = Map::new();
        for (parts, value) in [(&self.order, &lane), (&self.keys, &value)] {
            for part in parts {
                match part {
                    KeyPart::Header(name) => {
                        message.headers.retain(|(own, _)| own != name);
                        message.headers.push((name.clone(), Bytes::copy_from_slice(value.as_bytes())));
                    }
                    KeyPart::MessageId => message.id.clone_from(value),
                    KeyPart::Json(pointer) => put(&mut fields, pointer, value),
                    KeyPart::Position | KeyPart::PayloadHash => {}
                }
            }
        }
        if self.has_record_keys {
            message.order_key = Some(Bytes::from(lane));
        }
        message.payload = self.payload(mark, &fields);
        message
    }

    /// A JSON object with its mark first.
    fn payload(&self, mark: Mark, fields: &Map<String, Value>) -> Bytes {
        let mut text = mark.open_object();
        for (name, value) in fields {
            text.push_str(&format!(",{}:{value}", Value::from(name.as_str())));
        }
        const PADDING: &str = r#","padding":"""#;
        let room = self.size.saturating_sub(text.len() + PADDING.len() + 1);
        if room > 0 {
            text.push_str(&PADDING[..PADDING.len() - 1]);
            text.extend(std::iter::repeat_n('x', room));
            text.push('"');
        }
        text.push('}');
        Bytes::from(text)
    }

    /// The message with this number as it is received, apart from its position.
    fn received(&self, number: u64) -> Message {
        let outgoing = self.outgoing(number, "");
        let mut message = Message::builder(outgoing.payload);
        if self.carries_headers {
            if !outgoing.id.is_empty() {
                message = message.message_id(outgoing.id);
            }
            for (name, value) in outgoing.headers {
                message = message.header(name, value);
            }
        }
        message.build()
    }

    /// The key of the message with this number, if it is not its position.
    pub(super) fn key(&self, keys: &KeyExtractor, number: u64) -> Option<Key> {
        keys.key_of(&self.received(number)).ok()
    }

    /// Where keys come from.
    ///
    /// # Errors
    /// [`Error`] if such messages would have none, or two of them the same.
    pub(super) fn check_keys(&self, keys: &KeyExtractor) -> Result<Keys, Error> {
        let position = keys.sources().position(has_position);
        match keys.key_and_source(&self.received(0)) {
            Ok((_, source)) if position.is_some_and(|position| position < source) => Ok(Keys::Position),
            Ok((key, _)) if self.key(keys, 1) != Some(key) => Ok(Keys::Content),
            Err(_) if position.is_some() => Ok(Keys::Position),
            _ => {
                let what = "it has no part that is different for each message of the measurement; take it from a header, the message \
                            id, or one field of the payload";
                Err(Error::new(ErrorKind::Config, "make messages with a key of [key] from", what))
            }
        }
    }
}

fn has_position(source: &KeySource) -> bool {
    match source {
        KeySource::Position => true,
        KeySource::Composite(parts) => parts.iter().any(has_position),
        _ => false,
    }
}

/// Puts `value` at a JSON pointer, unless something else than an object is on the way.
fn put(fields: &mut Map<String, Value>, pointer: &str, value: &str) {
    let mut names =
        pointer.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).peekable();
    let mut here = fields;
    while let Some(name) = names.next() {
        if names.peek().is_none() {
            here.insert(name, Value::from(value));
            return;
        }
        match here.entry(name).or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(inner) => here = inner,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{key_extractor, scope};

    fn config(keys: &str, rest: &str) -> Config {
        let text = format!(
            "scope = 'a'\n[source.file]\npath = 'x'\nformat = 'envelope'\n[store.memory]\n[handler.stdout]\n\
             [dead_letter]\nto = 'd'\n[key]\nfrom = {keys}\n{rest}"
        );
        Config::parse(&text, &|_| None).unwrap()
    }

    fn messages(keys: &str, copies: u32, size: u32) -> (Messages, KeyExtractor) {
        let config = config(keys, "");
        let keys = key_extractor(&config, &scope(&config).unwrap());
        (Messages::new(&config, 1_000, copies, size), keys)
    }

    #[test]
    fn copies_have_their_share_and_are_of_earlier_messages() {
        for percent in [0, 1, 10, 33, 90] {
            let (messages, _) = messages("['message-id']", percent, 256);
            let mut next = 0;
            for index in 0..messages.total {
                let number = messages.number(index);
                assert!(number <= next, "{number} is published before {next}");
                next += u64::from(number == next);
            }
            assert_eq!(next, messages.distinct());
            assert_eq!(messages.total - messages.distinct(), u64::from(percent) * 10);
        }
    }

    #[test]
    fn messages_hold_all_that_keys_and_order_are_taken_from_and_are_as_long_as_asked_for() {
        let config = config(
            "['header:k', ['json:/order/id', 'json:/order/line'], 'message-id']",
            "[pipeline]\nordering = 'key'\norder_by = 'json:/customer'\n",
        );
        let messages = Messages::new(&config, 100, 0, 300);
        let sent = messages.outgoing(1_007, "q");
        let value = "00000000-000000001007";
        assert_eq!((sent.id.as_str(), sent.payload.len()), (value, 300));
        assert_eq!(sent.headers, [("k".to_owned(), Bytes::from(value))]);
        let payload: Value = serde_json::from_slice(&sent.payload).unwrap();
        assert_eq!(payload["order"]["id"], value);
        assert_eq!(payload["order"]["line"], value);
        assert_eq!(payload["customer"], "lane-7");
        let short = Messages::new(&config, 100, 0, 1).outgoing(3, "q").payload;
        assert!(serde_json::from_slice::<Value>(&short).is_ok());
    }

    #[test]
    fn keys_are_from_the_content_unless_the_position_comes_first_and_equal_ones_are_refused() {
        let of = |from: &str, carries_headers: bool| {
            let (messages, keys) = messages(from, 0, 256);
            messages.of_run(7, 100, carries_headers).check_keys(&keys)
        };
        assert_eq!(of("['header:k', 'position']", true).unwrap(), Keys::Content);
        assert_eq!(of("['header:k', 'position']", false).unwrap(), Keys::Position);
        assert_eq!(of("['position', 'header:k']", true).unwrap(), Keys::Position);
        assert_eq!(of("['payload-hash']", false).unwrap(), Keys::Content);
        assert_eq!(of("['header:k']", false).unwrap_err().kind(), ErrorKind::Config);
        assert!(of("['json:/a/b', 'json:/a']", false).is_ok());
    }
}
