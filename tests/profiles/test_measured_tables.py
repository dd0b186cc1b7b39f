"""The tables measured live that ship with the package."""

import pytest

from puzzlebench.profiling.cost_table import read_cost_table
from puzzlebench_profiles.measured_tables import find_measured_table, list_measured_tables


@pytest.mark.parametrize("name", sorted(list_measured_tables()))
def test_a_shipped_table_is_whole_and_says_where_it_is_from(name):
    table = read_cost_table(find_measured_table(name))
    frame, facts = table.frame, table.metadata["fingerprint"]
    gpu, _, model = name.partition("/")
    assert set(frame["gpu"]) == {gpu} == {facts["device"]}
    assert model.startswith(f"{table.metadata['model']['name']}.{frame['engine'].iloc[0]}.")
    assert set(frame["provenance"]) == {"measured"}
    assert (frame.loc[frame["sub_block"] != "no_op", "samples"] > 0).all()
    for fact in ("date", "torch", "git_commit", "platform"):
        assert facts[fact], fact
    assert "-dirty" not in facts["git_commit"]


def test_there_is_one():
    assert list_measured_tables()


def test_an_unknown_name_gets_near_ones():
    name = next(iter(list_measured_tables()))
    with pytest.raises(ValueError, match=f"did you mean {name}"):
        find_measured_table(name[:-1])
