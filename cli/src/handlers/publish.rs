//! Publishes messages to another broker: [`PublishHandler`].

use std::fmt;
use std::sync::Arc;

use onceward::dead_letter::{HEADER_MESSAGE_ID, HEADER_PREFIX};
use onceward::{Handled, Handler, HandlerError, Message, Outgoing, Publisher};

/// Publishes each message and is done once the other broker has confirmed it.
///
/// What it publishes bears the message's idempotency key as its id, the same in every attempt and after a redrive: a run
/// whose confirm is lost publishes a copy, and the consumer downstream tells it by that id. Without a key the id is the
/// message's own or, failing that, where it stands in its source; a message that has neither is published without one.
///
/// Payload, ordering key and headers go along, but for headers that begin with `onceward-`, which are about the source.
/// The id that the message came with is in `onceward-message-id`.
#[derive(Clone)]
pub struct PublishHandler {
    publisher: Arc<dyn Publisher>,
    destination: Arc<str>,
}

impl PublishHandler {
    /// To `destination`, as `publisher` understands it.
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
            id: id(message),
            order_key: message.order_key().cloned(),
            headers,
            payload: message.payload().clone(),
            null_payload: message.has_null_payload(),
            native: message.native().cloned(),
            ..Outgoing::default()
        }
    }
}

/// The same for every attempt at one message.
fn id(message: &Message) -> String {
    if let Some(key) = message.key() {
        return key.to_string();
    }
    let own = message.id().and_then(|id| std::str::from_utf8(id).ok());
    match (own, message.position()) {
        (Some(own), _) => own.to_owned(),
        (None, Some(at)) => format!("{}:{}:{}", at.incarnation, at.partition, at.offset),
        (None, None) => String::new(),
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
            return Err(HandlerError::retry("cancelled before the message was published"));
        }
        let batch = [self.outgoing(&message)];
        let published = tokio::select! {
            biased;
            published = self.publisher.publish(&batch) => published,
            () = cancellation.cancelled() => {
                let text = "the run was cancelled before the other broker confirmed the message";
                return Err(HandlerError::retry(text).outcome_unknown());
            }
        };
        match published.into_iter().next() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(HandlerError::from(error).outcome_unknown()),
            None => Err(HandlerError::retry("the publisher did not say whether it published the message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward::testing::{Fault, MemoryPublisher, Operation};
    use onceward::{Position, Verdict};

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
        assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true), "{error:?}");
        handler.handle(message).await.unwrap();
        let ids: Vec<_> = publisher.sent().into_iter().map(|sent| sent.id).collect();
        assert_eq!(ids, ["log:2:7", "log:2:7"]);
    }
}
