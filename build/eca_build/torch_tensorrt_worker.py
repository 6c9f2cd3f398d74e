"""The process that makes a plan from an exported PyTorch program, through Torch-TensorRT.

    python -m eca_build.torch_tensorrt_worker PROGRAM.pt2 MODEL.plan MAX_BATCH CHIP TIMING_CACHE

It ends its output as `tensorrt_worker` does. The custom operators become the same plugins as through ONNX: a converter
of our own, because Torch-TensorRT's generated plugins know only the LINEAR layout.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from eca_plugin import NAMESPACE
from eca_plugin.descriptor import OPERATORS, TORCH_NAMES, WITH_RESIDUAL
from eca_service.contract import FEATURES, GATES, PROBABILITIES

from eca_build import tensorrt_worker

made = 0


def register_converters() -> None:
    """Tells Torch-TensorRT how our operators become plugins."""
    import torch
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter

    for name, plugin in TORCH_NAMES.items():
        overload = getattr(torch.ops.eca, name).default
        dynamo_tensorrt_converter(overload, supports_dynamic_shapes=True)(_converter(plugin))


def _converter(plugin: str) -> Any:
    def convert(ctx: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        import tensorrt.plugin as trtp
        from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

        global made
        inputs = len(OPERATORS[plugin].inputs)
        *tensors, residual, relu = args
        if residual is not None:
            tensors.append(residual)
        given = [get_trt_tensor(ctx, tensor, f"{name}_{index}") for index, tensor in enumerate(tensors)]
        kind = getattr(getattr(trtp.op, NAMESPACE), plugin + (WITH_RESIDUAL if len(given) > inputs else ""))
        layer = ctx.net.add_plugin(kind(*given, relu=bool(relu)), aot=True)
        layer.name = f"[{target}]-[{name}]"
        made += 1
        return layer.get_output(0)

    return convert


def name_outputs() -> None:
    """Makes Torch-TensorRT give the outputs the contract's names: it numbers them, and offers no other way."""
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    original = TRTInterpreter.output

    def output(self: Any, target: str, args: Any, kwargs: Any) -> Any:
        outputs = original(self, target, args, kwargs)
        self._output_names = [PROBABILITIES, FEATURES, GATES][: len(outputs)]
        for tensor, name in zip(outputs, self._output_names, strict=True):
            tensor.name = name
        return outputs

    TRTInterpreter.output = output


def _build(source: str, target: str, max_batch: int, chip: int, cache_file: Path) -> None:
    trt = tensorrt_worker.load(chip)
    import torch
    import torch_tensorrt

    import_module("eca_plugin.torch_operators")  # which defines what the program calls
    register_converters()
    name_outputs()
    program = torch.export.load(source)
    image = next(node.meta["val"] for node in program.graph.nodes if node.name == "image")
    shape = tuple(int(extent) for extent in image.shape[1:])
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=[
            torch_tensorrt.Input(
                min_shape=(1, *shape),
                opt_shape=(max_batch, *shape),
                max_shape=(max_batch, *shape),
                dtype=torch.uint8,
            )
        ],
        disable_tf32=True,
        truncate_double=True,
        require_full_compilation=True,
        timing_cache_path=str(cache_file.with_suffix(".torch.cache")),
    )
    Path(target).write_bytes(plan)
    print("plan", trt.__version__, tensorrt_worker.cuda_version(), made)


if __name__ == "__main__":
    _build(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
