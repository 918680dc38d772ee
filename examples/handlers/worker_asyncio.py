#!/usr/bin/env python3
"""A worker handler that has many requests at once, with asyncio.

    [handler.worker]
    command = ["python3", "worker_asyncio.py"]
    processes = 2
    in_flight = 50
    ready = true

Each request is a task; answers are written as they are ready, in any order, and are found by their id. A task must not block:
run what does in `asyncio.to_thread`. When standard input ends, the worker ends after its last answer.
"""

import asyncio
import json
import sys


class Refused(Exception):
    """The message is wrong and stays so: dead-letter it."""


async def handle(request):
    try:
        order = json.loads(request["payload"])
        number, amount = order["id"], int(order["amount"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise Refused(f"not an order: {wrong!r}") from wrong
    await asyncio.sleep(0.1)  # here the bank is asked, with request["key"] as its idempotency key
    return {"order": number, "charged": amount}


async def answer(line):
    request = json.loads(line)
    answer = {"id": request["id"]}
    try:
        answer.update(ok=True, result=await handle(request))
    except Refused as refused:
        answer.update(ok=False, error=str(refused), retry=False)
    except Exception as error:
        answer.update(ok=False, error=repr(error))
    print(json.dumps(answer), flush=True)


async def main():
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)  # the longest request
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"ready": True}), flush=True)
    tasks = set()
    while line := await reader.readline():
        task = asyncio.create_task(answer(line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


asyncio.run(main())
