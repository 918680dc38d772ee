//! Converts values of AMQP header tables to bytes: [`to_bytes`].

use bytes::Bytes;
use lapin::types::{AMQPValue, DecimalValue};
use serde_json::{Map, Value};

use crate::sanitize::properties::MAX_DEPTH;

/// Tables and arrays are nested deeper than [`MAX_DEPTH`].
#[derive(Debug)]
pub(crate) struct TooDeep;

/// Converts a value: strings and binary values unchanged, numbers and booleans as text, tables and arrays as JSON. AMQP
/// bounds the size: all headers of a message are one frame, of 128 KiB by default.
pub(crate) fn to_bytes(value: &AMQPValue) -> Result<Bytes, TooDeep> {
    Ok(match value {
        AMQPValue::LongString(text) => Bytes::copy_from_slice(text.as_bytes()),
        AMQPValue::ShortString(text) => Bytes::copy_from_slice(text.as_str().as_bytes()),
        AMQPValue::ByteArray(bytes) => Bytes::copy_from_slice(bytes.as_slice()),
        AMQPValue::Void => Bytes::new(),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => to_json(value, 0)?.to_string().into(),
        AMQPValue::Float(number) => number.to_string().into(),
        AMQPValue::Double(number) => number.to_string().into(),
        AMQPValue::DecimalValue(number) => format_decimal(number).into(),
        other => to_json(other, 0)?.to_string().into(),
    })
}

fn to_json(value: &AMQPValue, depth: usize) -> Result<Value, TooDeep> {
    if depth > MAX_DEPTH {
        return Err(TooDeep);
    }
    Ok(match value {
        AMQPValue::Boolean(value) => Value::from(*value),
        AMQPValue::ShortShortInt(number) => Value::from(*number),
        AMQPValue::ShortShortUInt(number) => Value::from(*number),
        AMQPValue::ShortInt(number) => Value::from(*number),
        AMQPValue::ShortUInt(number) => Value::from(*number),
        AMQPValue::LongInt(number) => Value::from(*number),
        AMQPValue::LongUInt(number) => Value::from(*number),
        AMQPValue::LongLongInt(number) => Value::from(*number),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        AMQPValue::Float(number) => Value::from(*number),
        AMQPValue::Double(number) => Value::from(*number),
        AMQPValue::DecimalValue(number) => Value::from(format_decimal(number)),
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => Value::from(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Value::from(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::Void => Value::Null,
        AMQPValue::FieldArray(values) => Value::Array(
            values.as_slice().iter().map(|value| to_json(value, depth + 1)).collect::<Result<_, _>>()?,
        ),
        AMQPValue::FieldTable(table) => {
            let field = |(name, value): (&lapin::types::ShortString, &AMQPValue)| {
                Ok((name.as_str().to_owned(), to_json(value, depth + 1)?))
            };
            Value::Object(table.inner().iter().map(field).collect::<Result<Map<_, _>, _>>()?)
        }
    })
}

/// Formats `value` with `scale` decimal places.
fn format_decimal(number: &DecimalValue) -> String {
    let scale = usize::from(number.scale);
    let digits = format!("{:0>width$}", number.value, width = scale + 1);
    match digits.split_at(digits.len() - scale) {
        (whole, "") => whole.to_owned(),
        (whole, part) => format!("{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::{FieldArray, FieldTable};

    use super::*;

    fn text(of: AMQPValue) -> String {
        String::from_utf8(to_bytes(&of).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn plain_values_are_text_and_binary_values_are_unchanged() {
        assert_eq!(to_bytes(&AMQPValue::LongString(b"\xff\x00".to_vec().into())).unwrap(), &b"\xff\x00"[..]);
        assert_eq!(to_bytes(&AMQPValue::ByteArray(b"\xff"[..].into())).unwrap(), &b"\xff"[..]);
        for (value, expected) in [
            (AMQPValue::Boolean(true), "true"),
            (AMQPValue::LongInt(-7), "-7"),
            (AMQPValue::LongLongInt(i64::MIN), "-9223372036854775808"),
            (AMQPValue::Timestamp(u64::MAX), "18446744073709551615"),
            (AMQPValue::Double(1.5), "1.5"),
            (AMQPValue::Double(f64::NAN), "NaN"),
            (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1 }), "0.01"),
            (AMQPValue::DecimalValue(DecimalValue { scale: 0, value: 12 }), "12"),
            (
                AMQPValue::DecimalValue(DecimalValue { scale: 255, value: 0 }),
                &format!("0.{}", "0".repeat(255)),
            ),
            (AMQPValue::Void, ""),
        ] {
            assert_eq!(text(value), expected);
        }
    }

    #[test]
    fn tables_and_arrays_are_json_down_to_a_limit() {
        let mut death = FieldTable::default();
        death.insert("count".into(), AMQPValue::LongLongInt(2));
        death.insert("queue".into(), AMQPValue::LongString("orders \"1\"".into()));
        let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death), AMQPValue::Void]);
        assert_eq!(text(AMQPValue::FieldArray(deaths)), r#"[{"count":2,"queue":"orders \"1\""},null]"#);
        let nested =
            |depth| (0..depth).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(vec![inner].into()));
        assert!(to_bytes(&nested(MAX_DEPTH)).is_ok());
        assert!(to_bytes(&nested(MAX_DEPTH + 1)).is_err());
    }
}
