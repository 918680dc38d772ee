//! Handlers that write through the completion's own transaction: [`TxHandler`], [`tx_handler`].

use std::future::Future;

use super::Handled;
use crate::message::Message;
use crate::store::TransactionalStore;

/// Makes the effect of a message happen inside the transaction that also records its completion: *effectively-once*.
///
/// What it does outside the transaction (a call to another system) is not covered by that promise. If runs share a
/// transaction ([`transaction_batch`](crate::PipelineConfig::transaction_batch)), one is repeated, as the same attempt,
/// where that could not be committed.
///
/// # Cancel safety
/// As for [`Handler`](super::Handler); a dropped run is rolled back.
pub trait TxHandler<S: TransactionalStore>: Send + Sync + 'static {
    /// Handles one message. The pipeline commits after `Ok`, together with the completion, and rolls back otherwise.
    ///
    /// # Errors
    /// As for [`Handler::handle`](super::Handler::handle).
    fn handle<'c>(&'c self, message: Message, tx: S::Tx<'c>) -> impl Future<Output = Handled> + Send + 'c;
}

/// The functions [`tx_handler`] takes: `async fn(S, Message, Tx<'_>) -> Handled`. Implemented for all of them; not to
/// be implemented by hand.
pub trait TxFn<'c, S, T>: Send + Sync + 'static {
    /// The result of the function.
    type Future: Future<Output = Handled> + Send + 'c;

    /// Calls it.
    fn call(&self, state: S, message: Message, tx: T) -> Self::Future;
}

impl<'c, S, T, F, Fut> TxFn<'c, S, T> for F
where
    T: 'c,
    F: Fn(S, Message, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Handled> + Send + 'c,
{
    type Future = Fut;

    fn call(&self, state: S, message: Message, tx: T) -> Fut {
        self(state, message, tx)
    }
}

/// A transactional handler made of a state and an `async fn(S, Message, Tx<'_>) -> Handled`. `store` only determines
/// which transaction type is meant.
pub fn tx_handler<St, S, F>(_store: &St, state: S, function: F) -> TxHandlerFn<S, F>
where
    St: TransactionalStore,
    S: Clone + Send + Sync + 'static,
    F: for<'c> TxFn<'c, S, St::Tx<'c>>,
{
    TxHandlerFn { state, function }
}

/// See [`tx_handler`].
#[derive(Clone, Debug)]
pub struct TxHandlerFn<S, F> {
    state: S,
    function: F,
}

impl<St, S, F> TxHandler<St> for TxHandlerFn<S, F>
where
    St: TransactionalStore,
    S: Clone + Send + Sync + 'static,
    F: for<'c> TxFn<'c, S, St::Tx<'c>>,
{
    fn handle<'c>(&'c self, message: Message, tx: St::Tx<'c>) -> impl Future<Output = Handled> + Send + 'c {
        self.function.call(self.state.clone(), message, tx)
    }
}
