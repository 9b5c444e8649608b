"""A GPU that is not there: its tensors lie in the processor's memory, say that they do not, and refuse to be mixed with
others as a GPU's do. What is computed is what the processor computes, but for rounding.

Its name is that of a device which PyTorch knows and has no code for, so that nothing but this file answers for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

GPU, CPU = torch.device("lazy:0"), torch.device("cpu")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Rows of a tensor on the GPU may be named by a tensor that is not."""


class Distant(Tensor):
    """A tensor on the imaginary GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Distant:
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Distant({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class ImaginaryGPU(TorchDispatchMode):
    """While it is entered, `GPU` is there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on what is held; its result lies where the arguments or `device` put it.

    Raises RuntimeError where tensors of both devices are mixed, numbers excepted.
    """
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    distant = any(isinstance(x, Distant) for x in tensors)
    named = kwargs.get("device")
    target = torch.device(named) if named is not None else (GPU if distant else CPU)
    if not distant and target != GPU:
        return func(*args, **kwargs)
    if func not in MOVES and distant:
        near = [x for x in tensors if not isinstance(x, Distant) and x.ndim > 0]
        if near and not (func in INDEXED and isinstance(args[0], Distant)):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {GPU} and cpu")
    generator = kwargs.get("generator")
    if generator is not None and target == GPU:
        raise RuntimeError(f"expected a generator of {GPU}, found one of cpu")
    near_args, near_kwargs = tree_map_only(Distant, lambda x: x.held, (args, kwargs))
    if named is not None:
        near_kwargs["device"] = CPU
    out = func(*near_args, **near_kwargs)
    if target == GPU:
        out = tree_map_only(Tensor, Distant, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if distant else out


class _Autocast(torch.autocast):
    """The device has no precision of its own to cast to."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(CPU.type if device_type == GPU.type else device_type, *args, **kwargs)


class _Opened:
    """safetensors makes tensors of a storage, which no dispatch mode can stand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.file = safetensors.safe_open(*args, **kwargs)

    def __enter__(self) -> Any:
        self.file.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.__exit__(*args)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            with _disable_current_modes():
                return getattr(self.file, name)(*args)

        return call


@contextmanager
def imaginary_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate finds it as it would find a real one."""
    PartialState()
    AcceleratorState._reset_state()
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [GPU.type, CPU.type])
    monkeypatch.setattr(safetensors.torch, "safe_open", _Opened)
    monkeypatch.setitem(PartialState._shared_state, "device", GPU)
    monkeypatch.setattr(torch, "autocast", _Autocast)
    monkeypatch.setattr(torch, GPU.type, SimpleNamespace(), raising=False)  # asked by gradient checkpointing
    # Else a parameter on the GPU, cast to another type, would stay what it holds.
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=GPU) then asks the mode, too
    try:
        with ImaginaryGPU():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        AcceleratorState._reset_state()
