//! Settles deliveries on the channel they came on, in as few frames as their order allows: [`RabbitAcker`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use onceward::{Acker, Error, Message, Settled, Settlement, Tag};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::frames::send;
use crate::held::{Held, Name, Place, Returned, split, tag};
use crate::wait::WaitRoom;
use crate::window::{Frame, Noted, Window};

/// The acker of a [`RabbitConsumer`](crate::RabbitConsumer).
///
/// `Done` means that the acknowledgement is on its way to the broker, or will be within the ack delay. RabbitMQ confirms no
/// acknowledgement: one that a dying connection swallows is seen as a redelivery, never as an error.
#[derive(Clone)]
pub(crate) struct RabbitAcker(Arc<Inner>);

/// An acker that does not keep it alive.
pub(crate) struct WeakAcker(Weak<Inner>);

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
    /// Something was delivered on it.
    has_delivered: bool,
    window: Window,
    held: Held,
    /// A task will flush what waits.
    flushing: bool,
    /// The channel was closed by us, so that the broker gets back what it would take back soon.
    given_back: bool,
}

impl RabbitAcker {
    pub(crate) fn new(prefetch: u16, delay: Duration, waiting: Option<Waiting>) -> Self {
        let current = Current {
            epoch: 0,
            channel: None,
            has_delivered: false,
            window: Window::new(true),
            held: Held::default(),
            flushing: false,
            given_back: false,
        };
        Self(Arc::new(Inner {
            current: Mutex::new(current),
            wire: tokio::sync::Mutex::new(()),
            most_waiting: usize::from(prefetch / 10).max(1),
            delay,
            waiting,
        }))
    }

    pub(crate) fn downgrade(&self) -> WeakAcker {
        WeakAcker(Arc::downgrade(&self.0))
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes over to a new channel; what is still to be settled on the old one is too late, unless it was given back in order
    /// and returns.
    pub(crate) fn attach(&self, channel: Channel, cumulative: bool) {
        let mut current = self.lock();
        current.epoch += 1;
        current.channel = Some(channel);
        current.has_delivered = false;
        current.window = Window::new(cumulative);
        current.given_back = false;
    }

    /// Lets go of the channel; answers it, if it was not let go of before. With `forget`, messages that return are not
    /// recognised.
    pub(crate) fn detach(&self, forget: bool) -> Option<Channel> {
        let mut current = self.lock();
        let forget = forget && !current.given_back;
        current.held.channel_ended(forget);
        current.channel.take()
    }

    /// The wait room, if there is one.
    pub(crate) fn wait_room(&self) -> Option<&WaitRoom> {
        self.0.waiting.as_ref().map(|waiting| &waiting.room)
    }

    /// Notes that `tag` of the current channel was delivered as this message, no earlier than `since`.
    pub(crate) fn keep(&self, tag: Tag, message: &Message, since: Instant) {
        self.lock().held.insert((tag.epoch, tag.number), message.clone(), since);
    }

    /// True if messages wait in this process, or are on their way to a wait queue.
    pub(crate) fn holds_some(&self) -> bool {
        self.lock().held.holds_some()
    }

    /// True if `tag` can still be settled.
    pub(crate) fn is_current(&self, tag: Tag) -> bool {
        self.lock().held.current(tag).is_some()
    }

    /// True if the channel was closed by us, to give back what it held.
    pub(crate) fn is_given_back(&self) -> bool {
        self.lock().given_back
    }

    /// True if something was delivered on the last channel.
    pub(crate) fn has_delivered(&self) -> bool {
        self.lock().has_delivered
    }

    /// True if deliveries come on a channel.
    pub(crate) fn has_channel(&self) -> bool {
        self.lock().channel.is_some()
    }

    /// Notes deliveries of the current channel, sent no earlier than `since`; answers their epoch and takes out those that the
    /// pipeline has already.
    pub(crate) fn delivered(&self, deliveries: &mut Vec<lapin::message::Delivery>, since: Instant) -> u64 {
        let mut late = Vec::new();
        let mut current = self.lock();
        current.has_delivered |= !deliveries.is_empty();
        let Current { window, held, .. } = &mut *current;
        deliveries.retain(|delivery| {
            window.delivered(delivery.delivery_tag);
            match held.returned(delivery, since) {
                None => return true,
                Some(Returned::Held) => {}
                Some(Returned::Settled(settlement)) => late.push((delivery.delivery_tag, settlement)),
            }
            false
        });
        let epoch = current.epoch;
        drop(current);
        if !late.is_empty() {
            tokio::spawn(self.clone().settle_on_wire(epoch, late));
        }
        epoch
    }

    /// Settles deliveries that no tag of the pipeline's stands for any more.
    async fn settle_on_wire(self, epoch: u64, late: Vec<(u64, Settlement)>) {
        let _wire = self.0.wire.lock().await;
        let (channel, frames) = {
            let mut current = self.lock();
            if current.epoch != epoch {
                return;
            }
            let mut frames = Vec::new();
            for (tag, settlement) in late {
                current.window.settle(tag, settlement, &mut frames);
            }
            frames.extend(current.window.prefix());
            current.window.stragglers(&mut frames);
            (current.channel.clone(), frames)
        };
        if let Some(channel) = channel {
            send(&channel, &frames).await;
        }
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

    /// When the oldest delivery came, and how many the broker counts as unacknowledged.
    pub(crate) fn oldest(&self) -> (Option<Instant>, usize) {
        let mut current = self.lock();
        current.held.tidy();
        (current.held.oldest(), current.held.on_wire())
    }

    /// Gives those back that came before `then`, one by one: the broker sends them again at once, and its clock for them
    /// starts again. Answers, for each, how often it was delivered.
    pub(crate) async fn give_back(&self, then: Instant) -> Vec<u32> {
        let _wire = self.0.wire.lock().await;
        let (channel, frames, counts) = {
            let mut current = self.lock();
            let Current { window, held, channel, .. } = &mut *current;
            let Some(channel) = channel.clone() else { return Vec::new() };
            // What is to be acknowledged goes first: a frame for many must not pass over what is given back after it.
            let mut frames = Vec::from_iter(window.prefix());
            window.stragglers(&mut frames);
            let mut counts = Vec::new();
            for (tag, count) in held.give_back(then) {
                window.settle(tag, Settlement::Abandon, &mut frames);
                counts.push(count);
            }
            (channel, frames, counts)
        };
        send(&channel, &frames).await;
        counts
    }

    /// Lets go of the channel, so that the broker gets all back; what the pipeline has is recognised when it returns.
    /// Answers the channel, to be closed.
    pub(crate) async fn give_all_back(&self) -> Option<Channel> {
        self.flush().await;
        let _wire = self.0.wire.lock().await;
        let mut current = self.lock();
        let channel = current.channel.take()?;
        current.held.channel_ended(false);
        current.given_back = true;
        Some(channel)
    }

    fn decide(&self, batch: &[(Tag, Settlement)]) -> (Vec<Settled>, Vec<Frame>, Option<Channel>, bool) {
        let mut current = self.lock();
        let Current { epoch, channel, window, flushing, held, .. } = &mut *current;
        let mut frames = Vec::new();
        let mut settle = |(tag, settlement): &(Tag, Settlement)| {
            let (_, name) = split(*tag);
            if held.contains(name) {
                if held.current(*tag).is_some()
                    && let Some(wire) = held.settle(name, *settlement)
                {
                    window.settle(wire, *settlement, &mut frames);
                }
                // Another round of it is under way, or the broker has it: said once, a settlement counts.
                return Settled::Done;
            }
            // What was settled before may be repeated.
            let ours = channel.is_some() && tag.epoch == *epoch;
            match ours.then(|| window.knows(name.1)) {
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
    fn divide(&self, batch: &[(Tag, Settlement)]) -> (Vec<bool>, Vec<Later>) {
        let mut current = self.lock();
        let mut later = Vec::new();
        let mut waits = |(tag, settlement): &(Tag, Settlement)| {
            let (_, name) = split(*tag);
            if !current.held.contains(name) {
                return false;
            }
            // What was settled before it came once more may be repeated; the message waits once.
            let Some(entry) = current.held.current(*tag) else { return true };
            let Settlement::Retry { after } = *settlement else { return false };
            entry.place = Place::Waiting;
            later.push(Later { name, message: entry.message.clone(), after });
            true
        };
        (batch.iter().map(&mut waits).collect(), later)
    }

    /// Sends messages to the wait room and acknowledges those that the broker confirmed there. The others, and those that
    /// wait for a short time only, wait in this process: their deliveries stay unacknowledged.
    async fn wait(self, later: Vec<Later>) {
        let Some(Waiting { room, .. }) = &self.0.waiting else { return };
        let started = Instant::now();
        let hold = |later: Later| drop(tokio::spawn(self.clone().hold(later, started)));
        let (travel, stay): (Vec<_>, Vec<_>) =
            later.into_iter().partition(|later| room.takes(&later.message, later.after));
        stay.into_iter().for_each(hold);
        if travel.is_empty() {
            return;
        }
        let mut failed = None;
        let results = room.put(travel.iter().map(|later| (&later.message, later.after))).await;
        let mut confirmed = Vec::with_capacity(travel.len());
        for (later, result) in travel.into_iter().zip(results) {
            match result {
                Ok(()) => confirmed.push(later.name),
                Err(error) => {
                    failed = Some(error);
                    hold(later);
                }
            }
        }
        if let Some(error) = failed {
            tracing::debug!(?error, "messages cannot wait in the broker; they wait in this process");
        }
        self.travelled(confirmed).await;
    }

    /// Acknowledges the originals of messages that the broker confirmed in a wait queue.
    async fn travelled(&self, names: Vec<Name>) {
        let batch: Vec<_> = {
            let mut current = self.lock();
            let mut back = |name: Name| {
                let entry = current.held.get_mut(name)?;
                entry.place = Place::Pipeline;
                Some((tag(name, entry.round), Settlement::Ack))
            };
            names.into_iter().filter_map(&mut back).collect()
        };
        self.tell(&batch).await;
    }

    /// Waits here, then delivers the message once more, without the broker.
    async fn hold(self, later: Later, started: Instant) {
        let Some(Waiting { again, .. }) = &self.0.waiting else { return };
        let due = started.checked_add(later.after).unwrap_or(started + LONGEST_HOLD);
        tokio::time::sleep_until(due).await;
        let tag = {
            let mut current = self.lock();
            let Some(entry) = current.held.get_mut(later.name) else { return };
            entry.round = entry.round.wrapping_add(1);
            entry.place = Place::Pipeline;
            tag(later.name, entry.round)
        };
        let _ = again.send((tag, later.message));
    }
}

impl WeakAcker {
    /// The acker, if it is still in use.
    pub(crate) fn upgrade(&self) -> Option<RabbitAcker> {
        self.0.upgrade().map(RabbitAcker)
    }
}

/// A message that waits for its next attempt.
struct Later {
    name: Name,
    message: Message,
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
            batch.iter().zip(&waits).filter(|(_, waits)| !**waits).map(|(item, _)| *item).collect();
        let mut told = self.tell(&now).await.into_iter();
        let result = |waits| if waits { Settled::Done } else { told.next().unwrap_or(Settled::TooLate) };
        waits.into_iter().map(result).map(Ok).collect()
    }
}
