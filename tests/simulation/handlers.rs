//! The user's code of the simulation: it follows the plan, and reports to the witness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onceward::testing::{MemoryTransaction, Process};
use onceward::{Handled, HandlerError, Message};

use crate::bugs::Bug;
use crate::plan::Behaviour;
use crate::witness::Witness;

/// One worker's handler.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) worker: u64,
    pub(crate) process: Process,
    pub(crate) witness: Witness,
    pub(crate) behaviours: Arc<BTreeMap<String, Behaviour>>,
    pub(crate) bug: Option<Bug>,
}

/// Tells the witness how a run ended, also if it is dropped.
struct Running<'w> {
    witness: &'w Witness,
    run: usize,
    how: &'static str,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.witness.run_ends(self.run, self.how);
    }
}

/// The effect happens in the handler's last step, so that an error, a panic or a drop means that it has not.
pub(crate) async fn plain(script: Script, message: Message) -> Handled {
    script.process.clone().inside(script.run(&message, |witness, run| witness.effect(run))).await
}

/// The effect is written first, and happens with the commit or not at all.
pub(crate) async fn transactional(script: Script, message: Message, tx: &mut MemoryTransaction) -> Handled {
    tx.effect(String::from_utf8_lossy(message.payload()));
    script.process.clone().inside(script.run(&message, |_, _| {})).await
}

impl Script {
    async fn run(&self, message: &Message, effect: impl Fn(&Witness, usize)) -> Handled {
        let id = String::from_utf8_lossy(message.payload()).into_owned();
        let partition = message.position().map_or(0, |position| position.partition);
        let (run, before) = self.witness.run_starts(&id, self.worker, partition, message.fence());
        let mut running = Running { witness: &self.witness, run, how: "run dropped" };
        let result = self.behave(&id, before, message).await;
        running.how = if result.is_ok() { "run succeeds" } else { "run fails" };
        if result.is_ok() {
            effect(&self.witness, run);
        }
        result
    }

    async fn behave(&self, id: &str, before: usize, message: &Message) -> Handled {
        let so_often = |times: u32| before < times as usize;
        match self.behaviours.get(id).copied().unwrap_or(Behaviour::Prompt) {
            Behaviour::Prompt => Ok(()),
            Behaviour::Slow(lasts) => {
                tokio::time::sleep(lasts).await;
                Ok(())
            }
            Behaviour::Obedient(lasts) => {
                let cancellation = message.cancellation();
                tokio::select! {
                    biased;
                    () = cancellation.cancelled() => Err(HandlerError::retry("told to stop")),
                    () = tokio::time::sleep(lasts) => Ok(()),
                }
            }
            Behaviour::Fails(times) if so_often(times) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(HandlerError::retry("not yet"))
            }
            Behaviour::Permanent => Err(HandlerError::permanent("never")),
            Behaviour::Panics(times) if so_often(times) => {
                std::panic::resume_unwind(Box::new("a planned panic"));
            }
            Behaviour::Hangs(times) if so_often(times) => std::future::pending().await,
            Behaviour::Unavailable(times) if so_often(times) => match self.bug {
                Some(Bug::BlamesMessages) => Err(HandlerError::retry("connection refused")),
                _ => Err(HandlerError::unavailable("connection refused")),
            },
            Behaviour::Fails(_) | Behaviour::Panics(_) | Behaviour::Hangs(_) | Behaviour::Unavailable(_) => {
                Ok(())
            }
        }
    }
}
