//! The contract of a source: [`SourcePlugin`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use onceward::adapter::{CheckpointStore, Consumer, Replies};
use onceward::dead_letter::HEADER_ORIGIN;
use onceward::pipeline::config::Ordering;
use onceward::{DeadLetters, Error, ErrorKind, Message, OwnHeaders, Publisher, Scope};

use crate::value::ByteCount;
use crate::{Checked, Context, Finding, Secrets};

/// A table `[source.NAME]`: where messages come from.
///
/// The implementing type is the table. Methods that take no `&self` state are facts about it; those that are `async` connect.
#[async_trait]
pub trait SourcePlugin: Secrets + fmt::Debug + Send + Sync {
    /// A short description without secrets, for logs: `rabbitmq:orders`.
    fn describe(&self, context: &Context<'_>) -> String;

    /// The broker's name in OpenTelemetry's conventions for messaging; that of the table by default.
    fn messaging_system(&self) -> Option<&'static str> {
        None
    }

    /// What the defaults of other options depend on.
    fn facts(&self) -> SourceFacts;

    /// Refuses options that are out of range, or that contradict each other or the rest of the configuration.
    ///
    /// # Errors
    /// The first problem.
    fn check(&self, context: &Context<'_>) -> Checked;

    /// What will run, but probably not as intended. Nothing by default.
    fn advice(&self, context: &Context<'_>) -> Vec<Finding> {
        let _ = context;
        Vec::new()
    }

    /// The option `max_message_bytes`, where the source has one: its default follows the pipeline's limits.
    fn max_message_bytes(&mut self) -> Option<&mut ByteCount> {
        None
    }

    /// The places that messages come from, to detect a handler that publishes into its own source.
    fn places(&self) -> Vec<Place> {
        Vec::new()
    }

    /// Opens the source.
    ///
    /// # Errors
    /// [`Error`] if it cannot be used as it is configured, cannot be reached, or the checkpoint store does not answer.
    async fn open(&self, context: &Context<'_>, parts: SourceParts) -> Result<Box<dyn Consumer>, Error>;

    /// Opens the destination of dead letters, in the source's own system.
    ///
    /// # Errors
    /// [`Error`] if it does not exist, cannot be reached, or may not be written to.
    async fn dead_letters(
        &self,
        context: &Context<'_>,
        to: &str,
        own_headers: OwnHeaders,
    ) -> Result<DeadLetters, Error>;

    /// Opens the destination of dead letters to take letters from it, and a publisher back to the source.
    ///
    /// # Errors
    /// [`Error`] if one of the two cannot be used.
    async fn letters(&self, context: &Context<'_>, from: &str, parts: SourceParts) -> Result<Letters, Error>;

    /// As [`letters`](Self::letters), the end that is read alone. Here it opens both.
    ///
    /// # Errors
    /// [`Error`] if the destination cannot be used.
    async fn letters_to_read(
        &self,
        context: &Context<'_>,
        from: &str,
        parts: SourceParts,
    ) -> Result<Box<dyn Consumer>, Error> {
        Ok(self.letters(context, from, parts).await?.split().0)
    }

    /// Reading letters changes nothing about them and uses up nothing: a file, a Kafka topic. False by default.
    fn reads_letters_freely(&self) -> bool {
        false
    }

    /// A publisher to the source's own system, for the outbox relay.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached, or the source has nothing to publish to.
    async fn publisher(&self, context: &Context<'_>) -> Result<Arc<dyn Publisher>, Error>;

    /// Where [`publisher`](Self::publisher) publishes to, in a few words without secrets.
    fn describe_publisher(&self, context: &Context<'_>) -> String {
        format!("the broker of [{}]", context.table())
    }

    /// Messages of this source can name an address for a reply, so that `on_completed = "replay-result"` can be used:
    /// [`replies`](Self::replies) opens what sends them. False by default.
    fn can_reply(&self) -> bool {
        false
    }

    /// What sends results to where messages of this source ask for them. By default it is refused.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached, or messages of the source have no such address.
    async fn replies(&self, context: &Context<'_>) -> Result<Arc<dyn Replies>, Error> {
        let what = "its messages have no address for a reply; set policy.on_completed to \"ack\"";
        Err(Error::new(ErrorKind::Config, format!("send replies to messages of [{}]", context.table()), what))
    }

    /// The backlog of the source; `None` where it is unknown.
    ///
    /// # Errors
    /// [`Error`] if it cannot be read.
    async fn backlog(
        &self,
        context: &Context<'_>,
        scope: &Scope,
        checkpoints: &dyn CheckpointStore,
    ) -> Result<Option<Backlog>, Error>;

    /// How many dead letters there are.
    ///
    /// # Errors
    /// [`Error`] if their destination cannot be read.
    async fn dead_letter_status(&self, context: &Context<'_>, to: &str) -> Result<DeadLetterStatus, Error>;

    /// Looks at the source, and compares what it finds with the configuration.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached.
    async fn inspect(&self, context: &Context<'_>) -> Result<Vec<Finding>, Error>;

    /// As [`inspect`](Self::inspect), for the destination of dead letters.
    ///
    /// # Errors
    /// [`Error`] if it cannot be reached.
    async fn inspect_dead_letters(&self, context: &Context<'_>, to: &str) -> Result<Finding, Error> {
        let DeadLetterStatus { place, letters } = self.dead_letter_status(context, to).await?;
        let letters = letters.map(|letters| format!(", {letters} dead letters")).unwrap_or_default();
        Ok(Finding::ok("dead_letter.to", format!("{place} is there{letters}")))
    }

    /// Creates an empty source like this one beside it, for measurements. `prefix` makes its name: lowercase letters, digits and
    /// hyphens, different for each call. It is in front of the name of the source, so that policies and subscriptions for names that begin
    /// like the source's do not apply to it. Nothing that exists is changed. By default it is refused.
    ///
    /// # Errors
    /// [`Error`] if the source cannot create one, is not allowed to, or cannot be reached. Nothing is left then.
    async fn temporary(&self, context: &Context<'_>, prefix: &str) -> Result<TemporarySource, Error> {
        let operation = format!("create a temporary source {prefix} beside [{}]", context.table());
        let what = "this kind of source cannot create a temporary one; measure with another source";
        Err(Error::new(ErrorKind::Config, operation, what))
    }
}

/// An empty source that [`SourcePlugin::temporary`] has created, of the same kind and with the same options as the one it stands
/// beside. Nothing but its creator knows its name.
///
/// ```
/// # async fn measure(temporary: onceward_plugin::TemporarySource) -> Result<(), onceward::Error> {
/// use onceward::Outgoing;
///
/// let message = Outgoing { destination: temporary.destination.clone(), ..Outgoing::default() };
/// for published in temporary.publisher.publish(&[message]).await {
///     published?;
/// }
/// temporary.remove().await
/// # }
/// ```
#[must_use = "what was created has to be removed"]
pub struct TemporarySource {
    /// The queue, topic or file, without secrets, for a person who has to remove it by hand.
    pub place: String,
    /// The table of the configuration with the temporary place in it. It is opened as any other source.
    pub table: Box<dyn SourcePlugin>,
    /// Fills it.
    pub publisher: Arc<dyn Publisher>,
    /// The temporary place, as `publisher` understands it.
    pub destination: String,
    /// Headers and ids of published messages arrive. False for a format that has neither.
    pub carries_headers: bool,
    /// Two messages with the same id are both delivered. False for a broker that drops copies itself.
    pub delivers_copies: bool,
    removal: BoxFuture<'static, Result<(), Error>>,
}

impl TemporarySource {
    /// A source in which headers arrive and copies are delivered. `removal` deletes all that was created; it is not started before
    /// [`remove`](Self::remove).
    pub fn new(
        place: String,
        table: Box<dyn SourcePlugin>,
        publisher: Arc<dyn Publisher>,
        destination: String,
        removal: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Self {
        Self {
            place,
            table,
            publisher,
            destination,
            carries_headers: true,
            delivers_copies: true,
            removal: Box::pin(removal),
        }
    }

    /// Removes the source with the messages in it.
    ///
    /// # Errors
    /// [`Error`] if it may be left; [`place`](Self::place) names it.
    ///
    /// # Cancel safety
    /// A dropped call may have removed any part.
    pub async fn remove(self) -> Result<(), Error> {
        self.removal.await
    }
}

impl fmt::Debug for TemporarySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemporarySource").field("place", &self.place).finish_non_exhaustive()
    }
}

/// What the defaults of other options depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFacts {
    /// Messages carry a key of the broker by which order can be kept: Kafka's record key, SQS's message group, Pub/Sub's
    /// ordering key.
    pub has_record_keys: bool,
    /// Messages have an identity that the default of `[key] from` can use: an idempotency header, a message id, a position.
    pub has_identity: bool,
    /// The order that is kept where the configuration names none.
    pub default_ordering: Ordering,
    /// The source delivers retried messages out of order, so that `order_by` alone does not turn ordering on.
    pub reorders_retries: bool,
    /// Only the owner of this host can write to the source, so that `onceward-` headers are trusted by default.
    pub is_private: bool,
    /// The run ends by itself at the end of the source.
    pub ends: bool,
    /// The source reports whether it is idle, so that `--until-empty` can be used: `Capabilities::reports_idle`.
    pub reports_idle: bool,
    /// The source recognises a redriven letter by its headers alone.
    pub needs_letter_headers: bool,
}

impl SourceFacts {
    /// The facts of a broker without record keys: RabbitMQ, a standard SQS queue.
    pub const BROKER: Self = Self {
        has_record_keys: false,
        has_identity: true,
        default_ordering: Ordering::None,
        reorders_retries: false,
        is_private: false,
        ends: false,
        reports_idle: true,
        needs_letter_headers: false,
    };
}

/// A queue, topic or file, in a system that one of several servers leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The kind of system, such as `kafka`.
    pub system: &'static str,
    /// The servers, each in a form that is equal for equal servers.
    pub servers: Vec<String>,
    /// The queue or topic.
    pub name: String,
}

impl Place {
    /// True if both may be the same place: same system and name, and a server in common.
    pub fn is_same(&self, other: &Self) -> bool {
        self.system == other.system
            && self.name == other.name
            && self.servers.iter().any(|server| other.servers.contains(server))
    }
}

/// The arguments with which a source is opened.
#[derive(Clone)]
pub struct SourceParts {
    /// Whose keys these are.
    pub scope: Scope,
    /// Keeps how far a source without a broker has been read.
    pub checkpoints: Arc<dyn CheckpointStore>,
    /// Whose `onceward-` headers are trusted, and how ours are authenticated.
    pub own_headers: OwnHeaders,
}

/// The two ends of a redrive: where letters are taken from, and how they get back.
pub struct Letters {
    /// The destination of dead letters.
    pub from: Box<dyn Consumer>,
    /// The source.
    pub to: Arc<dyn Publisher>,
    /// The queues or topics of the source; of several, a letter goes to the one it came from.
    pub destinations: Vec<String>,
}

impl Letters {
    /// The two ends, apart.
    pub fn split(self) -> (Box<dyn Consumer>, LetterTarget) {
        (self.from, LetterTarget { to: self.to, destinations: self.destinations })
    }
}

/// The end of a redrive that letters go to.
#[derive(Clone)]
pub struct LetterTarget {
    /// The source.
    pub to: Arc<dyn Publisher>,
    /// As [`Letters::destinations`].
    pub destinations: Vec<String>,
}

impl LetterTarget {
    /// Where `letter` goes.
    pub fn destination(&self, letter: &Message) -> String {
        let origin = letter.header(HEADER_ORIGIN).and_then(|origin| std::str::from_utf8(origin).ok());
        let own = self.destinations.iter().find(|own| Some(own.as_str()) == origin);
        own.or(self.destinations.first()).cloned().unwrap_or_default()
    }
}

/// What waits in a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages that no worker has yet; `None` where counting them would take long.
    pub messages: Option<u64>,
    /// Their bytes, where the source reports them.
    pub bytes: Option<u64>,
    /// Active consumers, where the broker reports them.
    pub consumers: Option<u64>,
}

/// A description of it; empty if nothing is known.
impl fmt::Display for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.messages, "messages"), (self.bytes, "bytes"), (self.consumers, "consumers")];
        let known = parts.into_iter().filter_map(|(count, what)| Some((count?, what)));
        for (index, (count, what)) in known.enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {what}")?;
        }
        Ok(())
    }
}

/// Where dead letters are, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterStatus {
    /// A file, queue, exchange or topic, without secrets.
    pub place: String,
    /// Their number; `None` where it is unknown.
    pub letters: Option<u64>,
}

/// The first finding about a broker that answers: what it is, and what waits in it.
pub fn answers(context: &Context<'_>, what: &str, backlog: Option<Backlog>) -> Finding {
    let mut message = format!("{what} answers");
    if let Some(waits) = backlog.map(|backlog| backlog.to_string()).filter(|waits| !waits.is_empty()) {
        message = format!("{message}, {waits}");
    }
    Finding::ok(context.table(), message)
}
