//! Functions as handlers: [`handler_fn`].

use std::future::Future;

use super::{Handler, HandlerError, IntoReply};
use crate::message::Message;

/// A handler made of a state and an `async fn(S, Message) -> Result<T, HandlerError>`. The state is cloned for each
/// message: put what is shared behind an `Arc`.
///
/// ```
/// use onceward::{Handled, Message, handler_fn};
/// #[derive(Clone)]
/// struct App;
/// async fn charge(_app: App, _message: Message) -> Handled {
///     Ok(())
/// }
/// let handler = handler_fn(App, charge);
/// # let _ = handler;
/// ```
pub fn handler_fn<S, F, Fut, T>(state: S, function: F) -> HandlerFn<S, F>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, HandlerError>> + Send,
    T: IntoReply,
{
    HandlerFn { state, function }
}

/// See [`handler_fn`].
#[derive(Clone, Debug)]
pub struct HandlerFn<S, F> {
    state: S,
    function: F,
}

impl<S, F, Fut, T> Handler for HandlerFn<S, F>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, HandlerError>> + Send,
    T: IntoReply,
{
    type Output = T;

    fn handle(&self, message: Message) -> impl Future<Output = Result<T, HandlerError>> + Send {
        (self.function)(self.state.clone(), message)
    }
}
