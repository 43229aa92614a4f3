"""Rank a teacher that is larger than memory: each layer is loaded once, for all calibration blocks.

Without layer n the states before it go on at the layer behind it. So while the layers are loaded in turn, one
stream of states begins at each of them, and all go on together: L streams and the teacher's own lie on the
disk, and every layer is loaded once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from evaluators.importance.activations import ActivationListener, all_reduced, process_share
from evaluators.importance.aggregation import Aggregation
from evaluators.importance.collected import ranking_of
from evaluators.importance.kept_coordinates import SAMPLE_TOKENS, BasisLoss
from evaluators.importance.layer_removal import Cost, NextTokenLoss, TeacherDivergence
from evaluators.importance.layer_scores import LayerScores, check_depth, check_finite, layer_sample
from evaluators.importance.method import Depth, Method, Width
from evaluators.importance.moment_passes import MomentsRequest
from evaluators.importance.moments import reader_weighting, unfolded_norms
from evaluators.importance.precision import products
from evaluators.importance.rank import batches
from evaluators.teacher.layer_by_layer import LayersInTurn, StoredStates, TeacherFiles
from space.axes.axis_map import AxisMap, wildcard_name
from space.cutting.basis import BasisName
from space.cutting.ranking import Ranking
from space.input_error import InputError


def rank_from_disk(
    directory: Path,
    axis_map: AxisMap,
    calibration: Tensor,
    fingerprint: str,
    advance: Callable[[float], None] = lambda blocks: None,
    method: Method | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Path | None = None,
    trust_remote_code: bool = False,
    accelerator: Accelerator | None = None,
) -> Ranking:
    """Return the ranking that ``rank`` gives, with only one layer of the teacher in memory at a time.

    Args:
        directory: the teacher's.
        axis_map: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprint: from ``ranking_fingerprint``.
        advance: called with the number of blocks after each batch has passed the last layer.
        method: has to score by activations and block influence, the default; any basis is possible.
        device: where layers are computed.
        dtype: of the weights in memory.
        scratch: a folder with room for the states of all blocks; by default the system's temporary folder.
        trust_remote_code: whether Python code that comes with the model may run.
        accelerator: as for ``rank``.

    Raises:
        InputError: as for ``rank_in_bases_from_disk``.
    """
    method = method or Method()
    if method.depth is not Depth.INFLUENCE:
        raise _unsuitable(method)
    files = TeacherFiles(directory, axis_map, device, dtype, scratch, trust_remote_code)
    keys = {method.basis: fingerprint}
    found = rank_in_bases_from_disk(files, calibration, keys, advance, method, accelerator)
    return found[method.basis]


@torch.no_grad()
def rank_in_bases_from_disk(
    files: TeacherFiles,
    calibration: Tensor,
    fingerprints: Mapping[BasisName, str],
    advance: Callable[[float], None] = lambda blocks: None,
    method: Method | None = None,
    accelerator: Accelerator | None = None,
    layers: LayerScores | None = None,
    moments: MomentsRequest | None = None,
) -> dict[BasisName, Ranking]:
    """Return the rankings that ``rank_in_bases`` gives, with one layer of the teacher in memory at a time.

    Every weight is loaded once; some bases load the matrices that read the residual stream a second time.

    Args:
        files: the teacher's.
        calibration: (N, T) token ids; each block is one sample of the batch.
        fingerprints: from ``ranking_fingerprint``, by basis.
        advance: called with the number of blocks after each batch, in equal parts for each layer.
        method: has to score widths by activations, once; its basis does not count.
        accelerator: as for ``rank``.
        layers: scores of the layers; None for block influence.
        moments: those that the same pass gathers, if any; of one process alone.

    Raises:
        InputError: the method needs the whole teacher, its layers share more than the residual stream, or the
            states do not fit on the disk; and as for ``rank``.
    """
    method = method or Method()
    check_method_from_disk(method)
    axis_map = files.axis_map
    check_basis_from_disk(axis_map, fingerprints)
    with files.opened() as turn:
        listener = ActivationListener(turn.model, axis_map, [Aggregation(method.batch, method.sequence)])
        own_blocks = process_share(calibration, accelerator)
        with products(turn.model, method.bfloat16):
            states = _collect_statistics(turn, listener, own_blocks, advance, moments)
        listener = all_reduced(listener, accelerator)
        rankings = {}
        loss = BasisLoss(turn.model, axis_map, partial(_finals, turn, states, own_blocks), accelerator)
        for basis, key in fingerprints.items():
            one = replace(method, basis=basis)
            weighting = partial(_weighting, turn, axis_map, basis)
            rankings[basis] = ranking_of(listener, key, one, weighting, basis_loss=loss)
    return {basis: layers.given_to(of) if layers else of for basis, of in rankings.items()}


def turned_from_disk(axis_map: AxisMap) -> bool:
    """Whether a basis can be found layer by layer: what it costs is measured behind the last layer alone."""
    return not set(unfolded_norms(axis_map)) - {axis_map.roles.final_norm}


def check_basis_from_disk(axis_map: AxisMap, bases: Collection[BasisName]) -> None:
    """Check that a teacher can be ranked layer by layer in these bases.

    Raises:
        InputError: a basis other than coordinates is wanted, and norms inside the layers cannot be folded.
    """
    if set(bases) - {BasisName.COORDINATE} and not turned_from_disk(axis_map):
        inner = next(name for name in unfolded_norms(axis_map) if name != axis_map.roles.final_norm)
        raise InputError(
            "A teacher read layer by layer can be turned if no norm of a layer writes into the stream",
            f"{wildcard_name(inner)} does",
            "Take --basis coordinate, or a device on which the whole teacher fits",
        )


def _collect_statistics(
    turn: LayersInTurn,
    listener: ActivationListener,
    blocks: Tensor,
    advance: Callable[[float], None],
    wanted: MomentsRequest | None,
) -> StoredStates:
    """Pass all blocks through one layer after the other, then through the modules after the last.

    Returns:
        What the last layer returned for each batch.
    """
    states, parts = turn.states("states", len(blocks)), 1 / (len(turn.layers) + 1)
    moments = wanted.listener(turn.model, listener.axis_map, blocks, wanted.every) if wanted else None
    for included in turn.places():
        with listener.on(included), moments.on(included) if moments else nullcontext():
            for batch, tokens in enumerate(batches(blocks)):
                turn.pass_on(batch, tokens, states, listener.read)
                advance(len(tokens) * parts)
        if moments and wanted:
            wanted.take_all(moments)
    return states


def _finals(turn: LayersInTurn, states: StoredStates, blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first blocks and their final states, from what the last layer returned."""
    device, wanted = turn.teacher.device, -(-SAMPLE_TOKENS // blocks.shape[1])
    for batch, tokens in enumerate(batches(blocks)):
        if wanted > 0:
            some = tokens.to(device, torch.long)
            yield some, turn.run(some, states.read(batch, device)).final
        wanted -= len(tokens)


@torch.no_grad()
def score_layers_from_disk(
    files: TeacherFiles,
    calibration: Tensor,
    method: Method,
    advance: Callable[[float], None] = lambda blocks: None,
) -> LayerScores:
    """Return the scores that ``score_layers`` gives, with one layer of the teacher in memory at a time.

    Args:
        files: the teacher's.
        calibration: (N, T) token ids, of which a sample is read.
        method: scores layers by perplexity or divergence, not greedily.
        advance: called with blocks × forward passes; see ``forward_passes``.

    Raises:
        InputError: the method needs the whole teacher, its layers share more than the residual stream, the
            states do not fit on the disk, or a score is not finite.
    """
    check_method_from_disk(method)
    check_depth(method, None, calibration)
    blocks = layer_sample(calibration)
    with files.opened() as turn, products(turn.model, method.bfloat16):
        total, count = _costs_without_each(turn, batches(blocks), method.depth, advance)
    scores = total / count
    check_finite(scores, method.depth)
    return LayerScores(scores.float())


def _costs_without_each(
    turn: LayersInTurn, parts: Sequence[Tensor], depth: Depth, advance: Callable[[float], None]
) -> tuple[Tensor, int]:
    """Return the summed costs without each layer, (L,) float64, and the number of summands."""
    streams = _Streams(turn, parts)
    for number in turn.in_turn():
        streams.pass_layer(number)
        advance(sum(map(len, parts)) * (number + 1) / len(turn.layers))
    total, count = torch.zeros(len(turn.layers), dtype=torch.float64), 0
    for batch, tokens in enumerate(parts):
        cost = streams.cost(batch, tokens, depth)
        for layer in range(len(turn.layers)):
            found, number = cost(streams.final(layer, batch, tokens))
            total[layer] += found
        count += number
    return total, count


class _Streams:
    """The teacher's states and those without each layer that has been passed, for all batches."""

    WHOLE = -1

    def __init__(self, turn: LayersInTurn, parts: Sequence[Tensor]) -> None:
        self.turn, self.parts = turn, parts
        blocks = sum(map(len, parts))
        numbers = range(self.WHOLE, len(turn.layers))
        self.stored: dict[int, StoredStates] = {
            number: turn.states(f"without {number}", blocks) for number in numbers
        }

    def pass_layer(self, number: int) -> None:
        """Let all streams pass the layer that is loaded; begin the one that goes on without it."""
        for stream in range(self.WHOLE, number):
            for batch, tokens in enumerate(self.parts):
                before = self._read(stream, batch) if number else None
                passed = self.turn.run(tokens, before)
                if stream == self.WHOLE:  # before its states are written over, of which these may be a view
                    output, given = passed.output, passed.given
                    without: Any = given if isinstance(output, Tensor) else (given, *output[1:])
                    self.stored[number].write(batch, len(tokens), without)
                self.stored[stream].write(batch, len(tokens), passed.output)

    def cost(self, batch: int, tokens: Tensor, depth: Depth) -> Cost:
        """Return what is to be averaged over the tokens of a batch."""
        model = self.turn.model
        if depth is Depth.DIVERGENCE:
            return TeacherDivergence(model, self.final(self.WHOLE, batch, tokens))
        return NextTokenLoss(model, tokens.to(self.turn.teacher.device, torch.long))

    def final(self, stream: int, batch: int, tokens: Tensor) -> Tensor:
        """Return the final states (B, T, D) of a stream that has passed all layers."""
        final: Tensor = self.turn.run(tokens, self._read(stream, batch)).final
        return final

    def _read(self, stream: int, batch: int) -> Any:
        return self.stored[stream].read(batch, self.turn.teacher.device)


def _weighting(layers: LayersInTurn, axis_map: AxisMap, basis: BasisName, covariance: Tensor) -> Tensor:
    """Return ``reader_weighting`` of the whole teacher, (D, D), with one layer in memory at a time."""
    total, model = torch.zeros_like(covariance), layers.model
    if basis is BasisName.PRINCIPAL:  # which does not use it
        return total
    stream = axis_map.stream
    assert stream is not None, "only a stream that can be turned has a basis"
    outer = tuple(tensor for tensor in axis_map.tensors if tensor.layer is None)
    norms = tuple(tensor for tensor in outer if wildcard_name(tensor.name) in stream.readers)
    total += reader_weighting(model, replace(axis_map, tensors=outer), stream, covariance)
    for number in layers.in_turn():
        inner = tuple(tensor for tensor in axis_map.tensors if tensor.layer == number)
        total += reader_weighting(model, replace(axis_map, tensors=(*inner, *norms)), stream, covariance)
    return total


def check_method_from_disk(method: Method) -> None:
    """Check that a teacher can be ranked layer by layer by this method.

    Raises:
        InputError: it needs the whole teacher at once.
    """
    depths = (Depth.INFLUENCE, Depth.PERPLEXITY, Depth.DIVERGENCE)
    if (
        method.width is not Width.ACTIVATIONS
        or method.depth not in depths
        or method.greedy
        or method.rounds > 1
    ):
        raise _unsuitable(method)


def _unsuitable(method: Method) -> InputError:
    return InputError(
        "A teacher that does not fit into memory is ranked once, by activations, and its layers by "
        "influence, perplexity or divergence",
        f"the method asked for is: {method.words}",
        "Take the default method, or a device on which the whole teacher fits",
    )
