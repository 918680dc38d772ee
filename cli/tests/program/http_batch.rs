//! Batches over HTTP through the program: a message that fails each request, and a program that is killed, lose nothing and cost
//! no other message an attempt.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::scene::{ORDERS, Scene, wait};

const ORDER_COUNT: usize = 400;

/// The effects, and the number of messages of each request.
#[derive(Default)]
struct Office {
    effects: Mutex<Vec<String>>,
    sizes: Mutex<Vec<usize>>,
    /// A request with the message "bad" gets no answer instead.
    hangs: bool,
}

impl Office {
    fn distinct(&self) -> BTreeSet<String> {
        let effects = self.effects.lock().unwrap();
        effects.iter().filter_map(|effect| Some(effect.split_once(' ')?.1.to_owned())).collect()
    }
}

/// A server that answers 500 to every request with the message "bad", before any effect.
fn open(hangs: bool) -> (Arc<Office>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/orders", listener.local_addr().unwrap());
    let office = Arc::new(Office { hangs, ..Office::default() });
    let shared = Arc::clone(&office);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let office = Arc::clone(&shared);
            std::thread::spawn(move || serve(connection.unwrap(), &office));
        }
    });
    (office, url)
}

fn serve(connection: TcpStream, office: &Office) -> Option<()> {
    let mut from = BufReader::new(connection);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).unwrap_or(0) == 0 {
                return None;
            }
            match line.trim_end().to_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).ok()?;
        let messages: Vec<Value> = serde_json::from_slice(&body).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        office.sizes.lock().unwrap().push(messages.len());
        let is_bad = messages.iter().any(|one| one["payload"].as_str().unwrap().contains("bad"));
        if is_bad && office.hangs {
            // Until the client gives up.
            let _ = from.read(&mut [0]);
            return None;
        }
        let (status, answer) = if is_bad {
            ("500 Internal Server Error", "broken".to_owned())
        } else {
            let effect = |one: &Value| format!("{} {}", one["attempt"], one["payload"].as_str().unwrap());
            office.effects.lock().unwrap().extend(messages.iter().map(effect));
            let results: Vec<_> = messages.iter().map(|one| json!({"id": one["id"], "ok": true})).collect();
            ("200 OK", Value::from(results).to_string())
        };
        write!(from.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
            .ok()?;
    }
}

fn scene(url: &str, store: &str, rest: &str, attempts: u32) -> Scene {
    let scene = Scene::new(&format!(
        "{ORDERS}{rest}{store}[handler.http]\nurl = '{url}'\nbatch = 20\ntimeout = '2s'\n[pipeline]\nordering = 'none'\n\
         [retry]\nmax_attempts = {attempts}\ninitial = '10ms'\nmax = '20ms'\n"
    ));
    let mut orders: Vec<_> = (0..ORDER_COUNT).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    orders.insert(ORDER_COUNT / 4, "{\"id\":\"bad\"}\n".to_owned());
    scene.write("orders.ndjson", &orders.concat());
    scene
}

fn expected() -> BTreeSet<String> {
    (0..ORDER_COUNT).map(|id| format!("{{\"id\":{id}}}")).collect()
}

#[test]
fn a_message_that_fails_each_request_is_dead_lettered_alone() {
    is_dead_lettered_alone(false);
}

#[test]
fn a_message_that_makes_each_request_hang_is_dead_lettered_alone() {
    is_dead_lettered_alone(true);
}

fn is_dead_lettered_alone(hangs: bool) {
    let (office, url) = open(hangs);
    let scene = scene(&url, "[store.memory]\n", "", 2);
    let ended = scene.execute("run @");
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let letters = scene.lines("dead.ndjson");
    assert!(letters.len() == 1 && letters[0].contains("bad"), "{letters:?} {}", ended.stderr);
    assert!(office.distinct() == expected(), "{:?}", office.distinct());
    let effects = office.effects.lock().unwrap();
    assert_eq!(effects.len(), ORDER_COUNT, "each effect once");
    assert!(effects.iter().all(|effect| effect.starts_with("1 ")), "in the first attempt: {effects:?}");
    let sizes = office.sizes.lock().unwrap();
    assert!(sizes.len() < ORDER_COUNT / 4 && sizes.iter().all(|size| *size <= 20), "{sizes:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_program_that_is_killed_loses_nothing() {
    let (office, url) = open(false);
    let store = "[store.sqlite]\npath = 'keys.db'\nlease = '1s'\ntimeout = '300ms'\n";
    let scene = scene(&url, store, "follow = true\n", 10);
    for target in [60, 150, 250] {
        let running = scene.start(scene.command("run @"));
        wait("effects", || office.distinct().len() >= target);
        running.signal(Signal::KILL);
        running.end();
    }
    let running = scene.start(scene.command("run @"));
    wait("all effects", || office.distinct().len() >= ORDER_COUNT && scene.lines("dead.ndjson").len() == 1);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(office.distinct() == expected(), "{:?}", office.distinct());
}
