'use strict';

// Reads /status.json once a second and writes its figures into the page. Everything is written as text, never as markup.

const PAUSE_MS = 1000;
const numbers = new Intl.NumberFormat('en');
const rates = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

const byId = (id) => document.getElementById(id);

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const sayById = (id, text) => say(byId(id), text);

function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = Math.floor(ms / 1000);
  const units = [[86400, 'd'], [3600, 'h'], [60, 'm'], [1, 's']];
  const first = units.findIndex(([size]) => seconds >= size);
  let left = seconds;
  const shown = [];
  for (const [size, name] of units.slice(first, first + 2)) {
    const count = Math.floor(left / size);
    left %= size;
    if (count > 0) shown.push(`${count} ${name}`);
  }
  return shown.join(' ');
}

const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB');

/** Gives `body` one row for each of `rows`, a list of lists of texts; existing rows are reused. */
function fill(body, rows, cells, hasHeading) {
  while (body.children.length > rows.length) body.lastElementChild.remove();
  while (body.children.length < rows.length) {
    const row = document.createElement('tr');
    for (let index = 0; index < cells; index += 1) {
      const cell = document.createElement(hasHeading && index === 0 ? 'th' : 'td');
      if (hasHeading && index === 0) cell.scope = 'row';
      row.append(cell);
    }
    body.append(row);
  }
  rows.forEach((texts, index) => {
    texts.forEach((text, place) => say(body.children[index].children[place], text));
  });
}

function fillList(list, texts) {
  while (list.children.length > texts.length) list.lastElementChild.remove();
  while (list.children.length < texts.length) list.append(document.createElement('li'));
  texts.forEach((text, index) => say(list.children[index], text));
}

const words = (name) => name.replaceAll('_', ' ');

function drawLine(id, values, most) {
  const step = 600 / 59;
  const first = 60 - values.length;
  const points = values.map((value, index) => `${((first + index) * step).toFixed(1)},${(118 - (value / most) * 114).toFixed(1)}`);
  byId(id).setAttribute('points', points.join(' '));
}

const ofLimit = (count, limit) => (limit === null ? numbers.format(count) : `${numbers.format(count)} of ${numbers.format(limit)}`);

function agesText(ages) {
  if (ages.count === 0) return 'no duplicate yet';
  const bound = (ms) => (ms === null ? 'more than 30 d' : `at most ${duration(ms)}`);
  const ttl = ages.ttl_ms === null ? '' : `, ttl ${duration(ages.ttl_ms)}`;
  return `p50 ${bound(ages.p50_ms)}, p99 ${bound(ages.p99_ms)}${ttl}`;
}

function sourceText(source) {
  const parts = [source.since_ms === null ? source.state : `${source.state} for ${duration(source.since_ms)}`];
  if (source.assigned !== null) parts.push(`${numbers.format(source.assigned)} partitions`);
  if (source.last_receive_ms !== null) parts.push(`last message ${duration(source.last_receive_ms)} ago`);
  if (source.reconnects > 0) parts.push(`${numbers.format(source.reconnects)} reconnects`);
  if (source.lost > 0) parts.push(`${numbers.format(source.lost)} lost to retention`);
  return parts.join(', ');
}

function showPipeline(figures) {
  for (const name of ['received', 'handled', 'duplicates', 'failed']) {
    sayById(`rate-${name}`, rates.format(figures.rates[name]));
  }
  sayById('lag', figures.source.lag === null ? 'unknown' : numbers.format(figures.source.lag));
  sayById('in-flight', ofLimit(figures.in_flight, figures.in_flight_limit));
  fillList(byId('pauses'), figures.pauses);
  const most = Math.max(1, ...figures.history.handled, ...figures.history.duplicates);
  drawLine('line-handled', figures.history.handled, most);
  drawLine('line-duplicates', figures.history.duplicates, most);
  sayById('history-most', `${numbers.format(most)} / s`);
  sayById('source', sourceText(figures.source));
  sayById('store', figures.store_up ? 'up' : 'does not respond');
  const breaker = figures.breaker_open ? '; circuit breaker open' : '';
  sayById('handler', (figures.handler_down === null ? 'up' : `down: ${figures.handler_down}`) + breaker);
  sayById('running', numbers.format(figures.running));
  sayById('waiting', ofLimit(figures.waiting, figures.waiting_limit));
  sayById('blocked-lanes', numbers.format(figures.blocked_lanes));
  sayById('oldest', figures.oldest_unsettled_ms === null ? 'none' : duration(figures.oldest_unsettled_ms));
  sayById('ages', agesText(figures.duplicate_age));
  fill(byId('counts'), figures.counts.map(([name, count]) => [words(name), numbers.format(count)]), 2, true);
}

function show(status) {
  document.title = `${status.scope}: ${status.is_ready ? 'ready' : 'not ready'} · Onceward`;
  sayById('scope', status.scope);
  sayById('state', status.state);
  byId('state').classList.toggle('ready', status.is_ready);
  sayById('work', status.work);
  sayById('version', status.version);
  sayById('uptime', duration(status.uptime_ms));
  sayById('at', clock(status.at_ms));
  byId('pipeline').hidden = status.pipeline === null;
  if (status.pipeline !== null) showPipeline(status.pipeline);
  byId('relay').hidden = status.relay === null;
  if (status.relay !== null) {
    fill(byId('relay-counts'), status.relay.map(([name, count]) => [words(name), numbers.format(count)]), 2, true);
  }
  fill(byId('errors'), status.errors.map((line) => [clock(line.at_ms), line.level, line.text]), 3, false);
  byId('no-errors').hidden = status.errors.length > 0;
  const letters = status.letters.map((letter) => [clock(letter.at_ms), letter.reason, letter.key ?? 'no key', letter.origin ?? '']);
  fill(byId('letters'), letters, 5, false);
  offerActions(status.has_actions ? status.letters : []);
  byId('no-letters').hidden = status.letters.length > 0;
}

const ACTIONS = {
  redrive: { name: 'Redrive', what: 'Moves the letter back to its source, where it is handled again.' },
  purge: { name: 'Purge', what: 'Deletes the letter for ever. Copies of its message stay acked for the TTL.' },
};

// The letters in the order of their rows; the letter of the open dialog, and what is asked for it.
let offered = [];
let chosen = null;
// Nowhere but in this variable: it is gone with the page.
let token = '';

/** Gives the last cell of each letter its buttons, or what was done with it. */
function offerActions(letters) {
  offered = letters;
  const rows = byId('letters').children;
  letters.forEach((letter, index) => {
    const cell = rows[index].lastElementChild;
    if (letter.done !== null) {
      if (cell.firstElementChild !== null || cell.textContent !== letter.done) cell.textContent = letter.done;
    } else if (cell.firstElementChild === null) {
      cell.textContent = '';
      for (const action of Object.keys(ACTIONS)) {
        const button = document.createElement('button');
        button.type = 'button';
        button.dataset.action = action;
        button.textContent = ACTIONS[action].name;
        cell.append(button, ' ');
      }
    }
  });
}

function sayResult(text, isDone) {
  sayById('action-result', text);
  byId('action-result').classList.toggle('done', isDone);
}

function ask(letter, action) {
  chosen = { letter, action };
  sayById('action-heading', `${ACTIONS[action].name} a dead letter`);
  sayById('action-what', ACTIONS[action].what);
  sayById('action-letter', `${letter.reason}, ${letter.origin ?? 'unknown origin'}, id ${letter.id}`);
  sayById('action-do', ACTIONS[action].name);
  byId('action-token').value = token;
  byId('action-why').value = '';
  byId('action-do').disabled = false;
  sayResult('', false);
  byId('action').showModal();
  byId(token === '' ? 'action-token' : 'action-why').focus();
}

async function act() {
  const asked = chosen;
  token = byId('action-token').value;
  byId('action-do').disabled = true;
  sayResult('waiting', false);
  const body = { id: asked.letter.id, why: byId('action-why').value };
  if (byId('action-by').value !== '') body.by = byId('action-by').value;
  let isDone = false;
  let text;
  try {
    const response = await fetch(`/letters/${asked.action}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
      cache: 'no-store',
      credentials: 'omit',
      signal: AbortSignal.timeout(75000),
    });
    isDone = response.ok;
    if (response.status === 401) token = '';
    text = response.status === 401 ? 'the token is wrong' : (await response.json()).text;
  } catch {
    text = 'no answer from the process; the letter may have been changed: see onceward dlq log';
  }
  if (chosen === asked) {
    sayResult(text, isDone);
    byId('action-do').disabled = isDone;
  }
  await update();
}

byId('letters').addEventListener('click', (event) => {
  const { action } = event.target.dataset;
  const row = event.target.closest('tr');
  const letter = row === null ? undefined : offered[[...byId('letters').children].indexOf(row)];
  if (action !== undefined && letter !== undefined) ask(letter, action);
});
byId('action-form').addEventListener('submit', (event) => {
  event.preventDefault();
  act();
});
byId('action-close').addEventListener('click', () => byId('action').close());
byId('action').addEventListener('close', () => {
  chosen = null;
  byId('action-token').value = '';
});

async function update() {
  try {
    const response = await fetch('/status.json', { cache: 'no-store', signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    show(await response.json());
  } catch {
    sayById('state', 'no answer from the process; the figures are old');
    byId('state').classList.remove('ready');
  }
}

async function updateForEver() {
  if (!document.hidden) await update();
  setTimeout(updateForEver, PAUSE_MS);
}

updateForEver();
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) update();
});
