"""A small world for searches and a judge that tries every architecture: shared by the tests of what searches find."""

import itertools
import math
from statistics import NormalDist

import numpy as np

from puzzlebench.model.blocks import Architecture, block_name, parse_block, sub_block_name
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import column_name, limits_in, parse_scenario

BLOCKS = (
    "gqa_8+mlp_14336",
    "gqa_8+mlp_7168",
    "linear+mlp_7168",
    "gqa_2+linear",
    "no_op+no_op",
)


def scored(world, names=BLOCKS, *, seed=0, direction="minimise"):
    """Random scores of these blocks: the parent's own are best, small blocks the worst on average."""
    rng = np.random.default_rng(seed)
    sign = 1 if direction == "minimise" else -1
    rows = [
        (layer, name, sign * (place + rng.uniform(0, 2)) * (place > 0), 0.0, 0)
        for layer in range(world.spec.num_hidden_layers)
        for place, name in enumerate(names)
    ]
    frame = world.scores.frame.iloc[:0].reindex(range(len(rows)))
    for place, column in enumerate(frame.columns):
        frame[column] = [row[place] for row in rows]
    metadata = world.scores.metadata | {"partial": True, "direction": direction, "metric": "made up"}
    return ScoreTable(frame=frame, metadata=metadata)


class Judge:
    """Every architecture of a world at every batch size, counted by `recheck`.

    In Llama all layers are alike, so architectures of the same blocks take the same: each set is counted once.
    """

    def __init__(self, world, scores, scenarios, known=None):
        self.world, self.scenarios = world, [parse_scenario(text) for text in scenarios]
        self.layers = [scores.layer_scores(layer) for layer in range(world.spec.num_hidden_layers)]
        self.sign = 1 if scores.direction == "minimise" else -1
        self._values = {} if known is None else known

    def values(self, names, batch_size):
        key = (batch_size, *sorted(names))
        if key not in self._values:
            architecture = Architecture(blocks=tuple(map(parse_block, names)))
            found = recheck(self.world.table, self.world.spec, architecture, self.scenarios, batch_size)
            self._values[key] = found.values
        return self._values[key]

    def keeps(self, names, batch_size, limits, scenarios=None):
        values = self.values(names, batch_size)
        wanted = [("params", limit) for limit in limits if limit.resource == "params"]
        scenarios = scenarios or self.scenarios
        for scenario in scenarios:
            wanted += [
                (column_name(limit.resource, scenario, scenarios), limit) for limit in limits_in(scenario, limits)
            ]
        return all(
            (limit.low is None or values[column] >= limit.low * (1 - 1e-9))
            and (limit.high is None or values[column] <= limit.high * (1 + 1e-9))
            for column, limit in wanted
        )

    def best(self, batch_sizes, keeps, allowed=lambda layer, name: True):
        """The best score of those that `keeps(names, batch_size)`, None if there are none."""
        layers = [[name for name in scores if allowed(layer, name)] for layer, scores in enumerate(self.layers)]
        best = None
        for names in itertools.product(*layers):
            score = math.fsum(scores[name] for scores, name in zip(self.layers, names, strict=True))
            if best is not None and self.sign * score >= self.sign * best:
                continue
            if any(keeps(names, batch_size) for batch_size in batch_sizes):
                best = score
        return best


def names_of(architecture):
    return tuple(block_name(block) for block in architecture.blocks)


def ttft_at(world, names, batch_size, level, errors, *, sign=1, length=512):
    """Time to first token in seconds with its margin above (or below), from the rows of the table; of one length."""
    frame = world.table.frame
    rows = frame[(frame["batch_size"] == batch_size) & (frame["phase"] == "prefill") & (frame["context_len"] == length)]
    cells = {(row.part, row.sub_block): row for row in rows.itertuples()}
    blocks = [parse_block(name) for name in names]
    groups = [[("embedding", "embedding"), ("head", "head")]]  # errors within a group add up
    groups += [[("attention", sub_block_name(block.attention)), ("ffn", sub_block_name(block.ffn))] for block in blocks]
    value, deviations = 0.0, []
    for group in groups:
        found = [cells[key] for key in group if key[1] != "no_op"]
        value += sum(cell.latency_us for cell in found)
        ends = [cell.latency_high_us if sign > 0 else cell.latency_low_us for cell in found]
        deviations.append(sum(abs(end - cell.latency_us) for end, cell in zip(ends, found, strict=True)) / 1.959964)
    total = sum(deviations) if errors == "correlated" else math.hypot(*deviations)
    return (value + sign * NormalDist().inv_cdf(level) * total) / 1e6
