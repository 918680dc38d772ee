//! Publishes messages to another broker: [`PublishHandler`].

use std::fmt;
use std::sync::Arc;

use onceward::dead_letter::{HEADER_MESSAGE_ID, HEADER_PREFIX};
use onceward::{Error, ErrorKind, Handled, Handler, HandlerError, Message, Outgoing, Publisher, Verdict};

/// Publishes each message, and completes it once the other broker has confirmed it.
///
/// The published message has the id of the message or, without one, its idempotency key; without both, its position in the
/// source. The key is also in the header `onceward-id`, the same in every attempt and after a redrive: if a confirm is lost
/// the next run publishes a copy, which the consumer downstream recognises by this header.
///
/// Payload, ordering key and headers are kept, except headers that begin with `onceward-`, which describe the source; types
/// and properties are kept for a broker of the same kind. The original id is in `onceward-message-id`.
///
/// A broker that is unreachable, rejects the login, lacks the destination or is full uses no attempt; if the message may have
/// arrived, the outcome counts as unknown. A message that is too large for it is dead-lettered.
#[derive(Clone)]
pub struct PublishHandler {
    publisher: Arc<dyn Publisher>,
    destination: Arc<str>,
}

impl PublishHandler {
    /// A handler that publishes to `destination` with `publisher`.
    pub fn new(publisher: Arc<dyn Publisher>, destination: &str) -> Self {
        Self { publisher, destination: destination.into() }
    }

    fn outgoing(&self, message: &Message) -> Outgoing {
        let headers = message.headers().filter(|(name, _)| !name.starts_with(HEADER_PREFIX));
        let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        if let Some(id) = message.id() {
            headers.push((HEADER_MESSAGE_ID.to_owned(), id.to_vec().into()));
        }
        Outgoing {
            destination: (*self.destination).to_owned(),
            id: message_id(message),
            own_id: own_id(message),
            order_key: message.order_key().cloned(),
            headers,
            payload: message.payload().clone(),
            null_payload: message.has_null_payload(),
            native: message.native().cloned(),
            ..Outgoing::default()
        }
    }
}

/// The id of the producer or, without one, ours.
fn message_id(message: &Message) -> String {
    let id = message.id().and_then(|id| std::str::from_utf8(id).ok()).filter(|id| !id.is_empty());
    id.map_or_else(|| own_id(message), str::to_owned)
}

/// An id that is the same in every attempt.
fn own_id(message: &Message) -> String {
    match (message.key(), message.position()) {
        (Some(key), _) => key.to_string(),
        (None, Some(at)) => format!("{}:{}:{}", at.incarnation, at.partition, at.offset),
        (None, None) => String::new(),
    }
}

/// The error of a failed publish, and whether the message may have arrived.
fn publish_error(error: Error) -> HandlerError {
    use ErrorKind::{
        Config, Corrupt, Denied, Internal, Throttled, Timeout, TooLarge, Unavailable, Unsupported,
    };
    let kind = error.kind();
    let error = HandlerError::from(error);
    let verdict = match kind {
        TooLarge => Verdict::Permanent,
        Unavailable | Timeout | Throttled | Denied | Config => Verdict::Unavailable,
        // The broker may reject this message: it must not wait without end.
        _ => Verdict::Retry,
    };
    let failed = HandlerError::new(verdict, error.text());
    match kind {
        TooLarge | Throttled | Denied | Config | Corrupt | Unsupported | Internal => failed,
        _ => failed.outcome_unknown(),
    }
}

impl fmt::Debug for PublishHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishHandler").field("destination", &self.destination).finish_non_exhaustive()
    }
}

impl Handler for PublishHandler {
    type Output = ();

    async fn handle(&self, message: Message) -> Handled {
        let cancellation = message.cancellation();
        if cancellation.is_cancelled() {
            return Err(HandlerError::unavailable("cancelled before the message was published"));
        }
        let batch = [self.outgoing(&message)];
        let published = tokio::select! {
            biased;
            published = self.publisher.publish(&batch) => published,
            () = cancellation.cancelled() => {
                // A broker that does not confirm in time is unavailable for all messages.
                let text = "the run was cancelled before the other broker confirmed the message";
                return Err(HandlerError::unavailable(text).outcome_unknown());
            }
        };
        match published.into_iter().next() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(publish_error(error)),
            None => Err(HandlerError::retry("the publisher did not say whether it published the message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use onceward::store::{Claimed, Lease, OwnerToken};
    use onceward::testing::{Fault, MemoryPublisher, Operation};
    use onceward::{Key, Position, TestRun};

    use super::*;

    #[tokio::test]
    async fn a_message_goes_on_with_what_is_its_own_and_without_what_is_about_its_source() {
        let publisher = MemoryPublisher::new();
        let handler = PublishHandler::new(Arc::new(publisher.clone()), "invoices");
        let message = Message::builder("paid")
            .message_id("4711")
            .order_key("customer 1")
            .header("tenant", "a")
            .header("onceward-reason", "permanent")
            .build();
        handler.handle(message).await.unwrap();
        assert_eq!(
            publisher.sent(),
            [Outgoing {
                destination: "invoices".into(),
                id: "4711".into(),
                order_key: Some("customer 1".into()),
                headers: vec![("tenant".into(), "a".into()), ("onceward-message-id".into(), "4711".into())],
                payload: "paid".into(),
                ..Outgoing::default()
            }]
        );
    }

    #[tokio::test]
    async fn a_lost_confirm_is_unknown_and_the_copy_bears_the_same_id() {
        let publisher = MemoryPublisher::new();
        let handler = PublishHandler::new(Arc::new(publisher.clone()), "invoices");
        let at = Position { incarnation: "log".into(), partition: 2, offset: 7 };
        let message = Message::builder("paid").position(at).build();
        publisher.next(Operation::Publish, Fault::ReplyLost);
        let error = handler.handle(message.clone()).await.unwrap_err();
        assert!(error.is_outcome_unknown(), "{error:?}");
        handler.handle(message).await.unwrap();
        let ids: Vec<_> = publisher.sent().into_iter().map(|sent| (sent.id, sent.own_id)).collect();
        assert_eq!(ids, vec![("log:2:7".to_owned(), "log:2:7".to_owned()); 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_confirms_nothing_in_time_is_unavailable() {
        let publisher = MemoryPublisher::new();
        publisher.next(Operation::Publish, Fault::Hangs);
        let handler = PublishHandler::new(Arc::new(publisher), "invoices");
        let key = Key::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let lease = Lease { key, owner: OwnerToken::from_bytes([7; 16]), fence: 1 };
        let lease_left = Duration::from_secs(30);
        let claimed = Claimed { lease, attempt: 1, lost: 0, generation: 0, lease_left };
        let (run, message) = TestRun::start(&Message::builder("paid").build(), &claimed);
        let cancelled = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            run.cancel();
        };
        let (handled, ()) = tokio::join!(handler.handle(message), cancelled);
        let error = handled.unwrap_err();
        assert_eq!(error.verdict(), Verdict::Unavailable);
        assert!(error.is_outcome_unknown());
    }

    #[test]
    fn only_what_a_broker_says_about_the_message_is_charged_to_it() {
        let of = |kind| {
            let failed = publish_error(Error::new(kind, "publish to invoices", "refused"));
            (failed.verdict(), failed.is_outcome_unknown())
        };
        for kind in [ErrorKind::Unavailable, ErrorKind::Timeout] {
            assert_eq!(of(kind), (Verdict::Unavailable, true), "{kind:?}");
        }
        for kind in [ErrorKind::Throttled, ErrorKind::Denied, ErrorKind::Config] {
            assert_eq!(of(kind), (Verdict::Unavailable, false), "{kind:?}");
        }
        assert_eq!(of(ErrorKind::TooLarge), (Verdict::Permanent, false));
        assert_eq!(of(ErrorKind::Corrupt), (Verdict::Retry, false));
        assert_eq!(of(ErrorKind::Unknown), (Verdict::Retry, true));
    }
}
