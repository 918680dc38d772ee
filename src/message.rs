//! A message as a broker delivered it: [`Message`].

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::active_claim::SharedClaim;
use crate::cancellation::Cancellation;
use crate::key::Key;
use crate::store::OwnerToken;

/// The position of a message in its source. Two messages of one source never share a position.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The source in which the offsets count, including its incarnation: Kafka cluster and topic id, the identity of a
    /// file.
    pub incarnation: Arc<str>,
    /// The partition, 0 where the source has no partitions.
    pub partition: u32,
    /// The offset within the partition.
    pub offset: u64,
}

impl fmt::Display for Position {
    /// `INCARNATION:PARTITION:OFFSET`, as in the header `onceward-position`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.incarnation, self.partition, self.offset)
    }
}

/// Why a message cannot be handled as it is. The pipeline dead-letters it without running the handler.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// It is larger than the source allows; the payload holds its beginning only, and the position locates the rest.
    Oversize {
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Its envelope cannot be parsed; the payload holds the raw bytes.
    Malformed {
        /// The error, without the content.
        what: String,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oversize { bytes, limit } => {
                write!(f, "the message has {bytes} bytes; the limit is {limit}")
            }
            Self::Malformed { what } => write!(f, "the message cannot be read: {what}"),
        }
    }
}

/// A message in the form of the broker it came from: the headers and properties that [`Message`] cannot express (types,
/// nulls). Only adapters of the same broker can read it. They publish it unchanged in dead letters and retries, so that
/// a message is the same after a redrive.
///
/// ```
/// use onceward::adapter::Native;
/// struct Properties { priority: u8 }
/// let native = Native::new(Properties { priority: 3 });
/// assert_eq!(native.get::<Properties>().map(|properties| properties.priority), Some(3));
/// assert!(native.get::<String>().is_none());
/// ```
#[derive(Clone)]
pub struct Native(Arc<dyn Any + Send + Sync>);

impl Native {
    /// Wraps an adapter's own type.
    pub fn new<T: Any + Send + Sync>(form: T) -> Self {
        Self(Arc::new(form))
    }

    /// The wrapped value, if it is a `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl PartialEq for Native {
    /// True if both are clones of one value.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Native {}

impl fmt::Debug for Native {
    /// Nothing of the content: header values may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Native")
    }
}

/// A message as handlers see it. Cloning is cheap: clones share the content.
///
/// Inside a handler it also answers which attempt this is ([`attempt`](Self::attempt)), under which fence
/// ([`fence`](Self::fence)) and whether the run should stop ([`cancellation`](Self::cancellation)). It does not settle
/// anything: that is the pipeline's work.
#[derive(Clone)]
pub struct Message {
    content: Arc<Content>,
    claim: Option<SharedClaim>,
}

#[derive(Clone, Default)]
struct Content {
    payload: Bytes,
    null_payload: bool,
    headers: Vec<(Box<str>, Bytes)>,
    content_type: Option<Box<str>>,
    native: Option<Native>,
    id: Option<Box<[u8]>>,
    order_key: Option<Bytes>,
    position: Option<Position>,
    origin: Option<Arc<str>>,
    timestamp: Option<SystemTime>,
    defect: Option<Defect>,
    redelivered: bool,
}

impl Message {
    /// Starts a message with `payload`.
    pub fn builder(payload: impl Into<Bytes>) -> MessageBuilder {
        MessageBuilder { content: Content { payload: payload.into(), ..Content::default() } }
    }

    /// The payload; empty for a null payload.
    pub fn payload(&self) -> &Bytes {
        &self.content.payload
    }

    /// True if there is no payload at all, as in a Kafka tombstone; an empty payload is another thing.
    pub fn has_null_payload(&self) -> bool {
        self.content.null_payload
    }

    /// The media type of the payload: the broker's property for it or, failing that, the header `content-type` in any
    /// letter case.
    pub fn content_type(&self) -> Option<&str> {
        let of_header = || {
            let (_, value) = self.headers().find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
            std::str::from_utf8(value).ok()
        };
        self.content.content_type.as_deref().or_else(of_header)
    }

    /// The message in its broker's form, if the adapter keeps it.
    pub fn native(&self) -> Option<&Native> {
        self.content.native.as_ref()
    }

    /// The headers in the order they came; names may repeat, values need not be UTF-8.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, &Bytes)> {
        self.content.headers.iter().map(|(name, value)| (&**name, value))
    }

    /// The first header of this exact name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.content.headers.iter().find(|(own, _)| &**own == name).map(|(_, value)| value)
    }

    /// The message id that survives redelivery, if the producer or broker gave one.
    pub fn id(&self) -> Option<&[u8]> {
        self.content.id.as_deref()
    }

    /// The broker's ordering key: a Kafka record key, an SQS message group id.
    pub fn order_key(&self) -> Option<&Bytes> {
        self.content.order_key.as_ref()
    }

    /// The position of the message in its source, if the source has positions.
    pub fn position(&self) -> Option<&Position> {
        self.content.position.as_ref()
    }

    /// The queue, topic or file the message came from.
    pub fn origin(&self) -> Option<&str> {
        self.content.origin.as_deref()
    }

    /// The same, for those that keep it beyond the message.
    pub(crate) fn shared_origin(&self) -> Option<&Arc<str>> {
        self.content.origin.as_ref()
    }

    /// The time at which the message was made, according to the producer or broker.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.content.timestamp
    }

    /// Why the message cannot be handled as it is, if the source found something.
    pub fn defect(&self) -> Option<&Defect> {
        self.content.defect.as_ref()
    }

    /// The broker's hint that it may have delivered this before. `false` proves nothing.
    pub fn is_redelivered(&self) -> bool {
        self.content.redelivered
    }

    /// Bytes held in memory for this message: payload, headers, keys.
    pub fn size(&self) -> usize {
        let content = &*self.content;
        let headers: usize = content.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        content.payload.len()
            + headers
            + content.id.as_ref().map_or(0, |id| id.len())
            + content.order_key.as_ref().map_or(0, Bytes::len)
    }

    /// The idempotency key this run holds the claim of; `None` outside a handler and for messages processed without a
    /// key.
    pub fn key(&self) -> Option<Key> {
        self.claim.as_ref().and_then(|claim| claim.key())
    }

    /// The same message for the same run, with `value` instead of all headers of this name, or without them. Names are
    /// compared without regard to case, as for trace context.
    ///
    /// ```
    /// use onceward::Message;
    /// let message = Message::builder("pay 7").header("Traceparent", "old").build();
    /// let message = message.with_header("traceparent", Some("new".into()));
    /// assert_eq!(message.headers().map(|(_, value)| &value[..]).collect::<Vec<_>>(), [b"new"]);
    /// ```
    #[must_use]
    pub fn with_header(&self, name: &str, value: Option<Bytes>) -> Self {
        let mut content = (*self.content).clone();
        content.headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
        content.headers.extend(value.map(|value| (name.into(), value)));
        Self { content: Arc::new(content), claim: self.claim.clone() }
    }

    /// Which attempt this is, from 1. Attempts are counted in the store, not by the broker.
    pub fn attempt(&self) -> u32 {
        self.claim.as_ref().map_or(1, |claim| claim.attempt())
    }

    /// The fence of this run: larger than that of every earlier claim of the key, so that a sink which remembers the
    /// largest it has seen can refuse a stale writer. 0 outside a handler.
    pub fn fence(&self) -> u64 {
        self.claim.as_ref().map_or(0, |claim| claim.fence())
    }

    /// The owner token of this run's claim: its holder can complete the claim, so it is handed to the handler only.
    pub fn owner_token(&self) -> Option<OwnerToken> {
        self.claim.as_ref().and_then(|claim| claim.lease()).map(|lease| lease.owner)
    }

    /// The generation of the key: 0, and one more with each redrive of its dead letter.
    pub fn generation(&self) -> u32 {
        self.claim.as_ref().map_or(0, |claim| claim.generation())
    }

    /// Signals the handler to stop: the lease is lost, the timeout has come, or the drain deadline passed.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation::new(self.claim.clone())
    }

    pub(crate) fn claimed(&self, claim: SharedClaim) -> Self {
        Self { content: Arc::clone(&self.content), claim: Some(claim) }
    }
}

impl fmt::Debug for Message {
    /// Sizes and coordinates only: payloads and header values may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("payload_bytes", &self.content.payload.len())
            .field("headers", &self.content.headers.len())
            .field("origin", &self.content.origin)
            .field("position", &self.content.position)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Message`]; adapters and tests use it.
pub struct MessageBuilder {
    content: Content,
}

/// Prints nothing of the content, which may be confidential.
impl fmt::Debug for MessageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBuilder").finish_non_exhaustive()
    }
}

impl MessageBuilder {
    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Box<str>>, value: impl Into<Bytes>) -> Self {
        self.content.headers.push((name.into(), value.into()));
        self
    }

    /// Adds headers, in their order.
    #[must_use]
    pub fn headers(mut self, headers: Vec<(Box<str>, Bytes)>) -> Self {
        if self.content.headers.is_empty() {
            self.content.headers = headers;
        } else {
            self.content.headers.extend(headers);
        }
        self
    }

    /// Sets no payload at all, as in a Kafka tombstone.
    #[must_use]
    pub fn null_payload(mut self) -> Self {
        self.content.payload = Bytes::new();
        self.content.null_payload = true;
        self
    }

    /// Sets the media type that a property of the broker gives.
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<Box<str>>) -> Self {
        self.content.content_type = Some(content_type.into());
        self
    }

    /// Keeps the message in its broker's form.
    #[must_use]
    pub fn native(mut self, native: Native) -> Self {
        self.content.native = Some(native);
        self
    }

    /// Sets the message id that survives redelivery.
    #[must_use]
    pub fn message_id(mut self, id: impl AsRef<[u8]>) -> Self {
        self.content.id = Some(id.as_ref().into());
        self
    }

    /// Sets the broker's ordering key.
    #[must_use]
    pub fn order_key(mut self, key: impl Into<Bytes>) -> Self {
        self.content.order_key = Some(key.into());
        self
    }

    /// Sets the position in the source.
    #[must_use]
    pub fn position(mut self, position: Position) -> Self {
        self.content.position = Some(position);
        self
    }

    /// Sets the queue, topic or file the message came from.
    #[must_use]
    pub fn origin(mut self, origin: Arc<str>) -> Self {
        self.content.origin = Some(origin);
        self
    }

    /// Sets when the message was made.
    #[must_use]
    pub fn timestamp(mut self, timestamp: SystemTime) -> Self {
        self.content.timestamp = Some(timestamp);
        self
    }

    /// Marks the message as one that cannot be handled.
    #[must_use]
    pub fn defect(mut self, defect: Defect) -> Self {
        self.content.defect = Some(defect);
        self
    }

    /// Passes on the broker's redelivery hint.
    #[must_use]
    pub fn redelivered(mut self, redelivered: bool) -> Self {
        self.content.redelivered = redelivered;
        self
    }

    /// The message.
    pub fn build(self) -> Message {
        Message { content: Arc::new(self.content), claim: None }
    }
}
