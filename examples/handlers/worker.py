#!/usr/bin/env python3
"""A worker handler: a long-lived process, one JSON line in, one JSON line out.

    [handler.worker]
    command = ["python3", "worker.py"]
    processes = 4
    ready = true

It adds up the amounts of each customer's orders. Standard output is for answers only; print diagnostics to standard
error. The first line says that it can work: without it (and without `ready`) the first request comes at once. When standard input ends, so should the worker.
"""

import base64
import json
import sys

totals = {}


class Refused(Exception):
    """The message is wrong and stays so: dead-letter it."""


def handle(request):
    payload = request.get("payload")
    if payload is None:
        payload = base64.b64decode(request["payload_base64"])
    try:
        order = json.loads(payload)
        customer, amount = order["customer"], int(order["amount"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise Refused(f"not an order: {wrong!r}") from wrong
    totals[customer] = totals.get(customer, 0) + amount
    return {"customer": customer, "total": totals[customer], "attempt": request["attempt"]}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"]}
    try:
        answer.update(ok=True, result=handle(request))
    except Refused as refused:
        answer.update(ok=False, error=str(refused), retry=False)
    except Exception as error:
        answer.update(ok=False, error=repr(error))
    print(json.dumps(answer), flush=True)
