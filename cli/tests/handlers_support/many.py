"""A worker that has many requests at once, one to a line or many, and does what the payload's first word says."""

import asyncio
import json
import os
import sys
import time

# With "slow-reader" the first line is read to its end and no further, and the process ends once another one waits.
if sys.argv[1:2] == ["slow-reader"]:
    while os.read(0, 1) != b"\n":
        pass
    time.sleep(0.5)
    os._exit(3)

open_now = 0
most = 0
met = asyncio.Event()


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def answer(request):
    global open_now, most
    open_now += 1
    most = max(most, open_now)
    word, _, rest = request["payload"].partition(" ")
    answer = {"id": request["id"], "ok": True, "result": os.getpid()}
    if word == "echo":
        answer["result"] = request
    elif word == "meet":
        # All are answered once there are so many, the last one first.
        if open_now >= int(rest):
            met.set()
        await met.wait()
    elif word == "sleep":
        await asyncio.sleep(float(rest))
    elif word == "long":
        answer["result"] = "x" * int(rest)
    elif word == "most":
        answer["result"] = most
    elif word == "touch-and-sleep":
        with open(rest, "w") as file:
            file.write(f"{os.getpid()}\n")
        await asyncio.sleep(300)
    elif word == "touch-and-block":
        with open(rest, "w") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(300)
    elif word == "die":
        # Its neighbours have begun by then.
        await asyncio.sleep(float(rest))
        os._exit(3)
    elif word == "wrong":
        await asyncio.sleep(float(rest))
        answer["ok"] = "yes"
    elif word == "refuse":
        answer = {"id": request["id"], "ok": False, "retry": False, "error": "refused"}
    open_now -= 1
    return answer


async def one(request):
    say(json.dumps(await answer(request)))


async def many(requests):
    answers = await asyncio.gather(*[answer(request) for request in requests])
    words = {request["payload"].split()[0] for request in requests}
    if "omit" in words:
        omitted = {request["id"] for request in requests if request["payload"] == "omit"}
        answers = [one for one in answers if one["id"] not in omitted]
    if "extra" in words:
        answers.append({"id": 1_000_000, "ok": True})
    if "singly" in words:
        for one in answers:
            say(json.dumps(one))
    else:
        say(json.dumps(answers[::-1]))


async def main():
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks = set()
    while line := await reader.readline():
        requests = json.loads(line)
        work = many(requests) if isinstance(requests, list) else one(requests)
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)


asyncio.run(main())
