//! Reads the destination of dead letters, holding what is not deleted: [`OpenLetters`].

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use onceward::adapter::{Acker, Consumer, Delivery, Settlement, Tag};
use onceward::dead_letter::HEADER_ID;
use onceward::store::AuditLog;
use onceward::{Error, Message, Scope};
use tokio::time::Instant;

use super::letter::subject_of;

/// After this time without a letter the destination is asked whether it is empty.
const QUIET: Duration = Duration::from_secs(3);
/// As [`QUIET`], where the destination ends by itself.
const SHORT_QUIET: Duration = Duration::from_millis(200);
/// The longest wait for letters that another process holds, such as one that was killed: this long, beyond the time after
/// which the broker returns them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Letters as they are received. Those that are not deleted stay received, so that no letter is read twice.
pub(super) struct OpenLetters {
    from: Box<dyn Consumer>,
    acker: Arc<dyn Acker>,
    audit: Arc<dyn AuditLog>,
    scope: Scope,
    held: HashSet<Tag>,
    /// Hashes of the letters so far, where a letter may be delivered again although it is held.
    seen: HashSet<u64>,
    /// How often held letters must be extended.
    heartbeat: Option<Duration>,
    extended: Instant,
    is_finite: bool,
    patience: Duration,
}

impl OpenLetters {
    pub(super) fn new(from: Box<dyn Consumer>, audit: Arc<dyn AuditLog>, scope: Scope) -> Self {
        let capabilities = from.capabilities();
        if let Some(limit) = capabilities.delivery_limit {
            tracing::warn!(
                limit,
                "destination of dead letters has a delivery limit; each read of a letter that is left counts"
            );
        }
        Self {
            acker: from.acker(),
            from,
            audit,
            scope,
            held: HashSet::new(),
            seen: HashSet::new(),
            heartbeat: capabilities.heartbeat,
            extended: Instant::now(),
            is_finite: capabilities.finite,
            patience: PATIENCE + capabilities.heartbeat.unwrap_or_default(),
        }
    }

    /// The next letters; `None` if there are no more. Those that are done with are left out.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let asked = Instant::now();
        let quiet = if self.is_finite { SHORT_QUIET } else { QUIET };
        loop {
            self.extend_due().await;
            // Short enough that held letters are extended in time.
            let wait = self.heartbeat.map_or(quiet, |heartbeat| quiet.min(heartbeat / 4));
            match tokio::time::timeout(wait, self.from.receive()).await {
                Ok(received) => {
                    let Some(mut batch) = received? else { return Ok(None) };
                    self.held.extend(batch.iter().map(|delivery| delivery.tag));
                    batch.retain(|delivery| self.is_finite || self.seen.insert(identity(&delivery.message)));
                    let open = self.without_settled(batch).await?;
                    if !open.is_empty() {
                        return Ok(Some(open));
                    }
                }
                Err(_) if asked.elapsed() < quiet => {}
                Err(_) => match self.from.is_idle().await {
                    // It answers when it is at its end.
                    None if self.is_finite => {}
                    Some(false) if asked.elapsed() < self.patience => {}
                    Some(false) => {
                        tracing::warn!(
                            "not all letters were delivered: another process holds them, or they are behind letters of their group \
                             that are left; run the command again later, or with a filter that leaves none"
                        );
                        return Ok(None);
                    }
                    _ => return Ok(None),
                },
            }
        }
    }

    /// Where nothing can be deleted, the audit trail says which letters are done with.
    async fn without_settled(&mut self, batch: Vec<Delivery>) -> Result<Vec<Delivery>, Error> {
        let subjects: Option<Vec<String>> =
            batch.iter().map(|delivery| subject_of(&delivery.message)).collect();
        let Some(subjects) = subjects else { return Ok(batch) };
        let settled = self.audit.settled(&self.scope, &subjects).await?;
        let is_settled = |index: usize| settled.get(index).copied().unwrap_or(false);
        let (mut open, mut done) = (Vec::new(), Vec::new());
        for (index, delivery) in batch.into_iter().enumerate() {
            match is_settled(index) {
                true => done.push(delivery.tag),
                false => open.push(delivery),
            }
        }
        self.delete(&done).await?;
        Ok(open)
    }

    /// Deletes letters.
    pub(super) async fn delete(&mut self, tags: &[Tag]) -> Result<(), Error> {
        let batch: Vec<_> = tags.iter().map(|tag| (*tag, Settlement::Ack)).collect();
        for (answer, tag) in self.acker.settle(&batch).await.into_iter().zip(tags) {
            answer?;
            self.held.remove(tag);
        }
        Ok(())
    }

    /// Waits, keeping the letters.
    pub(super) async fn wait_until(&mut self, end: Instant) {
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.extend_due().await;
            tokio::time::sleep(left.min(self.heartbeat.unwrap_or(left) / 3)).await;
        }
    }

    /// A letter whose extension fails may be read again, by this command or another; so the failure is no error.
    async fn extend_due(&mut self) {
        let Some(heartbeat) = self.heartbeat else { return };
        if self.extended.elapsed() < heartbeat / 3 || self.held.is_empty() {
            return;
        }
        self.extended = Instant::now();
        let held: Vec<_> = self.held.iter().copied().collect();
        let failed = self.acker.extend(&held).await.into_iter().filter_map(Result::err).next();
        if let Some(error) = failed {
            tracing::warn!(%error, "dead letters could not be kept; they may be read again");
        }
    }

    /// Gives back the letters that were not deleted.
    pub(super) async fn close(mut self) -> Result<(), Error> {
        let held: Vec<_> = self.held.drain().map(|tag| (tag, Settlement::Abandon)).collect();
        let returned = self.acker.settle(&held).await.into_iter().filter_map(Result::err).next();
        let closed = self.from.close().await;
        returned.map_or(closed, Err)
    }
}

/// Identifies a message among those of its queue.
fn identity(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    (message.id(), message.header(HEADER_ID)).hash(&mut hasher);
    message.payload().hash(&mut hasher);
    hasher.finish()
}
