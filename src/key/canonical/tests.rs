//! One form for texts that mean the same, another for all others.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::{with_document, with_value};

fn form(text: &str) -> Option<String> {
    with_value(text.as_bytes(), |form| String::from_utf8(form.to_vec()).unwrap())
}

#[test]
fn texts_that_mean_the_same_have_one_form() {
    for same in [
        &[r#"{"id":1,"a":1,"b":2}"#, r#"{"b":2,"a":1,"id":1}"#, " { \"id\" : 1 ,\n\t\"a\":1, \"b\":2 }\r\n"]
            [..],
        &[r#"["é"]"#, r#"["\u00e9"]"#, r#"["\u00E9"]"#],
        &[r#"["😀/"]"#, r#"["\ud83d\ude00\/"]"#],
        &[r#"["\n\u0001\"\\"]"#, r#"["\u000a\u0001\u0022\u005c"]"#],
        &["[1]", "[1.0]", "[1e0]", "[10E-1]", "[0.1e+1]", "[1.000]"],
        &["[0]", "[-0]", "[0.0]", "[0e7]", "[-0.0e-3]"],
        &["[1200]", "[12e2]", "[1.2E+3]", "[120e1]"],
        &["[-0.00120]", "[-12e-4]"],
        &[
            r#"{"a":{"y":[{"d":1,"c":2}],"x":null},"":true}"#,
            r#"{"":true,"a":{"x":null,"y":[{"c":2,"d":1}]}}"#,
        ],
        &[r#"{"\u0061":1,"b":2}"#, r#"{"b":2,"a":1}"#],
        &[r#"["\ud800"]"#, r#"["\uD800"]"#],
    ] {
        let forms: Vec<_> = same.iter().map(|text| form(text)).collect();
        assert!(forms[0].is_some() && forms.iter().all(|form| *form == forms[0]), "{same:?}: {forms:?}");
    }
}

#[test]
fn texts_that_mean_different_things_have_different_forms() {
    let texts = [
        r#"{"a":1}"#,
        r#"{"a":"1"}"#,
        r#"{"a":true}"#,
        r#"{"a":null}"#,
        r#"{"a":[1]}"#,
        r#"{"a":{}}"#,
        "{}",
        "[]",
        r#"{"a":1,"b":2}"#,
        r#"{"a":2,"b":1}"#,
        r#"{"ab":1}"#,
        "[1,2]",
        "[2,1]",
        "[12]",
        "[[1],2]",
        "[[1,2]]",
        "[-1]",
        "[10]",
        "[0.1]",
        "[1e400]",
        "[12345678901234567890]",
        "[12345678901234567891]",
        r#"[" "]"#,
        r#"["a"]"#,
        r#"["A"]"#,
        r#"["\ud800"]"#,
        r#"["\\ud800"]"#,
        r#"["\ud801"]"#,
        r#"["\u0000"]"#,
        r#"[""]"#,
    ];
    let forms: std::collections::BTreeSet<_> = texts.iter().map(|text| form(text).unwrap()).collect();
    assert_eq!(forms.len(), texts.len(), "{forms:?}");
}

#[test]
fn what_is_not_json_or_can_be_read_in_two_ways_has_no_form() {
    let deep = "[".repeat(200) + &"]".repeat(200);
    for text in [
        "",
        " ",
        "{",
        "[1",
        "[1,]",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        "{a:1}",
        "[01]",
        "[1.]",
        "[.5]",
        "[+1]",
        "[1e]",
        "[-]",
        "[tru]",
        "[nul]",
        "[1] 2",
        "[\"\t\"]",
        r#"["\x"]"#,
        r#"["\u12"]"#,
        r#"["a]"#,
        "[NaN]",
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"b":2,"\u0061":3}"#,
        "[1e99999999999999999999]",
        "\u{feff}[]",
        deep.as_str(),
    ] {
        assert_eq!(form(text), None, "{text:?}");
    }
    assert_eq!(with_value(b"[\"\xff\"]", |_| ()), None);
    for scalar in ["1", "\"a\"", "true", "pay 7"] {
        assert_eq!(with_document(scalar.as_bytes(), |_| ()), None, "{scalar}");
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // A whole one is written as an integer may be.
        any::<f64>().prop_filter("whole", |number| number.fract() != 0.0).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// `value` in another spelling: members the other way round, spaces, every character of strings escaped.
fn respelled(value: &Value) -> String {
    let string = |text: &str| {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        format!("\"{units}\"")
    };
    match value {
        Value::String(text) => string(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(respelled).collect();
            format!("[ {} ]", items.join(" ,\n"))
        }
        Value::Object(members) => {
            let members: Vec<_> = members
                .iter()
                .rev()
                .map(|(name, value)| format!("{} : {}", string(name), respelled(value)))
                .collect();
            format!("{{\t{} }}", members.join(", "))
        }
        Value::Number(number) if number.is_i64() => format!("{number}.0e0"),
        other => other.to_string(),
    }
}

proptest! {
    #[test]
    fn every_document_has_the_form_of_its_other_spellings(value in json()) {
        let (compact, pretty) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
        let canonical = form(&compact);
        prop_assert!(canonical.is_some());
        prop_assert_eq!(&canonical, &form(&pretty));
        prop_assert_eq!(&canonical, &form(&respelled(&value)));
    }

    #[test]
    fn documents_that_differ_have_different_forms(one in json(), other in json()) {
        if one != other {
            prop_assert_ne!(form(&one.to_string()), form(&other.to_string()));
        }
    }

    #[test]
    fn nothing_panics_and_what_serde_refuses_has_no_form(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let form = with_value(&bytes, |_| ());
        prop_assert!(form.is_none() || serde_json::from_slice::<&serde_json::value::RawValue>(&bytes).is_ok());
    }

    #[test]
    fn what_looks_like_json_is_refused_where_serde_refuses_it(text in "[\\[\\]{}:, \"\\\\uae019.eE+-]{0,24}") {
        let form = with_value(text.as_bytes(), |_| ());
        let valid = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
        prop_assert!(form.is_none() || valid, "{}", text);
    }
}
