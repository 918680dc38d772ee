//! Parses the envelope that SNS puts around a message.

use aws_sdk_sqs::types::MessageAttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use crate::format::attributes;

/// The content of an envelope.
pub(crate) struct SnsMessage {
    /// SNS's id: the same in every copy that SNS sends, unlike SQS's.
    pub(crate) id: String,
    pub(crate) payload: Bytes,
    pub(crate) headers: Vec<(String, Bytes)>,
    /// The attributes with their types, as far as SQS supports them.
    pub(crate) attributes: Vec<(String, MessageAttributeValue)>,
}

/// Parses an envelope; `None` if the body is not one.
pub(crate) fn parse_envelope(body: &[u8]) -> Option<SnsMessage> {
    let envelope: Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| envelope.get(name).and_then(Value::as_str);
    if text("Type") != Some("Notification") {
        return None;
    }
    let (mut headers, mut typed_attributes) = (Vec::new(), Vec::new());
    for (name, field) in [("sns-topic-arn", "TopicArn"), ("sns-subject", "Subject")] {
        if let Some(value) = text(field) {
            headers.push((name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        }
    }
    for (name, attribute) in
        envelope.get("MessageAttributes").and_then(Value::as_object).into_iter().flatten()
    {
        let value = attribute.get("Value")?.as_str()?;
        let data_type = attribute.get("Type")?.as_str()?;
        let binary = data_type.starts_with("Binary");
        let bytes = if binary { STANDARD.decode(value).ok()?.into() } else { Bytes::from(value.to_owned()) };
        typed_attributes.extend(attributes::build(data_type, &bytes).map(|typed| (name.clone(), typed)));
        headers.push((name.clone(), bytes));
    }
    let payload = Bytes::from(text("Message")?.to_owned());
    Some(SnsMessage { id: text("MessageId")?.to_owned(), payload, headers, attributes: typed_attributes })
}
