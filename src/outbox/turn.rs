//! One turn of a relay: publishes leased rows in waves, the rows of one order key one after the other.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{OutboxRow, RowOutcome};
use crate::coalesce::bounded;
use crate::error::Error;
use crate::failpoints::{Step, hit};
use crate::publisher::Publisher;

/// How long a turn goes on starting waves: the rows are held meanwhile.
const TURN: Duration = Duration::from_secs(2);

/// The result of a turn.
#[derive(Debug, Default)]
pub(super) struct RelayTurn {
    pub(super) published: Vec<i64>,
    /// With the attempts that failed, this one included.
    pub(super) failed: Vec<(i64, u32, Error)>,
}

impl RelayTurn {
    /// Publishes rows, each once. A row that fails ends its order key's part in the turn, so that nothing overtakes it.
    pub(super) async fn publish(rows: Vec<OutboxRow>, publisher: &dyn Publisher, limit: Duration) -> Self {
        let mut turn = Self::default();
        let mut lanes = lanes(rows);
        let end = Instant::now() + TURN;
        while !lanes.is_empty() {
            // The first row of each lane: so no two of one order key are under way together.
            let wave: Vec<_> = lanes.iter_mut().filter_map(VecDeque::pop_front).collect();
            let messages: Vec<_> = wave.iter().map(|row| row.message.clone()).collect();
            hit(Step::RelayTaken);
            let call = publisher.publish(&messages);
            let outcomes = bounded(limit, "publish from the outbox", messages.len(), call).await;
            hit(Step::RelayConfirmed);
            let mut went_well = Vec::with_capacity(wave.len());
            for (row, outcome) in wave.into_iter().zip(outcomes) {
                went_well.push(outcome.is_ok());
                match outcome {
                    Ok(()) => turn.published.push(row.seq),
                    Err(error) => turn.failed.push((row.seq, row.attempts.saturating_add(1), error)),
                }
            }
            let mut went_well = went_well.into_iter();
            lanes.retain(|lane| went_well.next().unwrap_or(false) && !lane.is_empty());
            if Instant::now() >= end {
                break;
            }
        }
        turn
    }

    /// Nothing arrived, for all that is known.
    pub(super) fn failed_whole(&self) -> bool {
        self.published.is_empty() && !self.failed.is_empty()
    }

    /// The outcomes to record for the rows; `retry_in` maps a number of failures to a delay.
    pub(super) fn outcomes(&self, mut retry_in: impl FnMut(u32) -> Duration) -> Vec<(i64, RowOutcome)> {
        let published = self.published.iter().map(|seq| (*seq, RowOutcome::Published));
        let failed = self.failed.iter().map(|(seq, attempts, error)| {
            let retry_in = retry_in(*attempts);
            (*seq, RowOutcome::Failed { retry_in, error: crate::error::chain(error) })
        });
        published.chain(failed).collect()
    }
}

/// The rows of each order key, in their order; rows without one are alone.
fn lanes(rows: Vec<OutboxRow>) -> Vec<VecDeque<OutboxRow>> {
    let mut lanes: Vec<VecDeque<OutboxRow>> = Vec::new();
    let mut by_key: HashMap<Bytes, usize> = HashMap::new();
    for row in rows {
        match row.message.order_key.clone() {
            None => lanes.push([row].into()),
            Some(key) => {
                let lane = *by_key.entry(key).or_insert_with(|| {
                    lanes.push(VecDeque::new());
                    lanes.len() - 1
                });
                lanes[lane].push_back(row);
            }
        }
    }
    lanes
}
