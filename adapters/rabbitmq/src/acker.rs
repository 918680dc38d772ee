//! Settles deliveries on the channel they came on, in as few frames as their order allows: [`RabbitAcker`].

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{MaybeDone, maybe_done};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use onceward::{Acker, Error, Settled, Settlement, Tag};

use crate::window::{Frame, Noted, Window};

/// The acker of a [`RabbitConsumer`](crate::RabbitConsumer).
///
/// `Done` means that the acknowledgement is on its way to the broker, or will be within the ack delay. RabbitMQ confirms no
/// acknowledgement: one that a dying connection swallows is seen as a redelivery, never as an error.
#[derive(Clone)]
pub(crate) struct RabbitAcker(Arc<Inner>);

struct Inner {
    current: Mutex<Current>,
    /// Frames go out in the order in which they were decided on: whoever decides holds this until they are queued.
    wire: tokio::sync::Mutex<()>,
    /// So many acknowledgements do not wait any longer.
    most_waiting: usize,
    delay: Duration,
}

/// The channel that deliveries come on now.
struct Current {
    epoch: u64,
    channel: Option<Channel>,
    window: Window,
    /// A task will flush what waits.
    flushing: bool,
}

impl RabbitAcker {
    pub(crate) fn new(prefetch: u16, delay: Duration) -> Self {
        let current = Current { epoch: 0, channel: None, window: Window::new(true), flushing: false };
        Self(Arc::new(Inner {
            current: Mutex::new(current),
            wire: tokio::sync::Mutex::new(()),
            most_waiting: usize::from(prefetch / 10).max(1),
            delay,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes over to a new channel; what is still to be settled on the old one is too late.
    pub(crate) fn attach(&self, channel: Channel, cumulative: bool) {
        let mut current = self.lock();
        current.epoch += 1;
        current.channel = Some(channel);
        current.window = Window::new(cumulative);
    }

    /// Lets go of the channel; answers it, if it was not let go of before.
    pub(crate) fn detach(&self) -> Option<Channel> {
        self.lock().channel.take()
    }

    /// Notes deliveries of the current channel and answers their epoch.
    pub(crate) fn delivered(&self, tags: impl Iterator<Item = u64>) -> u64 {
        let mut current = self.lock();
        tags.for_each(|tag| current.window.delivered(tag));
        current.epoch
    }

    /// Sends what waits.
    pub(crate) async fn flush(&self) {
        let _wire = self.0.wire.lock().await;
        let (channel, frames) = {
            let mut current = self.lock();
            let mut frames = Vec::from_iter(current.window.prefix());
            current.window.stragglers(&mut frames);
            (current.channel.clone(), frames)
        };
        if let Some(channel) = channel {
            send(&channel, &frames).await;
        }
    }

    async fn flush_later(self) {
        tokio::time::sleep(self.0.delay).await;
        self.lock().flushing = false;
        self.flush().await;
    }

    fn decide(&self, batch: &[(Tag, Settlement)]) -> (Vec<Settled>, Vec<Frame>, Option<Channel>, bool) {
        let mut current = self.lock();
        let Current { epoch, channel, window, flushing } = &mut *current;
        let mut frames = Vec::new();
        let mut settle = |(tag, settlement): &(Tag, Settlement)| {
            let ours = channel.is_some() && tag.epoch == *epoch;
            match ours.then(|| window.settle(tag.number, *settlement, &mut frames)) {
                Some(Noted::Taken) => Settled::Done,
                Some(Noted::Unknown) | None => Settled::TooLate,
            }
        };
        let settled = batch.iter().map(&mut settle).collect();
        frames.extend(window.prefix());
        if window.waiting() >= self.0.most_waiting || self.0.delay.is_zero() {
            window.stragglers(&mut frames);
        }
        let start_flushing = window.waiting() > 0 && !*flushing;
        *flushing |= start_flushing;
        (settled, frames, channel.clone(), start_flushing)
    }
}

#[async_trait]
impl Acker for RabbitAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        let _wire = self.0.wire.lock().await;
        let (mut settled, frames, channel, start_flushing) = self.decide(batch);
        if start_flushing {
            tokio::spawn(self.clone().flush_later());
        }
        if let Some(channel) = channel
            && !send(&channel, &frames).await
        {
            // The channel is gone, and with it everything that was not on the wire.
            settled.fill(Settled::TooLate);
        }
        settled.into_iter().map(Ok).collect()
    }
}

/// Queues the frames, all at once and in order, then waits until they are written. False: the channel is closed.
///
/// # Cancel safety
/// All frames are queued by the first poll; a dropped call only does not hear how it ended.
async fn send(channel: &Channel, frames: &[Frame]) -> bool {
    let mut sent: Vec<Pin<Box<MaybeDone<_>>>> =
        frames.iter().map(|frame| Box::pin(maybe_done(tell(channel, *frame)))).collect();
    for sending in &mut sent {
        let _ = futures_util::poll!(sending);
    }
    let mut open = true;
    for mut sending in sent {
        sending.as_mut().await;
        if let Some(Err(error)) = sending.as_mut().take_output() {
            tracing::debug!(%error, "a settlement did not reach the broker; the message comes again");
            open = false;
        }
    }
    open
}

async fn tell(channel: &Channel, frame: Frame) -> lapin::Result<()> {
    match frame {
        Frame::Ack { tag, multiple } => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
        Frame::Requeue { tag } => {
            channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
        }
        Frame::Reject { tag } => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
    }
}
