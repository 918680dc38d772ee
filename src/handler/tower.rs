//! Adapts a `tower::Service` as a handler, with its layers inside the claim: [`tower_handler`].

use tower::{Service, ServiceExt};

use super::{Handler, HandlerError, IntoReply};
use crate::message::Message;

/// A handler that calls a [`tower::Service`]. The service is cloned for each message and awaited until it is ready, so
/// that limits and buffers work; layers that retry should stay out: the pipeline retries, with attempts in the store.
///
/// ```
/// use onceward::{Message, tower_handler};
/// let service = tower::service_fn(async |_message: Message| Ok::<_, std::io::Error>(()));
/// let handler = tower_handler(service);
/// # let _ = handler;
/// ```
pub fn tower_handler<S>(service: S) -> ServiceHandler<S>
where
    S: Service<Message> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Response: IntoReply,
    S::Error: Into<HandlerError>,
{
    ServiceHandler(service)
}

/// See [`tower_handler`].
#[derive(Clone, Debug)]
pub struct ServiceHandler<S>(S);

impl<S> Handler for ServiceHandler<S>
where
    S: Service<Message> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Response: IntoReply,
    S::Error: Into<HandlerError>,
{
    type Output = S::Response;

    async fn handle(&self, message: Message) -> Result<S::Response, HandlerError> {
        let service = self.0.clone();
        service.oneshot(message).await.map_err(Into::into)
    }
}
