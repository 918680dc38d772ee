//! `onceward run`: effects, figures, exit codes, logs.

use super::scene::{CHARGE, ORDERS, Scene};

const THREE: &str = "{\"id\":1}\n{\"id\":2}\n{\"id\":1}\n";

#[test]
fn a_file_is_handled_once_each_and_the_figures_are_one_line() {
    let scene = Scene::charging("memory]", THREE);
    let ended = scene.execute("run @");
    assert_eq!(ended.stdout, "received=3 handled=2 duplicates=1 retried=0 dead-lettered=0\n", "{ended:?}");
    assert_eq!((ended.code(), scene.effects()), (Some(0), vec!["{\"id\":1}".into(), "{\"id\":2}".into()]));
    let starts: Vec<_> = ended.stderr.lines().filter(|line| line.contains("pipeline started")).collect();
    let [start] = starts[..] else { panic!("{ended:?}") };
    for field in ["scope=billing", "guarantee=\"deduplicated\"", "orders.ndjson", "\"memory\"", "\"exec\""] {
        assert!(start.contains(field), "{field} is not in {start}");
    }
    assert!(ended.stderr.contains("store.memory"), "no advice: {ended:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_second_run_has_no_effect_and_neither_has_another_file_with_the_same_keys() {
    let scene = Scene::charging("sqlite]\npath = 'onceward.db'", THREE);
    assert_eq!(scene.execute("run @").code(), Some(0));
    let again = scene.execute("run @");
    assert_eq!(again.stdout, "received=0 handled=0 duplicates=0 retried=0 dead-lettered=0\n");
    std::fs::rename(scene.path("orders.ndjson"), scene.path("old")).unwrap();
    scene.write("orders.ndjson", THREE);
    let other = scene.execute("run @");
    assert_eq!(other.stdout, "received=3 handled=0 duplicates=3 retried=0 dead-lettered=0\n", "{other:?}");
    assert_eq!(scene.effects().len(), 2);
}

#[test]
fn dead_letters_end_a_file_run_with_3() {
    let refuse = r#"command = ["sh", "-c", "grep -q bad && exit 65; exit 0"]"#;
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{refuse}\n"));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":\"bad\"}\n{}\n");
    let ended = scene.execute("run @");
    assert_eq!(ended.stdout, "received=3 handled=1 duplicates=0 retried=0 dead-lettered=2\n", "{ended:?}");
    assert_eq!((ended.code(), scene.lines("dead.ndjson").len()), (Some(3), 2));
}

#[test]
fn failures_are_retried_and_counted() {
    let once = r#"command = ["sh", "-c", "test -e tried || { touch tried; exit 75; }"]"#;
    let retry = "[retry]\ninitial = '1ms'\nmax = '2ms'\n";
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{once}\n{retry}"));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let ended = scene.execute("run @");
    assert_eq!(ended.stdout, "received=1 handled=1 duplicates=0 retried=1 dead-lettered=0\n", "{ended:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_followed_file_ends_when_it_is_idle_and_goes_on_from_there() {
    let source = format!("{ORDERS}follow = true\n");
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{source}{store}[handler.exec]\n{CHARGE}\n"));
    scene.write("orders.ndjson", THREE);
    let first = scene.execute("run --until-empty @");
    let figures = "received=3 handled=2 duplicates=1 retried=0 dead-lettered=0\n";
    assert_eq!((first.code(), first.stdout.as_str()), (Some(0), figures));
    scene.append("orders.ndjson", "{\"id\":2}\n{\"id\":3}\n");
    let second = scene.execute("run --until-empty @");
    assert_eq!(second.stdout, "received=2 handled=1 duplicates=1 retried=0 dead-lettered=0\n", "{second:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_statement_and_its_completion_are_one() {
    let statement = r#"statement = "insert into charges select json_extract($1, '$.id')""#;
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{ORDERS}{store}[handler.sql]\n{statement}\ntimeout = '5s'\n"));
    scene.write("orders.ndjson", THREE);
    let refused = scene.execute("run @");
    assert_eq!(refused.code(), Some(78), "{refused:?}");
    assert!(refused.stderr.contains("no such table: charges"), "{refused:?}");
    assert!(scene.lines("dead.ndjson").is_empty(), "a message paid for a missing table");

    let database = format!("sqlite:{}", scene.path("onceward.db").display());
    let query = |sql: &'static str| {
        let database = database.clone();
        tokio::runtime::Runtime::new().unwrap().block_on(async move {
            use sqlx::Connection;
            let mut conn = sqlx::SqliteConnection::connect(&database).await.unwrap();
            sqlx::query_scalar::<_, i64>(sql).fetch_optional(&mut conn).await.unwrap()
        })
    };
    query("create table charges (id integer)");
    let ended = scene.execute("run @");
    assert_eq!(ended.stdout, "received=3 handled=2 duplicates=1 retried=0 dead-lettered=0\n", "{ended:?}");
    assert!(ended.stderr.contains("guarantee=\"effectively-once\""), "{ended:?}");
    assert_eq!(query("select count(*) from charges"), Some(2));
}

#[test]
#[cfg(feature = "pubsub")]
fn a_run_until_empty_of_a_source_that_cannot_report_it_is_refused_before_anything_is_opened() {
    let source = "[source.pubsub]\nsubscription = 'orders'\nproject = 'shop'\n\
                  endpoint = 'http://127.0.0.1:1'\ncredentials = 'anonymous'\n";
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{source}{store}[handler.exec]\n{CHARGE}\n"));
    let refused = scene.execute("run --until-empty @");
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    for said in ["--until-empty", "[source.pubsub]", "stop the run with a signal"] {
        assert!(refused.stderr.contains(said), "{said}: {refused:?}");
    }
    assert!(!scene.path("onceward.db").exists(), "the store was opened");
    // Without the flag it waits for the server.
    let waited = scene.execute("run --startup-timeout 1s @");
    assert_eq!(waited.code(), Some(1), "{waited:?}");
    assert!(scene.path("onceward.db").exists(), "{waited:?}");
}

#[test]
fn messages_on_standard_output_are_not_mixed_with_figures() {
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.stdout]\n"));
    scene.write("orders.ndjson", THREE);
    let ended = scene.execute("run @");
    let mut lines: Vec<_> = ended.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["{\"id\":1}", "{\"id\":2}"]);
    assert!(ended.stderr.contains("received=3 handled=2 "), "{ended:?}");
}

#[test]
fn a_name_in_a_log_line_can_neither_forge_a_line_nor_act_on_a_terminal() {
    let source = "[source.file]\npath = \"or\\nders\\u001b[31m.ndjson\"\n";
    for log in ["text", "json"] {
        let telemetry = format!("[telemetry]\nlog = '{log}'\n");
        let scene = Scene::new(&format!("{source}[store.memory]\n[handler.exec]\n{CHARGE}\n{telemetry}"));
        scene.write("or\nders\u{1b}[31m.ndjson", THREE);
        let mut talkative = scene.command("run @");
        talkative.env("ONCEWARD_LOG", "debug");
        let ended = scene.start(talkative).end();
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
        for line in ended.stderr.lines() {
            let whole = match log {
                "json" => serde_json::from_str::<serde_json::Value>(line)
                    .is_ok_and(|line| line["level"].is_string()),
                _ => line.starts_with("20"),
            };
            assert!(whole, "{log}: {line:?}");
        }
    }
}

#[test]
fn what_is_not_there_is_told_before_any_message_is_taken() {
    let with = |from: &str, to: &str| {
        let scene = Scene::charging("memory]", THREE);
        let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
        assert!(config.contains(from), "{from}");
        scene.write("onceward.toml", &config.replace(from, to));
        let ended = scene.execute("run @");
        assert!(scene.lines("dead.ndjson").is_empty(), "{to}: a message paid for the configuration");
        assert_eq!((ended.stdout.as_str(), scene.effects().len()), ("", 0), "{to}");
        (ended.code(), ended.stderr)
    };
    for (from, to, code, word) in [
        ("\"sh\"", "\"no-such-program\"", 78, "no-such-program"),
        ("orders.ndjson", "absent.ndjson", 78, "absent.ndjson"),
        ("[store.memory]", "[telemetry]\notlp = 'grpc://127.0.0.1:1'\n[store.memory]", 78, "telemetry.otlp"),
        #[cfg(feature = "sqlite")]
        ("memory]", "sqlite]\npath = 'no/folder/onceward.db'", 78, "no/folder"),
        #[cfg(feature = "telemetry")]
        ("[store.memory]", "[telemetry]\nlisten = '192.0.2.1:1'\n[store.memory]", 1, "telemetry.listen"),
    ] {
        let (ended, stderr) = with(from, to);
        assert_eq!(ended, Some(code), "{to}: {stderr}");
        assert!(stderr.lines().last().is_some_and(|line| line.contains(word)), "{to}: {stderr}");
    }
}

#[test]
fn a_filter_that_is_none_is_refused_and_a_good_one_is_kept_to() {
    let scene = Scene::charging("memory]", THREE);
    let mut quiet = scene.command("run @");
    quiet.env("RUST_LOG", "trace").env("ONCEWARD_LOG", "error");
    assert_eq!(scene.start(quiet).end().stderr, "");
    let mut wrong = scene.command("run @");
    wrong.env("ONCEWARD_LOG", "a=b=c");
    let wrong = scene.start(wrong).end();
    assert_eq!((wrong.code(), wrong.stderr.starts_with("ONCEWARD_LOG: ")), (Some(78), true), "{wrong:?}");
}

#[test]
fn figures_that_nobody_reads_are_no_failure() {
    let scene = Scene::charging("memory]", THREE);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = scene.command("run @").stdout(writer).stderr(std::process::Stdio::null()).status().unwrap();
    assert_eq!((status.code(), scene.effects().len()), (Some(0), 2));
    // A log without a reader is no failure either.
    std::fs::remove_file(scene.path("effects.log")).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = scene.command("run @").stderr(writer).output().unwrap();
    assert_eq!((output.status.code(), scene.effects().len()), (Some(0), 2), "{output:?}");
}

#[test]
#[cfg(feature = "http")]
fn a_planted_password_is_never_printed() {
    const PASSWORD: &str = "hunter2canary";
    let url = "url = 'http://user:${SECRET}@127.0.0.1:1/hook?token=${SECRET}'";
    let headers = "[handler.http.headers]\nAuthorization = 'Bearer ${SECRET}'\n";
    let retry = "[retry]\nmax_attempts = 1\n";
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.http]\n{url}\n{headers}{retry}"));
    scene.write("orders.ndjson", THREE);
    for (words, code) in
        [("run --startup-timeout 1s @", 1), ("check @", 1), ("check --json @", 1), ("config show @", 0)]
    {
        let mut command = scene.command(words);
        command.env("SECRET", PASSWORD).env("ONCEWARD_LOG", "trace").env("RUST_BACKTRACE", "full");
        let ended = scene.start(command).end();
        let letters = scene.lines("dead.ndjson").concat();
        assert_eq!(ended.code(), Some(code), "{words}: {ended:?}");
        for text in [&ended.stdout, &ended.stderr, &letters] {
            assert!(!text.contains(PASSWORD), "{words}: {text}");
        }
    }
}
