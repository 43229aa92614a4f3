"""What the user said about importance, as a method."""

from __future__ import annotations

from evaluators.importance.method import Aggregate, Depth, Method, Width
from evaluators.metrics.benchmarks import check_task
from search.settings.config import RunConfig
from space.input_error import InputError


def method_of(config: RunConfig) -> Method:
    """How units and layers are scored, in coordinates.

    Raises:
        InputError: the aggregation is none, or the layers are to be scored by an unknown benchmark.
    """
    batch, sequence = _aggregation(config.aggregation)
    depth, greedy, benchmark = _depth(config.depth_by)
    return Method(
        width=Width(config.width_by),
        batch=batch,
        sequence=sequence,
        depth=depth,
        greedy=greedy,
        benchmark=benchmark,
        rounds=config.rounds,
        seed=config.seed,
    )


def _aggregation(text: str) -> tuple[Aggregate, Aggregate]:
    try:
        batch, sequence = map(Aggregate, text.split(","))
    except ValueError:
        raise InputError(
            "--aggregation takes how absolute activations are put together along batch and sequence",
            f"{text!r} was given",
            "Write two of mean, l2 and var, such as --aggregation l2,mean",
        ) from None
    return batch, sequence


def _depth(text: str) -> tuple[Depth, bool, str]:
    """Method, whether it is greedy, and the benchmark if it is one: ``greedy-perplexity``, ``winogrande``."""
    plain = {depth.value: depth for depth in Depth if depth is not Depth.BENCHMARK}
    if text in plain:
        return plain[text], False, ""
    greedy = {f"greedy-{depth}": depth for depth in (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE)}
    if text in greedy:
        return greedy[text], True, ""
    check_task(text)
    return Depth.BENCHMARK, False, text
