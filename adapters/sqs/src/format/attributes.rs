//! Conversion of message attributes.

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use bytes::Bytes;

/// The value of an attribute as bytes.
pub(crate) fn to_bytes(value: &MessageAttributeValue) -> Bytes {
    match (&value.string_value, &value.binary_value) {
        (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
        (None, Some(blob)) => Bytes::copy_from_slice(blob.as_ref()),
        (None, None) => Bytes::new(),
    }
}

/// Builds an attribute of a given type, such as `Number` or `Binary.png`; `None` if the value does not fit the type.
pub(crate) fn build(data_type: &str, bytes: &[u8]) -> Option<MessageAttributeValue> {
    let builder = MessageAttributeValue::builder().data_type(data_type);
    let builder = if data_type.starts_with("Binary") {
        builder.binary_value(Blob::new(bytes))
    } else {
        builder.string_value(std::str::from_utf8(bytes).ok()?)
    };
    builder.build().ok()
}

/// The size of an attribute in bytes as SQS counts it: name, type and value.
pub(crate) fn size(name: &str, value: &MessageAttributeValue) -> usize {
    name.len() + value.data_type.len() + to_bytes(value).len()
}
