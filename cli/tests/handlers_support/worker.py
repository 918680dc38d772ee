"""A worker that does what the payload's first word says, and mostly should not."""

import base64
import json
import os
import signal
import subprocess
import sys
import time


def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def touch(path):
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\n")


if sys.argv[1:2] == ["ignore-end"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    touch(sys.argv[2])
    while True:
        sys.stdin.readline()
        time.sleep(0.01)

if sys.argv[1:2] == ["flood-first"]:
    say("x" * 1_000_000 + "\n")

if sys.argv[1:2] == ["slow-start"]:
    time.sleep(float(sys.argv[2]))

if sys.argv[1:2] == ["ready"]:
    time.sleep(float((sys.argv[2:] or ["0"])[0]))
    say('loading\n{"ready": true}\n')

for line in sys.stdin:
    request = json.loads(line)
    # What JSON would make much longer comes as Base64 as well, not only what is no text.
    encoded = base64.b64decode(request.get("payload_base64", "")).decode("utf-8", "ignore")
    word, _, rest = request.get("payload", encoded or "pid").partition(" ")
    answer = {"id": request["id"], "ok": True, "result": os.getpid()}
    if word == "echo":
        answer["result"] = request
    elif word == "die":
        sys.stderr.write(f"dying: {rest}\n")
        sys.stderr.flush()
        os._exit(3)
    elif word == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
        time.sleep(60)
    elif word == "garbage":
        touch(rest)
        say(repr({"id": 1, "ok": True}) + "\n")
        time.sleep(60)
    elif word == "wrong-id":
        answer["id"] += 1
    elif word == "endless":
        say("x" * 5_000_000)
        time.sleep(60)
    elif word == "close":
        os.close(1)
        time.sleep(60)
    elif word == "chatty":
        say("\n  \r\nTraceback: \x1b[31m\n" + json.dumps({"level": "info", "msg": "x"}) + "\n")
        say(json.dumps(answer) + " \r\n\nand one more\n")
        continue
    elif word == "twice":
        say(json.dumps(answer) + "\n")
    elif word == "sleep":
        time.sleep(float(rest))
    elif word == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    elif word == "finish":
        def finish(*_):
            say(json.dumps(answer) + "\n")
            time.sleep(60)

        signal.signal(signal.SIGTERM, finish)
        touch(rest)
        while True:
            # A signal that comes just before the call is noticed after it.
            time.sleep(0.02)
    elif word == "hang":
        child = subprocess.Popen(["sleep", "300"])
        with open(rest, "w") as file:
            file.write(f"{os.getpid()}\n{child.pid}\n")
        time.sleep(300)
    elif word == "meet":
        directory, count = rest.rsplit(" ", 1)
        touch(os.path.join(directory, str(os.getpid())))
        while len(os.listdir(directory)) < int(count):
            time.sleep(0.005)
    elif word == "log":
        sys.stderr.write("\x1b[31mfine " + "x" * 5000 + "\n")
        sys.stderr.flush()
    say(json.dumps(answer) + "\n")

if sys.argv[1:2] == ["bye"]:
    touch(sys.argv[2])
