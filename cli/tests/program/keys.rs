//! `onceward keys`: there and back, in text and JSON.

use rustix::process::Signal;
use serde_json::Value;

use super::scene::{Ended, ORDERS, Scene, wait};

const ORDERS_OF_BOTH_TYPES: &str = "{\"id\":42}\n{\"id\":\"42\"}\n{\"id\":\"a-1\"}\n";

fn scene(orders: &str) -> Scene {
    Scene::charging("sqlite]\npath = 'onceward.db'", orders)
}

fn json(ended: &Ended) -> Vec<Value> {
    ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{ended:?}")))
        .collect()
}

/// Runs the file again, as if the broker had redelivered everything.
fn redeliver(scene: &Scene, orders: &str) -> String {
    let _ = std::fs::remove_file(scene.path("orders.ndjson.old"));
    let _ = std::fs::rename(scene.path("orders.ndjson"), scene.path("orders.ndjson.old"));
    scene.write("orders.ndjson", orders);
    let ended = scene.execute("run @");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended.stdout
}

#[test]
fn a_key_is_found_by_what_the_message_bears() {
    let scene = scene(ORDERS_OF_BOTH_TYPES);
    assert_eq!(scene.execute("keys get @ a-1").code(), Some(78), "there is no store yet");
    assert_eq!(scene.execute("run @").code(), Some(0));

    let found = scene.execute("keys get --json @ a-1");
    let [record] = &json(&found)[..] else { panic!("{found:?}") };
    assert_eq!(
        (found.code(), &record["state"], &record["from"]),
        (Some(0), &"completed".into(), &"json:/id".into())
    );
    let both = json(&scene.execute("keys get --json @ 42"));
    assert_eq!(both.len(), 2, "a text and a number");
    for (typed, index) in [("\"42\"", 0), ("42", 1)] {
        let one = json(&scene.execute(&format!("keys get --json --typed @ {typed}")));
        assert_eq!((one.len(), &one[0]["hash"]), (1, &both[index]["hash"]), "{typed}");
    }
    let hash = record["hash"].as_str().unwrap();
    let by_hash = scene.execute(&format!("keys get --hash {hash} @"));
    assert!(by_hash.stdout.contains("state        completed\n"), "{by_hash:?}");
    assert!(scene.execute("keys explain @ a-1").stdout.contains("acked as duplicates"));

    let absent = scene.execute("keys get @ unknown");
    assert_eq!(absent.code(), Some(1));
    assert!(absent.stdout.ends_with(" (from json:/id) is not known\n"), "{absent:?}");
    for wrong in
        ["keys get --hash 00ff @", "keys get @ a b", "keys get --typed @ a-1", "keys list --after x @"]
    {
        assert_eq!(scene.execute(wrong).code(), Some(2), "{wrong}");
    }
}

#[test]
fn a_forgotten_key_is_handled_again_and_a_completed_one_is_not() {
    let scene = scene("{\"id\":\"a\"}\n");
    scene.execute("run @");
    assert_eq!(scene.effects().len(), 1);

    let unasked = scene.execute("keys forget @ a");
    assert_eq!((unasked.code(), unasked.stderr.contains("--yes")), (Some(2), true), "{unasked:?}");
    assert_eq!(
        redeliver(&scene, "{\"id\":\"a\"}\n"),
        "received=1 handled=0 duplicates=1 retried=0 dead-lettered=0\n"
    );
    // Under every filter, the user who changed a key is logged.
    let mut forget = scene.command("keys forget --yes @ a");
    forget.env("ONCEWARD_LOG", "off").env("USER", "mira");
    let forgotten = scene.start(forget).end();
    assert!(forgotten.stdout.ends_with(" forgotten\n"), "{forgotten:?}");
    for word in
        ["onceward::audit", "action=\"forget\"", "scope=billing", "before=\"completed\"", "user=\"mira\""]
    {
        assert!(forgotten.stderr.contains(word), "{word}: {forgotten:?}");
    }
    assert_eq!(scene.execute("keys forget --yes @ a").code(), Some(0), "it may be repeated");
    redeliver(&scene, "{\"id\":\"a\"}\n");
    assert_eq!(scene.effects().len(), 2);

    let completed = scene.execute("keys complete --yes @ b");
    assert!(
        completed.stdout.ends_with(" completed\n") && completed.stderr.contains("audit"),
        "{completed:?}"
    );
    assert!(scene.execute("keys complete @ b").stdout.ends_with(" completed already\n"));
    let which = scene.execute("keys complete --yes @ 7");
    assert_eq!((which.code(), which.stderr.contains("--typed")), (Some(2), true), "{which:?}");
    assert_eq!(scene.execute("keys complete --yes --typed @ 7").code(), Some(0));
    redeliver(&scene, "{\"id\":\"b\"}\n{\"id\":7}\n");
    assert_eq!(scene.effects().len(), 2, "{:?}", scene.effects());
}

#[test]
fn an_import_is_all_or_nothing_and_may_be_repeated() {
    let scene = scene("");
    scene.execute("run @");
    let import = |lines: &str| {
        scene.write("import.ndjson", lines);
        let mut command = scene.command("keys import @");
        command.arg(scene.path("import.ndjson"));
        scene.start(command).end()
    };
    let wrong = import("{\"key\":\"a\"}\n{\"kay\":1}\n\n{\"key\":\"b\",\"age\":\"old\"}\n");
    assert_eq!((wrong.code(), wrong.stdout.as_str()), (Some(1), ""), "{wrong:?}");
    assert!(wrong.stderr.contains("line 2: ") && wrong.stderr.contains("line 4: "), "{wrong:?}");
    assert!(wrong.stderr.contains("nothing was imported"), "{wrong:?}");
    assert_eq!(scene.execute("keys get @ a").code(), Some(1), "half of it was imported");

    let lines = "{\"key\":\"a\",\"age\":\"6d\"}\n{\"key\":\"a\",\"age\":\"3h\"}\n{\"key\":7}\n{\"key\":\"old\",\"age\":\"9d\"}\n";
    let first = import(lines);
    let figures = |imported, known| {
        format!("lines=4 imported={imported} known={known} repeated=1 expired=1 in-progress=0 dead=0\n")
    };
    assert_eq!((first.code(), first.stdout.clone()), (Some(0), figures(2, 0)), "{first:?}");
    assert_eq!(import(lines).stdout, figures(0, 2));
    let mut piped = scene.command("keys import @ -");
    piped.stdin(std::fs::File::open(scene.path("import.ndjson")).unwrap());
    assert_eq!(scene.start(piped).end().stdout, figures(0, 2));
    let left = json(&scene.execute("keys get --json @ a"))[0]["expires_in_ms"].as_u64().unwrap();
    let (least, most) = ((8 * 24 - 4) * 3_600_000, (8 * 24 - 3) * 3_600_000);
    assert!((least..=most).contains(&left), "the TTL counts from the completion: {left}");
    redeliver(&scene, "{\"id\":\"a\"}\n{\"id\":7}\n{\"id\":\"7\"}\n");
    assert_eq!(scene.effects(), ["{\"id\":\"7\"}"]);
}

#[test]
fn lists_are_pages_and_stats_count_every_state() {
    let handler = r#"command = ["sh", "-c", "grep -q bad && exit 65; exit 0"]"#;
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{ORDERS}{store}[handler.exec]\n{handler}\n"));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n{\"id\":\"bad\"}\n");
    assert_eq!(scene.execute("run @").code(), Some(3));

    let stats = json(&scene.execute("keys stats --json @"));
    assert_eq!(
        (&stats[0]["completed"], &stats[0]["dead"], &stats[0]["total"]),
        (&2.into(), &1.into(), &3.into())
    );
    assert!(scene.execute("keys stats @").stdout.contains("completed            2\n"));
    let mut hashes = Vec::new();
    loop {
        let page = match hashes.last() {
            None => scene.execute("keys list --json --limit 2 @"),
            Some(last) => scene.execute(&format!("keys list --json --limit 2 --after {last} @")),
        };
        let page: Vec<_> =
            json(&page).iter().map(|record| record["hash"].as_str().unwrap().to_owned()).collect();
        assert!(page.len() <= 2);
        if page.is_empty() {
            break;
        }
        hashes.extend(page);
    }
    assert_eq!(hashes.len(), 3, "{hashes:?}");
    let dead = json(&scene.execute("keys list --json --state dead @"));
    assert_eq!((dead.len(), &dead[0]["reason"]), (1, &"permanent".into()));
    assert!(scene.execute("keys explain @ bad").stdout.contains("redrive"));
    let refused = scene.execute("keys complete --yes @ bad");
    assert_eq!((refused.code(), refused.stderr.contains("dead-lettered")), (Some(1), true), "{refused:?}");
    let explained = json(&scene.execute("keys explain --json @ bad"));
    let history = explained[0]["history"].as_array().unwrap();
    assert!(!history.iter().any(|entry| entry["action"] == "complete"), "it was not completed: {history:?}");
}

#[test]
fn a_key_whose_handler_runs_is_not_completed_and_the_trail_does_not_say_so() {
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!(
        "{ORDERS}{store}[handler.exec]\ncommand = ['sh', '-c', 'touch started; exec sleep 600']\n"
    ));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let running = scene.start(scene.command("run @"));
    wait("the run", || scene.path("started").exists());
    let refused = scene.execute("keys complete --yes --typed @ 1");
    assert_eq!(
        (refused.code(), refused.stderr.contains("is claimed by a handler")),
        (Some(1), true),
        "{refused:?}"
    );
    let explained = json(&scene.execute("keys explain --json --typed @ 1"));
    assert_eq!(
        (&explained[0]["state"], &explained[0]["history"]),
        (&"pending".into(), &Value::Array(Vec::new()))
    );
    running.signal(Signal::KILL);
    running.end();
}

#[test]
fn the_memory_of_another_process_is_out_of_reach() {
    let scene = Scene::charging("memory]", "");
    for words in ["keys stats @", "keys get @ a", "status @"] {
        let ended = scene.execute(words);
        assert_eq!(ended.code(), Some(78), "{words}");
        assert!(ended.stderr.contains("store.memory") && ended.stdout.is_empty(), "{words}: {ended:?}");
    }
}

#[test]
fn what_has_expired_is_removed_on_request() {
    let scene = Scene::charging(
        "sqlite]\npath = 'onceward.db'\nttl = '1s'\nlease = '1s'\ntimeout = '900ms'",
        ORDERS_OF_BOTH_TYPES,
    );
    assert_eq!(scene.execute("run @").code(), Some(0));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut removed = 0;
    while removed < 3 {
        assert!(std::time::Instant::now() < deadline, "{removed} of 3 were removed");
        let [purged] = &json(&scene.execute("keys purge --json @"))[..] else { panic!("one line") };
        removed += purged["removed"].as_u64().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(removed, 3);
    assert_eq!(scene.execute("keys purge @").stdout, "0 expired keys removed\n");
}
