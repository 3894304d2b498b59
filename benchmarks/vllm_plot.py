"""The picture of both servers: every round's throughput, and its median TTFT at every load."""

from pathlib import Path

from benchmarks.vllm_overhead import SATURATED, Overhead


def plot(overhead: Overhead, picture: Path) -> None:
    """Write a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 1 + len(overhead.loads), figsize=(12, 4))
    for server, runs in overhead.loads[SATURATED].items():
        axes[0].plot(range(1, len(runs) + 1), [run.tokens_per_s for run in runs], "o-", label=server)
    axes[0].set(title=SATURATED, xlabel="round", ylabel="tokens/s", ylim=(0, None))
    for panel, (load, by_server) in zip(axes[1:], overhead.loads.items(), strict=True):
        for server, runs in by_server.items():
            panel.plot(range(1, len(runs) + 1), [run.ttft_p50_ms for run in runs], "o-", label=server)
        panel.set(title=load, xlabel="round", ylabel="p50 TTFT, ms", ylim=(0, None))
    for panel in axes:
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
