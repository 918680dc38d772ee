//! Settles deliveries on the channel that delivered them, in as few frames as their order allows: [`RabbitmqAcker`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use onceward::adapter::{Acker, Settled, Settlement, Tag};
use onceward::{Error, Message};
use tokio::time::Instant;

use crate::delay_queues::DelayQueues;
use crate::settle::ack_window::{AckWindow, SettleFrame, TagLookup};
use crate::settle::frames::send_frames;
use crate::settle::in_flight::{
    DeliveryKey, DeliveryState, Redelivery, UnsettledDeliveries, build_tag, split_tag,
};
use crate::settle::retry_delays::{DelayedMessage, RetryDelays};

/// The acker of a [`RabbitmqConsumer`](crate::RabbitmqConsumer).
///
/// `Done` means that the acknowledgement was sent, or will be within the ack delay. RabbitMQ does not confirm
/// acknowledgements: one that is lost with its connection shows up as a redelivery, never as an error.
#[derive(Clone)]
pub(crate) struct RabbitmqAcker(Arc<RabbitmqAckerState>);

/// A weak reference to an acker.
pub(crate) struct WeakAcker(Weak<RabbitmqAckerState>);

struct RabbitmqAckerState {
    current: Mutex<CurrentChannel>,
    /// Held from deciding on frames until they are queued, so that frames are sent in the order of the decisions.
    send_order: tokio::sync::Mutex<()>,
    /// The number of waiting acknowledgements that triggers a flush before the ack delay ends.
    flush_threshold: usize,
    delay: Duration,
    retry_delays: Option<RetryDelays>,
}

/// The state of the current channel.
struct CurrentChannel {
    epoch: u64,
    channel: Option<Channel>,
    /// At least one message was delivered on it.
    has_delivered: bool,
    window: AckWindow,
    unsettled: UnsettledDeliveries,
    /// A flush is scheduled.
    flushing: bool,
    /// The channel was closed by us to requeue its deliveries before the ack timeout.
    released: bool,
}

impl RabbitmqAcker {
    pub(crate) fn new(prefetch: u16, delay: Duration, retry_delays: Option<RetryDelays>) -> Self {
        let current = CurrentChannel {
            epoch: 0,
            channel: None,
            has_delivered: false,
            window: AckWindow::new(true),
            unsettled: UnsettledDeliveries::default(),
            flushing: false,
            released: false,
        };
        Self(Arc::new(RabbitmqAckerState {
            current: Mutex::new(current),
            send_order: tokio::sync::Mutex::new(()),
            flush_threshold: usize::from(prefetch / 10).max(1),
            delay,
            retry_delays,
        }))
    }

    pub(crate) fn downgrade(&self) -> WeakAcker {
        WeakAcker(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, CurrentChannel> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches to a new channel. Settlements of the old one are too late from now on, except of messages that were
    /// requeued by us and are redelivered.
    pub(crate) fn attach(&self, channel: Channel, cumulative: bool) {
        let mut current = self.lock();
        current.epoch += 1;
        current.channel = Some(channel);
        current.has_delivered = false;
        current.window = AckWindow::new(cumulative);
        current.released = false;
    }

    /// Detaches and returns the current channel, if there is one. With `forget`, redeliveries of its messages are not
    /// recognised.
    pub(crate) fn detach(&self, forget: bool) -> Option<Channel> {
        let mut current = self.lock();
        let forget = forget && !current.released;
        current.unsettled.channel_ended(forget);
        current.channel.take()
    }

    /// The delay queues, if enabled.
    pub(crate) fn delay_queues(&self) -> Option<&DelayQueues> {
        self.0.retry_delays.as_ref().map(|delays| &delays.queues)
    }

    /// Adds an unsettled delivery of the current channel, which the broker sent no earlier than `since`.
    pub(crate) fn add_unsettled(&self, tag: Tag, message: &Message, since: Instant) {
        self.lock().unsettled.insert((tag.epoch, tag.number), message.clone(), since);
    }

    /// True if messages wait in this process, or are being published to a delay queue.
    pub(crate) fn has_delayed(&self) -> bool {
        self.lock().unsettled.has_delayed()
    }

    /// True if `tag` can still be settled.
    pub(crate) fn is_current(&self, tag: Tag) -> bool {
        self.lock().unsettled.current(tag).is_some()
    }

    /// True if the channel was closed by us to requeue its deliveries.
    pub(crate) fn is_released(&self) -> bool {
        self.lock().released
    }

    /// True if a message was delivered on the latest channel.
    pub(crate) fn has_delivered(&self) -> bool {
        self.lock().has_delivered
    }

    /// True if a channel is attached.
    pub(crate) fn has_channel(&self) -> bool {
        self.lock().channel.is_some()
    }

    /// Records deliveries of the current channel, which the broker sent no earlier than `since`. Removes those that the
    /// pipeline has already, and returns their epoch.
    pub(crate) fn delivered(&self, deliveries: &mut Vec<lapin::message::Delivery>, since: Instant) -> u64 {
        let mut resettled = Vec::new();
        let mut current = self.lock();
        current.has_delivered |= !deliveries.is_empty();
        let CurrentChannel { window, unsettled, .. } = &mut *current;
        deliveries.retain(|delivery| {
            window.delivered(delivery.delivery_tag);
            match unsettled.match_redelivery(delivery, since) {
                None => return true,
                Some(Redelivery::Unsettled) => {}
                Some(Redelivery::Settled(settlement)) => resettled.push((delivery.delivery_tag, settlement)),
            }
            false
        });
        let epoch = current.epoch;
        drop(current);
        if !resettled.is_empty() {
            tokio::spawn(self.clone().settle_on_broker(epoch, resettled));
        }
        epoch
    }

    /// Settles redeliveries of messages that were settled while they were requeued.
    async fn settle_on_broker(self, epoch: u64, resettled: Vec<(u64, Settlement)>) {
        let _order = self.0.send_order.lock().await;
        let (channel, frames) = {
            let mut current = self.lock();
            if current.epoch != epoch {
                return;
            }
            let mut frames = Vec::new();
            for (tag, settlement) in resettled {
                current.window.settle(tag, settlement, &mut frames);
            }
            frames.extend(current.window.take_prefix());
            current.window.drain_acked(&mut frames);
            (current.channel.clone(), frames)
        };
        if let Some(channel) = channel {
            send_frames(&channel, &frames).await;
        }
    }

    /// Sends all waiting acknowledgements.
    pub(crate) async fn flush(&self) {
        let _order = self.0.send_order.lock().await;
        let (channel, frames) = {
            let mut current = self.lock();
            let mut frames = Vec::from_iter(current.window.take_prefix());
            current.window.drain_acked(&mut frames);
            (current.channel.clone(), frames)
        };
        if let Some(channel) = channel {
            send_frames(&channel, &frames).await;
        }
    }

    async fn flush_later(self) {
        tokio::time::sleep(self.0.delay).await;
        self.lock().flushing = false;
        self.flush().await;
    }

    /// When the oldest delivery was received, and how many the broker counts as unacknowledged.
    pub(crate) fn oldest(&self) -> (Option<Instant>, usize) {
        let mut current = self.lock();
        current.unsettled.remove_expired();
        (current.unsettled.oldest(), current.unsettled.unacknowledged())
    }

    /// Requeues the deliveries received before `then`, one by one: the broker redelivers them immediately and restarts
    /// their ack timeout. Returns the delivery count of each.
    pub(crate) async fn release_before(&self, then: Instant) -> Vec<u32> {
        let _order = self.0.send_order.lock().await;
        let (channel, frames, counts) = {
            let mut current = self.lock();
            let CurrentChannel { window, unsettled, channel, .. } = &mut *current;
            let Some(channel) = channel.clone() else { return Vec::new() };
            // Acknowledgements first: a cumulative frame must not include what is requeued after it.
            let mut frames = Vec::from_iter(window.take_prefix());
            window.drain_acked(&mut frames);
            let mut counts = Vec::new();
            for (tag, count) in unsettled.release_before(then) {
                window.settle(tag, Settlement::Abandon, &mut frames);
                counts.push(count);
            }
            (channel, frames, counts)
        };
        send_frames(&channel, &frames).await;
        counts
    }

    /// Detaches and returns the channel, to be closed, so that the broker requeues all its deliveries; those that the
    /// pipeline has are recognised when they are redelivered.
    pub(crate) async fn release_all(&self) -> Option<Channel> {
        self.flush().await;
        let _order = self.0.send_order.lock().await;
        let mut current = self.lock();
        let channel = current.channel.take()?;
        current.unsettled.channel_ended(false);
        current.released = true;
        Some(channel)
    }

    fn decide(&self, batch: &[(Tag, Settlement)]) -> (Vec<Settled>, Vec<SettleFrame>, Option<Channel>, bool) {
        let mut current = self.lock();
        let CurrentChannel { epoch, channel, window, flushing, unsettled, .. } = &mut *current;
        let mut frames = Vec::new();
        let mut settle = |(tag, settlement): &(Tag, Settlement)| {
            let (_, key) = split_tag(*tag);
            if unsettled.contains(key) {
                if unsettled.current(*tag).is_some()
                    && let Some(broker_tag) = unsettled.settle(key, *settlement)
                {
                    window.settle(broker_tag, *settlement, &mut frames);
                }
                // A later round is under way, or the message is requeued: settling again changes nothing.
                return Settled::Done;
            }
            // A settlement may be repeated.
            let ours = channel.is_some() && tag.epoch == *epoch;
            match ours.then(|| window.lookup(key.1)) {
                Some(TagLookup::Known) => Settled::Done,
                Some(TagLookup::Unknown) | None => Settled::TooLate,
            }
        };
        let settled = batch.iter().map(&mut settle).collect();
        frames.extend(window.take_prefix());
        if window.waiting() >= self.0.flush_threshold || self.0.delay.is_zero() {
            window.drain_acked(&mut frames);
        }
        let start_flushing = window.waiting() > 0 && !*flushing;
        *flushing |= start_flushing;
        (settled, frames, channel.clone(), start_flushing)
    }

    /// Sends settlements immediately, or acknowledgements within the ack delay.
    async fn send_settlements(&self, batch: &[(Tag, Settlement)]) -> Vec<Settled> {
        let _order = self.0.send_order.lock().await;
        let (mut settled, frames, channel, start_flushing) = self.decide(batch);
        if start_flushing {
            tokio::spawn(self.clone().flush_later());
        }
        if let Some(channel) = channel
            && !send_frames(&channel, &frames).await
        {
            // The channel is closed, and everything that was not sent is lost with it.
            settled.fill(Settled::TooLate);
        }
        settled
    }

    /// Separates the retries to be delayed. `true`: the message is delayed, now or by an earlier call.
    fn take_retries(&self, batch: &[(Tag, Settlement)]) -> (Vec<bool>, Vec<DelayedMessage>) {
        let mut current = self.lock();
        let mut later = Vec::new();
        let mut waits = |(tag, settlement): &(Tag, Settlement)| {
            let (_, key) = split_tag(*tag);
            if !current.unsettled.contains(key) {
                return false;
            }
            // A repeated settlement of an earlier round changes nothing; the message is delayed once.
            let Some(entry) = current.unsettled.current(*tag) else { return true };
            let Settlement::Retry { after } = *settlement else { return false };
            entry.state = DeliveryState::AwaitingRetry;
            later.push(DelayedMessage { key, message: entry.message.clone(), after });
            true
        };
        (batch.iter().map(&mut waits).collect(), later)
    }

    /// Publishes messages to the delay queues and acknowledges those that the broker confirmed. The others, and those
    /// with a short delay, are held in this process; their deliveries stay unacknowledged.
    async fn delay(self, later: Vec<DelayedMessage>) {
        let Some(RetryDelays { queues, .. }) = &self.0.retry_delays else { return };
        let started = Instant::now();
        let hold = |later: DelayedMessage| drop(tokio::spawn(self.clone().hold_in_process(later, started)));
        let (forwarded, held): (Vec<_>, Vec<_>) =
            later.into_iter().partition(|later| queues.accepts(&later.message, later.after));
        held.into_iter().for_each(hold);
        if forwarded.is_empty() {
            return;
        }
        let mut failed = None;
        let results = queues.publish(forwarded.iter().map(|later| (&later.message, later.after))).await;
        let mut confirmed = Vec::with_capacity(forwarded.len());
        for (later, result) in forwarded.into_iter().zip(results) {
            match result {
                Ok(()) => confirmed.push(later.key),
                Err(error) => {
                    failed = Some(error);
                    hold(later);
                }
            }
        }
        if let Some(error) = failed {
            tracing::debug!(?error, "publishing to delay queues failed; messages held in this process");
        }
        self.ack_delayed(confirmed).await;
    }

    /// Acknowledges the originals of messages that the broker confirmed in a delay queue.
    async fn ack_delayed(&self, keys: Vec<DeliveryKey>) {
        let batch: Vec<_> = {
            let mut current = self.lock();
            let mut back = |key: DeliveryKey| {
                let entry = current.unsettled.get_mut(key)?;
                entry.state = DeliveryState::InPipeline;
                Some((build_tag(key, entry.round), Settlement::Ack))
            };
            keys.into_iter().filter_map(&mut back).collect()
        };
        self.send_settlements(&batch).await;
    }

    /// Holds a message in this process for its delay, then delivers it again without the broker.
    async fn hold_in_process(self, later: DelayedMessage, started: Instant) {
        let Some(RetryDelays { redeliveries, .. }) = &self.0.retry_delays else { return };
        tokio::time::sleep_until(later.due(started)).await;
        let tag = {
            let mut current = self.lock();
            let Some(entry) = current.unsettled.get_mut(later.key) else { return };
            entry.round = entry.round.wrapping_add(1);
            entry.state = DeliveryState::InPipeline;
            build_tag(later.key, entry.round)
        };
        let _ = redeliveries.send((tag, later.message));
    }
}

impl WeakAcker {
    /// The acker, if it is still in use.
    pub(crate) fn upgrade(&self) -> Option<RabbitmqAcker> {
        self.0.upgrade().map(RabbitmqAcker)
    }
}

#[async_trait]
impl Acker for RabbitmqAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        if self.0.retry_delays.is_none() {
            return self.send_settlements(batch).await.into_iter().map(Ok).collect();
        }
        let (waits, later) = self.take_retries(batch);
        if !later.is_empty() {
            tokio::spawn(self.clone().delay(later));
        }
        let now: Vec<_> =
            batch.iter().zip(&waits).filter(|(_, waits)| !**waits).map(|(item, _)| *item).collect();
        let mut results = self.send_settlements(&now).await.into_iter();
        let result = |waits| if waits { Settled::Done } else { results.next().unwrap_or(Settled::TooLate) };
        waits.into_iter().map(result).map(Ok).collect()
    }
}
