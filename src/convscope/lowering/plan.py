"""Choose precision, memory layout and algorithm for each convolution and matrix product."""

from __future__ import annotations

import dataclasses

from convscope.lowering import program as ops
from convscope.lowering.program import Compute, Program


def choose(program: Program, training: bool, deterministic: bool, precision: str, batch_size: int) -> tuple[Program, list[str]]:
    """Annotate the heavy ops."""
    new=[]
    last={o.value for o in program.outputs}
    for op in program:
        if isinstance(op, ops.Conv2D|ops.Dense):
            pr = "float32" if precision=="float32" or (isinstance(op,ops.Dense) and op.output in last) else "bfloat16"
            al="rows" if isinstance(op,ops.Conv2D) and op.kernel_shape[2]==1 and op.groups==1 and op.dilation==(1,1) and pr=="bfloat16" else "direct"
            op=dataclasses.replace(op,compute=Compute(pr,"channels_last",al))
        new.append(op)
    return program.replace(ops=tuple(new)), []
