"""Autocast's rules of CUDA on the CPU, which has its own: what is made fp32, or bf16, differs between the two."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._pytree import tree_map

# torch/include/ATen/autocast_mode.h: AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE, and of
# AT_FORALL_LOWER_PRECISION_FP what the CPU leaves alone; as far as a model may call it
FP32 = """
exp expm1 log log10 log2 log1p reciprocal rsqrt pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar softplus layer_norm
native_layer_norm group_norm cosine_similarity poisson_nll_loss nll_loss nll_loss2d kl_div l1_loss smooth_l1_loss
huber_loss mse_loss binary_cross_entropy_with_logits dist cdist logsumexp upsample_nearest2d upsample_bilinear2d
_upsample_bilinear2d_aa upsample_bicubic2d erfinv
"""
FP32_RESULT = "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm sum sum.dim_IntList"
LOWER = "mv addmv addr linalg_vecdot"
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextmanager
def cuda_rules() -> Iterator[None]:
    """Within, autocast on the CPU casts as it does on CUDA."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a rule is replaced is the point
            for names, dtype in ((FP32, torch.float32), (LOWER, torch.bfloat16), (FP32_RESULT, None)):
                for name in names.split():
                    library.impl(name, _rule(name, dtype), "AutocastCPU", allow_override=True)
        yield


def _rule(name: str, dtype: torch.dtype | None):
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def rule(*arguments, **options):
        with torch._C._ExcludeDispatchKeyGuard(AUTOCAST):
            if dtype is None:
                return op(*arguments, **{"dtype": options.pop("dtype", None) or _dtype(arguments[0]), **options})
            return op(*tree_map(lambda value: _cast(value, dtype), arguments), **options)

    return rule


def _dtype(tensor: torch.Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype in (torch.bfloat16, torch.float16) else None


def _cast(value, dtype: torch.dtype):
    fits = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if fits else value
