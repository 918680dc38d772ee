//! Checks a run by its ledger: [`check`].

use onceward::{Error, ErrorKind};

use super::contestant::Contestant;
use super::messages::Messages;
use super::metered::Meter;
use crate::handlers::Ledger;

/// A run whose ledger is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checked {
    /// Messages published, copies included.
    pub(super) messages: u64,
    /// Runs of the handler.
    pub(super) handled: u64,
    /// Deliveries without a run of the handler.
    pub(super) suppressed: u64,
    /// Deliveries beyond one for each message.
    pub(super) redelivered: u64,
}

/// Each message has to be handled exactly once where copies are suppressed, and once for each copy elsewhere; more often there only
/// as the source has delivered it again.
///
/// # Errors
/// [`Error`] that says which is not.
pub(super) fn check(
    contestant: Contestant,
    messages: &Messages,
    ledger: &Ledger,
    meter: &Meter,
) -> Result<Checked, Error> {
    let wrong = |what: String| {
        let run = format!("check the ledger of {}", contestant.name());
        Err(Error::new(ErrorKind::Internal, run, format!("{what}; its figures would mean nothing")))
    };
    if meter.elapsed().is_none() {
        return wrong(format!(
            "{} deliveries of {} messages were acknowledged, and it ended before all messages were handled and acknowledged",
            meter.acked(),
            messages.total
        ));
    }
    if ledger.strays() > 0 {
        return wrong(format!("{} messages are of another run", ledger.strays()));
    }
    let redelivered = meter.delivered().saturating_sub(messages.total);
    let expected = messages.expected(contestant.deduplicates());
    let (mut handled, mut beyond) = (0, 0);
    for (number, (times, expected)) in ledger.handled().zip(&expected).enumerate() {
        beyond += u64::from(times.saturating_sub(*expected));
        if times < *expected || (contestant.deduplicates() && times > *expected) {
            return wrong(format!("message {number} was handled {times} times instead of {expected}"));
        }
        handled += u64::from(times);
    }
    if beyond > redelivered {
        return wrong(format!(
            "{beyond} runs of the handler are too many, and {redelivered} messages were delivered again"
        ));
    }
    let suppressed = meter.delivered().saturating_sub(handled);
    Ok(Checked { messages: messages.total, handled, suppressed, redelivered })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use onceward::adapter::{Consumer as _, Settlement};
    use onceward::testing::MemoryBroker;
    use tokio_util::sync::CancellationToken;

    use super::super::metered::Metered;
    use super::*;
    use crate::config::Config;

    fn messages(copies: u32) -> Messages {
        let text = "scope = 'a'\n[source.file]\npath = 'x'\n[store.memory]\n[handler.stdout]\n[dead_letter]\nto = 'd'\n\
                    [key]\nfrom = ['json:/id']\n";
        Messages::new(&Config::parse(text, &|_| None).unwrap(), 100, copies, 0).of_run(5, 100, true)
    }

    fn meter_of(
        contestant: Contestant,
        messages: &Messages,
        ledger: &Arc<Ledger>,
        done: CancellationToken,
    ) -> Arc<Meter> {
        let expected = messages.expected(contestant.deduplicates());
        Meter::new(messages.total, expected, Arc::clone(ledger), done)
    }

    /// Delivers and acknowledges all messages, and counts those for which `counts` is true.
    async fn consumed(
        contestant: Contestant,
        messages: &Messages,
        counts: impl Fn(u64) -> bool,
    ) -> (Arc<Ledger>, Arc<Meter>) {
        let broker = MemoryBroker::finite();
        let ledger = Arc::new(Ledger::new(5, messages.distinct()));
        for index in 0..messages.total {
            let payload = messages.outgoing(messages.number(index), "q").payload;
            if counts(index) {
                ledger.count(&payload);
            }
            broker.publish(onceward::Message::builder(payload));
        }
        let meter = meter_of(contestant, messages, &ledger, CancellationToken::new());
        let mut source = Metered::new(Box::new(broker.consumer()), Arc::clone(&meter));
        let acker = source.acker();
        while let Some(batch) = source.receive().await.unwrap() {
            let acks: Vec<_> = batch.iter().map(|delivery| (delivery.tag, Settlement::Ack)).collect();
            acker.settle(&acks).await;
        }
        (ledger, meter)
    }

    #[tokio::test]
    async fn a_message_that_is_handled_too_often_or_not_at_all_is_found() {
        let all = messages(10);
        let first = |index: u64| {
            index == 0 || all.number(index) > (0..index).map(|at| all.number(at)).max().unwrap_or(0)
        };
        let found = async |contestant, counts: &dyn Fn(u64) -> bool| {
            let (ledger, meter) = consumed(contestant, &all, counts).await;
            check(contestant, &all, &ledger, &meter)
        };
        let once = found(Contestant::Configured, &first).await.unwrap();
        assert_eq!(once, Checked { messages: 100, handled: 90, suppressed: 10, redelivered: 0 });
        let raw = found(Contestant::Raw, &|_| true).await.unwrap();
        assert_eq!(raw, Checked { messages: 100, handled: 100, suppressed: 0, redelivered: 0 });
        found(Contestant::Configured, &|_| true).await.unwrap_err();
        found(Contestant::Raw, &first).await.unwrap_err();
        found(Contestant::Tuned, &|index| index != 40 && first(index)).await.unwrap_err();
        // One more of each, which no second delivery explains.
        let (ledger, meter) = consumed(Contestant::Raw, &all, &|_| true).await;
        ledger.count(&all.outgoing(3, "q").payload);
        check(Contestant::Raw, &all, &ledger, &meter).unwrap_err();
    }

    #[tokio::test]
    async fn a_second_delivery_excuses_a_second_run_only_where_no_keys_are_claimed() {
        let (all, one_more) = (messages(0), messages(0).of_run(5, 101, true));
        let (ledger, meter) = consumed(Contestant::Raw, &one_more, |_| true).await;
        ledger.count(&all.outgoing(3, "q").payload);
        let raw = check(Contestant::Raw, &all, &ledger, &meter).unwrap();
        assert_eq!((raw.handled, raw.redelivered), (101, 1));
        check(Contestant::Configured, &all, &ledger, &meter).unwrap_err();
    }

    #[tokio::test]
    async fn a_run_that_has_not_acknowledged_all_or_sees_a_message_of_another_is_found() {
        let all = messages(0);
        let (ledger, meter) = consumed(Contestant::OneByOne, &all, |_| true).await;
        assert!(check(Contestant::OneByOne, &all, &ledger, &meter).is_ok());
        ledger.count(b"{}");
        check(Contestant::OneByOne, &all, &ledger, &meter).unwrap_err();
        let (ledger, _) = consumed(Contestant::OneByOne, &all, |_| true).await;
        let meter = meter_of(Contestant::OneByOne, &all, &ledger, CancellationToken::new());
        check(Contestant::OneByOne, &all, &ledger, &meter).unwrap_err();
    }

    /// A source that delivers at least once may deliver a message again before it has delivered the last one.
    #[tokio::test]
    async fn a_run_lasts_until_each_message_was_handled_however_many_deliveries_were_acknowledged() {
        for contestant in [Contestant::Raw, Contestant::Configured] {
            let all = messages(10);
            let (broker, done) = (MemoryBroker::finite(), CancellationToken::new());
            let ledger = Arc::new(Ledger::new(5, all.distinct()));
            let meter = meter_of(contestant, &all, &ledger, done.clone());
            // The first one once more, before the rest.
            let mut numbers: Vec<_> = (0..all.total).map(|index| all.number(index)).collect();
            numbers.insert(0, numbers[0]);
            for number in &numbers {
                broker.publish(onceward::Message::builder(all.outgoing(*number, "q").payload));
            }
            let mut source = Metered::new(Box::new(broker.consumer()), Arc::clone(&meter));
            let acker = source.acker();
            let mut seen = std::collections::HashSet::new();
            let (mut acked, mut done_at) = (0, None);
            while let Some(batch) = source.receive().await.unwrap() {
                for delivery in batch {
                    if seen.insert(numbers[acked]) || !contestant.deduplicates() {
                        ledger.count(delivery.message.payload());
                    }
                    acker.settle(&[(delivery.tag, Settlement::Ack)]).await;
                    acked += 1;
                    if done.is_cancelled() {
                        done_at.get_or_insert(acked);
                    }
                }
            }
            let first_with_all = match contestant {
                // All copies.
                Contestant::Raw => 101,
                _ => 1 + numbers.iter().position(|number| number + 1 == all.distinct()).unwrap(),
            };
            assert_eq!(done_at, Some(first_with_all.max(100)), "{contestant:?}");
            assert_eq!(check(contestant, &all, &ledger, &meter).unwrap().redelivered, 1);
        }
    }
}
