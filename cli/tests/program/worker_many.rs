//! Worker processes with many messages at once, as single requests and in batches: a message that kills its process, and
//! processes that are killed, cost no other message an attempt, and no message is lost.

use std::collections::BTreeSet;

use rustix::process::{Pid, Signal, kill_process};

use super::scene::{Ended, ORDERS, Running, Scene, wait};

const ORDER_COUNT: usize = 400;

/// Appends an effect for each message, a little later; ends at once with the one that is "bad". Its numbers are in `pids`.
const WORKER: &str = r#"
import asyncio, json, os, sys

with open("pids", "a") as pids:
    pids.write(f"{os.getpid()}\n")

async def one(request):
    await asyncio.sleep(0.02)
    if "bad" in request["payload"]:
        os._exit(3)
    with open("effects.log", "a") as effects:
        effects.write(f"{request['attempt']} {request['payload']}\n")
    return {"id": request["id"], "ok": True}

async def answer(line):
    requests = json.loads(line)
    if isinstance(requests, list):
        answers = await asyncio.gather(*[one(request) for request in requests])
    else:
        answers = await one(requests)
    print(json.dumps(answers), flush=True)

async def main():
    reader = asyncio.StreamReader(limit=1 << 26)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print('{"ready": true}', flush=True)
    tasks = set()
    while line := await reader.readline():
        tasks.add(asyncio.create_task(answer(line)))
    await asyncio.gather(*tasks)

asyncio.run(main())
"#;

fn start(how: &str, rest: &str, attempts: u32) -> (Scene, Running) {
    let scene = Scene::new(&format!(
        "{ORDERS}{rest}[store.memory]\n[handler.worker]\ncommand = ['python3', 'w.py']\nprocesses = 2\nready = true\n{how}\n\
         [pipeline]\nordering = 'none'\n[retry]\nmax_attempts = {attempts}\ninitial = '10ms'\nmax = '20ms'\n"
    ));
    scene.write("w.py", WORKER);
    let mut orders: Vec<_> = (0..ORDER_COUNT).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    orders.insert(ORDER_COUNT / 4, "{\"id\":\"bad\"}\n".to_owned());
    scene.write("orders.ndjson", &orders.concat());
    let running = scene.start(scene.command("run @"));
    (scene, running)
}

/// Each good message had its effect, by its first attempt if `first`, and twice only where that is counted; the bad one alone is
/// dead-lettered.
fn each_is_handled(scene: &Scene, ended: &Ended, first: bool) {
    let letters = scene.lines("dead.ndjson");
    assert!(letters.len() == 1 && letters[0].contains("bad"), "{letters:?} {}", ended.stderr);
    let effects = scene.effects();
    let distinct = distinct(scene);
    let expected: BTreeSet<_> = (0..ORDER_COUNT).map(|id| format!("{{\"id\":{id}}}")).collect();
    assert!(distinct == expected, "{:?}", distinct.symmetric_difference(&expected).collect::<Vec<_>>());
    assert!(!first || effects.iter().all(|effect| effect.starts_with("1 ")), "{effects:?}");
    let said = format!("{} {}", ended.stdout, ended.stderr);
    let counted = said.split_whitespace().find_map(|one| one.strip_prefix("suspected-double-effects="));
    let counted: usize = counted.map_or(0, |count| count.parse().unwrap());
    assert!(effects.len() - ORDER_COUNT <= counted, "{} effects, {said}", effects.len());
}

fn distinct(scene: &Scene) -> BTreeSet<String> {
    scene.effects().iter().filter_map(|effect| Some(effect.split_once(' ')?.1.to_owned())).collect()
}

#[test]
fn a_message_that_ends_its_process_costs_its_neighbours_no_attempt() {
    for how in ["in_flight = 16", "batch = 16", "in_flight = 4\nbatch = 8"] {
        let (scene, running) = start(how, "", 2);
        let ended = running.end();
        assert_eq!(ended.code(), Some(3), "{how}: {ended:?}");
        each_is_handled(&scene, &ended, true);
        assert!(ended.stderr.contains("exit status: 3"), "{}", ended.stderr);
    }
}

#[test]
fn processes_that_are_killed_lose_no_message() {
    for how in ["in_flight = 16", "batch = 16"] {
        let (scene, running) = start(how, "follow = true\n", 10);
        let mut killed = 0;
        for target in 1..6 {
            wait("more effects", || scene.effects().len() >= target * 50);
            let pids = scene.lines("pids");
            // Those that were started since the last round; some have ended by themselves.
            for pid in &pids[killed..] {
                let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
            }
            killed = pids.len();
        }
        wait("all effects", || {
            distinct(&scene).len() >= ORDER_COUNT && scene.lines("dead.ndjson").len() == 1
        });
        running.signal(Signal::TERM);
        let ended = running.end();
        assert_eq!(ended.code(), Some(0), "{how}: {ended:?}");
        each_is_handled(&scene, &ended, false);
    }
}
