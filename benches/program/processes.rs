//! Handlers that are processes.

use std::fs;

use crate::stage::Stage;

/// Answers requests and arrays of them; what it does not read at once waits in its pipe.
const WORKER: &str = r#"import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if isinstance(request, list):
        answer = [{"id": one["id"], "ok": True} for one in request]
    else:
        answer = {"id": request["id"], "ok": True}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
"#;
const PROCESSES: usize = 2;

pub(crate) fn measure(stage: &Stage) {
    fs::write(stage.path("worker.py"), WORKER).unwrap();
    let messages = stage.figures.messages(100_000);
    let once = |messages: usize, handler: &str, concurrency: usize| {
        let config = stage.configuration(&format!(
            "[source.file]\npath = \"{}\"\n[store.memory]\n{handler}\n[pipeline]\nordering = \"none\"\nconcurrency = {concurrency}\n",
            stage.file(0..messages),
        ));
        stage.rate(&config, messages)
    };
    let worker = |settings: &str| {
        format!(
            "[handler.worker]\ncommand = [\"python3\", \"worker.py\"]\nprocesses = {PROCESSES}\n{settings}"
        )
    };
    let (mut one, mut many, mut batch, mut exec) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..stage.figures.rounds(5) {
        one.push(once(messages, &worker(""), PROCESSES));
        many.push(once(messages, &worker("in_flight = 32"), PROCESSES * 32));
        batch.push(once(messages, &worker("batch = 50"), PROCESSES * 50));
        // A process for each message is slower by a factor of ten.
        exec.push(once((messages / 10).max(1), "[handler.exec]\ncommand = [\"/bin/true\"]", 8));
    }
    let variants =
        [("in_flight = 32", &many[..]), ("batch = 50", &batch[..]), ("exec of /bin/true", &exec[..])];
    stage.figures.report("2 workers in Python", messages, ("one request each", &one), &variants);
}
