//! Redrive and purge of a letter through the listener, and all the requests that change nothing.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::scene::{ORDERS, Running, Scene, until, wait};
use super::telemetry::{address, request};

const TOKEN: &str = "0123456789abcdef-a-token";
const JSON: &str = "Content-Type: application/json\r\n";
const PATHS: [&str; 2] = ["/letters/redrive", "/letters/purge"];

/// Orders are refused until the file `fixed` is there.
const HANDLER: &str =
    r#"command = ["sh", "-c", 'o=$(cat); test -e fixed || exit 65; echo "$o" >> effects.log']"#;

/// A run with three dead letters, and the address of its listener.
fn run(telemetry: &str) -> (Scene, Running, String) {
    let store = "[store.sqlite]\npath = 'onceward.db'\ntimeout = '25s'\n";
    let telemetry = format!("[telemetry]\nlisten = '127.0.0.1:0'\n{telemetry}");
    let scene = Scene::new(&format!("{ORDERS}follow = true\n{store}[handler.exec]\n{HANDLER}\n{telemetry}"));
    scene.write("token", &format!("{TOKEN}\n"));
    std::fs::set_permissions(scene.path("token"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n{\"id\":3}\n");
    let running = scene.start(scene.command("run @"));
    let address = address(&running);
    wait("three letters", || letters(&address).len() == 3);
    (scene, running, address)
}

/// The letters as the page shows them.
fn letters(address: &str) -> Vec<Value> {
    let figures: Value = serde_json::from_str(&request(address, "GET /status.json").1).unwrap();
    figures["letters"].as_array().unwrap().clone()
}

/// The id of the letter at `place`, counted from the newest.
fn id(address: &str, place: usize) -> String {
    letters(address)[place]["id"].as_str().unwrap().to_owned()
}

/// The status and the body of the answer to a request with these headers and this body.
fn ask(address: &str, line: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    send(&mut stream, line, headers, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn send(stream: &mut TcpStream, line: &str, headers: &str, body: &str) {
    let length = body.len();
    write!(stream, "{line} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {length}\r\n\r\n{body}").unwrap();
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n{JSON}")
}

/// The status and the result of an action with the token.
fn act(address: &str, path: &str, body: &Value) -> (u16, String) {
    let (status, answer) = ask(address, &format!("POST {path}"), &bearer(), &body.to_string());
    let answer: Value = serde_json::from_str(&answer).unwrap();
    (status, answer["result"].as_str().unwrap().to_owned())
}

/// The lines of a command with JSON beside the run.
fn lines(scene: &Scene, words: &str) -> Vec<Value> {
    let output = scene.command(words).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn stop(running: Running) -> String {
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended.stderr
}

#[test]
fn a_letter_is_redriven_and_another_purged_and_the_audit_trail_says_who_and_why() {
    let (scene, running, address) = run("token_file = 'token'\n");
    scene.write("fixed", "");
    let (redriven, purged) = (id(&address, 0), id(&address, 1));
    let body = json!({"id": redriven, "why": "handler fixed", "by": "ann"});
    assert_eq!(act(&address, PATHS[0], &body), (200, "redriven".into()));
    wait("its effect", || scene.effects().len() == 1);
    assert_eq!(act(&address, PATHS[1], &json!({"id": purged, "why": "test order"})), (200, "purged".into()));

    for path in PATHS {
        for gone in [&redriven, &purged] {
            let body = json!({"id": gone, "why": "once more"});
            assert_eq!(act(&address, path, &body), (410, "absent".into()), "{path} {gone}");
        }
    }
    let done: Vec<_> = letters(&address).iter().map(|letter| letter["done"].clone()).collect();
    assert_eq!(done, [json!("redriven"), json!("purged"), Value::Null]);
    assert_eq!(lines(&scene, "dlq list --json @").len(), 1, "the third is left");
    let log = lines(&scene, "dlq log --json @");
    let entries: Vec<_> = log
        .iter()
        .map(|entry| ["action", "letter", "user", "why"].map(|name| entry[name].as_str().unwrap().to_owned()))
        .collect();
    let entry =
        |action: &str, letter: &str, user: &str, why: &str| [action, letter, user, why].map(str::to_owned);
    assert_eq!(
        entries,
        [
            entry("redrive", &redriven, "ann, status page", "handler fixed"),
            entry("redriven", &redriven, "ann, status page", "handler fixed"),
            entry("purged", &purged, "status page", "test order"),
        ]
    );
    let log = stop(running);
    assert_eq!(scene.effects().len(), 1, "one effect: {:?}", scene.effects());
    assert!(!log.contains(TOKEN), "{log}");
}

#[test]
fn a_letter_whose_key_has_completed_is_only_deleted() {
    let (scene, running, address) = run(&format!("token = '{TOKEN}'\n"));
    let letter = letters(&address).remove(0);
    let key = letter["key"].as_str().unwrap().to_owned();
    for change in ["forget", "complete"] {
        let changed = scene.command(&format!("keys {change} @ --hash {key} --yes")).output().unwrap();
        assert_eq!(changed.status.code(), Some(0), "{changed:?}");
    }
    scene.write("fixed", "");
    let body = json!({"id": letter["id"], "why": "done by hand"});
    assert_eq!(act(&address, PATHS[0], &body), (200, "resolved".into()));
    stop(running);
    assert!(scene.effects().is_empty(), "{:?}", scene.effects());
}

/// What a request could change.
fn state(scene: &Scene) -> impl PartialEq + std::fmt::Debug {
    let list = scene.command("dlq list --json @").output().unwrap().stdout;
    let ids: Vec<_> = String::from_utf8(list)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].clone())
        .collect();
    (
        ids,
        lines(scene, "dlq log --json @"),
        scene.lines("orders.ndjson"),
        scene.lines("dead.ndjson"),
        scene.effects(),
    )
}

#[test]
fn no_request_without_the_token_changes_anything() {
    let (scene, running, address) = run(&format!("token = '{TOKEN}'\n"));
    scene.write("fixed", "");
    let body = json!({"id": id(&address, 0), "why": "w"}).to_string();
    let before = state(&scene);
    let with = |authorization: &str| format!("Authorization: {authorization}\r\n{JSON}");
    let bearer = bearer();
    let mut wrong: Vec<String> = [
        "",
        "Bearer ",
        TOKEN,
        &format!("Basic {TOKEN}"),
        &format!("Bearer {TOKEN}x"),
        &format!("Bearer x{TOKEN}"),
        &format!("Bearer {}", &TOKEN[1..]),
        &format!("Bearer {}", TOKEN.to_uppercase()),
        &format!("Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}"),
        "Bearer ***",
    ]
    .map(with)
    .to_vec();
    wrong.push(JSON.to_owned());
    wrong.push(format!("Cookie: token={TOKEN}\r\nX-Token: {TOKEN}\r\n{JSON}"));
    for path in PATHS {
        for headers in &wrong {
            assert_eq!(ask(&address, &format!("POST {path}"), headers, &body).0, 401, "{headers}");
        }
        for query in [
            format!("token={TOKEN}"),
            format!("access_token={TOKEN}"),
            format!("authorization=Bearer%20{TOKEN}"),
        ] {
            assert_eq!(ask(&address, &format!("POST {path}?{query}"), JSON, &body).0, 401, "{query}");
        }
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(ask(&address, &format!("{method} {path}"), &bearer, &body).0, 405, "{method} {path}");
        }
        let authorization = format!("Authorization: Bearer {TOKEN}\r\n");
        for kind in
            ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"]
        {
            let headers = format!("{authorization}{kind}");
            assert_eq!(ask(&address, &format!("POST {path}"), &headers, &body).0, 415, "{kind}");
        }
        let large = json!({"id": id(&address, 0), "why": "w", "by": "x".repeat(4_096)}).to_string();
        assert_eq!(ask(&address, &format!("POST {path}"), &bearer, &large).0, 413);
        assert_eq!(chunked(&address, path, &large), 413);
        for bad in [
            String::new(),
            "{".to_owned(),
            json!({"id": id(&address, 0)}).to_string(),
            json!({"id": id(&address, 0), "why": " "}).to_string(),
            json!({"id": "", "why": "w"}).to_string(),
            json!({"id": id(&address, 0), "why": "w", "force": true}).to_string(),
            json!({"id": id(&address, 0), "why": "w".repeat(501)}).to_string(),
            json!({"id": id(&address, 0), "why": "w", "by": "b".repeat(65)}).to_string(),
        ] {
            assert_eq!(ask(&address, &format!("POST {path}"), &bearer, &bad).0, 400, "{bad}");
        }
        assert_eq!(act(&address, path, &json!({"id": "none", "why": "w"})), (410, "absent".into()));
    }
    for path in ["/", "/status", "/status.json", "/metrics", "/health/ready", "/letters", "/letters/redrive/"]
    {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert_eq!(ask(&address, &format!("{method} {path}"), &bearer, &body).0, 405, "{method} {path}");
        }
    }
    assert_eq!(state(&scene), before);
    let log = stop(running);
    assert_eq!(log.matches("request to change a dead letter refused").count(), 1, "{log}");
    assert!(!log.contains(TOKEN), "{log}");
}

/// The status of the answer to a body whose length is not said before.
fn chunked(address: &str, path: &str, body: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n{}Transfer-Encoding: chunked\r\n\r\n", bearer());
    write!(stream, "{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_run_without_a_token_has_no_action() {
    let (scene, running, address) = run("");
    let before = state(&scene);
    let body = json!({"id": id(&address, 0), "why": "w"}).to_string();
    for path in PATHS {
        assert_eq!(ask(&address, &format!("POST {path}"), &bearer(), &body).0, 405);
        assert_eq!(ask(&address, &format!("GET {path}"), &bearer(), &body).0, 404);
    }
    let figures: Value = serde_json::from_str(&request(&address, "GET /status.json").1).unwrap();
    assert_eq!(figures["has_actions"], false);
    assert_eq!(state(&scene), before);
    stop(running);
}

#[tokio::test]
async fn one_action_runs_at_a_time_and_goes_on_when_its_caller_goes_away() {
    use sqlx::{Connection, Executor, SqliteConnection};
    let (scene, running, address) = run(&format!("token = '{TOKEN}'\n"));
    let url = format!("sqlite:{}", scene.path("onceward.db").display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    conn.execute("begin immediate").await.unwrap();
    let [first, second] = [0, 1].map(|place| json!({"id": id(&address, place), "why": "w"}));
    let mut stream = TcpStream::connect(&address).unwrap();
    send(&mut stream, &format!("POST {}", PATHS[1]), &bearer(), &first.to_string());
    wait("the first is being done", || running.stderr().contains("request of the status page accepted"));
    assert_eq!(act(&address, PATHS[0], &second), (409, "busy".into()));
    drop(stream);
    conn.execute("rollback").await.unwrap();
    let entry = until("the entry", || lines(&scene, "dlq log --json @").pop());
    assert_eq!((&entry["action"], &entry["letter"]), (&json!("purged"), &first["id"]));
    stop(running);
    assert_eq!(lines(&scene, "dlq log --json @").len(), 1);
}

#[test]
fn an_action_that_fails_says_why() {
    let (scene, running, address) = run(&format!("token = '{TOKEN}'\n"));
    std::fs::rename(scene.path("dead.ndjson"), scene.path("away")).unwrap();
    std::fs::create_dir(scene.path("dead.ndjson")).unwrap();
    let body = json!({"id": id(&address, 0), "why": "w"}).to_string();
    let (status, answer) = ask(&address, &format!("POST {}", PATHS[0]), &bearer(), &body);
    assert!(status == 500 && answer.contains("dead.ndjson"), "{status} {answer}");
    assert_eq!(scene.lines("orders.ndjson").len(), 3);
    drop(running);
}

#[test]
fn a_token_that_is_too_short_or_missing_is_refused_at_the_start() {
    let (scene, running, _) = run("token_file = 'token'\n");
    stop(running);
    for (text, said) in [(Some("short\n"), "holds less than 16 bytes"), (None, "cannot be read")] {
        let file = scene.path("token");
        text.map_or_else(|| std::fs::remove_file(&file).unwrap(), |text| scene.write("token", text));
        let ended = scene.execute("run @");
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        assert!(ended.stderr.contains("telemetry.token_file") && ended.stderr.contains(said), "{ended:?}");
    }
}
