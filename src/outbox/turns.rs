//! Order among the rows of an order key: [`KeyTurns`].

use parking_lot::Mutex;

/// Order keys looked at by one step of a walk, at most.
const MOST_STEPS: usize = 2_000;

/// The oldest unpublished row of an order key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The key.
    pub order_key: Vec<u8>,
    /// The row's number in the outbox.
    pub seq: i64,
    /// Whether it may be taken now: it is due, and no worker holds it.
    pub due: bool,
}

/// For stores: finds the order keys that are due, each call beginning where the last one ended. So each key gets its turn,
/// however many rows the others have. It takes nothing.
#[derive(Debug, Default)]
pub struct KeyTurns {
    /// The key after which the next turn begins; empty: at the first.
    after: Mutex<Vec<u8>>,
}

impl KeyTurns {
    /// The oldest unpublished rows of at most `wanted` order keys that are due: from where the last call ended, once around
    /// at most. `walk` answers the heads of so many order keys that follow the given one, in the order of the keys; fewer
    /// only where there are no more.
    ///
    /// # Errors
    /// The first error of `walk`.
    ///
    /// # Cancel safety
    /// A dropped call changes nothing.
    pub async fn due<E, F: Future<Output = Result<Vec<Head>, E>>>(
        &self,
        wanted: usize,
        mut walk: impl FnMut(Vec<u8>, usize) -> F,
    ) -> Result<Vec<i64>, E> {
        let steps = wanted.saturating_mul(2).min(MOST_STEPS);
        let start = self.after.lock().clone();
        let (mut after, mut from_the_first) = (start.clone(), start.is_empty());
        let mut due = Vec::new();
        loop {
            let seen = walk(after.clone(), steps).await?;
            let mut around = from_the_first && seen.len() < steps;
            let at_the_end = seen.len() < steps;
            for head in seen {
                if from_the_first && !start.is_empty() && head.order_key > start {
                    around = true;
                    break;
                }
                after = head.order_key;
                due.extend(head.due.then_some(head.seq));
                if due.len() == wanted {
                    self.begin_after(after);
                    return Ok(due);
                }
            }
            if around {
                self.begin_after(Vec::new());
                return Ok(due);
            }
            if at_the_end {
                (after, from_the_first) = (Vec::new(), true);
            }
        }
    }

    fn begin_after(&self, key: Vec<u8>) {
        *self.after.lock() = key;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::ready;

    use super::*;

    /// The heads of single-letter keys, in capitals where they are not due.
    async fn turn(turns: &KeyTurns, keys: &str, wanted: usize) -> String {
        let walk = |after: Vec<u8>, steps| {
            let lower = |key: u8| key.to_ascii_lowercase();
            let behind = keys.bytes().filter(|key| vec![lower(*key)] > after).take(steps);
            let head = |key: u8| Head {
                order_key: vec![lower(key)],
                seq: i64::from(key),
                due: key.is_ascii_lowercase(),
            };
            ready(Ok::<_, Infallible>(behind.map(head).collect()))
        };
        let due = turns.due(wanted, walk).await.unwrap();
        due.into_iter().map(|seq| char::from(u8::try_from(seq).unwrap())).collect()
    }

    #[tokio::test]
    async fn each_key_gets_its_turn_and_none_comes_twice_in_one() {
        let turns = KeyTurns::default();
        for expected in ["ab", "cd", "ea", "bc"] {
            assert_eq!(turn(&turns, "abcde", 2).await, expected);
        }
        assert_eq!(turn(&turns, "abcde", 9).await, "deabc");
        assert_eq!(turn(&turns, "", 9).await, "");
    }

    #[tokio::test]
    async fn what_is_not_due_is_passed_over_and_the_walk_ends() {
        let turns = KeyTurns::default();
        assert_eq!(turn(&turns, "ABCDEFGHi", 1).await, "i");
        assert_eq!(turn(&turns, "ABCDEFGHI", 1).await, "");
        assert_eq!(turn(&turns, "aBCd", 2).await, "ad");
    }
}
