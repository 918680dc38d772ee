"""`PYTHONPATH=scripts python3 -m unittest benchmarks.test_tables`"""

import json
import pathlib
import unittest
from xml.etree import ElementTree

from benchmarks import plot, tables

DIVAN = """\
Timer precision: 20 ns
store                  fastest       │ slowest       │ median        │ mean          │ samples │ iters
├─ memory                            │               │               │               │         │
│  ├─ 1                364 ns        │ 1.5 µs        │ 430 ns        │ 440 ns        │ 500     │ 500
│  │                   2.744 Mitem/s │ 664.7 Kitem/s │ 2.325 Mitem/s │ 2.271 Mitem/s │         │
│  ╰─ 100              20 µs         │ 40 µs         │ 25 µs         │ 25 µs         │ 500     │ 500
│                      5 Mitem/s     │ 2.5 Mitem/s   │ 4 Mitem/s     │ 4 Mitem/s     │         │
├─ no_items            20 µs         │ 40 µs         │ 25 µs         │ 25 µs         │ 500     │ 500
╰─ distinct_keys       90 ms         │ 120 ms        │ 100 ms        │ 100 ms        │ 10      │ 10
                       1.1 Mitem/s   │ 833.3 Kitem/s │ 1 Mitem/s     │ 1 Mitem/s     │         │
"""


def line(variant, rate, against=None, part="redis", bench="kafka"):
    relative = {"relative_to": "store alone", "ratio": rate / against} if against else {"relative_to": None, "ratio": None}
    return json.dumps({"bench": bench, "part": part, "variant": variant, "messages": 10, "rate": rate, **relative})


def measured(ratios=(), rates=(1.0,), key=("kafka", "redis", "pipeline")):
    return tables.Measured(*key, "store alone", 10, list(rates), list(ratios))


class Reading(unittest.TestCase):
    def test_rounds_of_a_variant_are_one_measurement_and_text_between_is_left_out(self):
        lines = [line("store alone", 50), "a text", line("pipeline", 40, 50), line("pipeline", 30, 60), line("x", 1, part="raw")]
        base, ours, other = tables.of_lines("\n".join(lines))
        self.assertEqual((base.rates, base.ratios, base.relative_to), ([50], [], None))
        self.assertEqual((ours.rates, ours.ratios, ours.relative_to), ([40, 30], [0.8, 0.5], "store alone"))
        self.assertEqual(other.key, ("kafka", "raw", "x"))

    def test_divan_has_groups_units_and_benchmarks_without_items(self):
        found = {one.key: one.rates for one in tables.of_divan("store", DIVAN)}
        self.assertEqual(found, {
            ("store", "memory", "1"): [664.7e3, 2.325e6, 2.744e6],
            ("store", "memory", "100"): [2.5e6, 4e6, 5e6],
            ("store", "all", "distinct_keys"): [833.3e3, 1e6, 1.1e6],
        })

    def test_the_program_compares_within_a_round(self):
        runs = [("onceward", 1, 80), ("raw", 1, 100), ("raw", 2, 200), ("onceward", 2, 100)]
        runs = [{"name": name, "round": number, "messages_per_second": rate} for name, number, rate in runs]
        found = {one.variant: one for one in tables.of_program("sqs + redis", {"messages": 5, "runs": runs})}
        self.assertEqual(found["onceward"].ratios, [0.8, 0.5])
        self.assertEqual((found["raw"].ratios, found["raw"].relative_to), ([], None))
        self.assertEqual(found["raw"].key, ("program", "sqs + redis", "raw"))


class Verdicts(unittest.TestCase):
    TARGET = tables.Target("Kafka + Redis", ("kafka", "redis", "pipeline"), 0.90)

    def verdict(self, *of):
        return tables.verdict(self.TARGET, of)

    def test_the_median_decides_and_the_range_is_shown(self):
        self.assertEqual(self.verdict(measured([0.7, 0.95, 0.9])), ["Kafka + Redis", "≥ 0.90", "0.90 (0.70 to 0.95)", "met"])
        self.assertEqual(self.verdict(measured([0.7, 0.95, 0.899]))[-1], "**not met**")

    def test_a_single_round_has_no_range_nor_has_one_that_does_not_show(self):
        for one in [[0.9], [0.9, 0.901]]:
            self.assertEqual(self.verdict(measured(one))[2], "0.90")

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        self.assertEqual(self.verdict(measured([2.0], key=("kafka", "other", "pipeline")))[2:], ["", "not measured"])
        self.assertEqual(self.verdict(measured([]))[2:], ["", "not measured"])

    def test_a_target_of_a_rate_is_compared_with_rates(self):
        target = tables.Target("alone", ("pipeline", "all", "distinct_keys"), 1e6, is_rate=True)
        slow = measured([5.0], [0.7e6, 0.9e6, 1.2e6], key=target.key)
        self.assertEqual(tables.verdict(target, [slow]), ["alone", "≥ 1 M/s", "900 k (700 k to 1.2 M)", "**not met**"])

    def test_a_size_is_met_up_to_its_limit(self):
        target = tables.Target("memory", ("program", "10,000", "MiB resident"), 64, is_most=True)
        verdicts = [tables.verdict(target, [measured((), [size], key=target.key)]) for size in [60.0, 64.0, 64.5]]
        self.assertEqual(verdicts[0], ["memory", "≤ 64 MiB", "60", "met"])
        self.assertEqual([verdict[-1] for verdict in verdicts[1:]], ["met", "**not met**"])

    def test_a_target_without_its_measurement_is_found_if_its_benchmark_ran(self):
        ran = [measured(key=target.key) for target in tables.TARGETS if target.key[0] == "kafka"]
        self.assertEqual(tables.unmeasured(["kafka", "sqs"], ran), [])
        self.assertEqual(tables.unmeasured(["kafka"], ran[1:]), [tables.TARGETS[0].what])

    def test_each_target_is_of_something_else(self):
        keys = [target.key for target in tables.TARGETS]
        self.assertEqual(len(keys), len(set(keys)))


class Page(unittest.TestCase):
    def test_rates_have_three_figures(self):
        shown = [tables.rate(value) for value in [7.25, 999, 999.6, 1_000, 12_345, 999_499, 999_600, 1_234_567]]
        self.assertEqual(shown, ["7.25", "999", "1000", "1 k", "12.3 k", "999 k", "1000 k", "1.23 M"])

    def test_a_document_keeps_all_but_what_is_between_the_markers(self):
        document = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
        once = tables.replace(document, "new")
        self.assertEqual(once, f"before\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nafter\n")
        self.assertEqual(tables.replace(once, "new"), once)
        for broken in ["", tables.BEGIN, f"{tables.END}{tables.BEGIN}"]:
            self.assertRaises(ValueError, tables.replace, broken, "new")

    def test_the_page_of_the_repository_has_the_markers(self):
        page = pathlib.Path(__file__).resolve().parents[2] / "docs/internals/benchmarks.md"
        tables.replace(page.read_text(), "")

    def test_a_page_has_each_benchmark_once_with_its_plot(self):
        page = tables.page([measured([0.5]), measured(key=("redis", "a", "b|c"))], "A machine.", {"kafka": "k.svg"})
        self.assertEqual((page.count("### "), page.count("k.svg")), (2, 1))
        self.assertIn("| redis | pipeline | 1 | 0.50 | store alone |", page)
        self.assertIn("b\\|c", page)


class Plot(unittest.TestCase):
    SVG = "{http://www.w3.org/2000/svg}"

    def drawn(self, rows):
        return ElementTree.fromstring(plot.bars("a < b", rows))

    def test_it_has_a_title_a_description_and_both_colour_schemes(self):
        root = self.drawn([("redis & co", [0.5, 0.75, 1.0], 0.9)])
        self.assertEqual(root.find(f"{self.SVG}title").text, "a < b")
        self.assertEqual(root.find(f"{self.SVG}desc").text, "redis & co: 0.75, target 0.90")
        self.assertIn("prefers-color-scheme: dark", root.find(f"{self.SVG}style").text)

    def test_a_bar_is_as_long_as_its_median_and_a_target_is_at_its_place(self):
        root = self.drawn([("one", [0.5, 2.0, 1.0], 1.5), ("two", [2.0], None)])
        of = lambda kind, name: [own for own in root.iter(f"{self.SVG}{kind}") if own.get("class") == name]
        self.assertEqual([float(bar.get("width")) for bar in of("rect", "bar")], [plot.WIDTH / 2, plot.WIDTH])
        (target,) = of("line", "target")
        self.assertEqual(float(target.get("x1")), plot.LEFT + plot.WIDTH * 0.75)
        self.assertEqual(float(of("line", "range")[0].get("x1")), plot.LEFT + plot.WIDTH / 4)

    def test_a_target_beyond_all_ratios_is_within_the_picture(self):
        root = self.drawn([("one", [1.0], 2.0)])
        (target,) = [own for own in root.iter(f"{self.SVG}line") if own.get("class") == "target"]
        self.assertEqual(float(target.get("x1")), plot.LEFT + plot.WIDTH)

    def test_ticks_are_few_whatever_the_ratios(self):
        for most in [0.01, 1.0, 1.6, 4.1, 9.0, 200.0]:
            root = self.drawn([("one", [most], None)])
            ticks = [own for own in root.iter(f"{self.SVG}line") if own.get("class") == "grid"]
            self.assertTrue(2 <= len(ticks) <= 10, (most, len(ticks)))


if __name__ == "__main__":
    unittest.main()
