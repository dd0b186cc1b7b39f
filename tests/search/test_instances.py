"""Made-up problems have the shape that their documentation promises."""

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from puzzlebench_search.instances import RESOURCES, block_names, hard_instance, served_instance

MAKERS = pytest.mark.parametrize("make", [served_instance, hard_instance])


def relaxed(problem):
    """The linear relaxation: its prices of the limits, and whether it has a solution."""
    count, ends = len(problem.names), np.array([limit.high for limit in problem.limits])
    cover = csr_matrix((np.ones(count), (problem.layers, np.arange(count))))
    return linprog(
        problem.scores, A_ub=(problem.uses / ends).T, b_ub=np.ones(len(ends)), A_eq=cover, b_eq=np.ones(cover.shape[0])
    )


@MAKERS
def test_shape(make):
    problem = make(seed=0)
    assert problem.num_layers == 80
    assert len(problem.names) == 80 * 54
    assert problem.resources == RESOURCES
    assert [limit.resource for limit in problem.limits] == list(RESOURCES)
    assert problem.names[:54] == problem.names[-54:] == block_names()
    assert (problem.uses.reshape(80, 54, 4) == problem.uses[:54]).all()
    assert (problem.uses >= 0).all()
    assert (problem.scores.reshape(80, 54)[:, 0] == 0).all()
    assert (problem.scores.reshape(80, 54)[:, 1:] > 0).all()


@MAKERS
def test_same_seed_same_problem(make):
    one, again, other = make(5, seed=1), make(5, seed=1), make(5, seed=2)
    assert (one.scores == again.scores).all()
    assert (one.uses == again.uses).all()
    assert one.limits == again.limits
    assert (one.scores != other.scores).any()


@MAKERS
@pytest.mark.parametrize("seed", range(3))
def test_the_limits_rule_out_the_parent_but_not_everything(make, seed):
    problem = make(seed=seed)
    parent = problem.uses[0] * 80
    ends = np.array([limit.high for limit in problem.limits])
    assert (ends < 0.75 * parent).all()
    assert relaxed(problem).status == 0


@pytest.mark.parametrize("seed", range(3))
def test_all_limits_of_a_hard_instance_bind(seed):
    prices = -relaxed(hard_instance(seed=seed)).ineqlin.marginals
    assert (prices > 0.1).all()


def test_the_parent_has_the_sizes_of_llama():
    problem = served_instance(seed=0)
    memory, params = problem.uses[0, :2]
    assert params == 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672
    assert memory == 2 * params + 32 * 2560 * 2 * 8 * 128 * 2
    assert (problem.uses[53] == 0).all()
