// A worker handler that has many requests at once, with Node.js.
//
//     [handler.worker]
//     command = ["node", "worker_many.mjs"]
//     processes = 2
//     in_flight = 50
//     ready = true
//
// Answers are written as they are ready, in any order, and are found by their id. Standard output is for answers only:
// `console.log` writes there, so use `console.error` for diagnostics. When standard input ends, the worker ends after its last
// answer.

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

// The message is wrong and stays so: dead-letter it.
class Refused extends Error {}

async function handle(request) {
  let order;
  try {
    order = JSON.parse(request.payload);
  } catch (wrong) {
    throw new Refused(`not an order: ${wrong.message}`);
  }
  if (!Number.isInteger(order?.amount)) throw new Refused("not an order: no amount");
  await sleep(100); // here the bank is asked, with request.key as its idempotency key
  return { order: order.id, charged: order.amount };
}

async function answer(line) {
  const request = JSON.parse(line);
  let answer;
  try {
    answer = { id: request.id, ok: true, result: await handle(request) };
  } catch (error) {
    answer = { id: request.id, ok: false, error: String(error), retry: !(error instanceof Refused) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}

createInterface({ input: process.stdin }).on("line", answer);
process.stdout.write('{"ready":true}\n');
