//! Recognises by its first bytes what does not hold lines of plain text: [`refusal`], [`BOM`].

/// The byte order mark of UTF-8. At the beginning of a source it is dropped.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

/// How many bytes at the beginning of a source are looked at.
pub(crate) const HEAD_BYTES: usize = 1024;

const DECOMPRESS: &str = "decompress it first, for example with";

/// A format that is recognised by how it begins.
struct Magic {
    begins: &'static [u8],
    name: &'static str,
    advice: &'static str,
    /// The beginning could be a line's own text: only bytes that are not UTF-8, or a NUL byte, decide.
    is_text: bool,
}

const fn magic(begins: &'static [u8], name: &'static str, advice: &'static str, is_text: bool) -> Magic {
    Magic { begins, name, advice, is_text }
}

/// In the order in which they are looked for: UTF-32 before UTF-16, whose mark is the beginning of its own.
const KNOWN: &[Magic] = &[
    magic(b"\x1f\x8b", "compressed with gzip", "`gzip -d` or `zcat`", false),
    magic(b"\x28\xb5\x2f\xfd", "compressed with zstd", "`zstd -d`", false),
    magic(b"BZh", "compressed with bzip2", "`bzip2 -d`", true),
    magic(b"\xfd7zXZ\0", "compressed with xz", "`xz -d`", false),
    magic(b"\x5d\0\0", "compressed with lzma", "`xz -d`", false),
    magic(b"LZIP", "compressed with lzip", "`lzip -d`", true),
    magic(b"\x04\x22\x4d\x18", "compressed with lz4", "`lz4 -d`", false),
    magic(b"\xff\x06\0\0sNaPpY", "compressed with snappy", "`snzip -d`", false),
    magic(b"\x1f\x9d", "compressed with compress", "`uncompress`", false),
    magic(b"\x78\x01", "compressed with zlib", "`zlib-flate -uncompress`", true),
    magic(b"\x78\x9c", "compressed with zlib", "`zlib-flate -uncompress`", true),
    magic(b"\x78\xda", "compressed with zlib", "`zlib-flate -uncompress`", true),
    magic(b"PK\x03\x04", "a zip archive", "`unzip`", false),
    magic(b"PK\x05\x06", "a zip archive", "`unzip`", false),
    magic(b"PK\x07\x08", "a zip archive", "`unzip`", false),
    magic(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "`7z x`", false),
    magic(b"Rar!\x1a\x07", "a rar archive", "`unrar`", false),
    magic(b"\xff\xfe\0\0", "text in UTF-32", "", false),
    magic(b"\0\0\xfe\xff", "text in UTF-32", "", false),
    magic(b"\xff\xfe", "text in UTF-16", "", false),
    magic(b"\xfe\xff", "text in UTF-16", "", false),
    magic(b"PAR1", "a Parquet file", "", true),
    magic(b"Obj\x01", "an Avro file", "", false),
    magic(b"ORC", "an ORC file", "", true),
    magic(b"ARROW1\0\0", "an Arrow file", "", false),
    magic(b"SQLite format 3\0", "an SQLite database", "", false),
    magic(b"%PDF-", "a PDF file", "", true),
    magic(b"\x89PNG\r\n\x1a", "a PNG image", "", false),
    magic(b"\x7fELF", "a program", "", false),
    magic(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document", "", false),
];

/// Where the mark of a tar archive stands.
const TAR: usize = 257;

/// Says why a source that begins with `head` is not read, and what to do; `None` if it may be lines of plain text.
///
/// Lines may hold any bytes: only what has the mark of a known format, or the pattern of UTF-16 or UTF-32, is refused.
pub(crate) fn refusal(head: &[u8]) -> Option<String> {
    let head = &head[..head.len().min(HEAD_BYTES)];
    let is_binary = || head.contains(&0) || !is_utf8(head);
    let known = KNOWN.iter().find(|known| head.starts_with(known.begins) && (!known.is_text || is_binary()));
    let (name, advice) = match known {
        Some(known) => (known.name, known.advice),
        // Skippable frames of zstd and lz4, with which seekable files begin.
        None if matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) => {
            ("compressed with zstd or lz4", "`zstd -d`")
        }
        None if head.get(TAR..).is_some_and(|rest| rest.starts_with(b"ustar")) => {
            ("a tar archive", "`tar -x`")
        }
        None => (wide(head)?, ""),
    };
    let what = match (name, advice) {
        (text, _) if text.starts_with("text in ") => {
            format!(
                "it is {text}, and lines are read as UTF-8; convert it first, for example with `iconv -t UTF-8`"
            )
        }
        (name, "") => format!("it is {name} and does not hold lines of text; convert it first"),
        (name, advice) => format!("it is {name} and does not hold lines of text; {DECOMPRESS} {advice}"),
    };
    Some(what)
}

/// True unless there are bytes that are not UTF-8; a character cut off at the end does not count.
fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).map_or_else(|error| error.error_len().is_none(), |_| true)
}

/// UTF-16 or UTF-32 without its mark: a third of the units or more have their NUL bytes where those of Latin characters stand,
/// and few have one where there should be none, or a line ending that is a byte alone.
fn wide(head: &[u8]) -> Option<&'static str> {
    let has_zeros = |size: usize, nul_at: &[usize], other: usize| {
        let units = head.chunks_exact(size);
        let count = units.len();
        let (mut latin, mut against) = (0, 0);
        for unit in units {
            if nul_at.iter().all(|at| unit[*at] == 0) && unit[other] != 0 {
                latin += 1;
            } else if unit[other] == 0 || unit.contains(&b'\n') {
                against += 1;
            }
        }
        count >= 2 && latin * 3 >= count && against * 4 <= latin
    };
    if has_zeros(4, &[1, 2, 3], 0) || has_zeros(4, &[0, 1, 2], 3) {
        return Some("text in UTF-32");
    }
    (has_zeros(2, &[1], 0) || has_zeros(2, &[0], 1)).then_some("text in UTF-16")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, big: bool) -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() })
            .collect()
    }

    fn utf32(text: &str, big: bool) -> Vec<u8> {
        let unit =
            |unit: char| if big { u32::from(unit).to_be_bytes() } else { u32::from(unit).to_le_bytes() };
        text.chars().flat_map(unit).collect()
    }

    #[test]
    fn wide_text_is_recognised_with_and_without_its_mark() {
        for text in
            ["{\"id\":1}\n{\"id\":2}\n", "a\n", "{\"name\":\"\u{540d}\u{524d}\u{4e00}\"}\n", "\u{feff}{}\n"]
        {
            for big in [false, true] {
                assert!(refusal(&utf16(text, big)).unwrap().contains("UTF-16"), "{text} {big}");
                assert!(refusal(&utf32(text, big)).unwrap().contains("UTF-32"), "{text} {big}");
                let line: Vec<u8> = utf16(text, big).split(|byte| *byte == b'\n').next().unwrap().to_vec();
                assert!(line.len() < 4 || refusal(&line).is_some(), "the first piece alone: {text} {big}");
            }
        }
    }

    #[test]
    fn compressed_and_other_binary_files_are_recognised() {
        let mut tar = vec![b'a'; 300];
        tar[TAR..TAR + 5].copy_from_slice(b"ustar");
        for head in [
            &b"\x1f\x8b\x08\x00"[..],
            b"\x1f\x8b\x08",
            b"\x28\xb5\x2f\xfd\x04",
            b"\x5e\x2a\x4d\x18\0",
            b"BZh91AY&SY\xff\0",
            b"BZh9\x17\x72\x45\x38\x50\x90",
            b"\xfd7zXZ\0\0",
            b"PK\x03\x04",
            b"\x78\x9c\xab\x56",
            b"PAR1\x15\x04",
            b"PAR1\x15\0",
            b"Obj\x01\x04",
            b"SQLite format 3\0",
            &tar,
        ] {
            if head == b"PAR1\x15\x04" {
                assert_eq!(refusal(head), None, "it is text as far as it goes");
                continue;
            }
            let refused = refusal(head).unwrap_or_else(|| panic!("{head:?}"));
            assert!(refused.contains("first"), "{refused}");
        }
    }

    #[test]
    fn plain_lines_of_any_bytes_pass() {
        for head in [
            &b""[..],
            b"\n",
            b"{\"id\":1}\n",
            BOM,
            b"\xef\xbb\xbf{}\n",
            b"BZh is a beginning like any other",
            b"PK",
            b"ORCHARD",
            b"xylophone",
            "x\u{691}".as_bytes(),
            b"caf\xe9\n",
            b"\xff\x00\x80line of bytes\n",
            b"a\0b\n",
            b"name\0value\nname\0value\n",
            b"\0\0\0\0\0\0\0\0",
            b"\xf0\x9f\x98\x80\n",
        ] {
            assert_eq!(refusal(head), None, "{head:?}");
        }
        let cut = "\u{e4}".repeat(HEAD_BYTES);
        assert_eq!(
            refusal(format!("BZh{cut}").as_bytes()),
            None,
            "a character is cut off at the end of the head"
        );
    }
}
