//! Batches over HTTP, one POST of a JSON array for several messages and one result for each: [`HttpBatches`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use onceward::{HandlerError, Message, Verdict};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::endpoint::{HttpEndpoint, ResponseBody, read};
use crate::handlers::gather::{Asked, GatheredRun, RunQueue, RunReply, receive};
use crate::handlers::json::{RequestState, Said, said, trimmed, write};
use crate::handlers::suspects::SuspectRuns;
use crate::handlers::text::printable;

/// The most bytes of a response that are read, besides the results that are kept.
const RESPONSE_LIMIT: usize = 4 * 1024 * 1024;

/// The most bytes of an invalid response that are quoted.
const QUOTE_LIMIT: usize = 120;

/// Messages that wait for a common request, and those that are to be sent alone.
pub(super) struct HttpBatches {
    most: usize,
    endpoint: Arc<HttpEndpoint>,
    waiting: RunQueue,
    suspects: Arc<SuspectRuns>,
}

impl HttpBatches {
    /// Requests of up to `most` messages.
    pub(super) fn new(most: usize, endpoint: Arc<HttpEndpoint>) -> Self {
        let waiting = RunQueue::new("cancelled before the request was sent");
        Self { most, endpoint, waiting, suspects: Arc::default() }
    }

    /// Sends a message together with those that are ready at the same time.
    pub(super) async fn send(&self, message: Message) -> Asked {
        let mark = self.suspects.mark(&message);
        let dropped = CancellationToken::new();
        let _ended_with_this_future = dropped.clone().drop_guard();
        let (run, mut reply) = GatheredRun::of(&message, mark, &dropped);
        let reply = if self.suspects.contains(mark) {
            self.call(vec![run]);
            receive(&mut reply).await
        } else {
            let turn = || std::future::ready(Ok(()));
            self.waiting.ask(run, &mut reply, self.most, turn, |(), runs| self.call(runs)).await
        };
        match reply {
            RunReply::Ended(answer) => answer,
            RunReply::Unsent => Err(self.waiting.not_begun()),
        }
    }

    /// Starts the request for these runs, in a task: none of them may end it for the others.
    fn call(&self, runs: Vec<GatheredRun>) {
        let mut call = BatchCall {
            endpoint: Arc::clone(&self.endpoint),
            suspects: Arc::clone(&self.suspects),
            size: 0,
            body: Vec::new(),
            runs: BTreeMap::new(),
        };
        for run in runs {
            call.add(run);
        }
        if call.size > 0 {
            tokio::spawn(call.make());
        }
    }
}

/// A request for several messages, and their runs by their numbers in it.
struct BatchCall {
    endpoint: Arc<HttpEndpoint>,
    suspects: Arc<SuspectRuns>,
    size: u64,
    body: Vec<u8>,
    runs: BTreeMap<u64, GatheredRun>,
}

impl BatchCall {
    fn add(&mut self, mut run: GatheredRun) {
        let Some(message) = run.message.take() else { return };
        let before = self.body.len();
        self.body.push(if before == 0 { b'[' } else { b',' });
        match write(&mut self.body, self.size + 1, &self.endpoint.scope, &message) {
            Ok(()) => {
                self.size += 1;
                self.runs.insert(self.size, run);
            }
            Err(cause) => {
                self.body.truncate(before);
                run.end(Err(HandlerError::permanent(format!("cannot write it as JSON: {cause}"))));
            }
        }
    }

    /// Makes the request and answers its runs. One that is to stop does not wait for the response; if all are, the request is
    /// given up.
    async fn make(mut self) {
        let mut body = std::mem::take(&mut self.body);
        body.push(b']');
        let endpoint = Arc::clone(&self.endpoint);
        let exchange = exchange(&endpoint, self.size, self.headers(), body.into());
        let mut exchange = std::pin::pin!(exchange);
        let mut stops: FuturesUnordered<_> = self.runs.iter().map(|(id, run)| run.stopped(*id)).collect();
        loop {
            let answered = tokio::select! {
                biased;
                answered = exchange.as_mut() => answered,
                Some((id, _)) = stops.next() => {
                    if let Some(run) = self.runs.remove(&id) {
                        self.end(run, Err(endpoint.cancelled()));
                    }
                    if self.runs.is_empty() {
                        return;
                    }
                    continue;
                }
            };
            match answered {
                Ok(Some(body)) => self.results(&body),
                Ok(None) => self.all_done(),
                Err(error) => self.all_failed(&error),
            }
            return;
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static("onceward-batch"), HeaderValue::from(self.size));
        if let Ok(scope) = HeaderValue::try_from(self.endpoint.scope.to_string()) {
            headers.insert(HeaderName::from_static("onceward-scope"), scope);
        }
        headers
    }

    /// Ends a run. Without a verdict of its own it is sent alone next, and stays alone until it is completed or refused.
    fn end(&self, run: GatheredRun, answer: Asked) {
        match &answer {
            Ok(_) => self.suspects.remove(run.mark),
            Err(error) if error.verdict() == Verdict::Permanent => self.suspects.remove(run.mark),
            Err(error) if self.size > 1 && error.is_outcome_unknown() => self.suspects.insert(run.mark),
            Err(_) => {}
        }
        run.end(answer);
    }

    fn all_done(mut self) {
        for run in std::mem::take(&mut self.runs).into_values() {
            self.end(run, Ok(None));
        }
    }

    /// One error for all. Unless it says nothing about the messages, one of them may be the cause.
    fn all_failed(mut self, error: &HandlerError) {
        let runs = std::mem::take(&mut self.runs);
        for run in runs.into_values() {
            if self.size == 1 || error.verdict() == Verdict::Unavailable {
                self.end(run, Err(same(error, error.verdict(), error.text().to_owned())));
                continue;
            }
            self.suspects.insert(run.mark);
            let text = format!("one of {} messages, which are sent alone next: {error}", self.size);
            run.end(Err(same(error, Verdict::Unavailable, text)));
        }
    }

    /// A result for each message, which the response has to hold. All are read before one is believed: where one names a message
    /// that was not sent, or two differ about one, the others may be about other messages than they say.
    fn results(mut self, body: &[u8]) {
        let items: Vec<&RawValue> = match serde_json::from_slice(trimmed(body)) {
            Ok(items) => items,
            Err(cause) => {
                let quote = printable(body, QUOTE_LIMIT);
                let text = format!("the response is no JSON array of results ({cause}): {quote:?}");
                return self.all_failed(&HandlerError::retry(text).outcome_unknown());
            }
        };
        let said = match self.said(&items) {
            Ok(said) => said,
            Err(what) => {
                let text = format!("no result in the response can be trusted: one {what}");
                return self.all_failed(&HandlerError::retry(text).outcome_unknown());
            }
        };
        for (id, said) in said {
            let Some(run) = self.runs.remove(&id) else { continue };
            match said {
                Ok(answer) => {
                    self.suspects.remove(run.mark);
                    let answer = answer.map(|result| self.endpoint.fitting(result));
                    self.end(run, answer);
                }
                Err(what) => {
                    let text = format!("its result in the response {what}");
                    self.end(run, Err(HandlerError::retry(text).outcome_unknown()));
                }
            }
        }
        for run in std::mem::take(&mut self.runs).into_values() {
            let text = "the response has no result for this message";
            self.end(run, Err(HandlerError::retry(text).outcome_unknown()));
        }
    }

    /// What the items say of the runs, each the result or what is wrong with it.
    ///
    /// # Errors
    /// What an item is that makes all of them doubtful.
    fn said(&self, items: &[&RawValue]) -> Result<BTreeMap<u64, Result<Asked, String>>, String> {
        let state = |id: u64| match id {
            id if self.runs.contains_key(&id) => RequestState::Open,
            id if (1..=self.size).contains(&id) => RequestState::Past,
            _ => RequestState::Unknown,
        };
        let mut results = BTreeMap::new();
        for item in items {
            let (id, result) = match said(item.get().as_bytes(), true, state) {
                Said::Answer(id, answer) => (id, Ok(answer)),
                Said::Wrong(Some(id), what) => (id, Err(what)),
                Said::Wrong(None, what) => return Err(what),
                Said::Nothing | Said::Ready | Said::Stray => {
                    tracing::warn!(what = "is no result", "item of a batch response ignored");
                    continue;
                }
            };
            match results.entry(id) {
                Entry::Vacant(entry) => drop(entry.insert((item.get(), result))),
                Entry::Occupied(entry) if entry.get().0 == item.get() => {}
                Entry::Occupied(_) => return Err(format!("differs from another one of message {id}")),
            }
        }
        Ok(results.into_iter().map(|(id, (_, result))| (id, result)).collect())
    }
}

/// The body of a response that completes messages; `None` if it is empty. A failed request for several messages may have had the
/// effects of some.
async fn exchange(
    endpoint: &HttpEndpoint,
    size: u64,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Option<Vec<u8>>, HandlerError> {
    let mut response: Response = endpoint.post(headers, body).await?;
    let status = response.status();
    if !endpoint.is_done(status) {
        let error = endpoint.failure(response).await;
        let is_partial = size > 1 && error.verdict() != Verdict::Unavailable && !is_refusal(status);
        return Err(if is_partial { error.outcome_unknown() } else { error });
    }
    let limit = RESPONSE_LIMIT.saturating_add(endpoint.kept_bytes(size));
    let problem = match read(&mut response, limit).await {
        ResponseBody::Whole(body) => return Ok(Some(body).filter(|body| !trimmed(body).is_empty())),
        ResponseBody::Longer(_) => format!("is longer than {limit} bytes"),
        ResponseBody::Broken => "is incomplete".to_owned(),
    };
    Err(HandlerError::retry(format!("the response with the results {problem}")).outcome_unknown())
}

/// True if the status says that the request as a whole was refused, before any of its messages was looked at.
fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::TOO_MANY_REQUESTS
    )
}

/// The same failure of another message, with this verdict and text.
fn same(error: &HandlerError, verdict: Verdict, text: String) -> HandlerError {
    let same = HandlerError::new(verdict, text);
    let same = if error.is_outcome_unknown() { same.outcome_unknown() } else { same };
    let same = if error.is_timed_out() { same.timed_out() } else { same };
    match error.delay() {
        Some(delay) if verdict == Verdict::Unavailable => same.not_before(delay),
        _ => same,
    }
}
