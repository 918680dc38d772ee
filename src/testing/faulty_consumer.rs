//! A consumer with injected faults: [`FaultyConsumer`].

use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::faults::{FaultPlan, Operation};
use super::process::Process;
use crate::consumer::{Acker, Capabilities, Consumer, FlowControl, Notice, Settled};
use crate::delivery::{Delivery, Settlement, Tag};
use crate::error::{Error, ErrorKind};
use crate::telemetry::SourceHealth;

/// Wraps a consumer and its acker. Its faults are those of a [`FaultPlan`], which it derefs to: a settlement whose reply
/// is lost is applied and reported as failed.
#[derive(Debug)]
pub struct FaultyConsumer<C> {
    inner: C,
    plan: Arc<FaultPlan>,
    change: Option<fn(&mut Capabilities)>,
}

impl<C: Consumer> FaultyConsumer<C> {
    /// Around `inner`, in `process`, without a fault so far.
    pub fn new(inner: C, process: &Process) -> Self {
        Self { inner, plan: Arc::new(FaultPlan::new(super::Faults::NONE, process)), change: None }
    }

    /// Declares other capabilities than the broker's own.
    #[must_use]
    pub fn claiming(mut self, change: fn(&mut Capabilities)) -> Self {
        self.change = Some(change);
        self
    }

    /// The faults, to be changed while the consumer is in use.
    pub fn plan(&self) -> Arc<FaultPlan> {
        Arc::clone(&self.plan)
    }
}

impl<C> Deref for FaultyConsumer<C> {
    type Target = FaultPlan;

    fn deref(&self) -> &FaultPlan {
        &self.plan
    }
}

#[async_trait]
impl<C: Consumer + Sync> Consumer for FaultyConsumer<C> {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        if let Some(change) = self.change {
            change(&mut capabilities);
        }
        capabilities
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(FaultyAcker { inner: self.inner.acker(), plan: Arc::clone(&self.plan) })
    }

    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        // A received delivery reaches the caller in the same step: a stop in between would lose it.
        let process = self.plan.process().clone();
        let planned = self.plan.call(Operation::Receive, Vec::new, |()| Vec::new(), async {}).await;
        planned?;
        process.inside(self.inner.receive()).await
    }

    async fn is_idle(&mut self) -> Option<bool> {
        self.inner.is_idle().await
    }

    fn flow(&self) -> Option<Arc<dyn FlowControl>> {
        self.inner.flow()
    }

    fn notices(&mut self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        self.inner.notices()
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        self.inner.health()
    }

    async fn close(&mut self) -> Result<(), Error> {
        if self.plan.process().is_stopped() {
            return Ok(());
        }
        self.inner.close().await
    }
}

struct FaultyAcker {
    inner: Arc<dyn Acker>,
    plan: Arc<FaultPlan>,
}

type Answers = Vec<Result<Settled, Error>>;

fn spread(answers: Result<Answers, Error>, count: usize) -> Answers {
    answers.unwrap_or_else(|error| (0..count).map(|_| Err(error.clone())).collect())
}

#[async_trait]
impl Acker for FaultyAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Answers {
        let stuck = |tag: &Tag| self.plan.fails_item(tag.number);
        let sound: Vec<_> = batch.iter().filter(|(tag, _)| !stuck(tag)).copied().collect();
        let apply = self.inner.settle(&sound);
        let printed = |answers: &Answers| answers.iter().map(|answer| format!("{answer:?}")).collect();
        let answers = self.plan.call(Operation::Settle, Vec::new, printed, apply).await;
        let mut answers = spread(answers, sound.len()).into_iter();
        let refused = || Error::new(ErrorKind::Unavailable, "settle a delivery", "a seeded fault");
        batch
            .iter()
            .filter_map(|(tag, _)| if stuck(tag) { Some(Err(refused())) } else { answers.next() })
            .collect()
    }

    async fn extend(&self, tags: &[Tag]) -> Answers {
        let apply = self.inner.extend(tags);
        let printed = |answers: &Answers| answers.iter().map(|answer| format!("{answer:?}")).collect();
        spread(self.plan.call(Operation::Extend, Vec::new, printed, apply).await, tags.len())
    }
}
