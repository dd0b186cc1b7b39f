"""The space that a cost table covers."""

from dataclasses import replace

from puzzlebench.model.blocks import GQA, Architecture, Block, Linear, NoOp, parse_sub_block, sub_block_name
from puzzlebench.searching.costed_space import costed_space

from .conftest import edited


def names(candidates):
    return [sub_block_name(sub) for sub in candidates.attention], [sub_block_name(sub) for sub in candidates.ffn]


def test_every_sub_block_largest_first(llama):
    space = costed_space(llama.table, llama.parent)
    attention = ["gqa_8", "gqa_4", "gqa_2", "gqa_1", "linear", "no_op"]
    assert [names(layer) for layer in space.layers] == [(attention, ["mlp_14336", "mlp_7168", "linear", "no_op"])] * 4


def test_no_ops_need_no_row_and_others_do(llama):
    table = edited(llama.table, lambda frame: frame.query("sub_block not in ('no_op', 'linear', 'gqa_2')"))
    space = costed_space(table, llama.parent)
    assert names(space.layers[0]) == (["gqa_8", "gqa_4", "gqa_1", "no_op"], ["mlp_14336", "mlp_7168", "no_op"])


def test_a_layer_gets_nothing_larger_than_its_own(llama):
    small = Block(attention=GQA(num_key_value_heads=2), ffn=parse_sub_block("ffn", "mlp_7168"))
    bare = Block(attention=NoOp(), ffn=Linear())
    parent = Architecture(blocks=(small, bare, *llama.parent.blocks[2:]))
    space = costed_space(llama.table, parent)
    assert names(space.layers[0]) == (["gqa_2", "gqa_1", "linear", "no_op"], ["mlp_7168", "linear", "no_op"])
    assert names(space.layers[1]) == (["no_op"], ["linear", "no_op"])


def test_a_layer_keeps_its_window(gemma):
    space = costed_space(gemma.table, gemma.parent)
    for layer, own in zip(space.layers, gemma.parent.blocks, strict=True):
        windows = {sub.sliding_window for sub in layer.attention if isinstance(sub, GQA)}
        assert windows == {own.attention.sliding_window}
        assert layer.attention[0] == own.attention
        assert all(isinstance(sub, GQA | Linear | NoOp) for sub in layer.attention)


def test_it_is_the_space_that_the_table_was_made_of(llama, gemma):
    for world in (llama, gemma):
        assert costed_space(world.table, world.parent) == replace(world.space)
