//! Checks which headers are believed, and that a seal covers each header that is read and the payload.

use super::*;
use crate::message::MessageBuilder;

const SECRET: &[u8] = b"0123456789abcdef";

fn own() -> OwnHeaders {
    OwnHeaders::authenticated(OwnSecrets::new(SECRET).unwrap())
}

/// A message with a value for each header that the seal covers, but for `without`; `change` may give another value.
fn letter<'v>(without: Option<&str>, change: impl Fn(&'static str) -> &'v str) -> MessageBuilder {
    let names = LETTER.covers.iter().filter(|name| Some(**name) != without);
    names.fold(Message::builder("pay 7").header("tenant", "a"), |message, name| {
        message.header(*name, change(name).to_owned())
    })
}

fn sealed_by(own: &OwnHeaders, letter: &Message) -> Bytes {
    own.seal(&LETTER, letter).expect("there is a secret").1
}

#[test]
fn every_header_that_is_read_and_the_payload_are_covered() {
    let own = own();
    let original = letter(None, |_| "1").build();
    let mac = sealed_by(&own, &original);
    let sealed = |message: MessageBuilder| message.header(LETTER.header, mac.clone()).build();
    assert!(own.believes(&LETTER, &sealed(letter(None, |_| "1"))));
    assert!(own.believes(&LETTER, &sealed(letter(None, |_| "1").header("more", "of the broker's"))));
    for name in LETTER.covers {
        let changed = letter(None, |own| if own == *name { "2" } else { "1" });
        assert!(!own.believes(&LETTER, &sealed(changed)), "{name} changed");
        assert!(!own.believes(&LETTER, &sealed(letter(Some(name), |_| "1"))), "{name} left out");
        let twice = letter(None, |_| "1").header(*name, "1");
        assert!(!own.believes(&LETTER, &sealed(twice)), "{name} twice");
        let before = letter(None, |_| "1").build();
        let mut headers = vec![(*name, Bytes::from("0"))];
        headers.extend(before.headers().map(|(name, value)| (name, value.clone())));
        let before = headers
            .into_iter()
            .fold(Message::builder("pay 7"), |message, (name, value)| message.header(name, value));
        assert!(!own.believes(&LETTER, &sealed(before)), "another {name} before it");
    }
    let other = original
        .headers()
        .fold(Message::builder("pay 8"), |message, (name, value)| message.header(name, value.clone()));
    assert!(!own.believes(&LETTER, &sealed(other)), "another payload");
    assert!(!own.believes(&LETTER, &sealed(letter(None, |_| "1").null_payload())));
}

#[test]
fn values_cannot_be_moved_from_one_header_to_the_next() {
    const PAIR: Seal = Seal { header: "mac", covers: &["a", "b"] };
    let own = own();
    let message = |a: &str, b: &str| Message::builder("").header("a", a.to_owned()).header("b", b.to_owned());
    let (_, mac) = own.seal(&PAIR, &message("1", "23").build()).unwrap();
    assert!(own.believes(&PAIR, &message("1", "23").header("mac", mac.clone()).build()));
    assert!(!own.believes(&PAIR, &message("12", "3").header("mac", mac).build()));
    let (_, mac) = own.seal(&PAIR, &message("1", "2").header("a", "3").build()).unwrap();
    assert!(own.believes(&PAIR, &message("1", "2").header("a", "3").header("mac", mac.clone()).build()));
    assert!(!own.believes(&PAIR, &message("1", "2").header("a", "4").header("mac", mac).build()));
}

#[test]
fn the_seal_of_one_kind_is_none_of_another() {
    let (one, other) = (Seal { header: "one", covers: &["a"] }, Seal { header: "other", covers: &["a"] });
    let own = own();
    let message = Message::builder("").header("a", "1").build();
    let (_, mac) = own.seal(&one, &message).unwrap();
    let moved = Message::builder("").header("a", "1").header("other", mac).build();
    assert!(!own.believes(&other, &moved));
}

#[test]
fn nothing_but_a_whole_mac_of_a_known_secret_is_believed() {
    let own = own();
    let original = letter(None, |_| "1").build();
    let mac = String::from_utf8(sealed_by(&own, &original).to_vec()).unwrap();
    let hex = &mac[mac.len() - 64..];
    let forged = [
        String::new(),
        "1".into(),
        "1..".into(),
        hex.into(),
        mac.replacen('1', "2", 1),
        format!("{mac}."),
        format!("{mac}00"),
        mac[..mac.len() - 1].into(),
        mac.replace(hex, &"0".repeat(64)),
        format!("1.{}.{hex}", "0".repeat(8)),
    ];
    for mac in forged {
        let message = letter(None, |_| "1").header(LETTER.header, mac.clone()).build();
        assert!(!own.believes(&LETTER, &message), "{mac}");
    }
    let twice = letter(None, |_| "1").header(LETTER.header, mac.clone()).header(LETTER.header, mac).build();
    assert!(!own.believes(&LETTER, &twice));
    assert!(!own.believes(&LETTER, &original), "no MAC");
    let raw = letter(None, |_| "1").header(LETTER.header, &b"\xff.\xff.\xff"[..]).build();
    assert!(!own.believes(&LETTER, &raw));
}

#[test]
fn a_secret_is_replaced_by_keeping_the_one_before_it() {
    let original = letter(None, |_| "1").build();
    let before = own();
    let sealed = letter(None, |_| "1").header(LETTER.header, sealed_by(&before, &original)).build();
    let new = || OwnSecrets::new(b"fedcba9876543210").unwrap();
    let rotating = OwnHeaders::authenticated(new().with_previous(SECRET).unwrap());
    assert!(rotating.believes(&LETTER, &sealed));
    assert!(!OwnHeaders::authenticated(new()).believes(&LETTER, &sealed), "rotated out");
    // New messages are sealed with the new one.
    let resealed = letter(None, |_| "1").header(LETTER.header, sealed_by(&rotating, &original)).build();
    assert!(OwnHeaders::authenticated(new()).believes(&LETTER, &resealed));
    assert!(!before.believes(&LETTER, &resealed));
}

#[test]
fn trust_says_what_is_believed_and_secrets_are_not_printed() {
    let message = letter(None, |_| "1").build();
    assert!(OwnHeaders::trusted().believes(&LETTER, &message));
    assert!(OwnHeaders::trusted().seal(&LETTER, &message).is_none());
    assert!(!OwnHeaders::default().believes(&LETTER, &message));
    let secrets = || OwnSecrets::new(SECRET).unwrap();
    let ignoring = OwnHeaders::new(HeaderTrust::Ignore, Some(secrets())).unwrap();
    let sealed = letter(None, |_| "1").header(LETTER.header, sealed_by(&ignoring, &message)).build();
    assert!(own().believes(&LETTER, &sealed), "it seals for others");
    assert!(!ignoring.believes(&LETTER, &sealed));
    assert_eq!(OwnHeaders::new(HeaderTrust::Authenticated, None).unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(OwnSecrets::new(&SECRET[1..]).unwrap_err().kind(), ErrorKind::Config);
    let printed = format!("{:?} {:?}", own(), secrets().with_previous(SECRET).unwrap());
    assert!(!printed.contains("0123") && !printed.contains("48, 49"), "{printed}");
    assert!(!printed.contains(&secrets().current.id), "{printed}");
}
