"""The column loop in torch: left-looking, one matrix product for each column block, one vector product for each column.

Everything is kept transposed, so that one column of the weight is one contiguous row of memory.
"""

import torch
from torch import Tensor

from kernels.precision import full_float32


@full_float32()
def round_columns(
    weight: Tensor,
    feedback: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    group_of_column: Tensor,
    *,
    max_code: int | Tensor,
    block_size: int,
    drift: Tensor | None = None,
) -> Tensor:
    """Round columns first to last, each after adding the errors of the columns before it.

    For column k, with A = feedback: t_k = w_k + sum over i < k of (w_i - q_i) A_ik,
    code_k = clamp(round(t_k / s) + z, 0, max_code) with halves to even, q_k = s (code_k - z). With M = drift, t_k has
    the sum over i < k of t_i M_ik added (GPTAQ; Li et al. 2025).
    With A from `kernels.factorization` this is GPTQ (Frantar et al. 2023, algorithm 1) and, equally, LDLQ (Chee et al.
    2023) in forward column order. `block_size` changes speed and the order of summation, not the algorithm.

    weight: [out, in] float32 or float64, the dtype everything is computed in. feedback: [in, in], unit upper triangular
    (only entries above the diagonal are read). scale: [out, groups]. zero_point: [out, groups], integers of any dtype.
    group_of_column: [in] integers, the grid of each column. max_code: one for all, or [out, groups]. drift: [in, in],
    of which only entries above the diagonal are read. Returns codes [out, in] uint8.
    """
    columns = weight.mT.contiguous()
    scales = scale.mT.to(weight.dtype).contiguous()
    zeros = zero_point.mT.to(weight.dtype).contiguous()
    groups = group_of_column.tolist()
    largest = torch.as_tensor(max_code, dtype=weight.dtype, device=weight.device).expand(scale.shape).mT.contiguous()
    error = torch.empty_like(columns)
    targets = None if drift is None else torch.empty_like(columns)
    codes = torch.empty_like(columns, dtype=torch.uint8)
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        target = torch.addmm(columns[start:stop], feedback[:start, start:stop].mT, error[:start])
        if drift is not None and targets is not None:
            target.addmm_(drift[:start, start:stop].mT, targets[:start])
        for k in range(start, stop):
            s, z = scales[groups[k]], zeros[groups[k]]
            t = torch.addmv(target[k - start], error[start:k].mT, feedback[start:k, k])
            if drift is not None and targets is not None:
                t.addmv_(targets[start:k].mT, drift[start:k, k])
                targets[k] = t
            code = t.div_(s).round_().add_(z).clamp_(min=0).minimum(largest[groups[k]])
            codes[k] = code
            torch.addcmul(columns[k], code.sub_(z), s, value=-1, out=error[k])
    return codes.mT.contiguous()
