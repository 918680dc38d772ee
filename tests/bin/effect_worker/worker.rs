//! Runs as they come, one JSON line in, one JSON line out, until standard input closes.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::orders::{self, Ended, Told};

#[derive(Deserialize)]
struct Request {
    id: u64,
    #[serde(default)]
    key: Option<String>,
    attempt: u32,
    fence: u64,
    #[serde(default)]
    payload: Option<String>,
}

pub(crate) fn serve(ledger: &Path) -> ExitCode {
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return ExitCode::FAILURE };
        let Ok(request) = serde_json::from_str::<Request>(&line) else { return ExitCode::from(2) };
        let Some(answer) = answer(ledger, request) else { return ExitCode::from(9) };
        let mut out = std::io::stdout().lock();
        // A parent that does not read any more sends no requests either: the loop ends with the closed input.
        let _ = out.write_all(format!("{answer}\n").as_bytes()).and_then(|()| out.flush());
    }
    ExitCode::SUCCESS
}

fn answer(ledger: &Path, request: Request) -> Option<Value> {
    let Request { id, key, attempt, fence, payload } = request;
    let told = Told { key: key.unwrap_or_default(), fence, attempt };
    // A payload that is no text arrives in base64: then it contains no order.
    let payload = payload.unwrap_or_default();
    match orders::run(ledger, payload.as_bytes(), told) {
        Ended::Well => Some(json!({"id": id, "ok": true})),
        Ended::Failed => Some(json!({"id": id, "ok": false, "error": "told to fail"})),
        Ended::FailedForGood => {
            Some(json!({"id": id, "ok": false, "error": "told to fail for good", "retry": false}))
        }
        Ended::WithoutAnswer => None,
    }
}
