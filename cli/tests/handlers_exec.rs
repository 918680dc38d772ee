//! The exec handler with real processes: what they are given, how they end, and that nothing of them is left.
#![allow(clippy::unwrap_used)]

mod handlers_support;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use handlers_support::{
    FENCE, KEY, TOKEN, claimed, eventually, example, is_running, pids, program, scope, sh,
};
use onceward::{Handler as _, HandlerError, Message, MessageBuilder, Verdict};
use onceward_cli::handlers::{Environment, ExecHandler, ExecOptions, ExitCodes, Meaning, Program};

fn options(program: Program) -> ExecOptions {
    let mut options = ExecOptions::new(scope(), program);
    options.keep_output = Some(4 * 1024 * 1024);
    options.grace = Duration::from_millis(300);
    options
}

fn handler(program: Program) -> ExecHandler {
    ExecHandler::new(options(program))
}

async fn run(program: Program, message: MessageBuilder) -> Result<Option<Bytes>, HandlerError> {
    let (_run, message) = claimed(message);
    let handler = handler(program);
    tokio::time::timeout(Duration::from_secs(20), handler.handle(message)).await.expect("the handler returns")
}

async fn run_sh(script: &str) -> Result<Option<Bytes>, HandlerError> {
    run(sh(script), Message::builder("")).await
}

async fn environment(message: MessageBuilder) -> HashMap<String, String> {
    let output = run(program(["env", "-0"]), message).await.unwrap().unwrap();
    let variable = |text: &[u8]| {
        let (name, value) = std::str::from_utf8(text).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    output.split(|byte| *byte == 0).filter_map(variable).collect()
}

#[tokio::test]
async fn a_process_is_told_everything_about_its_message() {
    let message = Message::builder("")
        .header("x-customer.id", "42\n43")
        .header("nul", &b"a\0b"[..])
        .header("raw", &b"\xff"[..])
        .message_id("m-1")
        .origin("orders".into());
    let environment = environment(message).await;
    assert_eq!(environment["ONCEWARD_KEY"], KEY);
    assert_eq!(environment["ONCEWARD_TOKEN"], TOKEN);
    assert_eq!(environment["ONCEWARD_SCOPE"], "billing");
    assert_eq!(environment["ONCEWARD_ATTEMPT"], "2");
    assert_eq!(environment["ONCEWARD_FENCE"], FENCE.to_string());
    assert_eq!(environment["ONCEWARD_GENERATION"], "3");
    assert_eq!(environment["ONCEWARD_MESSAGE_ID"], "m-1");
    assert_eq!(environment["ONCEWARD_ORIGIN"], "orders");
    assert_eq!(environment["ONCEWARD_HEADER_X_CUSTOMER_ID"], "42\n43");
    assert_eq!(environment["ONCEWARD_HEADER_NUL_BASE64"], "YQBi");
    assert_eq!(environment["ONCEWARD_HEADER_RAW_BASE64"], "/w==");
    assert!(environment.contains_key("PATH"), "programs have to be found");
}

#[tokio::test]
async fn a_process_gets_no_more_of_this_programs_environment_than_it_needs() {
    const OWN: &str = "CARGO_MANIFEST_DIR";
    assert!(std::env::var_os(OWN).is_some(), "the test runner has set it");
    let of = async |environment: Environment| {
        let printed = run(program(["env"]).with_environment(environment), Message::builder("")).await;
        String::from_utf8(printed.unwrap().unwrap().to_vec()).unwrap()
    };
    let usual = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"];
    let of_usual = of(Environment::new()).await;
    for (name, _) in of_usual.lines().filter_map(|line| line.split_once('=')) {
        let is_known = usual.contains(&name) || name.starts_with("LC_") || name.starts_with("ONCEWARD_");
        // Variables that the dynamic linker and a shell set themselves.
        assert!(is_known || ["PWD", "SHLVL", "_"].contains(&name), "{name} is passed on");
    }
    let set = [("REGION".to_owned(), "eu".to_owned()), ("HOME".to_owned(), "/elsewhere".to_owned())];
    let named = of(Environment::new().inherit([OWN.to_owned()]).set(set)).await;
    for line in ["CARGO_MANIFEST_DIR=", "REGION=eu", "HOME=/elsewhere"] {
        assert!(named.lines().any(|own| own.starts_with(line)), "{line} is missing in {named}");
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("of-another-path");
    std::fs::write(&script, "#!/bin/sh\necho found\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = Environment::new().set([("PATH".to_owned(), folder.path().to_str().unwrap().to_owned())]);
    let elsewhere = program(["of-another-path"]).with_environment(path);
    assert_eq!(run(elsewhere, Message::builder("")).await.unwrap().unwrap(), "found\n");
    let all = of(Environment::new().inherit(["*".to_owned()]).withhold([OWN.to_owned()])).await;
    assert!(all.contains("CARGO_PKG_NAME=") && !all.contains(OWN), "{all}");
}

#[tokio::test]
async fn a_header_bomb_does_not_keep_the_process_from_starting() {
    let mut message = Message::builder("").header("one", vec![b'x'; 3 * 1024 * 1024]);
    for number in 0..10_000 {
        message = message.header(format!("h{number}"), vec![b'x'; 1000]);
    }
    let environment = environment(message).await;
    assert!(environment["ONCEWARD_HEADERS_SKIPPED"].parse::<u32>().unwrap() > 9_000);
}

#[tokio::test]
async fn a_mebibyte_with_nul_bytes_goes_through_unchanged() {
    let payload: Vec<u8> = (0..1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let output = run(program(["cat"]), Message::builder(payload.clone())).await.unwrap().unwrap();
    assert!(output == payload, "{} bytes came back", output.len());
}

#[tokio::test]
async fn a_process_that_reads_nothing_is_judged_by_its_exit_code() {
    let payload = vec![b'x'; 1024 * 1024];
    run(sh("exit 0"), Message::builder(payload.clone())).await.unwrap();
    run(sh("exec <&-; sleep 0.05"), Message::builder(payload.clone())).await.unwrap();
    let error = run(sh("exit 65"), Message::builder(payload)).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Permanent);
}

#[tokio::test]
async fn exit_codes_decide() {
    for (code, verdict) in
        [(65, Verdict::Permanent), (75, Verdict::Retry), (1, Verdict::Retry), (127, Verdict::Unavailable)]
    {
        let error = run_sh(&format!("echo first >&2; echo 'why {code}' >&2; echo >&2; exit {code}"))
            .await
            .unwrap_err();
        assert_eq!(error.verdict(), verdict, "{code}");
        assert!(!error.is_outcome_unknown(), "an exit code says that the effect did not happen");
        assert!(error.text().ends_with(&format!(": why {code}")), "{error}");
        assert!(error.text().contains(&format!("exit code {code}")), "{error}");
    }
}

#[tokio::test]
async fn a_signal_means_try_again_with_the_outcome_unknown() {
    let error = run_sh("echo last words >&2; kill -SEGV $$").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    assert!(error.text().contains("SIGSEGV") && error.text().ends_with(": last words"), "{error}");
}

#[tokio::test]
async fn a_flood_on_standard_error_is_cut_and_escaped() {
    let script = r"yes 'many lines' | head -c 1000000 >&2; printf '\033[31m' >&2; head -c 2000 /dev/zero | tr '\0' x >&2; exit 1";
    let error = run_sh(script).await.unwrap_err();
    assert!(error.text().contains("\\u{1b}[31m"), "{error}");
    assert!(error.text().len() < 1200 && error.text().ends_with('…'), "{} bytes", error.text().len());
}

#[tokio::test]
async fn output_is_kept_whole_or_not_at_all() {
    let (_run, message) = claimed(Message::builder(""));
    let keeping = |keep_output, script| ExecHandler::new(ExecOptions { keep_output, ..options(sh(script)) });
    let ten = "printf 0123456789";
    assert_eq!(keeping(None, ten).handle(message.clone()).await.unwrap(), None);
    assert_eq!(keeping(Some(10), ten).handle(message.clone()).await.unwrap().unwrap(), "0123456789");
    assert_eq!(keeping(Some(9), ten).handle(message.clone()).await.unwrap(), None);
    let much = "head -c 1000000 /dev/zero && echo done >&2";
    assert_eq!(keeping(Some(9), much).handle(message).await.unwrap(), None, "more than a pipe holds");
}

#[tokio::test]
async fn a_cancelled_run_is_over_with_all_its_processes_before_the_handler_returns() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    // The shell ignores what can be ignored; its children have closed every pipe, and are many, so that they take a
    // moment to go.
    let script = format!(
        "trap '' TERM INT HUP; echo $$ > {0}; \
         for i in $(seq 20); do sleep 300 <&- >&- 2>&- & echo $! >> {0}; done; wait",
        file.display()
    );
    let (run, message) = claimed(Message::builder("x"));
    let handled = tokio::spawn(async move { handler(sh(&script)).handle(message).await });
    let pids = pids(&file, 21).await;
    assert!(pids.iter().all(|pid| is_running(*pid)));
    run.cancel();
    let error = handled.await.unwrap().unwrap_err();
    let running: Vec<_> = pids.iter().filter(|pid| is_running(**pid)).collect();
    assert!(running.is_empty(), "still running: {running:?}");
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    assert!(error.text().contains("cancelled"), "{error}");
}

#[tokio::test]
async fn a_cancelled_process_is_asked_to_end_before_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let cancelled = async |script: &str| {
        let file = dir.path().join("started");
        let _ = std::fs::remove_file(&file);
        let script = format!("{script}; echo $$ > {}; while :; do sleep 0.01; done", file.display());
        let (run, message) = claimed(Message::builder(""));
        let options = ExecOptions { grace: Duration::from_secs(20), ..options(sh(&script)) };
        let handled = tokio::spawn(async move { ExecHandler::new(options).handle(message).await });
        pids(&file, 1).await;
        run.cancel();
        handled.await.unwrap()
    };
    let error = cancelled("trap 'echo cleaned up >&2; exit 75' TERM").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, false));
    assert!(error.text().ends_with(": cleaned up"), "{error}");
    // It was about to finish: what it did in time counts.
    cancelled("trap 'exit 0' TERM").await.unwrap();
    let error = cancelled(":").await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Retry, true));
    assert!(error.text().contains("SIGTERM") && error.text().contains("cancelled"), "{error}");
}

#[tokio::test]
async fn a_process_that_a_shutdown_has_ended_is_not_to_blame() {
    // SIGINT is ignored if whatever started the tests ignores it, as a shell does for what runs in the background.
    let interrupt = "exec env --default-signal=INT sh -c 'kill -INT $$'";
    // A shell whose child was ended exits so: its effect may have happened.
    for script in ["kill -TERM $$", interrupt, "exit 143", "exit 130"] {
        let options = options(sh(script));
        let shutdown = options.shutdown.clone();
        let (_run, message) = claimed(Message::builder(""));
        // The process may be faster than our own signal.
        let handler = ExecHandler::new(options);
        let (handled, ()) = tokio::join!(handler.handle(message.clone()), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            shutdown.cancel();
        });
        let error = handled.unwrap_err();
        assert_eq!(
            (error.verdict(), error.is_outcome_unknown()),
            (Verdict::Unavailable, true),
            "{script}: {error}"
        );
        // In the drain, too, what is no end by a signal is judged as ever.
        let failing = ExecHandler::new(ExecOptions { shutdown, ..self::options(sh("exit 1")) });
        assert_eq!(failing.handle(message).await.unwrap_err().verdict(), Verdict::Retry);
    }
    // Without a shutdown, another process has killed this one.
    let error = run_sh("exit 143").await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry, "{error}");
}

#[tokio::test]
async fn exit_codes_can_be_given_another_meaning() {
    let codes = [(3, Meaning::Permanent), (65, Meaning::Retry), (4, Meaning::Done), (127, Meaning::Retry)];
    let verdict = async |code: u8| {
        let options =
            ExecOptions { exit_codes: ExitCodes::new(codes), ..options(sh(&format!("exit {code}"))) };
        let (_run, message) = claimed(Message::builder(""));
        ExecHandler::new(options).handle(message).await.err().map(|error| error.verdict())
    };
    assert_eq!(verdict(3).await, Some(Verdict::Permanent));
    assert_eq!(verdict(65).await, Some(Verdict::Retry));
    assert_eq!(verdict(4).await, None);
    assert_eq!(verdict(127).await, Some(Verdict::Retry));
    assert_eq!(verdict(126).await, Some(Verdict::Unavailable));
}

#[tokio::test]
async fn a_process_inherits_no_open_files() {
    // As a library does that knows nothing of processes: a copy without close-on-exec.
    let file = std::fs::File::open("/dev/null").unwrap();
    let leaked = rustix::io::dup(&file).unwrap();
    let output = run_sh("ls /proc/self/fd").await.unwrap().unwrap();
    drop(leaked);
    let output = String::from_utf8_lossy(&output).into_owned();
    // The last one is the directory that ls itself reads.
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn a_dropped_run_is_killed_with_all_its_processes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let script = format!("sleep 300 & printf '%s\\n' $$ $! > {}; wait", file.display());
    let (_run, message) = claimed(Message::builder(""));
    let handler = handler(sh(&script));
    let pids = tokio::select! {
        handled = handler.handle(message) => panic!("{handled:?}"),
        pids = pids(&file, 2) => pids,
    };
    for pid in pids {
        eventually("the processes are gone", || (!is_running(pid)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_run_cancelled_beforehand_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("started");
    let (run, message) = claimed(Message::builder(""));
    run.cancel();
    let error = handler(program(["touch", file.to_str().unwrap()])).handle(message).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false));
    assert!(!file.exists());
}

#[tokio::test]
async fn what_a_process_leaves_behind_is_killed_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let begun = Instant::now();
    for _ in 0..8 {
        run_sh(&format!("sleep 300 & echo $! >> {}", file.display())).await.unwrap();
    }
    // Waiting for the pipes they hold would take half a second each time.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    for pid in pids(&file, 8).await {
        eventually("the child left behind is gone", || (!is_running(pid)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_process_that_left_the_group_cannot_hold_the_handler_by_its_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let begun = Instant::now();
    run_sh(&format!(
        "setsid sh -c 'echo $$ > {0}; exec sleep 15' & while [ ! -s {0} ]; do :; done",
        file.display()
    ))
    .await
    .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let pid = pids(&file, 1).await[0];
    assert!(is_running(pid), "it is out of reach, as documented");
    std::process::Command::new("kill").arg(pid.to_string()).status().unwrap();
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why_and_uses_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let path = script.to_str().unwrap();

    let plain = handler(program([path]));
    assert!(plain.check().unwrap_err().to_string().contains("chmod +x"));
    let (_run, message) = claimed(Message::builder(""));
    let error = plain.handle(message.clone()).await.unwrap_err();
    assert!(error.text().contains("chmod +x"), "{error}");

    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let check = plain.check().unwrap_err();
    assert!(check.to_string().contains("the interpreter /no/such/interpreter"), "{check}");
    let error = plain.handle(message.clone()).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false));
    assert!(error.text().contains("interpreter"), "{error}");

    // A file that the system cannot execute.
    std::fs::write(&script, b"\x7fELF\x01 and no more").unwrap();
    let error = plain.handle(message.clone()).await.unwrap_err();
    assert_eq!((error.verdict(), error.is_outcome_unknown()), (Verdict::Unavailable, false), "{error}");

    let missing = handler(program(["no-such-program-anywhere", "--password=s3cret"]));
    let check = missing.check().unwrap_err();
    assert!(check.to_string().contains("in PATH") && !check.is_retryable(), "{check}");
    let error = missing.handle(message).await.unwrap_err();
    assert!(error.text().contains("no-such-program-anywhere"), "{error}");
    assert!(!format!("{error:?}{check:?}{missing:?}").contains("s3cret"), "arguments may hold secrets");
}

#[tokio::test]
async fn the_example_books_orders_and_refuses_what_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("charges.log");
    let charge = |ledger: &std::path::Path| {
        let ledger = format!("CHARGES={}", ledger.display());
        program(["env", &ledger, example("charge.sh").to_str().unwrap()])
    };
    run(charge(&ledger), Message::builder(r#"{"amount":12}"#)).await.unwrap();
    assert_eq!(std::fs::read_to_string(&ledger).unwrap(), format!("{KEY}\t{FENCE}\t{{\"amount\":12}}\n"));

    let error = run(charge(&ledger), Message::builder("twelve")).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Permanent);
    assert!(error.text().ends_with("the order is no JSON object"), "{error}");

    let error = run(charge(dir.path()), Message::builder("{}")).await.unwrap_err();
    assert_eq!(error.verdict(), Verdict::Retry);
    assert!(error.text().contains("cannot write to"), "{error}");
}

#[tokio::test]
async fn a_process_runs_in_the_given_directory_and_is_found_from_there() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("where.sh");
    std::fs::write(&script, "#!/bin/sh\npwd -P\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let expected = directory.path().canonicalize().unwrap();
    for program in [program(["./where.sh"]), program(["sh", "where.sh"])] {
        let handler = handler(program.in_directory(directory.path()));
        handler.check().unwrap();
        let (_run, message) = claimed(Message::builder(""));
        let output = handler.handle(message).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&output).trim_end(), expected.to_str().unwrap());
    }
    assert!(handler(program(["./where.sh"])).check().is_err(), "looked up from elsewhere");
    let gone = handler(program(["sh"]).in_directory(directory.path().join("gone")));
    assert!(gone.check().unwrap_err().to_string().contains("is not a directory"));
}
