#!/usr/bin/env python3
"""A worker handler whose effect in Postgres happens exactly once: its transaction ends with onceward.complete(token).

    [store.postgres]
    url = "postgres://onceward@127.0.0.1/shop"

    [handler.worker]
    command = ["python3", "postgres.py", "host=127.0.0.1 dbname=shop user=app"]
    processes = 4

Effect and completion commit together or not at all, whichever process is killed; a claim that was lost in the meantime makes
complete() fail, and with it the transaction. It works in any language and with any driver; in an HTTP handler the token is
the header Onceward-Token, in an exec handler the variable ONCEWARD_TOKEN. The application's role needs
`GRANT USAGE ON SCHEMA onceward TO app; GRANT EXECUTE ON FUNCTION onceward.complete(text) TO app`.

It needs psycopg2 (Debian: python3-psycopg2) and

    CREATE TABLE charges (id text NOT NULL, amount bigint NOT NULL)
"""

import json
import sys

import psycopg2

LOST_CLAIM = "OW001"


class Refused(Exception):
    """The message is wrong and stays so: dead-letter it."""


def handle(request, connection):
    try:
        order = json.loads(request["payload"])
        charge = (str(order["id"]), int(order["amount"]))
    except (KeyError, TypeError, ValueError) as wrong:
        raise Refused(f"not an order: {wrong!r}") from wrong
    with connection, connection.cursor() as cursor:  # commits, or rolls back if anything is raised
        cursor.execute("INSERT INTO charges (id, amount) VALUES (%s, %s)", charge)
        # Last: the claim cannot be renewed from here to the commit.
        cursor.execute("SELECT onceward.complete(%s)", (request["token"],))


def main(database):
    connection = None
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"id": request["id"], "ok": True}
        try:
            if connection is None or connection.closed:
                connection = psycopg2.connect(database)
            handle(request, connection)
        except Refused as refused:
            answer.update(ok=False, error=str(refused), retry=False)
        except psycopg2.Error as error:
            # Also if the outcome of the commit is unknown: the next claim finds out.
            lost = "the claim is lost: " if error.pgcode == LOST_CLAIM else ""
            answer.update(ok=False, error=lost + str(error).strip())
        print(json.dumps(answer), flush=True)


main(*sys.argv[1:])
