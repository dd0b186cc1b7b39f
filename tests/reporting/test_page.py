"""The page: whole, offline, honest about what is missing, and safe from what a run's files say."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from puzzlebench.profiling.cost_table import read_cost_table, write_cost_table
from puzzlebench.reporting.data import collect
from puzzlebench.reporting.markup import Html, tag
from puzzlebench.reporting.page import render_page

from .run_folder import put
from .test_data import DOCUMENTS, edit

VOID = {"meta", "link", "br", "hr"}


class Reader(HTMLParser):
    """Checks that elements close in order; keeps text, ids and links."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.ids, self.links, self.names = [], [], [], [], []

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        if name not in VOID:
            self.open.append(name)
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src", "data", "action") if key in found]

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, words):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(words)


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def text_of(page):
    return re.sub(r"\s+", " ", " ".join(read(page).words).replace("\u202f", " "))


def test_is_well_formed_and_asks_nobody(page):
    reader = read(page)
    assert len(reader.ids) == len(set(reader.ids))
    for link in reader.links:
        assert link == "data:," or link.removeprefix("#") in reader.ids
    assert not re.search(r"https?:|[\"'(=]//", page)
    assert "url(" not in re.sub(r"url\(#hatch-(attention|ffn)\)", "", page)
    assert "@import" not in page
    assert not {"img", "iframe", "object", "embed", "audio", "video"} & set(reader.names)
    assert "default-src 'none'" in html.unescape(page)


def test_headline_figures_are_those_of_the_run(page, data):
    words = text_of(page)
    faster = data.speed.speed_ups["child"]["generate"]
    assert f"embedded, {faster.value:.2f}× as fast" in words
    assert f"95 % interval {faster.low:.2f}× to {faster.high:.2f}×" in words.replace("\xa0", " ")
    assert "95.0 %" in words
    assert "81.0 % before distillation" in words.replace("\xa0", " ")
    share = data.search.values["params"] / data.search.parent_values["params"]
    assert f"{100 * share:.1f} %" in words
    assert "29 min 55 s" in words
    assert "NVIDIA H100 SXM5 80GB" in words
    assert "batches of 16 prompts of 128 tokens, each answered with 64" in words


def test_every_stage_and_the_recipe_are_there(page):
    words = text_of(page)
    for name in ("parent", "profile", "library", "score", "search", "realise", "distil", "evaluate", "speed"):
        assert name in words
    assert "min_speed_up: 1.6" in page
    assert '<code title="3f1c9a7be2045d' in page
    assert "3f1c9a7be204" in words
    assert "3f1c9a7be2045d" not in words
    for kind in ("measured", "predicted", "modelled", "counted"):
        assert f'class="kind {kind}"' in page


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("run.json", "run.json"),
        ("costs.parquet", "costs.parquet"),
        ("search/front.json", "search/front.json"),
        ("search/search.json", "search/search.json"),
        ("distilled/distillation.json", "distilled/distillation.json"),
        ("speed/speed.json", "speed/speed.json"),
    ],
)
def test_missing_part_is_a_note_and_the_rest_stays(copy, name, note):
    (copy / name).unlink()
    words = text_of(render_page(collect(copy)))
    assert f"Not in this run: {note}" in words
    for title in ("Choosing the architecture", "Where the time goes", "What it kept", "Provenance"):
        assert title in words
    if name != "search/front.json":
        assert "Not in this run: search/front.json" not in words


def test_run_interrupted_after_each_stage_can_be_reported(copy):
    for name in reversed(DOCUMENTS):
        (copy / name).unlink()
        read(render_page(collect(copy)))
    words = text_of(render_page(collect(copy)))  # only cost and score tables are left
    assert "This run has not chosen an architecture yet" in words
    assert "which says for which scenario and batch size" in words
    assert "Not in this run: speed/speed.json" in words
    for folder in ("scores/kl.parquet", "scores/lm_loss.parquet"):
        (copy / folder).unlink()
    assert "Not in this run: scores/kl.parquet" in text_of(render_page(collect(copy)))


def test_only_one_of_the_two_evaluations(copy):
    (copy / "evaluation" / "distilled" / "retention.json").unlink()
    words = text_of(render_page(collect(copy)))
    assert "The child was not distilled as a whole, or not evaluated after it." in words
    assert "81.0 %" in words


def test_what_files_say_is_never_markup(copy):
    evil = '<script>alert(1)</script><b title="x">&amp;'
    run = json.loads((copy / "run.json").read_text())
    run["stages"][0]["name"] = run["machine"]["cpu"] = run["recipe"]["parent"] = evil
    put(copy / "run.json", run)
    edit(copy / "speed" / "speed.json", lambda stated: stated.update(device=evil))
    edit(copy / "search" / "search.json", lambda stated: stated.update(model=evil))
    edit(copy / "distilled" / "distillation.json", lambda stated: stated.update(data=evil))
    for state in ("realised", "distilled"):
        path = copy / "evaluation" / state / "retention.json"
        edit(path, lambda stated: stated["tasks"][0].update(task=evil, metric=evil))
    page = render_page(collect(copy))
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in page
    read(page)


def test_prediction_is_optional(copy):
    edit(
        copy / "speed" / "speed.json",
        lambda stated: stated.update(predictions=None, predicted_speed_ups=None, costs=None),
    )
    words = text_of(render_page(collect(copy)))
    assert "no cost table to predict it from" in words
    assert "There is no prediction" in words


def test_agreement_of_tokens_is_with_transformers_for_every_model(page):
    words = text_of(page).replace("\xa0", " ")
    assert "as greedy search by transformers on the same checkpoint: parent 100.0 %, child 99.8 %" in words


def test_cost_table_of_another_setup_is_said(page, copy):
    words = text_of(page)
    assert "The cost table is of h100_sxm: its times are not of this device." in words
    assert "The cost table is of bf16 weights, measured was fp32." in words
    assert "The cost table is of the engine trtllm, measured was torch." in words
    assert "of another setup, see Speed" in words
    assert "CUDA graphs" not in words  # measured on a CPU: there are none

    def same(stated):
        stated["costs"].update(same_device=True, same_precision=True, engine=stated["engine"])

    edit(copy / "speed" / "speed.json", same)
    words = text_of(render_page(collect(copy)))
    assert "The cost table is of CUDA graphs, measured was eager" in words
    assert words.count("The cost table is of") == 1
    edit(copy / "speed" / "speed.json", lambda stated: stated["costs"].update(source="another table"))
    assert "The cost table is of" not in text_of(render_page(collect(copy)))


def test_graphs_of_another_gpu_are_said_where_speed_was_measured_on_one(copy):
    edit(copy / "speed" / "speed.json", lambda stated: stated.update(device="NVIDIA X"))
    assert "CUDA graphs" not in text_of(render_page(collect(copy)))
    edit(copy / "run.json", lambda stated: stated["machine"].update(gpu="NVIDIA X"))
    assert "CUDA graphs" in text_of(render_page(collect(copy)))


def held_out_row(page, name):
    """before, after and change of a loss."""
    table = re.search(r'aria-label="Held-out losses".*?</table>', page, re.DOTALL)[0]
    row = next(row for row in table.split("<tr>") if f">{name}</th>" in row)
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_held_out_losses_are_compared_at_one_length_only(copy):
    path = copy / "distilled" / "distillation.json"

    def grow(stated):
        for line, length, loss in zip(stated["held_out"], (*[256] * 3, *[1024] * 4), range(10, 17), strict=True):
            line.update(length=length, loss=loss)

    edit(path, grow)
    page = render_page(collect(copy))
    assert held_out_row(page, "loss") == ["–", "16.0", "–"]
    assert "Held-out rows are of 256 and 1,024 tokens." in page
    assert "held out, rows of 1,024 tokens" in page
    edit(path, lambda stated: stated["held_out"][-1].update(length=256))
    assert held_out_row(render_page(collect(copy)), "loss") == ["10.0", "16.0", "+60.0\xa0%"]


def test_held_out_losses_of_one_length_have_a_change(page, data):
    loss = data.distillation.curves[0].held_out
    assert held_out_row(page, "loss")[2] == f"−{100 * (1 - loss[-1][1] / loss[0][1]):.1f}\xa0%"
    assert "Held-out rows are of" not in page


def test_time_of_a_resumed_stage_is_at_least(page, copy):
    limits = text_of(page).count("at least")
    assert "run, at least" not in text_of(page)

    def resume(stated):
        next(stage for stage in stated["stages"] if stage["name"] == "profile")["resumed"] = True
        stated["begun"] = [{"name": "report", "key": "0", "output": None, "seconds": None, "resumed": True}]

    edit(copy / "run.json", resume)
    words = text_of(render_page(collect(copy))).replace("\xa0", " ")
    assert "Time of the run, at least 29 min 55 s" in words
    assert "9 stages; longest: profile, at least 6 min 42 s" in words
    assert words.count("at least 6 min 42 s") == 2  # the head and the table
    assert words.count("at least") == limits + 3
    assert "only its last attempt was timed" in words


def test_memory_is_per_gpu_only_on_one(page, copy):
    assert "memory per GPU" in text_of(page)
    table = read_cost_table(copy / "costs.parquet")
    sheet = table.metadata["gpu"] | {"compute_capability": ""}  # as a CPU's is
    write_cost_table(replace(table, metadata=table.metadata | {"gpu": sheet}), copy / "costs.parquet")
    page = render_page(collect(copy))
    assert "per GPU" not in page
    assert " of memory, parent" in text_of(page)


def test_files_of_another_run_are_not_shown_and_it_is_said(copy):
    def unfinish(stated):
        stated["stages"] = [stage for stage in stated["stages"] if stage["name"] not in ("distil", "speed")]
        stated["recipe"]["evaluate"] = {"before": False}

    edit(copy / "run.json", unfinish)
    words = text_of(render_page(collect(copy)))
    assert "Not in this run: speed/speed.json , which measuring speed writes. The file is there, but" in words
    assert "distilled/distillation.json: run.json has no finished stage distil" in words
    assert "evaluation/realised/retention.json: the recipe asks for no evaluation before distillation" in words
    assert "before distillation, 95 % interval" not in words
    assert "after distillation, 95 % interval" in words


def test_parent_without_costs_is_left_out_of_the_choice(copy):
    edit(copy / "search" / "search.json", lambda stated: stated.update(parent=None))
    page = render_page(collect(copy))
    assert "Parameters kept" not in page
    assert 'data-shows="parent"' not in page
    assert 'data-shows="chosen"' in page


def test_unknown_numbers_are_dashes(copy):
    def change(stated):
        stated["overall"].update(retention=None, low=None, high=None)
        stated["tasks"][0].update(retention=None, retention_low=None, retention_high=None, mcnemar_p=None)

    edit(copy / "evaluation" / "distilled" / "retention.json", change)
    page = render_page(collect(copy))
    assert not re.search(r"\b(nan|None)\b", re.sub(r"<style>.*</style>|<script>.*</script>", "", page, flags=re.DOTALL))


def test_two_children_and_unknown_intervals(copy):
    def change(stated):
        other = dict(stated["models"][1], model="other", prefill_ms={"value": 1.0, "low": None, "high": None})
        stated["models"].append(other)
        stated["speed_ups"].append(dict(stated["speed_ups"][0], model="other"))

    edit(copy / "speed" / "speed.json", change)
    words = text_of(render_page(collect(copy)))
    assert "other, generate" in words
    assert "nan" not in words.lower().split()


def test_several_scenarios_are_named(copy):
    def change(stated):
        stated["scenarios"].append({"name": "long", "prefill_len": 256, "decode_len": 64, "limits": []})
        for values in (stated["solutions"][0]["values"], stated["parent"]["values"]):
            for key in list(values):
                if key != "params":
                    values[f"{key}[{stated['scenarios'][0]['name']}]"] = values[f"{key}[long]"] = values.pop(key)

    edit(copy / "search" / "search.json", change)
    assert "each answered with 64, and 1 more scenario. Then" in text_of(render_page(collect(copy)))


def test_markup_escapes_all_but_markup():
    assert tag("p", "<&>", Html("<b>x</b>"), 3, None) == "<p>&lt;&amp;&gt;<b>x</b>3</p>"
    assert tag("a", class_='"><', aria_label="it's", hidden=True, x=1.50, y=None) == (
        '<a class="&quot;&gt;&lt;" aria-label="it&#x27;s" hidden x="1.5"></a>'
    )
    assert tag("meta", name="n") == '<meta name="n">'
