"""The processes of one training, by Hugging Face Accelerate: one alone, or as many as `accelerate launch` started.

Knows neither losses nor data. With several processes the student's gradients are averaged by DDP, or by FSDP2 where the
launch configuration asks for it, which also spreads weights and optimiser state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final

import torch
from torch import nn

from puzzlebench.training.precision import Precision

_PATIENCE: Final = timedelta(hours=2)
"""For what one process does while the others wait: above all writing the child."""
NEEDS_ACCELERATE: Final = "distillation needs accelerate: pip install accelerate"


class Ranks:
    """This process among the others. Every method but the properties is called by all of them together.

    Args:
        device: cpu, cuda or cuda:N; with several processes each takes the GPU of its local number.
        precision: what FSDP2 gathers weights in.

    Raises:
        ValueError: accelerate is missing, or was set up otherwise in this process before.
    """

    def __init__(self, device: str, precision: Precision) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedType, InitProcessGroupKwargs
        except ImportError:
            raise ValueError(NEEDS_ACCELERATE) from None
        wanted = torch.device(device)
        if wanted.type == "cuda" and wanted.index is not None and "LOCAL_RANK" not in os.environ:
            torch.cuda.set_device(wanted)
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        plugin = _plugin(precision) if sharded else None
        # `Student` computes in the precision itself; FSDP2 has it from its own policy.
        self._accelerator: Any = Accelerator(
            cpu=wanted.type == "cpu",
            mixed_precision="no",
            fsdp_plugin=plugin,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
        if sharded and self._accelerator.distributed_type == DistributedType.MULTI_CPU:
            # accelerate knows FSDP on accelerators only, while torch shards on CPUs too: for tests without a GPU
            self._accelerator.state.distributed_type = DistributedType.FSDP
            self._accelerator.state.fsdp_plugin = plugin
        if sharded and self.count > 1 and not self._accelerator.is_fsdp2:
            raise ValueError("the launch configuration asks for FSDP 1; set fsdp_version: 2 in it")

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        return int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return int(self._accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def sharded(self) -> bool:
        """Whether weights are spread by FSDP2."""
        return self.count > 1 and bool(self._accelerator.is_fsdp2)

    @property
    def loads_weights(self) -> bool:
        """Whether this process reads the student's checkpoint; the others may have the weights on the meta device."""
        plugin = self._accelerator.state.fsdp_plugin if self.sharded else None
        return self.index == 0 or plugin is None or not plugin.cpu_ram_efficient_loading

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module on its device, wrapped for the way its gradients are averaged. Its parameters may be others."""
        if not self.sharded:
            prepared: nn.Module = self._accelerator.prepare(module)
            return prepared
        # Accelerate shards a model together with an optimiser only. Ours is made of the sharded parameters later.
        placeholder = torch.optim.SGD(module.parameters(), lr=0.0)
        return self._accelerator.prepare(module, placeholder)[0]  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a loss."""
        self._accelerator.backward(loss)

    def without_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Leave gradients of the backward passes within to this process, to be averaged by the next one after it."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return context

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> float:
        """Scale the gradients down to a norm; what it was comes back."""
        was = self._accelerator.clip_grad_norm_(list(parameters), norm)
        return float(was.full_tensor() if hasattr(was, "full_tensor") else was)

    def mean(self, values: list[float]) -> list[float]:
        """Mean over processes of each number."""
        if self.count == 1:
            return values
        everyone = self.gather(values)
        return [sum(own) / self.count for own in zip(*everyone, strict=True)]

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, in their order."""
        if self.count == 1:
            return [value]
        everyone: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(everyone, value)
        return everyone

    def agree(self, value: Any) -> Any:
        """What process 0 gave."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()

    def whole_state(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """All weights of a prepared module on the CPU, in process 0; nothing in the others."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        if self.count == 1:
            return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_model_state_dict(module, options=options)
        return dict(state)


def _plugin(precision: Precision) -> Any:
    """What the launch configuration says of FSDP, with a policy for bf16 that leaves losses as they are."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin()
    if precision == "bf16":  # accelerate's own would round what a forward gives to bf16, and sums of gradients
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return plugin
