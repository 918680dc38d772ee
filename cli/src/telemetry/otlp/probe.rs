//! Asks collectors to take an export of nothing: [`probe`].

use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::collector::Collector;
use super::headers;
use super::signal::Signal;
use crate::config::{Config, Lookup};
use crate::exit::Failure;

/// Sends an empty export of each signal that is exported, and returns a sentence for each, an error where it is not taken.
pub(in crate::telemetry) async fn probe(config: &Config, env: Lookup<'_>) -> Vec<Result<String, String>> {
    let mut answers = Vec::new();
    for signal in Signal::ALL {
        let answer = match Collector::find(signal, config, env) {
            Ok(None) => continue,
            Ok(Some(collector)) => ask(signal, &collector, env).await,
            Err(refused) => Err(text(&refused)),
        };
        answers.push(answer);
    }
    answers
}

fn text(refused: &Failure) -> String {
    refused.sentence().unwrap_or_default().to_owned()
}

async fn ask(signal: Signal, collector: &Collector, env: Lookup<'_>) -> Result<String, String> {
    let place = collector.public_url();
    let client = collector.client().map_err(|refused| text(&refused))?;
    let given = signal.variables("HEADERS").into_iter().find_map(|name| env(&name));
    let mut headers = given.map(|text| headers::parse(&text)).unwrap_or_default();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    match client.probe(headers).await {
        Ok(()) => Ok(format!("{place} takes {signal}")),
        Err(cause) => Err(format!("{place} does not take {signal}: {cause}")),
    }
}
