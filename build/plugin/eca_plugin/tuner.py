"""Times all ways to launch a kernel on the GPU that is there: what `tuning.Table` is made of."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor

from eca_plugin import driver, operators, tuning
from eca_plugin.ahead_of_time import Compiled, KernelError, compile_plan
from eca_plugin.descriptor import OPERATORS, TORCH_NAMES
from eca_plugin.plan import Plan
from eca_plugin.timing import Spread, Timed, spread
from eca_plugin.tuning import BATCHED, Site, Table

DTYPES = {name: dtype for dtype, name in operators.NAMES.items()}
MOST_SETS = 512  # of the smallest maps as many do not fill the cache
Kernels = dict[tuple[Site, str], Compiled]


class Call:
    """A site's tensors of one batch: random inputs, and a result that is poisoned."""

    def __init__(self, site: Site, batch: int, device: str, seed: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        dtype = DTYPES[site.dtype]
        memory = torch.channels_last if site.nhwc else torch.contiguous_format

        def random(name: str, shape: tuple[int, ...]) -> Tensor:
            full = (batch, *shape) if name in BATCHED else shape
            made = torch.rand(full, generator=generator, device=device) * 2 - 1
            if name == "x" and site.operator == "FusedECA":  # else the mean of a large map is 0, and each gate a half
                made += torch.rand((*full[:2], 1, 1), generator=generator, device=device) * 4 - 2
            if name == "weight":
                made /= shape[1] ** 0.5
            if name == "gate":
                made = made.sigmoid()
            return made.to(dtype).contiguous(memory_format=memory) if len(full) == 4 else made.to(dtype)

        self.site = site
        self.batch = batch
        self.inputs = tuple(random(name, shape) for name, shape in site.shapes)
        channels = self.inputs[1].shape[0] if site.operator == "GatedConv1x1" else self.inputs[0].shape[1]
        shape = (channels, *self.inputs[0].shape[2:])
        self.residual = random("h", shape) if site.residual else None
        self.out = torch.full((batch, *shape), torch.nan, dtype=dtype, device=device).contiguous(memory_format=memory)

    @property
    def bytes(self) -> int:
        """What must be moved: every input read once, the result written once."""
        tensors = [*self.inputs, self.out, *([] if self.residual is None else [self.residual])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def launch(self, plan: Plan, compiled: Compiled | None) -> None:
        """Starts the kernel: by the driver as TensorRT would where it is `compiled`, else as PyTorch's operators do."""
        if compiled is None:
            operators.launch(plan, self.site, self.inputs, self.residual, self.out)
            return
        given = [*self.inputs, *([] if self.residual is None else [self.residual])]
        scalars = () if plan.rows_per_block is None else (plan.rows(self.batch),)
        addresses = [tensor.data_ptr() for tensor in given]
        stream = torch.cuda.current_stream().cuda_stream
        driver.launch(compiled, plan.grid(self.batch), addresses, scalars, self.out.data_ptr(), stream)


def sites_of(program: torch.export.ExportedProgram) -> list[Site]:
    """The places at which an exported program calls our operators, each once."""
    found: dict[Site, None] = {}
    names = {f"eca.{name}.default": operator for name, operator in TORCH_NAMES.items()}
    for node in program.graph.nodes:
        operator = names.get(str(node.target))
        if operator:
            *inputs, residual, relu = node.args
            tensors = [one.meta["val"] for one in inputs]
            shapes = {key: tuple(one.shape) for key, one in zip(OPERATORS[operator].inputs, tensors, strict=True)}
            dtype, nhwc = operators.NAMES[tensors[0].dtype], not tensors[0].is_contiguous()
            found[tuning.site(operator, shapes, dtype, nhwc, residual is not None, relu)] = None
    return list(found)


def compile_all(
    sites: Iterable[Site], chip: int, most: int | None = None, traced: bool = False
) -> tuple[Kernels, Counter[str]]:
    """The kernels of the sites' plans, the first `most` of each, by site and label, compiled side by side.

    With `traced` those alone that a compiler launches that traces a call, see `Table.plan`. Those that cannot be
    compiled are left out, and counted by the reason. To be called before this process uses the GPU as it starts others.
    """
    wanted = [
        (site, chip, number)
        for site in sites
        for number, plan in enumerate(site.plans(chip)[:most])
        if not (traced and plan.is_cuda)
    ]
    workers = max(1, min(len(os.sched_getaffinity(0)), 12))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        made = list(zip(wanted, pool.map(_compile, wanted, chunksize=2), strict=True))
    kernels = {(site, label): kernel for (site, *_), (label, kernel) in made if isinstance(kernel, Compiled)}
    return kernels, Counter(reason for _, (_, reason) in made if isinstance(reason, str))


def _compile(wanted: tuple[Site, int, int]) -> tuple[str, Compiled | str]:
    """The label of a plan, by its number, and its kernel, or why there is none.

    No plan passes between processes, its function cannot.
    """
    site, chip, number = wanted
    plan = site.plans(chip)[number]
    try:
        return plan.label, compile_plan(plan, site.dtype, site.residual)
    except KernelError as error:
        return plan.label, str(error)


def calls(site: Site, batch: int, cache_bytes: int, device: str) -> list[Call]:
    """So many sets of a site's tensors that one run over all leaves nothing of the first in the L2 cache."""
    first = Call(site, batch, device)
    more = min(MOST_SETS, 2 * cache_bytes // first.bytes + 2) - 1
    return [first, *(Call(site, batch, device, seed) for seed in range(1, more + 1))]


def time_plans(sets: Sequence[Call], plans: Sequence[Plan], kernels: Kernels, seconds: float) -> dict[str, Spread]:
    """Seconds by label of those `plans` that have a kernel, each for `seconds`, in turns; the fastest first."""
    site = sets[0].site
    timed = {}
    for plan in plans:
        kernel = kernels.get((site, plan.label))
        if kernel is not None:
            timed[plan.label] = Timed([lambda call=one, k=kernel, p=plan: call.launch(p, k) for one in sets])  # type: ignore[misc]
    samples: dict[str, list[float]] = {label: [] for label in timed}
    for _ in range(2):  # the clock drifts: no plan gets the whole of a good or a bad moment
        for label, one in timed.items():
            samples[label] += one.samples(seconds / 2)
    found = {label: spread(taken) for label, taken in samples.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].p50))


def tune(sites: Sequence[Site], batch: int, kernels: Kernels, seconds: float = 0.02) -> Table:
    """The table of this GPU for that batch, from `compile_all`'s kernels."""
    properties = torch.cuda.get_device_properties(0)
    table = Table(properties.name, 10 * properties.major + properties.minor)
    for site in sites:
        sets = calls(site, batch, properties.L2_cache_size, "cuda")
        table.choices[site.key] = list(time_plans(sets, site.plans(table.chip), kernels, seconds))
    return table
