//! Sends one batch so that a message for which the broker closes the channel fails alone: [`Round`].

use lapin::types::ShortString;
use lapin::{Channel, Connection, ErrorKind as Lapin};
use onceward::Error;

use crate::confirm::{self, Outcome, cut, open_channel};
use crate::line::Letters;
use crate::outgoing::Letter;
use crate::suspects::Suspects;

/// A batch under way.
///
/// RabbitMQ closes the channel for a publish it does not accept, and the confirms of all that are under way on it are lost
/// with it. So what may be refused goes alone: the first message for an exchange that has not confirmed any yet, and
/// messages that were under way when a channel was closed.
pub(crate) struct Round<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
    suspects: &'a Suspects,
    letters: &'a Letters,
    /// `None`: not known yet.
    results: Vec<Option<Result<(), Error>>>,
}

/// The connection is of no use any more.
struct Lost(lapin::Error);

impl<'a> Round<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        channel: Option<Channel>,
        suspects: &'a Suspects,
        letters: &'a Letters,
    ) -> Self {
        let of = |letter: &Result<Letter, Error>| match letter {
            Ok(letter) => suspects.too_large(letter).map(Err),
            Err(error) => Some(Err(error.clone())),
        };
        let results = letters.iter().map(of).collect();
        Self { connection, channel, suspects, letters, results }
    }

    /// The channel if it is open, and what became of each letter; `None` where that is not known.
    pub(crate) fn end(self) -> (Option<Channel>, Vec<Option<Result<(), Error>>>) {
        (self.channel, self.results)
    }

    /// Sends all.
    ///
    /// # Cancel safety
    /// A dropped call leaves the results that are known; the channel must not be used again.
    pub(crate) async fn run(&mut self) {
        if let Err(Lost(error)) = self.send_all().await {
            self.channel = None;
            let error = cut(error);
            for result in self.results.iter_mut().filter(|result| result.is_none()) {
                *result = Some(Err(error.clone()));
            }
        }
    }

    async fn send_all(&mut self) -> Result<(), Lost> {
        let mut tried = std::collections::BTreeSet::<ShortString>::new();
        for index in self.open_ones() {
            let Some(letter) = self.letter(index) else { continue };
            if !self.suspects.is_proven(&letter.exchange) && tried.insert(letter.exchange.clone()) {
                self.send_alone(index).await?;
            }
        }
        let is_sound = |index: &usize| {
            self.letter(*index).is_some_and(|letter| {
                self.suspects.is_proven(&letter.exchange) && !self.suspects.contains(letter)
            })
        };
        let together: Vec<_> = self.open_ones().into_iter().filter(is_sound).collect();
        self.send(&together).await?;
        for index in self.open_ones() {
            self.send_alone(index).await?;
        }
        Ok(())
    }

    fn letter(&self, index: usize) -> Option<&'a Letter> {
        self.letters.get(index)?.as_ref().ok()
    }

    /// Those that nothing is known of yet.
    fn open_ones(&self) -> Vec<usize> {
        (0..self.results.len()).filter(|index| self.results[*index].is_none()).collect()
    }

    async fn send_alone(&mut self, index: usize) -> Result<(), Lost> {
        let Some(letter) = self.letter(index) else { return Ok(()) };
        if let Some(error) = self.suspects.refusal(&letter.exchange) {
            self.results[index] = Some(Err(error));
            return Ok(());
        }
        self.send(&[index]).await?;
        if matches!(self.results[index], Some(Ok(()))) {
            self.suspects.proved(letter);
        }
        Ok(())
    }

    /// Sends together. Letters whose channel was closed stay open and are suspects then, but for one that was alone: it is
    /// the cause.
    async fn send(&mut self, indices: &[usize]) -> Result<(), Lost> {
        let (indices, letters): (Vec<_>, Vec<_>) =
            indices.iter().filter_map(|index| Some((*index, self.letter(*index)?))).unzip();
        if letters.is_empty() {
            return Ok(());
        }
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => open_channel(self.connection).await.map_err(Lost)?,
        };
        let mut cause = None;
        let mut open = Vec::new();
        for (index, outcome) in indices.into_iter().zip(confirm::publish(&channel, &letters).await) {
            match outcome {
                Outcome::Answered(result) => self.results[index] = Some(result),
                Outcome::Cut(error) => {
                    open.push(index);
                    // The others only hear that the channel is closed.
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
        let of_channel = cause.is_amqp_soft_error()
            || matches!(cause.kind(), Lapin::InvalidChannel(_) | Lapin::InvalidChannelState(..));
        if !of_channel || !self.connection.status().connected() {
            return Err(Lost(cause));
        }
        let refused = self.suspects.learn(&cause);
        let is_alone = letters.len() == 1;
        for index in open {
            let Some(letter) = self.letter(index) else { continue };
            if is_alone || refused.as_ref().is_some_and(|exchange| *exchange == letter.exchange) {
                self.results[index] = Some(Err(cut(cause.clone())));
            }
            self.suspects.add(letter);
        }
        Ok(())
    }
}
