"""What the benchmarks have printed, as tables: measurements, the targets they are compared with, Markdown."""

import dataclasses
import json
import re
import statistics

BEGIN, END = "<!-- scripts/bench: begin -->", "<!-- scripts/bench: end -->"


@dataclasses.dataclass
class Measured:
    """A variant of a part of a benchmark: its rates, and their ratios to the same rounds of what it is compared with."""

    bench: str
    part: str
    variant: str
    relative_to: str | None = None
    messages: int = 0
    rates: list = dataclasses.field(default_factory=list)
    ratios: list = dataclasses.field(default_factory=list)

    @property
    def key(self):
        return self.bench, self.part, self.variant


@dataclasses.dataclass(frozen=True)
class Target:
    """`limit` is the least ratio, or the least rate if `is_rate`, or the largest size in MiB if `is_most`; `what` is as in the table of the targets."""

    what: str
    key: tuple
    limit: float
    is_rate: bool = False
    is_most: bool = False

    def is_met(self, value):
        return value <= self.limit if self.is_most else value >= self.limit


# An increase of time by a tenth is a rate of 1 / 1.1.
TENTH_MORE = 1 / 1.1
TARGETS = [
    Target("Kafka + Redis, order of partitions, of the order of keys", ("kafka", "order, redis", "partitions by 256"), 0.80),
    Target("Kafka + Redis, order of keys, of Redis alone", ("kafka", "redis", "pipeline"), 0.90),
    Target("Kafka + Postgres, order of partitions, of the order of keys", ("kafka", "order, postgres", "partitions by 256"), 0.80),
    Target("Kafka + Postgres, order of keys, of Postgres alone", ("kafka", "postgres", "pipeline"), 0.90),
    Target("Kafka, store in memory, of single polls", ("kafka", "memory", "pipeline"), 0.55),
    Target("Kafka, positions, of polls in batches", ("kafka", "position", "positions, no effects"), 0.50),
    Target("Kafka, transactions of 100 ms, of copies without", ("kafka", "transform", "transactions of 100 ms"), 0.60),
    Target("effectively-once by positions, of the effects alone", ("kafka", "effects", "rows and positions"), TENTH_MORE),
    Target("effectively-once in batches of 50, of effects with savepoints",
           ("postgres", "batch, savepoints", "inbox, one transaction, savepoints"), TENTH_MORE),
    Target("Postgres, duplicates, two cores", ("postgres", "duplicates", "batches of 256, two in flight"), 2e4, is_rate=True),
    Target("RabbitMQ quorum + Redis, of raw", ("program", "rabbitmq + redis", "onceward"), 0.85),
    Target("RabbitMQ quorum + Postgres, of raw", ("program", "rabbitmq + postgres", "onceward"), 0.50),
    Target("SQS + Redis, of raw", ("program", "sqs + redis", "onceward"), 0.95),
    Target("SQS + Postgres, of raw", ("program", "sqs + postgres", "onceward"), 0.80),
    Target("Redis scripts, of native commands", ("redis", "by the clock", "scripts"), 0.75),
    Target("Kafka + Redis by default, program with the stdout handler", ("program", "kafka + redis, stdout", "order of partitions"), 6e4,
           is_rate=True),
    Target("HTTP handler, of a loop over its client", ("program", "http, 128 at once", "onceward"), 0.80),
    Target("10,000 messages of 256 bytes in flight, resident", ("program", "10,000 in flight, rabbitmq + redis", "MiB resident"), 64,
           is_most=True),
    *(Target(f"{count} programs on one Redis, of one", ("program", "file + redis", f"{count} programs"), 1.0) for count in [2, 4, 8]),
    *(Target(f"{count} programs with a round trip of 1 ms, of one",
             ("program", "file + redis behind 1 ms, 16 in flight", f"{count} programs"), 0.75 * count) for count in [2, 4, 8]),
    Target("pipeline with histograms, of one without", ("telemetry", "distinct keys", "histograms"), 1 / 1.03),
    Target("pipeline alone, with fingerprints", ("pipeline", "all", "distinct_keys"), 1e6, is_rate=True),
]


def of_lines(text):
    """The measurements of the lines of `--json`, in their order."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        new = Measured(row["bench"], row["part"], row["variant"], row["relative_to"], row["messages"])
        own = found.setdefault(new.key, new)
        own.rates.append(row["rate"])
        if row["ratio"] is not None:
            own.ratios.append(row["ratio"])
    return list(found.values())


UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def of_divan(bench, text):
    """The measurements of what divan prints for benchmarks that count items: slowest, median and fastest."""
    found, groups, name = [], [], None
    for line in text.splitlines():
        named = re.match(r"^([│ ]*)[├╰]─ (\S+)", line)
        if named:
            depth = len(named[1]) // 3
            groups[depth:] = [named[2]]
            name = list(groups)
        rates = re.findall(r"([\d.]+) ([KMG]?)item/s", line)
        if rates and name:
            fastest, slowest, median = (float(number) * UNITS[unit] for number, unit in rates[:3])
            part = ", ".join(name[:-1]) or "all"
            found.append(Measured(bench, part, name[-1], rates=[slowest, median, fastest]))
    return found


def of_program(part, report):
    """The measurements of a report of `onceward bench FILE --json`; `part` is the source and the store."""
    by_round = {(run["round"], run["name"]): run["messages_per_second"] for run in report["runs"]}
    found = {}
    for (number, name), rate in by_round.items():
        own = found.setdefault(name, Measured("program", part, name, None if name == "raw" else "raw", report["messages"]))
        own.rates.append(rate)
        if name != "raw":
            own.ratios.append(rate / by_round[number, "raw"])
    return list(found.values())


def rate(value):
    """Three figures are all that holds."""
    for unit, name in [(1e6, " M"), (1e3, " k")]:
        if value >= unit:
            return f"{value / unit:.3g}{name}" if value < 999.5 * unit else f"{value / unit:.0f}{name}"
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def spread(values, shown):
    """The median, and the range if it shows."""
    middle, least, most = (shown(of(values)) for of in [statistics.median, min, max])
    return middle if least == most else f"{middle} ({least} to {most})"


def ratio(value):
    return f"{value:.2f}"


def verdict(target, measured):
    """The cells of a target: what, target, measured, met or not; the median decides."""
    shown = rate if target.is_rate or target.is_most else ratio
    own = next((one for one in measured if one.key == target.key), None)
    values = (own.ratios if shown is ratio else own.rates) if own else []
    limit = f"≤ {shown(target.limit)} MiB" if target.is_most else f"≥ {shown(target.limit)}{'/s' if target.is_rate else ''}"
    if not values:
        return [target.what, limit, "", "not measured"]
    return [target.what, limit, spread(values, shown), "met" if target.is_met(statistics.median(values)) else "**not met**"]


def unmeasured(names, measured):
    """The targets of the benchmarks of these names that nothing was measured for: a part or a variant has another name now."""
    keys = {one.key for one in measured}
    return [target.what for target in TARGETS if target.key[0] in names and target.key not in keys]


def table(head, rows):
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def acceptance(measured):
    return table(["what", "target", "median (range)", ""], [verdict(target, measured) for target in TARGETS])


def figures(measured):
    """All that a benchmark has measured."""
    rows = []
    for one in measured:
        ratios = spread(one.ratios, ratio) if one.ratios else ""
        rows.append([one.part, one.variant, spread(one.rates, rate), ratios, one.relative_to or ""])
    return table(["part", "variant", "per second, or as named (range)", "ratio (range)", "to"], rows)


def page(measured, machine, plots):
    """The generated part of the page. `plots`: names of benchmarks to paths of their plots."""
    text = [machine, acceptance(measured)]
    for bench in dict.fromkeys(one.bench for one in measured):
        text.append(f"### Figures of `{bench}`")
        if bench in plots:
            text.append(f"![Ratios of {bench}, as in the table below]({plots[bench]})")
        text.append(figures([one for one in measured if one.bench == bench]))
    return "\n\n".join(text)


def replace(document, generated):
    """The document with another text between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"
