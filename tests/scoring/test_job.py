from __future__ import annotations

import pytest
import torch

from puzzlebench.model.blocks import block_name
from puzzlebench.scoring.job import score_table
from puzzlebench.scoring.results import LayerScores

from .conftest import parent_of, space_around


def test_a_table_has_the_mean_of_a_metric_and_the_error_of_its_difference_from_the_parent(build):
    parent = parent_of(build("llama"))
    generator = torch.Generator().manual_seed(0)
    names = [block_name(block) for block in space_around(parent).layers[0].blocks()]
    found = [
        LayerScores(
            layer=layer,
            metrics=("kl", "lm_loss"),
            values={name: torch.rand(9, 2, generator=generator, dtype=torch.float64) for name in names},
        )
        for layer in (0, 1)
    ]
    table = score_table(found, 1, parent, metric="lm_loss", direction="minimise")
    assert len(table.frame) == 2 * len(names)
    assert table.metadata["metric"] == "lm_loss"
    own = block_name(parent.blocks[0])
    for layer, name, score, error, count in table.frame.itertuples(index=False):
        values, parents = (found[layer].values[one][:, 1] for one in (name, own))
        assert score == pytest.approx(values.mean().item())
        difference = values - parents
        expected = (difference.square().sum() - 9 * difference.mean() ** 2).clamp(min=0).div(8).sqrt() / 3
        assert error == pytest.approx(expected.item(), abs=1e-12)
        assert count == 9
    errors = dict(zip(table.frame.iloc[:, 1], table.frame.iloc[:, 3], strict=False))
    assert errors[own] == 0
