//! Sends messages, confirmed: [`SqsPublisher`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry as Entry};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use onceward::dead_letter::{HEADER_GENERATION, HEADER_REASON};
use onceward::{Error, ErrorKind, Outgoing, Publisher};

use crate::endpoint::Endpoint;
use crate::{error, pack};

/// The most entries of one call, by SQS's rules.
const BATCH: usize = 10;
/// The most calls at a time.
const CALLS: usize = 8;
/// The most bytes of one call that every SQS takes.
const MAX_BYTES: usize = 256 * 1024;

/// Sends messages; SQS confirms each once it is stored.
///
/// A destination is the URL of a queue. Headers are message attributes, of which SQS takes ten: those beyond seven, our own, and
/// those with names or bytes that SQS refuses are packed into one, which [`SqsConsumer`](crate::SqsConsumer) unpacks.
/// [`Outgoing::id`] is the attribute `onceward-id`, and the message's id for that consumer.
///
/// To a FIFO queue, the group is a hash of the order key, or of the id without one; a short, plain order key is the group
/// itself. The deduplication id is a hash of id, destination, generation and purpose: the same for each repeat, and new for a
/// redrive, which SQS would otherwise swallow within five minutes.
pub struct SqsPublisher {
    client: Client,
    call_timeout: Duration,
}

impl SqsPublisher {
    /// A publisher for the queues at `endpoint`. It connects with its first batch.
    ///
    /// # Cancel safety
    /// A dropped call leaves nothing behind.
    pub async fn open(endpoint: Endpoint) -> Self {
        Self::from_client(endpoint.client().await)
    }

    /// A publisher with the caller's client.
    pub fn from_client(client: Client) -> Self {
        Self { client, call_timeout: Duration::from_secs(4) }
    }

    /// Sets how long a call may take, repeats included, until its outcome is called unknown; default 4 s. It should be less
    /// than the pipeline's publish timeout.
    #[must_use]
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit;
        self
    }

    /// One call. `batch` holds places and messages, all of one destination.
    async fn send(&self, url: &str, batch: Vec<(usize, Entry)>) -> Vec<(usize, Result<(), Error>)> {
        let operation = || format!("send messages to queue {url}");
        let (places, entries): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let limits = TimeoutConfig::builder().operation_attempt_timeout(self.call_timeout / 2).build();
        let call = self
            .client
            .send_message_batch()
            .queue_url(url)
            .set_entries(Some(entries))
            .customize()
            .config_override(aws_sdk_sqs::config::Builder::new().timeout_config(limits));
        let answer = match tokio::time::timeout(self.call_timeout, call.send()).await {
            Ok(answer) => answer.map_err(|error| error::sdk(operation(), &error)),
            Err(_) => Err(error::timeout(operation())),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return places.into_iter().map(|place| (place, Err(error.replicate()))).collect(),
        };
        let confirmed: std::collections::HashSet<_> =
            answer.successful.iter().map(|entry| entry.id()).collect();
        let failed: HashMap<_, _> = answer.failed.iter().map(|entry| (entry.id(), entry)).collect();
        let outcome = |place: usize| {
            let id = place.to_string();
            if confirmed.contains(id.as_str()) {
                return Ok(());
            }
            let Some(entry) = failed.get(id.as_str()) else {
                return Err(Error::new(ErrorKind::Unknown, operation(), "SQS says nothing of this message"));
            };
            let (kind, what) = match entry.sender_fault() {
                true => (ErrorKind::Unsupported, "SQS refuses the message as it is"),
                false => error::coded(entry.code()),
            };
            let source = format!("{}: {}", entry.code(), entry.message().unwrap_or_default());
            Err(Error::new(kind, operation(), what).with_source(source))
        };
        places.into_iter().map(|place| (place, outcome(place))).collect()
    }
}

#[async_trait]
impl Publisher for SqsPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Result<(), Error>> {
        let mut results: Vec<Option<Result<(), Error>>> = batch.iter().map(|_| None).collect();
        let mut by_destination: BTreeMap<&str, Vec<(usize, Entry, usize)>> = BTreeMap::new();
        for (place, outgoing) in batch.iter().enumerate() {
            match entry(place, outgoing) {
                Ok((entry, size)) => {
                    by_destination.entry(&outgoing.destination).or_default().push((place, entry, size));
                }
                Err(error) => results[place] = Some(Err(error)),
            }
        }
        for (url, entries) in by_destination {
            // One after the other for a FIFO queue, which keeps the order of calls, and of entries within a call.
            let at_once = if is_fifo(url) { 1 } else { CALLS };
            let calls: Vec<_> = chunks(entries).into_iter().map(|chunk| self.send(url, chunk)).collect();
            let mut answers = stream::iter(calls).buffer_unordered(at_once);
            while let Some(answers) = answers.next().await {
                for (place, result) in answers {
                    results[place] = Some(result);
                }
            }
        }
        let unsent = || Error::new(ErrorKind::Internal, "send a message", "it was in no call");
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsent()))).collect()
    }
}

/// Divides entries, given with their sizes, into calls.
fn chunks(entries: Vec<(usize, Entry, usize)>) -> Vec<Vec<(usize, Entry)>> {
    let mut chunks: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for (place, entry, size) in entries {
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < BATCH && bytes + size <= MAX_BYTES => chunk.push((place, entry)),
            _ => {
                bytes = 0;
                chunks.push(vec![(place, entry)]);
            }
        }
        bytes += size;
    }
    chunks
}

fn is_fifo(url: &str) -> bool {
    url.ends_with(".fifo")
}

/// What is sent for a message, and its size as SQS counts it.
fn entry(place: usize, outgoing: &Outgoing) -> Result<(Entry, usize), Error> {
    let wrong = |error| error::config("send a message", format!("an entry is incomplete: {error}"));
    let (body, encoded) = pack::body(&outgoing.payload);
    let packed = pack::pack(&outgoing.headers);
    let mut size = body.len();
    let mut entry = Entry::builder().id(place.to_string()).message_body(body);
    let mut attributes = packed.own;
    attributes.extend(packed.packed.as_deref().map(|packed| (pack::PACKED, packed)));
    attributes.extend(encoded.then_some((pack::ENCODING, "base64")));
    for (name, value) in attributes {
        size += name.len() + value.len() + "String".len();
        let value = MessageAttributeValue::builder().data_type("String").string_value(value);
        entry = entry.message_attributes(name, value.build().map_err(wrong)?);
    }
    if !outgoing.id.is_empty() {
        // Binary, for an id may hold what SQS takes for no text.
        let value =
            MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new(outgoing.id.clone()));
        size += pack::ID.len() + outgoing.id.len() + "Binary".len();
        entry = entry.message_attributes(pack::ID, value.build().map_err(wrong)?);
    }
    if is_fifo(&outgoing.destination) {
        let group = group(outgoing.order_key.as_ref(), &outgoing.id);
        entry = entry.message_group_id(group).message_deduplication_id(deduplication_id(outgoing));
    }
    Ok((entry.build().map_err(wrong)?, size))
}

fn group(order_key: Option<&Bytes>, id: &str) -> String {
    let Some(key) = order_key else { return hash(&[b"id", id.as_bytes()]) };
    match std::str::from_utf8(key) {
        Ok(text) if (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            text.to_owned()
        }
        _ => hash(&[b"order-key", key]),
    }
}

fn deduplication_id(outgoing: &Outgoing) -> String {
    let header = |name: &str| {
        let found = outgoing.headers.iter().find(|(own, _)| own == name);
        found.map_or(&b""[..], |(_, value)| value)
    };
    // The reason of a dead letter tells it from a redrive of the same generation.
    let (generation, reason) = (header(HEADER_GENERATION), header(HEADER_REASON));
    hash(&[outgoing.destination.as_bytes(), outgoing.id.as_bytes(), generation, reason])
}

/// A hash over length-prefixed parts.
fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(generation: &'static str) -> Outgoing {
        Outgoing {
            destination: "http://h/dead.fifo".into(),
            id: "1".into(),
            headers: vec![(HEADER_GENERATION.into(), Bytes::from_static(generation.as_bytes()))],
            ..Outgoing::default()
        }
    }

    #[test]
    fn a_repeat_has_the_same_deduplication_id_and_a_redrive_another() {
        assert_eq!(deduplication_id(&letter("0")), deduplication_id(&letter("0")));
        assert_ne!(deduplication_id(&letter("0")), deduplication_id(&letter("1")));
        let mut dead = letter("0");
        dead.headers.push((HEADER_REASON.into(), Bytes::from_static(b"permanent")));
        assert_ne!(deduplication_id(&letter("0")), deduplication_id(&dead));
    }

    #[test]
    fn calls_are_as_full_as_count_and_size_allow() {
        let entry = |place: usize, size: usize| {
            let made = Entry::builder().id(place.to_string()).message_body("x").build().unwrap();
            (place, made, size)
        };
        let places = |sizes: &[usize]| -> Vec<Vec<usize>> {
            let entries = sizes.iter().enumerate().map(|(place, size)| entry(place, *size)).collect();
            chunks(entries).iter().map(|chunk| chunk.iter().map(|(place, _)| *place).collect()).collect()
        };
        assert_eq!(places(&[1; 12]), [(0..10).collect::<Vec<_>>(), vec![10, 11]]);
        let half = MAX_BYTES / 2;
        assert_eq!(places(&[half, half, 1, MAX_BYTES, half]), [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn a_plain_order_key_is_the_group_and_any_other_a_hash_of_it() {
        assert_eq!(group(Some(&Bytes::from_static(b"customer-7")), "1"), "customer-7");
        for odd in [&b""[..], b"\xff", b"a b", &[b'x'; 129]] {
            assert_eq!(group(Some(&Bytes::copy_from_slice(odd)), "1").len(), 64);
        }
        assert_ne!(group(None, "1"), group(None, "2"));
    }
}
