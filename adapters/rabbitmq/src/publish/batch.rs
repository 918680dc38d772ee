//! Publishes one batch so that a message for which the broker closes the channel fails alone: [`BatchSender`].

use lapin::types::ShortString;
use lapin::{Channel, Connection};
use onceward::Error;

use crate::error;
use crate::publish::confirms::{self, ConfirmOutcome, open_channel, publish_error};
use crate::publish::publishing::{Publishing, Publishings};
use crate::publish::refusals::RefusalMemory;

/// A batch in flight.
///
/// RabbitMQ closes the channel for a message that it does not accept, and the confirms of all messages in flight on it
/// are lost. Messages that may be refused are therefore published alone: the first message for an exchange that has not
/// confirmed any yet, and messages that were in flight when a channel was closed.
pub(crate) struct BatchSender<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
    refusals: &'a RefusalMemory,
    publishings: &'a Publishings,
    connection_failed: bool,
    /// `None`: unknown so far.
    results: Vec<Option<Result<(), Error>>>,
}

/// What a batch leaves behind.
pub(crate) struct SentBatch {
    /// The channel, if it is open.
    pub(crate) channel: Option<Channel>,
    /// The connection failed and must not be used again, whatever its state says.
    pub(crate) connection_failed: bool,
    /// The result of each message; `None` where it is unknown.
    pub(crate) results: Vec<Option<Result<(), Error>>>,
}

/// The connection failed.
struct ConnectionLost(lapin::Error);

impl<'a> BatchSender<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        channel: Option<Channel>,
        refusals: &'a RefusalMemory,
        publishings: &'a Publishings,
    ) -> Self {
        let known_result = |publishing: &Result<Publishing, Error>| match publishing {
            Ok(publishing) => refusals.too_large(publishing).map(Err),
            Err(error) => Some(Err(error.clone())),
        };
        let results = publishings.iter().map(known_result).collect();
        Self { connection, channel, refusals, publishings, connection_failed: false, results }
    }

    pub(crate) fn end(self) -> SentBatch {
        let Self { channel, connection_failed, results, .. } = self;
        SentBatch { channel, connection_failed, results }
    }

    /// Publishes all messages.
    ///
    /// # Cancel safety
    /// A dropped call leaves the results known so far; the channel must not be used again.
    pub(crate) async fn run(&mut self) {
        if let Err(ConnectionLost(error)) = self.send_all().await {
            self.channel = None;
            self.connection_failed = true;
            let error = publish_error(error);
            for result in self.results.iter_mut().filter(|result| result.is_none()) {
                *result = Some(Err(error.clone()));
            }
        }
    }

    async fn send_all(&mut self) -> Result<(), ConnectionLost> {
        let mut sent_alone = std::collections::BTreeSet::<ShortString>::new();
        for index in self.unresolved() {
            let Some(publishing) = self.publishing(index) else { continue };
            if !self.refusals.is_confirmed_exchange(&publishing.exchange)
                && sent_alone.insert(publishing.exchange.clone())
            {
                self.send_alone(index).await?;
            }
        }
        let is_unsuspicious = |index: &usize| {
            self.publishing(*index).is_some_and(|publishing| {
                self.refusals.is_confirmed_exchange(&publishing.exchange)
                    && !self.refusals.is_suspect(publishing)
            })
        };
        let batch: Vec<_> = self.unresolved().into_iter().filter(is_unsuspicious).collect();
        self.send(&batch).await?;
        for index in self.unresolved() {
            self.send_alone(index).await?;
        }
        Ok(())
    }

    fn publishing(&self, index: usize) -> Option<&'a Publishing> {
        self.publishings.get(index)?.as_ref().ok()
    }

    /// The indices without a result.
    fn unresolved(&self) -> Vec<usize> {
        (0..self.results.len()).filter(|index| self.results[*index].is_none()).collect()
    }

    async fn send_alone(&mut self, index: usize) -> Result<(), ConnectionLost> {
        let Some(publishing) = self.publishing(index) else { return Ok(()) };
        if let Some(error) = self.refusals.refusal(&publishing.exchange) {
            self.results[index] = Some(Err(error));
            return Ok(());
        }
        self.send(&[index]).await?;
        if matches!(self.results[index], Some(Ok(()))) {
            self.refusals.mark_confirmed(publishing);
        }
        Ok(())
    }

    /// Publishes messages together. If the channel is closed, messages without a confirm become suspects and stay
    /// unresolved; a single message is the cause itself and fails.
    async fn send(&mut self, indices: &[usize]) -> Result<(), ConnectionLost> {
        let (indices, publishings): (Vec<_>, Vec<_>) =
            indices.iter().filter_map(|index| Some((*index, self.publishing(*index)?))).unzip();
        if publishings.is_empty() {
            return Ok(());
        }
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => open_channel(self.connection).await.map_err(ConnectionLost)?,
        };
        let (mut cause, mut lost) = (None, false);
        let mut interrupted = Vec::new();
        for (index, outcome) in indices.into_iter().zip(confirms::publish(&channel, &publishings).await) {
            match outcome {
                ConfirmOutcome::Answered(result) => self.results[index] = Some(result),
                ConfirmOutcome::Interrupted(error) => {
                    interrupted.push(index);
                    lost |= !error::is_of_channel(&error);
                    // The others only report that the channel is closed.
                    if cause.is_none() || error.is_amqp_soft_error() {
                        cause = Some(error);
                    }
                }
            }
        }
        let Some(cause) = cause else {
            self.channel = Some(channel);
            return Ok(());
        };
        if lost || !self.connection.status().connected() {
            return Err(ConnectionLost(cause));
        }
        let refused = self.refusals.learn(&cause);
        let is_alone = publishings.len() == 1;
        for index in interrupted {
            let Some(publishing) = self.publishing(index) else { continue };
            if is_alone || refused.as_ref().is_some_and(|exchange| *exchange == publishing.exchange) {
                self.results[index] = Some(Err(publish_error(cause.clone())));
            }
            self.refusals.add_suspect(publishing);
        }
        Ok(())
    }
}
