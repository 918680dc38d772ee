//! Replaces unreadable bytes in message properties and header tables with readable bytes of the same length.

/// The deepest nesting of tables and arrays. RabbitMQ's own headers (`x-death`) nest two levels deep.
pub(crate) const MAX_DEPTH: usize = 32;
/// The message properties in the order of their flags, from the highest bit down, with the defect of each.
const PROPERTIES: [(&str, PropertyKind); 14] = [
    ("the content type is not UTF-8", PropertyKind::ShortString),
    ("the content encoding is not UTF-8", PropertyKind::ShortString),
    ("", PropertyKind::Table),
    ("", PropertyKind::Fixed(1)),
    ("", PropertyKind::Fixed(1)),
    ("the correlation id is not UTF-8", PropertyKind::ShortString),
    ("the reply-to is not UTF-8", PropertyKind::ShortString),
    ("the expiration is not UTF-8", PropertyKind::ShortString),
    ("the message id is not UTF-8", PropertyKind::ShortString),
    ("", PropertyKind::Fixed(8)),
    ("the type is not UTF-8", PropertyKind::ShortString),
    ("the user id is not UTF-8", PropertyKind::ShortString),
    ("the app id is not UTF-8", PropertyKind::ShortString),
    ("the cluster id is not UTF-8", PropertyKind::ShortString),
];

#[derive(Clone, Copy)]
enum PropertyKind {
    ShortString,
    Table,
    Fixed(usize),
}

const BROKEN: &str = "an unreadable content header";
const UNREADABLE_HEADERS: &str = "its headers are unreadable";
const DEEP: &str = "its headers are nested more than 32 deep";
const NAME: &str = "the name of a header is not UTF-8";

/// Sanitises a content header frame in place; returns the defect, if there was one.
///
/// # Errors
/// The frame is not a content header.
pub(crate) fn sanitize_header(payload: &mut [u8]) -> Result<Option<&'static str>, &'static str> {
    let mut at = Cursor { bytes: payload, at: 0 };
    // Class, weight and body size.
    at.skip(12).ok_or(BROKEN)?;
    let flags = at.u16().ok_or(BROKEN)?;
    let mut defect = None;
    for (bit, (wrong, kind)) in PROPERTIES.iter().enumerate() {
        if flags & (0x8000 >> bit) == 0 {
            continue;
        }
        let found = match kind {
            PropertyKind::ShortString => at.sanitize_short_string().ok_or(BROKEN)?.then_some(*wrong),
            PropertyKind::Fixed(size) => at.skip(*size).map(|()| None).ok_or(BROKEN)?,
            PropertyKind::Table => {
                let table = at.long().ok_or(BROKEN)?;
                match sanitize_fields(table, true, 0) {
                    Ok(found) => found,
                    Err(Unreadable) => {
                        blank_table(table).ok_or(BROKEN)?;
                        Some(UNREADABLE_HEADERS)
                    }
                }
            }
        };
        defect = defect.or(found);
    }
    Ok(defect)
}

/// Sanitises the arguments of `basic.deliver` in place; returns the delivery tag and the defect. `None` if they are
/// unreadable.
pub(crate) fn sanitize_deliver(arguments: &mut [u8]) -> Option<(u64, Option<&'static str>)> {
    let mut at = Cursor { bytes: arguments, at: 0 };
    at.sanitize_short_string()?;
    at.sanitize_delivery_facts()
}

/// As [`sanitize_deliver`], for `basic.get-ok`, which has no consumer tag.
pub(crate) fn sanitize_get_ok(arguments: &mut [u8]) -> Option<(u64, Option<&'static str>)> {
    Cursor { bytes: arguments, at: 0 }.sanitize_delivery_facts()
}

/// True if the AMQP library can parse the arguments of `connection.start`.
pub(crate) fn is_start_readable(arguments: &mut [u8]) -> bool {
    let mut at = Cursor { bytes: arguments, at: 0 };
    at.skip(2).is_some() && at.long().is_some_and(|table| matches!(sanitize_fields(table, true, 0), Ok(None)))
}

/// Blanks the content of a returned message's header frame: sets its body size, which is returned, to 0 and masks the
/// header values except the one named `keep`. The AMQP library logs returned messages in full.
pub(crate) fn blank_returned(payload: &mut [u8], keep: &[u8]) -> Option<u64> {
    let mut at = Cursor { bytes: payload, at: 4 };
    let size = at.u64()?;
    at.bytes[4..12].fill(0);
    let flags = at.u16()?;
    for (bit, (_, kind)) in PROPERTIES.iter().enumerate() {
        if flags & (0x8000 >> bit) == 0 {
            continue;
        }
        match kind {
            PropertyKind::ShortString => drop(at.sanitize_short_string()?),
            PropertyKind::Table => {
                blank_values(at.long()?, keep)?;
                break;
            }
            PropertyKind::Fixed(_) => break,
        }
    }
    Some(size)
}

fn blank_values(table: &mut [u8], keep: &[u8]) -> Option<()> {
    let mut at = Cursor { bytes: table, at: 0 };
    while at.at < at.bytes.len() {
        let length = at.u8()?.into();
        let is_kept = at.slice(length)? == keep;
        let of_type = at.at;
        match at.u8()? {
            b't' | b'b' | b'B' => at.skip(1)?,
            b's' | b'u' | b'U' => at.skip(2)?,
            b'I' | b'i' | b'f' => at.skip(4)?,
            b'D' => at.skip(5)?,
            b'l' | b'L' | b'd' | b'T' => at.skip(8)?,
            b'V' => {}
            _ => {
                let content = at.long()?;
                if !is_kept {
                    content.fill(b'*');
                    at.bytes[of_type] = b'S';
                }
            }
        }
    }
    Some(())
}

/// An unknown type, or lengths that do not match.
struct Unreadable;

/// Sanitises the fields of a table (`named`) or of an array.
fn sanitize_fields(bytes: &mut [u8], named: bool, depth: usize) -> Result<Option<&'static str>, Unreadable> {
    let mut at = Cursor { bytes, at: 0 };
    let mut defect = None;
    while at.at < at.bytes.len() {
        if named && at.sanitize_short_string().ok_or(Unreadable)? {
            defect = defect.or(Some(NAME));
        }
        let of_type = at.at;
        let found = match at.u8().ok_or(Unreadable)? {
            b't' | b'b' | b'B' => at.skip(1).map(|()| None),
            b's' | b'u' | b'U' => at.skip(2).map(|()| None),
            b'I' | b'i' | b'f' => at.skip(4).map(|()| None),
            b'D' => at.skip(5).map(|()| None),
            b'l' | b'L' | b'd' | b'T' => at.skip(8).map(|()| None),
            b'V' => Some(None),
            b'S' | b'x' => at.long().map(|_| None),
            kind @ (b'A' | b'F') => {
                let nested = at.long().ok_or(Unreadable)?;
                if depth == MAX_DEPTH {
                    // A byte array has the same encoding and is not parsed further.
                    at.bytes[of_type] = b'x';
                    Some(Some(DEEP))
                } else {
                    Some(sanitize_fields(nested, kind == b'F', depth + 1)?)
                }
            }
            _ => None,
        };
        defect = defect.or(found.ok_or(Unreadable)?);
    }
    Ok(defect)
}

/// Replaces the content of a table with one meaningless field.
fn blank_table(table: &mut [u8]) -> Option<()> {
    match table.len() {
        0 => {}
        1 => return None,
        length @ 2..=256 => {
            table.fill(b'?');
            table[0] = (length - 2) as u8;
            table[length - 1] = b'V';
        }
        length => {
            let content = u32::try_from(length - 6).ok()?;
            table[..2].copy_from_slice(b"\x00x");
            table[2..6].copy_from_slice(&content.to_be_bytes());
        }
    }
    Some(())
}

struct Cursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let array = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(array)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Delivery tag, flag, exchange and routing key; returns the tag and the defect.
    fn sanitize_delivery_facts(&mut self) -> Option<(u64, Option<&'static str>)> {
        let tag = self.u64()?;
        self.skip(1)?;
        let exchange = self.sanitize_short_string()?.then_some("the exchange is not UTF-8");
        let routing_key = self.sanitize_short_string()?.then_some("the routing key is not UTF-8");
        Some((tag, exchange.or(routing_key)))
    }

    fn slice(&mut self, length: usize) -> Option<&mut [u8]> {
        let end = self.at.checked_add(length)?;
        let slice = self.bytes.get_mut(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.slice(length).map(|_| ())
    }

    /// Content with a length prefix of four bytes.
    fn long(&mut self) -> Option<&mut [u8]> {
        let length = self.array().map(u32::from_be_bytes)?;
        self.slice(usize::try_from(length).ok()?)
    }

    /// Sanitises a string with a length prefix of one byte; true if it was not UTF-8.
    fn sanitize_short_string(&mut self) -> Option<bool> {
        let length = self.u8()?;
        let string = self.slice(length.into())?;
        let broken = std::str::from_utf8(string).is_err();
        if broken {
            string.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Some(broken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lapin::types::parsing::parse_field_table;
    use proptest::prelude::*;

    use super::*;

    /// A content header with these table fields, and a priority after them.
    fn with_headers(table: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend(0_u64.to_be_bytes());
        payload.extend((1_u16 << 13 | 1 << 11).to_be_bytes());
        payload.extend((table.len() as u32).to_be_bytes());
        payload.extend(table);
        payload.push(9);
        payload
    }

    fn sanitize_table(table: &[u8]) -> (Vec<u8>, Option<&'static str>) {
        let mut payload = with_headers(table);
        let length = payload.len();
        let defect = sanitize_header(&mut payload).unwrap();
        assert_eq!((payload.len(), payload.last()), (length, Some(&9)));
        (payload[14..length - 1].to_vec(), defect)
    }

    /// Nested arrays in the field `n`.
    fn nested(depth: usize) -> Vec<u8> {
        let mut bytes = b"\x01n".to_vec();
        for level in (0..depth).rev() {
            bytes.push(b'A');
            bytes.extend((level as u32 * 5).to_be_bytes());
        }
        bytes
    }

    fn readable(table: &[u8]) -> bool {
        parse_field_table(table).is_ok_and(|(rest, _)| rest.is_empty())
    }

    #[test]
    fn values_may_be_binary_but_names_must_be_text() {
        let value = b"\x01aS\x00\x00\x00\x02\xff\xfe";
        assert_eq!(sanitize_table(value), ([&9_u32.to_be_bytes()[..], value].concat(), None));
        let (table, defect) = sanitize_table(b"\x02a\xffV\x01bV");
        assert_eq!((&table[4..], defect), (&b"\x02a?V\x01bV"[..], Some(NAME)));
    }

    #[test]
    fn nesting_is_limited() {
        assert_eq!(sanitize_table(&nested(32)).1, None);
        for depth in [33, 1000, 26_000] {
            let (table, defect) = sanitize_table(&nested(depth));
            assert_eq!(defect, Some(DEEP));
            assert!(readable(&table));
        }
    }

    #[test]
    fn unreadable_headers_become_one_meaningless_field() {
        for table in [
            &b"\x01aZ\x00"[..],
            b"\x01aS\xff\xff\xff\xff",
            b"\x05ab",
            b"\x01a",
            &[b"\x01aZ".to_vec(), vec![b'x'; 300]].concat(),
        ] {
            let (table, defect) = sanitize_table(table);
            assert_eq!(defect, Some(UNREADABLE_HEADERS));
            let (rest, fields) = parse_field_table(&table[..]).unwrap();
            assert!(rest.is_empty() && fields.inner().len() == 1);
        }
        assert!(sanitize_header(&mut with_headers(b"a")).is_err());
    }

    #[test]
    fn a_returned_message_keeps_only_the_header_that_identifies_it() {
        let table =
            [&b"\x04auth"[..], &long(b'S', b"secret"), b"\x02id", &long(b'S', b"7"), b"\x01tt\x01"].concat();
        let mut payload = with_headers(&table);
        payload[4..12].copy_from_slice(&77_u64.to_be_bytes());
        assert_eq!(blank_returned(&mut payload, b"id"), Some(77));
        let expected =
            [&b"\x04auth"[..], &long(b'S', b"******"), b"\x02id", &long(b'S', b"7"), b"\x01tt\x01"].concat();
        assert_eq!(payload, with_headers(&expected));
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            any::<[u8; 1]>().prop_map(|bytes| [b"t".to_vec(), bytes.to_vec()].concat()),
            any::<[u8; 2]>().prop_map(|bytes| [b"s".to_vec(), bytes.to_vec()].concat()),
            any::<[u8; 4]>().prop_map(|bytes| [b"I".to_vec(), bytes.to_vec()].concat()),
            any::<[u8; 5]>().prop_map(|bytes| [b"D".to_vec(), bytes.to_vec()].concat()),
            any::<[u8; 8]>().prop_map(|bytes| [b"T".to_vec(), bytes.to_vec()].concat()),
            Just(b"V".to_vec()),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| long(b'S', &bytes)),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(|values| long(b'A', &values.concat())),
                prop::collection::btree_map("[a-z]{0,3}", inner, 0..5)
                    .prop_map(|map| long(b'F', &table(map))),
            ]
        })
    }

    fn long(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind][..], &(content.len() as u32).to_be_bytes(), content].concat()
    }

    fn table(fields: BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let field =
            |(name, value): (String, Vec<u8>)| [vec![name.len() as u8], name.into_bytes(), value].concat();
        fields.into_iter().flat_map(field).collect()
    }

    proptest! {
        #[test]
        fn readable_headers_are_not_changed(fields in prop::collection::btree_map("[a-z]{0,3}", value(), 0..6)) {
            let bytes = table(fields);
            let (after, defect) = sanitize_table(&bytes);
            prop_assert_eq!((&after[4..], defect), (&bytes[..], None));
        }

        #[test]
        fn the_library_can_parse_the_result_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 2..400)) {
            prop_assert!(readable(&sanitize_table(&bytes).0));
        }
    }
}
