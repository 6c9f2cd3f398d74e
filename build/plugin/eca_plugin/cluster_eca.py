"""How the second kernel of FusedECA is launched: in CUDA C++ with thread-block clusters, see cluster_eca.cu."""

from __future__ import annotations

from pathlib import Path

from eca_plugin.plan import Plan

SOURCE = Path(__file__).with_name("cluster_eca.cu")
ENTRY = "fused_eca_cluster"
CAPABILITY = 90  # the oldest chip that has clusters
LARGEST_CLUSTER = 8  # what every such chip grants without being asked
SLABS = (64, 128, 32)
MOST_TILES = 7  # vectors that a thread holds: with more, two blocks of 512 threads would not share a multiprocessor
MOST_HOLDERS = 448
SIDE_THREADS = 64
FULL = 480  # from so many threads on two blocks share a multiprocessor's 65,536 registers, 64 a thread
RESIDENT = 768  # threads of smaller blocks, which then have 80 and more: their sums need them


def plans(channels: int, pixels: int, taps: int, relu: bool, value_bytes: int) -> tuple[Plan, ...]:
    """The ways to launch it on NHWC maps of that shape; none where channels are no whole vectors, or maps too large."""
    vector = 16 // value_bytes
    if channels % vector:
        return ()
    found: dict[str, Plan] = {}
    for wanted in SLABS:
        slab = min(wanted, channels)
        columns = slab // vector
        for cluster in (1, 2, 4, LARGEST_CLUSTER):
            share = -(-pixels // cluster)
            tiles = min(MOST_TILES, -(-share // vector))
            rows = max(vector, -(-share // tiles))  # a thread for each channel at least
            if rows * columns <= MOST_HOLDERS:
                made = _plan(channels, pixels, taps, relu, value_bytes, slab, cluster, rows)
                found.setdefault(made.label, made)
                break
    return tuple(found.values())


def _plan(
    channels: int, pixels: int, taps: int, relu: bool, value_bytes: int, slab: int, cluster: int, rows: int
) -> Plan:
    holders = -(-rows * slab * value_bytes // 16 // 32) * 32
    threads = holders + (SIDE_THREADS if taps > 1 and slab < channels else 0)
    return Plan(
        kernel=SOURCE,
        constants={
            "CHANNELS": channels,
            "PIXELS": pixels,
            "TAPS": taps,
            "RELU": int(relu),
            "SLAB": slab,
            "CLUSTER": cluster,
            "ROWS": rows,
            "MINIMUM": 2 if threads >= FULL else max(1, RESIDENT // threads),
        },
        blocks=cluster * -(-channels // slab),
        warps=threads // 32,
        label=f"cluster of {cluster}, {slab} channels, {rows} rows",
        capability=CAPABILITY,
    )
