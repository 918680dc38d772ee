//! The loops that the pipeline is compared with: [`raw`], and [`one_by_one`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use onceward::adapter::{Acker, Consumer, Delivery, Settlement, StoreAdmin, Tag};
use onceward::store::{Claim, ClaimRequest, ClaimTerms, Entropy};
use onceward::{Error, ErrorKind, KeyExtractor, Scope};
use tokio_util::sync::CancellationToken;

use super::metered::{Meter, Metered};
use crate::handlers::Ledger;

/// So many batches are acknowledged at the same time, at most, as the requests of a broker without a connection need it.
const SETTLING: usize = 16;
/// The wait before a repeated call.
const PAUSE: Duration = Duration::from_millis(50);

/// Receives, counts and acknowledges, until `stop` fires or the source ends.
///
/// # Errors
/// [`Error`] of the source that a repeated call does not fix.
pub(super) async fn raw(mut source: Metered, ledger: &Ledger, stop: &CancellationToken) -> Result<(), Error> {
    let acker = source.acker();
    let mut settling = FuturesUnordered::new();
    let mut is_open = true;
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            Some(settled) = settling.next(), if !settling.is_empty() => {
                if let Err(error) = settled {
                    break Err(error);
                }
            }
            received = source.receive(), if is_open && settling.len() < SETTLING => match next(received).await {
                Ok(Some(batch)) => {
                    batch.iter().for_each(|delivery| ledger.count(delivery.message.payload()));
                    settling.push(settle(Arc::clone(&acker), batch.iter().map(|delivery| delivery.tag).collect()));
                }
                Ok(None) => is_open = false,
                Err(error) => break Err(error),
            },
            else => break Ok(()),
        }
    };
    close(source, ended).await
}

/// What [`one_by_one`] claims with.
pub(super) struct Claims<'a> {
    pub(super) store: &'a dyn StoreAdmin,
    pub(super) scope: &'a Scope,
    pub(super) keys: &'a KeyExtractor,
    pub(super) terms: ClaimTerms,
    /// Knows of each claim, as a batch may take long.
    pub(super) meter: &'a Meter,
}

/// As [`raw`], with a claim before each message, one after the other, and without a completion: `SET NX`, or an `INSERT` that a
/// unique index refuses. What is received together is acknowledged together.
///
/// # Errors
/// [`Error`] of the source that a repeated call does not fix, or of the store.
pub(super) async fn one_by_one(
    mut source: Metered,
    claims: &Claims<'_>,
    ledger: &Ledger,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let acker = source.acker();
    let mut entropy = Entropy::system();
    let ended = loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            received = source.receive() => received,
        };
        match next(received).await {
            Ok(Some(batch)) => {
                if let Err(error) = claim_each(&batch, claims, ledger, &mut entropy, stop).await {
                    break Err(error);
                }
                if stop.is_cancelled() {
                    break Ok(());
                }
                let tags = batch.iter().map(|delivery| delivery.tag).collect();
                let settled = tokio::select! {
                    biased;
                    settled = settle(Arc::clone(&acker), tags) => settled,
                    () = stop.cancelled() => Ok(()),
                };
                if settled.is_err() {
                    break settled;
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    close(source, ended).await
}

async fn claim_each(
    batch: &[Delivery],
    claims: &Claims<'_>,
    ledger: &Ledger,
    entropy: &mut Entropy,
    stop: &CancellationToken,
) -> Result<(), Error> {
    for Delivery { message, .. } in batch {
        if stop.is_cancelled() {
            return Ok(());
        }
        let key = claims
            .keys
            .key_of(message)
            .map_err(|error| Error::new(ErrorKind::Config, "find the key of a message", error.to_string()))?;
        let request = ClaimRequest { key, owner: entropy.token(), fingerprint: None, generation: 0 };
        let claimed = claims.store.claim(claims.scope, &claims.terms, &[request]).await.pop();
        claims.meter.claim();
        match claimed {
            Some(Ok(Claim::Claimed(_))) => ledger.count(message.payload()),
            Some(Err(error)) => return Err(error),
            // A copy.
            Some(Ok(_)) | None => {}
        }
    }
    Ok(())
}

/// An error after which a call is to be repeated is an empty batch.
async fn next(received: Result<Option<Vec<Delivery>>, Error>) -> Result<Option<Vec<Delivery>>, Error> {
    match received {
        Err(error) if error.is_retryable() => {
            tokio::time::sleep(PAUSE).await;
            Ok(Some(Vec::new()))
        }
        received => received,
    }
}

/// Acknowledges a batch. What is too late is delivered again.
async fn settle(acker: Arc<dyn Acker>, tags: Vec<Tag>) -> Result<(), Error> {
    let mut left: Vec<_> = tags.into_iter().map(|tag| (tag, Settlement::Ack)).collect();
    while !left.is_empty() {
        let settled = acker.settle(&left).await;
        let mut again = Vec::new();
        for (item, settled) in left.into_iter().zip(settled) {
            match settled {
                Ok(_) => {}
                Err(error) if error.is_retryable() => again.push(item),
                Err(error) => return Err(error),
            }
        }
        if !again.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        left = again;
    }
    Ok(())
}

/// Closes the source, whatever `ended` is.
async fn close(mut source: Metered, ended: Result<(), Error>) -> Result<(), Error> {
    let closed = source.close().await;
    ended.and(closed)
}
