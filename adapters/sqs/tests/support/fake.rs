//! A server that speaks SQS's JSON protocol, for faults that an emulator cannot make: [`FakeSqs`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_sdk_sqs::Client;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// What becomes of a call instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is never answered, and nothing is done.
    Hang,
    /// It is never answered, but done.
    AnswerLost,
    /// It is refused as a whole, with this status and code.
    Refuse(u16, &'static str),
    /// It is answered with this text, which is no JSON.
    Garble(&'static str),
    /// Every second entry of a batch fails with this code, not by the sender's fault; the others are done.
    HalfFails(&'static str),
}

/// Which fault a call has: asked with its action and how many calls of that action came before.
pub type Plan = fn(action: &str, before: usize) -> Option<Fault>;

/// One queue, at any URL, in memory. Only the newest receipt handle of a message is valid.
#[derive(Clone)]
pub struct FakeSqs {
    port: u16,
    state: Arc<Mutex<State>>,
}

struct State {
    plan: Plan,
    messages: Vec<Held>,
    calls: BTreeMap<String, usize>,
    /// Responses to receives that had an attempt id.
    attempts: BTreeMap<String, Value>,
    /// Beyond so many messages in flight a receive is answered `OverLimit`.
    most_in_flight: usize,
    attributes: Value,
}

struct Held {
    id: String,
    body: String,
    receives: usize,
    visible_at: Instant,
}

impl FakeSqs {
    /// Listens on a free loopback port, until the test's runtime ends.
    pub async fn start(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            plan,
            messages: Vec::new(),
            calls: BTreeMap::new(),
            attempts: BTreeMap::new(),
            most_in_flight: usize::MAX,
            attributes: json!({}),
        };
        let fake = Self { port: listener.local_addr().unwrap().port(), state: Arc::new(Mutex::new(state)) };
        let own = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = own.clone();
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let fake = fake.clone();
                        async move { Ok::<_, Infallible>(fake.answer(request).await) }
                    });
                    // A client may disconnect.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        fake
    }

    /// The SDK's own client for it.
    pub fn client(&self) -> Client {
        super::client(self.port)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/000000000000/orders", self.port)
    }

    /// Puts messages into the queue.
    pub fn fill(&self, bodies: impl IntoIterator<Item = String>) {
        let mut state = self.lock();
        for body in bodies {
            let id = format!("id-{body}");
            state.messages.push(Held { id, body, receives: 0, visible_at: Instant::now() });
        }
    }

    /// Another plan from now on.
    pub fn plan(&self, plan: Plan) {
        self.lock().plan = plan;
    }

    pub fn most_in_flight(&self, most: usize) {
        self.lock().most_in_flight = most;
    }

    /// What `GetQueueAttributes` answers.
    pub fn attributes(&self, attributes: Value) {
        self.lock().attributes = attributes;
    }

    /// Another receiver gets all messages, for so long: the handles given out before are invalid.
    pub fn receive_elsewhere(&self, visibility: Duration) {
        for message in &mut self.lock().messages {
            message.receives += 1;
            message.visible_at = Instant::now() + visibility;
        }
    }

    /// Messages not deleted.
    pub fn left(&self) -> usize {
        self.lock().messages.len()
    }

    /// How many calls of an action there were.
    pub fn calls(&self, action: &str) -> usize {
        self.lock().calls.get(action).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let target = request.headers().get("x-amz-target").unwrap().to_str().unwrap();
        let action = target.strip_prefix("AmazonSQS.").unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let fault = {
            let mut state = self.lock();
            let before = state.calls.entry(action.clone()).or_default();
            *before += 1;
            let before = *before - 1;
            (state.plan)(&action, before)
        };
        let is_lost = fault == Some(Fault::AnswerLost);
        let code = match fault {
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Refuse(status, code)) => return refusal(status, code),
            Some(Fault::Garble(text)) => return Response::new(Full::from(text)),
            Some(Fault::HalfFails(code)) => Some(code),
            Some(Fault::AnswerLost) | None => None,
        };
        let answer = self.done(&action, &body, code).await;
        if is_lost { std::future::pending().await } else { answer }
    }

    async fn done(&self, action: &str, body: &Value, code: Option<&str>) -> Response<Full<Bytes>> {
        match action {
            "ReceiveMessage" => self.receive(body).await,
            "SendMessageBatch" => self.send(body),
            "DeleteMessageBatch" => self.batch(body, code, |state, at, _| {
                state.messages.remove(at);
            }),
            "ChangeMessageVisibilityBatch" => self.batch(body, code, |state, at, entry| {
                let seconds = entry["VisibilityTimeout"].as_u64().unwrap();
                state.messages[at].visible_at = Instant::now() + Duration::from_secs(seconds);
            }),
            "GetQueueAttributes" => ok(&json!({"Attributes": self.lock().attributes})),
            other => panic!("the fake server knows no {other}"),
        }
    }

    /// Refuses the call as a whole if a message is larger than `MaximumMessageSize`.
    fn send(&self, body: &Value) -> Response<Full<Bytes>> {
        let limit = self.lock().attributes["MaximumMessageSize"]
            .as_str()
            .map_or(usize::MAX, |text| text.parse().unwrap());
        let entries = body["Entries"].as_array().unwrap();
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        let size = |entry: &Value| {
            let attributes = entry["MessageAttributes"].as_object().into_iter().flatten();
            let attributes = attributes.map(|(name, value)| {
                let binary = text(&value["BinaryValue"]) / 4 * 3;
                name.len() + text(&value["DataType"]) + text(&value["StringValue"]) + binary
            });
            text(&entry["MessageBody"]) + attributes.sum::<usize>()
        };
        if entries.iter().any(|entry| size(entry) > limit) {
            return refusal(400, "InvalidParameterValue");
        }
        let sent = entries.iter().map(|entry| entry["MessageBody"].as_str().unwrap().to_owned());
        self.fill(sent);
        let answers: Vec<_> = entries
            .iter()
            .map(|entry| json!({"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "unchecked"}))
            .collect();
        ok(&json!({"Successful": answers, "Failed": []}))
    }

    async fn receive(&self, body: &Value) -> Response<Full<Bytes>> {
        let most = body["MaxNumberOfMessages"].as_u64().unwrap() as usize;
        let visibility = Duration::from_secs(body["VisibilityTimeout"].as_u64().unwrap());
        let end = Instant::now() + Duration::from_secs(body["WaitTimeSeconds"].as_u64().unwrap());
        let attempt = body["ReceiveRequestAttemptId"].as_str();
        loop {
            let now = Instant::now();
            {
                let mut state = self.lock();
                if let Some(again) = attempt.and_then(|attempt| state.attempts.get(attempt)) {
                    return ok(again);
                }
                let in_flight = state.messages.iter().filter(|message| message.visible_at > now).count();
                if in_flight >= state.most_in_flight {
                    return refusal(403, "OverLimit");
                }
                let visible = state.messages.iter_mut().filter(|message| message.visible_at <= now);
                let received: Vec<_> =
                    visible.take(most).map(|message| message.receive(now + visibility)).collect();
                if !received.is_empty() || now >= end {
                    let answer = json!({"Messages": received});
                    attempt.map(|attempt| state.attempts.insert(attempt.to_owned(), answer.clone()));
                    return ok(&answer);
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Does something for each entry whose handle is the newest of a message; `code` fails every second one.
    fn batch(
        &self,
        body: &Value,
        code: Option<&str>,
        act: fn(&mut State, usize, &Value),
    ) -> Response<Full<Bytes>> {
        let mut state = self.lock();
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        for (number, entry) in body["Entries"].as_array().unwrap().iter().enumerate() {
            let handle = entry["ReceiptHandle"].as_str().unwrap();
            let (id, receive) = handle.rsplit_once('/').unwrap();
            let found = state.messages.iter().position(|message| message.id == id);
            let is_newest = found.is_none_or(|at| state.messages[at].receives.to_string() == receive);
            let refusal = match code {
                Some(code) if number % 2 == 1 => Some((code, false)),
                _ if !is_newest => Some(("ReceiptHandleIsInvalid", true)),
                _ => None,
            };
            match (refusal, found) {
                (Some((code, sender_fault)), _) => failed.push(
                    json!({"Id": entry["Id"], "Code": code, "Message": "refused", "SenderFault": sender_fault}),
                ),
                (None, found) => {
                    found.into_iter().for_each(|at| act(&mut state, at, entry));
                    successful.push(json!({"Id": entry["Id"]}));
                }
            }
        }
        ok(&json!({"Successful": successful, "Failed": failed}))
    }
}

impl Held {
    fn receive(&mut self, visible_at: Instant) -> Value {
        self.receives += 1;
        self.visible_at = visible_at;
        json!({
            "MessageId": self.id,
            "ReceiptHandle": format!("{}/{}", self.id, self.receives),
            "Body": self.body,
            "Attributes": {"ApproximateReceiveCount": self.receives.to_string()},
        })
    }
}

fn ok(body: &Value) -> Response<Full<Bytes>> {
    response(200, body)
}

fn refusal(status: u16, code: &str) -> Response<Full<Bytes>> {
    response(status, &json!({"__type": format!("com.amazonaws.sqs#{code}"), "message": "refused"}))
}

fn response(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.0");
    response.body(Full::from(body.to_string())).unwrap()
}
