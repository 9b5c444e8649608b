"""Where networks run, and which precisions are worth it there."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """Where this process trains and generates: accelerate's choice, a GPU where there is one.

    From then on float32 is float32: cuDNN would round to TensorFloat-32 in convolutions, and results would say
    float32 all the same.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    torch.backends.cudnn.allow_tf32 = False
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


def has_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are worth it on a device of this type ("cpu", "cuda", ...).

    PyTorch imitates them on x86 below AVX-512, in ten times what float32 takes and more, and on GPUs before Ampere.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
