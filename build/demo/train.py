"""Trains the demo networks on CIFAR-10: two backbones, each plain, with SE and with ECA, by one recipe.

    python build/demo/train.py --data cifar10-jpeg.tar.xz --network resnet14-eca

The MobileNets, which learn slowly, also learn from the finished ResNets (Hinton et al., https://arxiv.org/abs/1503.02531).

`--data` takes CIFAR-10 as an archive or a folder of JPEG files (train/<class>/*.jpg, test/<class>/*.jpg), or the
original cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html. A run that was interrupted goes on
where it stopped. Weights go to build/demo/<network>.safetensors, the figures of the run beside them as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from cifar10 import MEAN, STD, load
from eca_build.networks import NetworkSpec, create, with_formula
from eca_build.networks.mobilenetv2 import MobileNetV2
from faster import keep_the_heap, prepare
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

HERE = Path(__file__).parent
NETWORKS = {
    f"{short}-{attention}": with_formula(arch, attention, classes=10, width=width)
    for short, arch, width in (("resnet14", "resnet14_cifar", 2.0), ("mobilenetv2", "mobilenetv2_cifar", 1.0))
    for attention in ("none", "se", "eca")
}


TEACHERS = ("resnet14-se", "resnet14-eca")


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips half of the images and shifts each by up to 4 pixels over zero padding; float [N, 3, 32, 32] in and out."""
    n, _, size, _ = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (2, n, 1, 1), generator=generator)
    flip = torch.randint(0, 2, (n, 1), generator=generator).bool()
    columns = torch.arange(size).expand(n, size)
    columns = torch.where(flip, columns.flip(1), columns)
    rows = torch.arange(size)[None, :, None] + shift[0]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns[:, None, :] + shift[1]]
    return picked.permute(0, 3, 1, 2)


def batches(images: Tensor, labels: Tensor, epoch: int, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented batches of an epoch, in its order: the same whenever they are drawn, whichever network asks."""
    generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
    order = torch.randperm(len(images), generator=generator)
    for picked in order[: len(images) // options.batch * options.batch].split(options.batch):
        yield augment(images[picked], generator).contiguous(memory_format=torch.channels_last), labels[picked]


class Teachers:
    """Networks already trained, whose mean logits are another's targets; an epoch's are kept for the next pupil."""

    def __init__(self, names: Sequence[str], device: torch.device, options: argparse.Namespace) -> None:
        self.names, self.device, self.options = names, device, options
        self.networks: list[nn.Module] = []
        for name in names:
            net = create(NETWORKS[name])
            net.load_state_dict(load_file(options.output / f"{name}.safetensors"))
            net.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.networks.append(torch.compile(net) if options.compile else net)  # type: ignore[arg-type]

    @torch.no_grad()
    def logits(self, images: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Float [steps, batch, classes] for the epoch's `batches`."""
        kept = self.options.checkpoints / f"{'+'.join(self.names)}-seed{self.options.seed}-epoch{epoch}.pt"
        if kept.exists():
            return cast(Tensor, torch.load(kept, weights_only=True))
        rows = []
        for x, _ in batches(images, labels, epoch, self.options):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bfloat16(self.device)):
                rows.append(torch.stack([net(x.to(self.device)).float() for net in self.networks]).mean(0).cpu())
        torch.save(torch.stack(rows), kept.with_suffix(f".part{os.getpid()}"))
        os.replace(kept.with_suffix(f".part{os.getpid()}"), kept)
        return torch.stack(rows)


def distillation(logits: Tensor, taught: Tensor, temperature: float = 2.0) -> Tensor:
    """Cross-entropy of the two softened distributions, in the scale of the plain one (section 2 of the paper)."""
    soft = F.softmax(taught / temperature, 1)
    return F.cross_entropy(logits / temperature, soft) * temperature**2


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; a CPU without it emulates it, twenty times slower than float32."""
    return device.type == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # no public name for this


def parameter_groups(net: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels only, not on biases and batch norms."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate(progress: float, peak: float, warm_up: float = 0.2) -> float:
    """Linear from 0 to `peak` over the first `warm_up` of the run, then linear to 0; progress in [0, 1]."""
    return peak * min(progress / warm_up, (1 - progress) / (1 - warm_up))


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` (normalised float [N, 3, 32, 32]) whose largest logit is the label's."""
    net.eval()
    hits = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        hits += int((net(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
    return hits / len(images)


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """Uint8 [N, 32, 32, 3] -> float [N, 3, 32, 32], zero mean and unit deviation over the training set."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def begin_as(net: nn.Module, trained: dict[str, Tensor]) -> None:
    """Copies what has the same name and shape from a trained network: between attentions, all but the gates."""
    own = net.state_dict()
    net.load_state_dict({k: trained[k] if k in trained and trained[k].shape == v.shape else v for k, v in own.items()})


def train(name: str, spec: NetworkSpec, options: argparse.Namespace) -> None:
    """Trains one network and writes its weights and figures; goes on from the checkpoint of a run cut short."""
    torch.manual_seed(options.seed)
    pixels, classes, test_pixels, test_classes = load(options.data)
    train_images, train_labels = normalised(pixels), torch.from_numpy(classes)
    test_images, test_labels = normalised(test_pixels), torch.from_numpy(test_classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = has_bfloat16(device)
    net = create(spec).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(parameter_groups(net, options.decay), lr=0.0, momentum=0.9, nesterov=True)
    running = options.checkpoints / f"{name}.running.pt"
    start_epoch, seconds = 0, 0.0
    if running.exists():
        saved = torch.load(running, weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        start_epoch, seconds = saved["epoch"], saved["seconds"]
    elif options.start_from:
        begin_as(net, load_file(options.output / f"{options.start_from}.safetensors"))
    steps = len(train_images) // options.batch
    step_net: nn.Module = net
    if options.compile and bf16 and device.type == "cpu" and isinstance(net, MobileNetV2):
        prepare(net)
    elif options.compile and bf16:  # float32 gains nothing by it
        step_net = torch.compile(net)  # type: ignore[assignment]
    teachers = Teachers(TEACHERS, device, options) if isinstance(net, MobileNetV2) else None
    bar = tqdm(total=options.epochs * steps, initial=start_epoch * steps, desc=name, unit="step", disable=None)
    for epoch in range(start_epoch, options.epochs):
        started = time.perf_counter()
        taught = teachers.logits(train_images, train_labels, epoch) if teachers else None
        net.train()
        total = 0.0
        for step, (x, y) in enumerate(batches(train_images, train_labels, epoch, options)):
            rate = learning_rate((epoch * steps + step) / (options.epochs * steps), options.rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = step_net(x.to(device)).float()
            if taught is None:
                loss = F.cross_entropy(logits, y.to(device), label_smoothing=options.smoothing)
            else:
                loss = distillation(logits, taught[step].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
            bar.update()
        if not math.isfinite(total):
            raise SystemExit(f"{name}: the loss is no longer finite in epoch {epoch + 1}; lower --rate")
        seconds += time.perf_counter() - started
        bar.set_postfix(epoch=epoch + 1, loss=f"{total / steps:.3f}")
        print(f"{name} epoch {epoch + 1}/{options.epochs} loss {total / steps:.4f} {seconds:.0f} s", flush=True)
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "seconds": seconds}
        torch.save(state, running.with_suffix(".part"))
        os.replace(running.with_suffix(".part"), running)
    bar.close()
    net.cpu()
    test_accuracy = accuracy(net, test_images, test_labels)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, options.output / f"{name}.safetensors")
    figures = {
        "network": name,
        "architecture": spec.arch,
        "attention": spec.attention,
        "test_accuracy": test_accuracy,
        "parameters": sum(p.numel() for p in net.parameters()),
        "training_minutes": round(seconds / 60, 1),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "precision": "bfloat16" if bf16 else "float32",
        "torch": torch.__version__,
        "teachers": list(teachers.names) if teachers else [],
        "start_from": options.start_from,
        "recipe": {k: getattr(options, k) for k in ("epochs", "batch", "rate", "decay", "smoothing", "seed")},
    }
    (options.output / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    running.unlink()
    print(f"{name}: {test_accuracy:.2%} of {len(test_images)} test images", flush=True)


def main() -> None:
    """Trains the networks asked for; see the module's first lines."""
    keep_the_heap()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10: an archive or an unpacked folder")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="default: all six, one after the other")
    parser.add_argument("--epochs", type=int, default=24, help="default: %(default)s")
    parser.add_argument("--start-from", choices=NETWORKS, help="a finished network to begin as, but for its gates")
    parser.add_argument("--batch", type=int, default=128, help="images of a step; default: %(default)s")
    parser.add_argument("--rate", type=float, default=0.2, help="peak learning rate; default: %(default)s")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay; default: %(default)s")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of weights, order and crops; default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="PyTorch's; default here: %(default)s"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="bfloat16 on a CPU is faster compiled, which needs a C++ compiler",
    )
    parser.add_argument("--output", type=Path, default=HERE, help="folder for weights and figures; default: build/demo")
    parser.add_argument("--checkpoints", type=Path, default=HERE / "checkpoints", help="where a running state is kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    for name in options.network or NETWORKS:
        train(name, NETWORKS[name], options)


if __name__ == "__main__":
    main()
