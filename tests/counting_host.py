"""SGLang's dedicated process, with a hook that notes what becomes of the rows behind the norm.

`python -m counting_host` takes the place of `kdflow_lab.teacher.sglang.host`. The hook is the real
one. One JSON object a forward pass goes to the file that `KDFLOW_TEST_COUNTS` names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdflow_lab.teacher.sglang import hooks, host

FILE = "KDFLOW_TEST_COUNTS"
VIEWS = ("view", "slice", "alias", "detach", "select.int", "as_strided", "split", "lift")


class Operations(TorchDispatchMode):
    """Notes every operation that makes or fills a tensor; views are none."""

    def __init__(self, source: Tensor, rings: list[Any]) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self._source = source.untyped_storage().data_ptr()
        self._rings = rings

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if isinstance(result, Tensor) and not name.startswith(VIEWS):
            inputs = [one for one in args if isinstance(one, Tensor)]
            self.seen.append(
                {
                    "name": name,
                    "bytes": result.numel() * result.element_size(),
                    "into_ring": any(ring.contains(result) for ring in self._rings),
                    "from_norm": any(
                        one.untyped_storage().data_ptr() == self._source for one in inputs
                    ),
                }
            )
        return result


def factory(config: dict[str, Any]) -> Any:
    """Make the real hook, and watch it and the norms before it."""
    hook = hooks.factory(config)
    last_norm: dict[str, Any] = {}

    def after(module: Any, args: Any, output: Any) -> None:
        if type(module).__name__.endswith("RMSNorm"):
            rows = output[0] if isinstance(output, tuple) else output
            last_norm.update(data=rows.data_ptr(), shape=list(rows.shape))

    torch.nn.modules.module.register_module_forward_hook(after)

    def counted(module: Any, args: Any, output: Any) -> None:
        rings = list(getattr(hook, "_rings")._rings.values())  # noqa: B009
        with Operations(args[1], rings) as operations:
            hook(module, args, output)
        same = last_norm == {"data": args[1].data_ptr(), "shape": list(args[1].shape)}
        with open(os.environ[FILE], "a") as file:
            said = {"input_is_the_norms_output": same, "operations": operations.seen}
            file.write(json.dumps(said) + "\n")

    return counted


if __name__ == "__main__":
    import counting_host

    host.factory = counting_host.factory
    host.serve(int(sys.argv[1]), Path(sys.argv[2]), host.begin)
