"""Score tables: what is refused, what a file survives, and the counts of the data-free scores."""

import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp, architecture_to_json, parse_block
from puzzlebench.model.space import LayerCandidates, SearchSpace, default_space, space_of
from puzzlebench.model.spec import ModelSpec, parent_architecture
from puzzlebench.profiling.cost_table import read_cost_table
from puzzlebench.scores import SCHEMA_VERSION, ScoreTable, parameter_scores, read_score_table, write_score_table

ATTENTION = ("gqa_8", "gqa_4", "gqa_8_w64", "linear", "no_op")
FFN = ("mlp_512", "mlp_256", "linear", "no_op")
OWN = "gqa_8+mlp_512"


def architecture(*names):
    return Architecture(blocks=tuple(parse_block(name) for name in names))


PARENT = architecture(OWN, OWN, OWN)


def metadata(**changes):
    fields = {"metric": "kl", "direction": "minimise", "parent": architecture_to_json(PARENT), "source": "a test"}
    return fields | changes


def make_frame(layers):
    """A frame with these blocks in each layer and scores that count up."""
    keys = [(layer, name) for layer, names in enumerate(layers) for name in names]
    return pd.DataFrame(
        {
            "layer": [layer for layer, _ in keys],
            "block": [name for _, name in keys],
            "score": [0.5 * row for row in range(len(keys))],
            "standard_error": 0.25,
            "samples": 16,
        }
    )


@pytest.fixture
def frame():
    pairs = [f"{attention}+{ffn}" for attention in ("gqa_8", "gqa_4") for ffn in ("mlp_512", "no_op")]
    return make_frame([pairs, [OWN], [OWN, "gqa_8+linear"]])


@pytest.fixture
def path(tmp_path, frame):
    path = tmp_path / "scores.parquet"
    write_score_table(ScoreTable(frame=frame, metadata=metadata()), path)
    return path


def refusal(frame, **changes):
    with pytest.raises(ValueError, match=r"^score table: ") as caught:
        ScoreTable(frame=frame, metadata=metadata(**changes))
    message = str(caught.value)
    assert "\n" not in message
    assert "np." not in message
    return message.removeprefix("score table: ")


def test_what_a_table_answers(frame):
    table = ScoreTable(frame=frame, metadata=metadata())
    assert (table.metric, table.direction, table.partial, table.num_layers) == ("kl", "minimise", False, 3)
    assert table.parent == PARENT
    assert table.candidates(0) == ("gqa_8+mlp_512", "gqa_8+no_op", "gqa_4+mlp_512", "gqa_4+no_op")
    assert table.candidates(2) == ("gqa_8+mlp_512", "gqa_8+linear")
    assert table.layer_scores(2) == {"gqa_8+mlp_512": 2.5, "gqa_8+linear": 3.0}
    assert table.score_of(0, "gqa_4+no_op") == 1.5


def test_what_a_table_has_no_answer_to(frame):
    table = ScoreTable(frame=frame, metadata=metadata())
    with pytest.raises(ValueError, match=r"layer 2 has no score for 'gqa_8\+linea'; did you mean gqa_8\+linear"):
        table.score_of(2, "gqa_8+linea")
    with pytest.raises(ValueError, match=r"layer 2 has no score for ''; its 2 blocks begin with gqa_8\+mlp_512"):
        table.score_of(2, "")
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=f"no layer {layer}; its layers are 0 to 2"):
            table.candidates(layer)


def test_a_round_trip(path, frame):
    table = read_score_table(path)
    pd.testing.assert_frame_equal(table.frame, frame)
    assert table.metadata == metadata()
    assert [entry.name for entry in path.parent.iterdir()] == ["scores.parquet"]


def test_metadata_that_a_maker_adds_is_kept(tmp_path, frame):
    path = tmp_path / "scores.parquet"
    stated = metadata(model={"name": "m"}, created="2025-01-01", puzzlebench_version="0", partial=True, tokens=8)
    write_score_table(ScoreTable(frame=frame, metadata=stated), path)
    assert read_score_table(path).metadata == stated


@st.composite
def tables(draw):
    layers, parent = [], []
    for _ in range(draw(st.integers(1, 4))):
        attention = draw(st.lists(st.sampled_from(ATTENTION), min_size=1, unique=True))
        ffn = draw(st.lists(st.sampled_from(FFN), min_size=1, unique=True))
        pairs = [f"{first}+{second}" for first, second in itertools.product(attention, ffn)]
        parent.append(draw(st.sampled_from(pairs)))
        layers.append(draw(st.permutations(pairs)))
    frame = make_frame(layers)
    rows = {"min_size": len(frame), "max_size": len(frame)}
    frame["score"] = draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), **rows))
    errors = st.just(math.nan) | st.floats(min_value=0, allow_infinity=False)
    frame["standard_error"] = draw(st.lists(errors, **rows))
    frame["samples"] = draw(st.lists(st.integers(0, 2**53), **rows))
    direction = draw(st.sampled_from(["minimise", "maximise"]))
    stated = metadata(parent=architecture_to_json(architecture(*parent)), direction=direction)
    return ScoreTable(frame=frame, metadata=stated)


@given(table=tables())
@settings(max_examples=50, deadline=None)
def test_any_table_survives_both_formats(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.parquet")
        write_score_table(table, path)
        again = read_score_table(path)
        pd.testing.assert_frame_equal(again.frame, table.frame, check_exact=True)
        assert again.metadata == table.metadata

        path = Path(folder, "scores.csv")
        table.frame.to_csv(path, index=False)
        again = read_score_table(path, metric="kl", direction=table.direction, parent=table.parent)
        pd.testing.assert_frame_equal(again.frame, table.frame, check_exact=True)
        assert (again.metric, again.direction, again.parent) == (table.metric, table.direction, table.parent)


@given(table=tables(), rng=st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_does_not_matter_and_each_is_found(table, rng):
    order = list(range(len(table.frame)))
    rng.shuffle(order)
    mixed = ScoreTable(frame=table.frame.iloc[order], metadata=table.metadata)
    for row in table.frame.itertuples():
        assert mixed.score_of(row.layer, row.block) == row.score
    assert [set(mixed.candidates(layer)) for layer in range(table.num_layers)] == [
        set(table.candidates(layer)) for layer in range(table.num_layers)
    ]


@given(table=tables(), rng=st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_row_left_out_is_noticed_unless_the_table_is_partial(table, rng):
    row = rng.randrange(len(table.frame))
    layer, name = table.frame["layer"].iloc[row], table.frame["block"].iloc[row]
    less = table.frame.drop(index=row)
    halves = [block.split("+") for block in less[less["layer"] == layer]["block"]]
    first, second = name.split("+")
    still_named = first in {half for half, _ in halves} and second in {half for _, half in halves}
    is_own = parse_block(name) == table.parent.blocks[layer]
    wanted = rf"layer {layer} lacks {name.replace('+', '[+]')}"
    if less.empty:
        wanted = "it has no rows"
    elif not halves:
        wanted = f"layer {layer} has no scores"
    if less.empty or is_own or still_named:
        with pytest.raises(ValueError, match=wanted):
            ScoreTable(frame=less, metadata=table.metadata)
    else:  # the last of its attention or FFN: what is left is a product too
        ScoreTable(frame=less, metadata=table.metadata)
    if not (less.empty or is_own):
        ScoreTable(frame=less, metadata={**table.metadata, "partial": True})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.nan, "score must be finite, not nan (layer 2, gqa_8+linear)"),
        ("score", -np.inf, "score must be finite, not -inf (layer 2, gqa_8+linear)"),
        (
            "standard_error",
            -0.5,
            "standard_error must be finite and not negative, or empty, not -0.5 (layer 2, gqa_8+linear)",
        ),
        (
            "standard_error",
            np.inf,
            "standard_error must be finite and not negative, or empty, not inf (layer 2, gqa_8+linear)",
        ),
        ("samples", -1, "samples must be a whole number of at least 0, not -1 (layer 2, gqa_8+linear)"),
        ("layer", -1, "layer must be a whole number of at least 0, not -1 (layer -1, gqa_8+linear)"),
        ("layer", 3, "layer 3 (gqa_8+linear) is none of the parent's 0 to 2"),
        ("block", "gqa_8+mlp_512", "layer 2 has gqa_8+mlp_512 twice"),
        ("block", "gqa_8", "layer 2, block 'gqa_8': 'gqa_8' is not a block; expected attention+ffn, such as"),
        ("block", "gqa_08+linear", "layer 2, block 'gqa_08+linear': 'gqa_08' is not an attention sub-block; expected"),
        (
            "block",
            "gqa_8 + linear",
            "layer 2, block 'gqa_8 + linear': 'gqa_8 ' is not an attention sub-block; expected",
        ),
        ("block", "GQA_8+linear", "layer 2, block 'GQA_8+linear': 'GQA_8' is not an attention sub-block; expected"),
        ("block", "linear+gqa_8", "layer 2, block 'linear+gqa_8': 'gqa_8' is not an ffn sub-block; expected"),
        ("block", "", "layer 2, block '': '' is not a block; expected"),
        ("block", "no_op+no_op", "layer 2 lacks gqa_8+no_op; a table that covers only part of the pairs says partial"),
    ],
)
def test_a_bad_value_is_named_with_its_layer_and_block(frame, column, value, message):
    frame.loc[6, column] = value
    assert refusal(frame).startswith(message)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("samples", 1.5, "samples must be a whole number of at least 0, not 1.5 (layer 0, gqa_8+mlp_512)"),
        ("samples", np.nan, "samples must be a whole number of at least 0, not nan (layer 0, gqa_8+mlp_512)"),
        ("layer", np.nan, "layer must be a whole number of at least 0, not nan (layer nan, gqa_8+mlp_512)"),
        ("score", "low", "column 'score' must hold numbers, not "),
        ("score", True, "column 'score' must hold numbers, not bool"),
        ("block", 8, "block must be text, not 8 (layer 0, 8)"),
    ],
)
def test_a_column_of_the_wrong_kind(frame, column, values, message):
    assert refusal(frame.assign(**{column: values})).startswith(message)


def test_columns_must_be_those_of_the_schema(frame):
    columns = "layer, block, score, standard_error, samples"
    assert refusal(frame.assign(kl=1)) == f"unknown column 'kl'; the columns are: {columns}"
    assert refusal(frame.drop(columns="samples")) == f"column 'samples' is missing; it needs: {columns}"
    assert refusal(pd.concat([frame, frame[["score"]]], axis="columns")) == "column 'score' stands twice"
    assert refusal(frame.iloc[:0]) == "it has no rows"


def test_layers_without_holes(frame):
    assert refusal(frame[frame["layer"] != 1]) == "layer 1 has no scores; the parent has 3 layers"
    assert refusal(frame, parent=architecture_to_json(architecture(OWN, OWN, OWN, OWN))) == (
        "layer 3 has no scores; the parent has 4 layers"
    )
    assert refusal(frame, parent=architecture_to_json(architecture(OWN, OWN))) == (
        "layer 2 (gqa_8+mlp_512) is none of the parent's 0 to 1"
    )


@pytest.mark.parametrize("partial", [False, True])
def test_the_parents_own_block_is_always_there(frame, partial):
    other = architecture_to_json(architecture(OWN, "gqa_2+mlp_512", OWN))
    assert refusal(frame, parent=other, partial=partial) == (
        "layer 1 lacks gqa_2+mlp_512, the parent's own block and the reference"
    )


def test_only_a_partial_table_lacks_pairs(frame):
    less = frame.drop(index=3)
    assert refusal(less).startswith(
        "layer 0 lacks gqa_4+no_op; a table that covers only part of the pairs says partial"
    )
    table = ScoreTable(frame=less, metadata=metadata(partial=True))
    assert table.partial
    assert table.candidates(0) == ("gqa_8+mlp_512", "gqa_8+no_op", "gqa_4+mlp_512")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": ""}, "metric must be text, not ''"),
        ({"metric": 3}, "metric must be text, not 3"),
        ({"direction": "min"}, "direction must be minimise or maximise, not 'min'"),
        ({"direction": None}, "direction must be minimise or maximise, not None"),
        ({"source": None}, "source must be text, not None"),
        ({"created": 2025}, "created must be text, not 2025"),
        ({"puzzlebench_version": 1}, "puzzlebench_version must be text, not 1"),
        ({"partial": "yes"}, "partial must be true or false, not 'yes'"),
        ({"model": "m"}, "model must be an object with a name, not 'm'"),
        ({"model": {"hidden_size": 8}}, "model must be an object with a name, not {'hidden_size': 8}"),
        ({"parent": None}, "parent: an architecture is a JSON object with 'schema' and 'blocks', not NoneType"),
        (
            {"parent": {"schema": 1, "blocks": [{"attention": "gqa_x", "ffn": "no_op"}]}},
            "parent: layer 0: 'gqa_x' is not an attention sub-block",
        ),
    ],
)
def test_metadata_that_says_nothing_or_nonsense(frame, changes, message):
    assert refusal(frame, **changes).startswith(message)


@pytest.mark.parametrize("key", ["metric", "direction", "source", "parent"])
def test_metadata_that_must_be_there(frame, key):
    stated = metadata()
    del stated[key]
    with pytest.raises(ValueError, match=f"^score table: its metadata lacks '{key}'$"):
        ScoreTable(frame=frame, metadata=stated)


def test_bad_files(path, tmp_path):
    with pytest.raises(ValueError, match=r"none.parquet: no such score table"):
        read_score_table(tmp_path / "none.parquet")
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:20], b"", b"layer,block,score\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"scores.parquet is not a readable score table") as caught:
            read_score_table(path)
        assert "\n" not in str(caught.value)


def rewrite(path, *, key="puzzlebench_scores", **changes):
    table = pq.read_table(path)
    stated = json.loads(table.schema.metadata[b"puzzlebench_scores"]) | changes
    pq.write_table(table.replace_schema_metadata({key: json.dumps(stated)}), path)


def test_another_schema_version(path):
    rewrite(path, schema_version=99)
    with pytest.raises(ValueError, match=f"has score table schema 99; this version reads {SCHEMA_VERSION}$"):
        read_score_table(path)


def test_a_cost_table_is_no_score_table_nor_the_reverse(path):
    with pytest.raises(ValueError, match="is a parquet file but not a puzzlebench cost table"):
        read_cost_table(path)
    rewrite(path, key="puzzlebench")
    with pytest.raises(ValueError, match="is a parquet file but not a puzzlebench score table"):
        read_score_table(path)


def test_a_bad_value_in_a_file_names_the_file(path):
    rewrite(path, direction="up")
    with pytest.raises(ValueError, match=f"^{path}: score table: direction must be minimise or maximise, not 'up'"):
        read_score_table(path)


def test_a_file_must_not_contradict_what_is_asked_for(path):
    read_score_table(path, metric="kl", direction="minimise", parent=PARENT)
    with pytest.raises(ValueError, match="its metric is kl, not lm_loss; leave out --score-metric"):
        read_score_table(path, metric="lm_loss")
    with pytest.raises(ValueError, match="its direction is minimise, not maximise; leave out --score-direction"):
        read_score_table(path, direction="maximise")
    with pytest.raises(ValueError, match=r"scores another parent: its layer 1 is gqa_8\+mlp_512, not gqa_4\+mlp_512"):
        read_score_table(path, parent=architecture(OWN, "gqa_4+mlp_512", OWN))
    with pytest.raises(ValueError, match="scores another parent: one of 3 layers, not 1"):
        read_score_table(path, parent=architecture(OWN))


def test_places_that_cannot_be_written_to(tmp_path, frame):
    table = ScoreTable(frame=frame, metadata=metadata())
    with pytest.raises(ValueError, match="cannot write "):
        write_score_table(table, tmp_path / "no" / "x.parquet")
    with pytest.raises(ValueError, match=r"score tables are written as parquet; give a name that ends in .parquet"):
        write_score_table(table, tmp_path / "x.CSV")
    assert list(tmp_path.iterdir()) == []


CSV = {"metric": "accuracy", "direction": "maximise", "parent": architecture(OWN, OWN)}
CSV_TEXT = "layer,block,score\n0,gqa_8+mlp_512,0.5\n1,gqa_8+mlp_512,0.5\n1,gqa_4+mlp_512,0.25\n"


def from_csv(tmp_path, content, **changes):
    path = tmp_path / "scores.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_score_table(path, **{**CSV, **changes})


def test_a_csv(tmp_path):
    table = from_csv(tmp_path, CSV_TEXT)
    assert (table.metric, table.direction, table.parent) == ("accuracy", "maximise", CSV["parent"])
    assert table.layer_scores(1) == {"gqa_8+mlp_512": 0.5, "gqa_4+mlp_512": 0.25}
    assert table.frame["standard_error"].isna().all()
    assert (table.frame["samples"] == 0).all()
    assert table.metadata["source"] == "read from scores.csv"
    write_score_table(table, tmp_path / "scores.parquet")
    again = read_score_table(tmp_path / "scores.parquet")
    pd.testing.assert_frame_equal(again.frame, table.frame)
    assert again.metadata == table.metadata


def test_a_csv_as_spreadsheets_write_it(tmp_path):
    text = (
        "\ufeffblock, samples, standard_error, score, layer\r\n\r\n"
        '"gqa_8+mlp_512", 128.0, , -1e-3, 0\r\ngqa_8+mlp_512,,nan,5,1.0\r\n,,,,\r\n'
    )
    table = from_csv(tmp_path, text)
    assert table.frame["layer"].tolist() == [0, 1]
    assert table.frame["score"].tolist() == [-1e-3, 5]
    assert table.frame["samples"].tolist() == [128, 0]
    assert table.frame["standard_error"].isna().all()


def test_a_csv_that_covers_part_of_the_pairs(tmp_path):
    text = CSV_TEXT + "1,gqa_8+no_op,0.1\n"
    with pytest.raises(ValueError, match=r"scores.csv: score table: layer 1 lacks gqa_4\+no_op"):
        from_csv(tmp_path, text)
    assert from_csv(tmp_path, text, partial=True).partial


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": None}, "does not say whether low or high .*; give --score-direction minimise or maximise$"),
        ({"metric": None}, "a CSV does not say what its scores are; give --score-metric, such as kl"),
        ({"parent": None}, "a CSV does not say which model it scores; give the parent's architecture$"),
        ({"direction": "up"}, "direction must be minimise or maximise, not 'up'"),
        ({"parent": architecture(OWN)}, "layer 1 .gqa_8.mlp_512. is none of the parent's 0 to 0"),
    ],
)
def test_a_csv_says_nothing_about_itself(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"scores.csv: .*{message}"):
        from_csv(tmp_path, CSV_TEXT, **changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,gqa_4+mlp_512,good", "line 4: layer 1, gqa_4+mlp_512: score 'good' is not a number"),
        ("1,gqa_4+mlp_512,", "line 4: layer 1, gqa_4+mlp_512: score '' is not a number"),
        ("1,gqa_4+mlp_512,1_000", "line 4: layer 1, gqa_4+mlp_512: score '1_000' is not a number"),
        ("1,gqa_4+mlp_512,nan", "line 4: layer 1, gqa_4+mlp_512: score must be finite, not 'nan'"),
        ("1,gqa_4+mlp_512,-inf", "line 4: layer 1, gqa_4+mlp_512: score must be finite, not '-inf'"),
        ("one,gqa_4+mlp_512,1", "line 4: layer 'one' is not a number"),
        ("1.5,gqa_4+mlp_512,1", "line 4: layer must be a whole number of at least 0, not '1.5'"),
        ("-1,gqa_4+mlp_512,1", "line 4: layer must be a whole number of at least 0, not '-1'"),
        ("1e300,gqa_4+mlp_512,1", "line 4: layer must be a whole number of at least 0, not '1e300'"),
        ("1,gqa_4+mlp_512", "line 4: 2 values under 3 columns"),
        ("1,gqa_4+mlp_512,1,2", "line 4: 4 values under 3 columns"),
        ('1,"gqa_4', "line 4: unexpected end of data"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=r"scores.csv, line 4") as caught:
        from_csv(tmp_path, CSV_TEXT.rsplit("\n", 2)[0] + f"\n{line}")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "scores.csv: score table: it has no rows"),
        ("layer,block,score\n", "scores.csv: score table: it has no rows"),
        ("layer,block\n", "line 1: score table: column 'score' is missing; it needs: layer, block, score"),
        ("layer,block,score,score\n", "line 1: score table: column 'score' stands twice"),
        ("layer;block;score\n", "line 1: score table: unknown column 'layer;block;score'; the columns are: layer, "),
        ("0,gqa_8+mlp_512,0.5\n", "line 1: score table: unknown column '0'"),
        (b"layer,block,score\n0,\xff,1\n", "is not a readable score table (a CSV is text in UTF-8)"),
        ("layer,block,score\n0,gqa_x+no_op,1\n", "scores.csv: score table: layer 0, block 'gqa_x+no_op': 'gqa_x' is"),
    ],
)
def test_a_csv_that_is_something_else(tmp_path, content, message):
    with pytest.raises(ValueError, match=r"scores.csv") as caught:
        from_csv(tmp_path, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv: no such score table"):
        read_score_table(tmp_path / "none.csv", **CSV)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder.csv is not a readable score table: Is a directory"):
        read_score_table(tmp_path / "folder.csv", **CSV)


@pytest.fixture
def spec():
    """Hidden 8, 4 query heads of 2 with 2 for keys and values, MLP 16; no biases, a norm of 8 per sub-block."""
    return ModelSpec(
        name="tiny",
        model_type="llama",
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        intermediate_size=16,
        vocab_size=10,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        qkv_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm="none",
        norm_placement="pre",
        sliding_windows=(None, 4),
    )


def test_parameters_removed_by_hand(spec, tmp_path):
    # gqa_2: q and o 8 x 8, k and v 8 x 4, norm 8: 200.  gqa_1: k and v 8 x 2: 168.  linear: 8 x 8 and norm: 72.
    # mlp_16: three of 8 x 16 and norm: 392.  mlp_8: 200.  The parent's block: 592.
    first = LayerCandidates(
        attention=(GQA(num_key_value_heads=2), GQA(num_key_value_heads=1), Linear(), NoOp()),
        ffn=(GatedMLP(intermediate_size=16), NoOp()),
    )
    second = LayerCandidates(
        attention=(GQA(num_key_value_heads=2, sliding_window=4),),
        ffn=(GatedMLP(intermediate_size=16), GatedMLP(intermediate_size=8), Linear()),
    )
    table = parameter_scores(spec, SearchSpace(layers=(first, second)), parent_architecture(spec))
    assert table.layer_scores(0) == {
        "gqa_2+mlp_16": 0,
        "gqa_2+no_op": 392,
        "gqa_1+mlp_16": 32,
        "gqa_1+no_op": 424,
        "linear+mlp_16": 128,
        "linear+no_op": 520,
        "no_op+mlp_16": 200,
        "no_op+no_op": 592,
    }
    assert table.layer_scores(1) == {"gqa_2_w4+mlp_16": 0, "gqa_2_w4+mlp_8": 192, "gqa_2_w4+linear": 320}
    assert (table.metric, table.direction) == ("parameters_removed", "minimise")
    assert "knows nothing of quality" in table.metadata["source"]
    assert table.metadata["model"]["name"] == "tiny"
    assert (table.frame["samples"] == 0).all()
    assert (table.frame["standard_error"] == 0).all()

    write_score_table(table, tmp_path / "scores.parquet")
    again = read_score_table(tmp_path / "scores.parquet", parent=parent_architecture(spec))
    pd.testing.assert_frame_equal(again.frame, table.frame)
    assert again.metadata == table.metadata


def test_parameters_are_counted_from_a_heterogeneous_parent(spec):
    parent = architecture("gqa_1+mlp_8", "no_op+linear")
    table = parameter_scores(spec, default_space(spec, parent, ffn_fractions=(1.0,)), parent)
    assert table.layer_scores(0)["gqa_1+mlp_8"] == 0
    assert table.layer_scores(0)["linear+no_op"] == 168 + 200 - 72
    assert table.layer_scores(1) == {"no_op+linear": 0, "no_op+no_op": 72}


def test_the_whole_space_of_llama_70b(llama_70b):
    spec, parent = llama_70b
    table = parameter_scores(spec, default_space(spec, parent), parent)
    assert len(table.frame) == 80 * 54
    assert table.score_of(79, "gqa_8+no_op") == 3 * 8192 * 28672 + 8192


def test_a_space_or_parent_of_another_model(spec):
    parent = parent_architecture(spec)
    with pytest.raises(ValueError, match="the space has 1 layers but tiny has 2"):
        parameter_scores(spec, SearchSpace(layers=default_space(spec).layers[:1]), parent)
    with pytest.raises(ValueError, match="the architecture has 1 layers but tiny has 2"):
        parameter_scores(spec, default_space(spec), Architecture(blocks=parent.blocks[:1]))
    with pytest.raises(ValueError, match=r"layer 0 lacks gqa_2\+mlp_16, the parent's own block"):
        parameter_scores(spec, space_of(architecture("gqa_1+mlp_16", "gqa_1+mlp_16")), parent)
