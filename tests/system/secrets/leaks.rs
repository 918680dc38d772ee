//! Finds a secret in a text in every form that something may have printed it in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The forms of `secret`: as it is, as a list of bytes, in hexadecimal digits, escaped, percent-encoded and in Base64, wherever
/// it begins there.
fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let each =
        |print: fn(u8) -> String, between: &str| secret.bytes().map(print).collect::<Vec<_>>().join(between);
    let mut forms = vec![
        ("text", secret.to_owned()),
        ("a list of bytes", each(|byte| byte.to_string(), ", ")),
        ("a short list of bytes", each(|byte| byte.to_string(), ",")),
        ("a list of hexadecimal bytes", each(|byte| format!("{byte:#x}"), ", ")),
        ("hexadecimal digits", each(|byte| format!("{byte:02x}"), "")),
        ("capital hexadecimal digits", each(|byte| format!("{byte:02X}"), "")),
        ("hexadecimal digits with spaces", each(|byte| format!("{byte:02x}"), " ")),
        ("escapes", each(|byte| format!("\\x{byte:02x}"), "")),
        ("percent escapes", each(|byte| format!("%{byte:02X}"), "")),
    ];
    for before in 0..3_usize {
        let encoded = STANDARD.encode([&vec![b'x'; before], secret.as_bytes()].concat());
        // The characters at the edges depend on the neighbours.
        let (start, end) = ([0, 2, 3][before], encoded.trim_end_matches('=').len() - 2);
        forms.push(("Base64", encoded[start..end].to_owned()));
    }
    forms
}

/// The line of `text` that holds `secret`, with its form.
pub(crate) fn leak<'t>(text: &'t str, secret: &str) -> Option<(&'static str, &'t str)> {
    let forms = forms(secret);
    text.lines().find_map(|line| {
        let (form, _) = forms.iter().find(|(_, form)| line.contains(form))?;
        Some((*form, line))
    })
}

#[test]
fn a_secret_is_found_in_every_form() {
    const SECRET: &str = "hunter2canary";
    for text in [
        "password=hunter2canary",
        "LongString([0, 108, 0, 104, 117, 110, 116, 101, 114, 50, 99, 97, 110, 97, 114, 121, 0])",
        "b\"\\x68\\x75\\x6e\\x74\\x65\\x72\\x32\\x63\\x61\\x6e\\x61\\x72\\x79\"",
        "0068756e7465723263616e61727900",
        "%68%75%6E%74%65%72%32%63%61%6E%61%72%79",
    ] {
        assert!(leak(text, SECRET).is_some(), "{text}");
    }
    for around in ["", "u:", "us:", "use:", "user:"] {
        let encoded = STANDARD.encode(format!("{around}{SECRET}{around}"));
        assert!(leak(&format!("Authorization: Basic {encoded}"), SECRET).is_some(), "{encoded}");
    }
    assert_eq!(leak("hunter2 canary [104, 117, 110]", SECRET), None);
}
