//! Functions as handlers: [`handler`] and [`handler_fn`].

use std::future::Future;

use super::{Handler, HandlerError, IntoReply};
use crate::message::Message;

/// A handler made of an `async fn(Message) -> Result<T, HandlerError>` or a closure. For a handler with a state see
/// [`handler_fn`].
///
/// ```
/// use onceward::{Handled, Message, handler};
/// async fn charge(_message: Message) -> Handled {
///     Ok(())
/// }
/// let handler = handler(charge);
/// # let _ = handler;
/// ```
pub fn handler<F, Fut, T>(function: F) -> FnHandler<F>
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, HandlerError>> + Send,
    T: IntoReply,
{
    FnHandler { function }
}

/// A handler without a state: see [`handler`].
#[derive(Clone, Debug)]
pub struct FnHandler<F> {
    function: F,
}

impl<F, Fut, T> Handler for FnHandler<F>
where
    F: Fn(Message) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<T, HandlerError>> + Send,
    T: IntoReply,
{
    type Output = T;

    fn handle(&self, message: Message) -> impl Future<Output = Result<T, HandlerError>> + Send {
        (self.function)(message)
    }
}

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

/// A handler with a state: see [`handler_fn`].
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
