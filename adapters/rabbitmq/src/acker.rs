//! Settles deliveries on the channel they came on, in as few frames as their order allows: [`RabbitAcker`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{MaybeDone, maybe_done};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use onceward::{Acker, Error, Message, Settled, Settlement, Tag};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::wait::{Kept, WaitRoom};
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
    waiting: Option<Waiting>,
}

/// What is needed to let messages wait for their next attempt: in the broker, or here.
pub(crate) struct Waiting {
    pub(crate) room: WaitRoom,
    /// Where those go that waited here.
    pub(crate) again: UnboundedSender<(Tag, Message)>,
}

/// The channel that deliveries come on now.
struct Current {
    epoch: u64,
    channel: Option<Channel>,
    window: Window,
    /// What was delivered and is not settled, by its tag on the wire. Empty without a wait room.
    kept: HashMap<u64, Entry>,
    /// A task will flush what waits.
    flushing: bool,
}

impl RabbitAcker {
    pub(crate) fn new(prefetch: u16, delay: Duration, waiting: Option<Waiting>) -> Self {
        let current = Current {
            epoch: 0,
            channel: None,
            window: Window::new(true),
            kept: HashMap::new(),
            flushing: false,
        };
        Self(Arc::new(Inner {
            current: Mutex::new(current),
            wire: tokio::sync::Mutex::new(()),
            most_waiting: usize::from(prefetch / 10).max(1),
            delay,
            waiting,
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
        current.kept.clear();
    }

    /// Lets go of the channel; answers it, if it was not let go of before.
    pub(crate) fn detach(&self) -> Option<Channel> {
        let mut current = self.lock();
        current.kept.clear();
        current.channel.take()
    }

    /// The wait room, if deliveries are to be kept with [`keep`](Self::keep).
    pub(crate) fn wait_room(&self) -> Option<&WaitRoom> {
        self.0.waiting.as_ref().map(|waiting| &waiting.room)
    }

    /// Keeps what was delivered as `tag` until it is settled.
    pub(crate) fn keep(&self, tag: u64, kept: Kept) {
        self.lock().kept.insert(tag, Entry { round: 0, kept: Some(kept) });
    }

    /// True if messages wait in this process, or are on their way to a wait queue.
    pub(crate) fn holds_some(&self) -> bool {
        self.lock().kept.values().any(|entry| entry.kept.is_none())
    }

    /// True if `tag` is of the channel that deliveries come on now.
    pub(crate) fn is_current(&self, tag: Tag) -> bool {
        let current = self.lock();
        current.channel.is_some() && tag.epoch == current.epoch
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
        let Current { epoch, channel, window, flushing, kept } = &mut *current;
        let mut frames = Vec::new();
        let mut settle = |(tag, settlement): &(Tag, Settlement)| {
            let ours = channel.is_some() && tag.epoch == *epoch;
            if ours && !kept.is_empty() {
                kept.remove(&tag.number);
            }
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

impl RabbitAcker {
    /// Tells the broker at once, or within the ack delay.
    async fn tell(&self, batch: &[(Tag, Settlement)]) -> Vec<Settled> {
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
        settled
    }

    /// Takes out what is to wait. `true`: it waits, or did so before.
    fn divide(&self, batch: &[(Tag, Settlement)]) -> (Vec<bool>, Vec<Held>) {
        let mut current = self.lock();
        let ours = current.channel.is_some();
        let epoch = current.epoch;
        let mut later = Vec::new();
        let mut waits = |(tag, settlement): &(Tag, Settlement)| {
            let (round, number) = split(*tag);
            let entry = Some(number).filter(|_| ours && tag.epoch == epoch);
            let Some(entry) = entry.and_then(|number| current.kept.get_mut(&number)) else { return false };
            // What was settled before it came once more may be repeated; the message waits once.
            if entry.round != round || entry.kept.is_none() {
                return true;
            }
            let Settlement::Retry { after } = *settlement else { return false };
            if let Some(kept) = entry.kept.take() {
                later.push(Held { tag: Tag { number, ..*tag }, kept, after });
            }
            true
        };
        (batch.iter().map(&mut waits).collect(), later)
    }

    /// Sends messages to the wait room and acknowledges those that the broker confirmed there. The others, and those that
    /// wait for a short time only, wait in this process: their deliveries stay unacknowledged.
    async fn wait(self, later: Vec<Held>) {
        let Some(Waiting { room, .. }) = &self.0.waiting else { return };
        let started = Instant::now();
        let hold = |held: Held| drop(tokio::spawn(self.clone().hold(held, started)));
        let (travel, stay): (Vec<_>, Vec<_>) =
            later.into_iter().partition(|held| room.takes(&held.kept, held.after));
        stay.into_iter().for_each(hold);
        if travel.is_empty() {
            return;
        }
        let mut confirmed = Vec::with_capacity(travel.len());
        let mut failed = None;
        let results = room.put(travel.iter().map(|held| (&held.kept, held.after))).await;
        for (held, result) in travel.into_iter().zip(results) {
            match result {
                Ok(()) => confirmed.push((held.tag, Settlement::Ack)),
                Err(error) => {
                    failed = Some(error);
                    hold(held);
                }
            }
        }
        if let Some(error) = failed {
            tracing::warn!(?error, "messages cannot wait in the broker; they wait in this process");
        }
        self.tell(&confirmed).await;
    }

    /// Waits here, then delivers the message once more, without the broker.
    async fn hold(self, held: Held, started: Instant) {
        let Some(Waiting { again, .. }) = &self.0.waiting else { return };
        let due = started.checked_add(held.after).unwrap_or(started + LONGEST_HOLD);
        tokio::time::sleep_until(due).await;
        let message = held.kept.message.clone();
        let tag = {
            let mut current = self.lock();
            let entry = Some(held.tag).filter(|tag| tag.epoch == current.epoch);
            let Some(entry) = entry.and_then(|tag| current.kept.get_mut(&tag.number)) else { return };
            entry.round = entry.round.wrapping_add(1);
            entry.kept = Some(held.kept);
            Tag { number: u64::from(entry.round) << ROUND_SHIFT | held.tag.number, ..held.tag }
        };
        let _ = again.send((tag, message));
    }
}

/// A delivery that is kept.
struct Entry {
    /// How often it waited here; each time it comes under another tag.
    round: u16,
    /// `None` while it waits.
    kept: Option<Kept>,
}

/// Above the tag on the wire: 2^48 messages of one channel are years of them.
const ROUND_SHIFT: u32 = 48;

fn on_wire((tag, settlement): (Tag, Settlement)) -> (Tag, Settlement) {
    (Tag { number: split(tag).1, ..tag }, settlement)
}

/// The round and the tag on the wire.
fn split(tag: Tag) -> (u16, u64) {
    let round = u16::try_from(tag.number >> ROUND_SHIFT).unwrap_or(u16::MAX);
    (round, tag.number & ((1 << ROUND_SHIFT) - 1))
}

/// A message that waits for its next attempt.
struct Held {
    /// As on the wire.
    tag: Tag,
    kept: Kept,
    after: Duration,
}

/// What a handler may ask for has no limit; what a clock can add has.
const LONGEST_HOLD: Duration = Duration::from_secs(365 * 24 * 3600);

#[async_trait]
impl Acker for RabbitAcker {
    async fn settle(&self, batch: &[(Tag, Settlement)]) -> Vec<Result<Settled, Error>> {
        if self.0.waiting.is_none() {
            return self.tell(batch).await.into_iter().map(Ok).collect();
        }
        let (waits, later) = self.divide(batch);
        if !later.is_empty() {
            tokio::spawn(self.clone().wait(later));
        }
        let now: Vec<_> =
            batch.iter().zip(&waits).filter(|(_, waits)| !**waits).map(|(item, _)| on_wire(*item)).collect();
        let mut told = self.tell(&now).await.into_iter();
        let result = |waits| if waits { Settled::Done } else { told.next().unwrap_or(Settled::TooLate) };
        waits.into_iter().map(result).map(Ok).collect()
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
