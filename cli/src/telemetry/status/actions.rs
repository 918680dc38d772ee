//! Requests that redrive or purge a dead letter, behind the token of the configuration: [`Actions`].
//!
//! A request without the token, of another type or too large changes nothing, and its body is not looked at. There are no cookies, so
//! no other page can make a browser send one that has the token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use onceward::ErrorKind;
use onceward::own_headers::LEAST_SECRET_BYTES;
use onceward::telemetry::RateLimited;
use onceward_plugin::files::secret_in;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::with_headers;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::telemetry::letter_orders::{LetterActions, LetterOrder, LetterOutcome, LetterRequest};
use crate::telemetry::watched::Watched;

/// The most bytes of a body.
const MOST_BYTES: usize = 4 << 10;

/// The most bytes of a reason, as of `--why`, and of a name.
const MOST_WHY: usize = 500;
const MOST_BY: usize = 64;

/// The time limit of an action.
const LIMIT: Duration = Duration::from_secs(60);

/// For how long a connection with an action may last beyond the time of others.
pub(in crate::telemetry) const ACTION_LIFE: Duration = Duration::from_secs(65);

/// Redrives and purges letters, one after the other.
pub(in crate::telemetry) struct Actions {
    token: blake3::Hash,
    desk: Arc<dyn LetterActions>,
    one: Arc<Semaphore>,
    lines: RateLimited,
}

/// The body of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    id: String,
    why: String,
    #[serde(default)]
    by: Option<String>,
}

/// The request that a path names.
pub(in crate::telemetry) fn request_at(path: &str) -> Option<LetterRequest> {
    match path {
        "/letters/redrive" => Some(LetterRequest::Redrive),
        "/letters/purge" => Some(LetterRequest::Purge),
        _ => None,
    }
}

impl Actions {
    /// Those of the configuration; `None` without a token.
    ///
    /// # Errors
    /// The file of the token cannot be read, or it holds a token that is too short.
    pub(in crate::telemetry) fn new(
        config: &Config,
        desk: Arc<dyn LetterActions>,
    ) -> Result<Option<Self>, Failure> {
        let token = match (&config.telemetry.token, &config.telemetry.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => read(config, file)?,
            (None, None) => return Ok(None),
        };
        let token = blake3::hash(token.expose().as_bytes());
        let lines = RateLimited::per(Duration::from_secs(60));
        Ok(Some(Self { token, desk, one: Arc::new(Semaphore::new(1)), lines }))
    }

    /// Answers a request for what `request_at` found. `acts` becomes true once it has to be waited for.
    pub(in crate::telemetry) async fn respond(
        &self,
        asked: LetterRequest,
        request: Request<Incoming>,
        watched: &Arc<Watched>,
        acts: &AtomicBool,
    ) -> Response<Full<Bytes>> {
        let order = match self.order(asked, request).await {
            Ok(order) => order,
            Err(refused) => return refused,
        };
        let Ok(only) = Arc::clone(&self.one).try_acquire_owned() else {
            let text = "another letter is being redriven or purged by this process; try again in a moment";
            return answer(StatusCode::CONFLICT, "busy", text);
        };
        tracing::info!(
            letter = order.id,
            request = order.request.as_str(),
            "dead letter: request of the status page accepted"
        );
        acts.store(true, Ordering::Relaxed);
        let (desk, watched) = (Arc::clone(&self.desk), Arc::clone(watched));
        // In a task of its own: a browser that goes away does not stop it halfway.
        let task = tokio::spawn(async move {
            let _only = only;
            let outcome = tokio::time::timeout(LIMIT, desk.act(&order)).await.ok();
            if let Some(done) = outcome.as_ref().and_then(done) {
                watched.instruments.recent_letters.note(&order.id, done);
            }
            outcome
        });
        match task.await {
            Ok(Some(outcome)) => answer_of(&outcome),
            Ok(None) => {
                let text = "it took longer than 60 s and was stopped; it may have been done: see `onceward dlq log`. It may be \
                            repeated, or done with `onceward dlq`";
                answer(StatusCode::GATEWAY_TIMEOUT, "failed", text)
            }
            Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the action ended by a defect"),
        }
    }

    /// What an authorised request asks for; the response to any other.
    async fn order(
        &self,
        request: LetterRequest,
        http: Request<Incoming>,
    ) -> Result<LetterOrder, Response<Full<Bytes>>> {
        if http.method() != Method::POST {
            let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, "refused", "only POST is supported");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return Err(refused);
        }
        if !self.has_token(http.headers()) {
            if let Some(suppressed) = self.lines.allow("") {
                tracing::warn!(suppressed, "request to change a dead letter refused: it has not the token");
            }
            let text = "the request needs the header Authorization: Bearer TOKEN, with the token of the configuration";
            let mut refused = answer(StatusCode::UNAUTHORIZED, "refused", text);
            refused.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(refused);
        }
        if !is_json(http.headers()) {
            let text = "the content type must be application/json";
            return Err(answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, "refused", text));
        }
        let too_large = || answer(StatusCode::PAYLOAD_TOO_LARGE, "refused", "the body is larger than 4 KiB");
        if http.body().size_hint().lower() > MOST_BYTES as u64 {
            return Err(too_large());
        }
        let body = match Limited::new(http.into_body(), MOST_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
            Err(_) => return Err(answer(StatusCode::BAD_REQUEST, "refused", "the body could not be read")),
        };
        let refused = |text: &str| answer(StatusCode::BAD_REQUEST, "refused", text);
        let ActionBody { id, why, by } = serde_json::from_slice(&body).map_err(|_| {
            refused(r#"the body must be {"id": "…", "why": "…", "by": "…"}, in JSON; `by` may be left out"#)
        })?;
        let (why, by) =
            (why.trim().to_owned(), by.map(|by| by.trim().to_owned()).filter(|by| !by.is_empty()));
        if id.is_empty() || why.is_empty() {
            return Err(refused("id and why must not be empty"));
        }
        if why.len() > MOST_WHY || by.as_ref().is_some_and(|by| by.len() > MOST_BY) {
            return Err(refused("why may have 500 bytes and by 64; shorten them"));
        }
        Ok(LetterOrder { request, id, why, by })
    }

    /// Compares hashes, in a time that does not depend on their content.
    fn has_token(&self, headers: &HeaderMap) -> bool {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(only), None) = (all.next(), all.next()) else { return false };
        let Some((scheme, token)) = only.as_bytes().split_at_checked(b"Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && blake3::hash(token) == self.token
    }
}

/// The token in a file.
fn read(config: &Config, file: &std::path::Path) -> Result<crate::config::Secret, Failure> {
    let refuse = |problem: &str, fix: &str| config.refuse("telemetry.token_file", problem, fix);
    let token = secret_in(&config.resolve(file), "telemetry.token_file").map_err(|error| {
        let exit = if error.kind() == ErrorKind::Config { Exit::Config } else { Exit::Failed };
        Failure::new(exit, onceward_plugin::sentence(&error))
    })?;
    if token.expose().len() < LEAST_SECRET_BYTES {
        let problem =
            format!("holds less than {LEAST_SECRET_BYTES} bytes, so that the token could be guessed");
        return Err(refuse(&problem, "make one with `openssl rand -hex 32`").into());
    }
    Ok(token)
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// What the page shows of a letter that it is done with.
fn done(outcome: &LetterOutcome) -> Option<&'static str> {
    match outcome {
        LetterOutcome::Redriven => Some("redriven"),
        LetterOutcome::Resolved => Some("resolved"),
        LetterOutcome::Purged => Some("purged"),
        _ => None,
    }
}

fn answer_of(outcome: &LetterOutcome) -> Response<Full<Bytes>> {
    let (status, result, text) = match outcome {
        LetterOutcome::Redriven => (StatusCode::OK, "redriven", "redriven: it is in its source again"),
        LetterOutcome::Resolved => (
            StatusCode::OK,
            "resolved",
            "its key had completed in the meantime, so the letter was only deleted",
        ),
        LetterOutcome::Purged => (StatusCode::OK, "purged", "purged"),
        LetterOutcome::Left(why) => (StatusCode::CONFLICT, "left", *why),
        LetterOutcome::Absent => (
            StatusCode::GONE,
            "absent",
            "the letter is not there any more: it was redriven or purged, or another process has it at the moment",
        ),
        LetterOutcome::Failed(sentence) => (StatusCode::INTERNAL_SERVER_ERROR, "failed", sentence.as_str()),
    };
    answer(status, result, text)
}

fn answer(status: StatusCode, result: &str, text: &str) -> Response<Full<Bytes>> {
    let body = json!({ "result": result, "text": text }).to_string();
    let mut response = with_headers("application/json", body.into());
    *response.status_mut() = status;
    response
}
