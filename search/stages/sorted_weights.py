"""The teacher's weights sorted by importance, from which all students of a run are cut.

They are written into the run directory once for each basis, and mapped into memory by each worker. Workers of
one host share the pages. The file can be made again from teacher and ranking, so a complete run removes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evaluators.corpus.blocks import fingerprint
from evaluators.distillation.targets.choice import size_text
from evaluators.teacher import Teacher
from evaluators.teacher.on_disk import WeightsOnDisk, teacher_on_disk
from search.settings.methods import weights_dtype
from search.settings.moments_plan import needs_moments
from search.settings.resolved import Resolved
from search.settings.targets_plan import free_bytes
from search.storage.run_directory import RunDirectory
from space.axes.axis_map import AxisMap
from space.cutting.extraction import saved_tensors
from space.cutting.ranking import Ranking
from space.cutting.sorted_file import map_sorted, remove_sorted, sorted_bytes, write_sorted
from space.input_error import InputError


class SortedWeights:
    """The sorted weights of one basis.

    Args:
        path: their file.
        teacher: the teacher of the run.
        axis_map: the teacher's, in this basis.
        ranking: the teacher's, in this basis.
        stay: whether they lie on the teacher's device; else students are cut from the mapped file.
        from_disk: whether the teacher's own files are read layer by layer to make them.
    """

    def __init__(
        self,
        path: Path,
        teacher: Teacher,
        axis_map: AxisMap,
        ranking: Ranking,
        *,
        stay: bool = True,
        from_disk: bool = False,
    ) -> None:
        self.path, self.teacher, self.axis_map, self.ranking = path, teacher, axis_map, ranking
        self.stay, self.from_disk = stay, from_disk

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by name, from the file of an earlier process if there is one.

        Raises:
            InputError: they cannot be turned into the basis of the ranking.
            OSError: the disk is full.
        """
        mapped = self.write()
        if not self.stay:
            return mapped
        device = self.teacher.residence.device
        return {name: values.to(device) for name, values in mapped.items()}

    def write(self) -> Mapping[str, Tensor]:
        """Write the file, unless an earlier process has; return its tensors by name, mapped into memory.

        Raises:
            InputError, OSError: see ``tensors``.
        """
        if (mapped := map_sorted(self.path, self._fingerprint)) is not None:
            return mapped
        with self._weights() as weights:
            write_sorted(self.path, weights, self.axis_map, self.ranking, self._fingerprint)
        mapped = map_sorted(self.path, self._fingerprint)
        assert mapped is not None, "the file was written just now"
        return mapped

    @contextmanager
    def _weights(self) -> Iterator[Mapping[str, Tensor]]:
        """Within the context, the teacher's weights by name: on its device, or read from the disk in turn."""
        if self.from_disk:
            directory, dtype = self.teacher.directory, self.teacher.model.dtype
            with teacher_on_disk(directory, torch.device("cpu"), dtype) as files:
                yield WeightsOnDisk(files, self.axis_map)
        else:
            with self.teacher.on_device():
                yield saved_tensors(self.teacher.model, self.axis_map)

    def remove(self) -> None:
        """Remove the file; weights that this process has mapped stay valid."""
        remove_sorted(self.path)

    @cached_property
    def _fingerprint(self) -> str:
        ranking, basis = self.ranking, self.ranking.basis
        orders = [part for axis, order in ranking.orders.items() for part in (axis.value, order)]
        turned = [] if basis is None else list(basis.tensors().values())
        dtype = str(self.teacher.model.dtype)
        return fingerprint(self.teacher.fingerprint, ranking.fingerprint, dtype, *orders, *turned)


def sorted_bytes_of(variants: Sequence[Resolved]) -> int:
    """Return the bytes of the sorted weights of a run, which lie there in every basis until one is chosen."""
    return sum(sorted_bytes(variant.axis_map, weights_dtype(variant.config)) for variant in variants)


def check_sorted_weights(resolved: Resolved, directory: RunDirectory) -> None:
    """Check, before the teacher is loaded, that sorted weights and moments for repairs fit on the disk.

    Raises:
        InputError: they do not.
    """
    if directory.summary.exists():
        return  # a complete run cuts no more students
    variants = [resolved] if resolved.turned is None else [resolved, resolved.turned]
    if directory.ranking.exists():  # the basis is chosen
        variants = [max(variants, key=lambda variant: sorted_bytes_of([variant]))]
    missing = [variant for variant in variants if not directory.sorted_of(variant.basis.value).exists()]
    needed, free = sorted_bytes_of(missing), free_bytes(directory.path)
    gathered = needs_moments(resolved.config) and not directory.moments.exists()
    moments = resolved.moments.sums.file if gathered else 0
    if needed + moments > free:
        what = f"and the moments of --repair {size_text(moments)}, " if moments else ""
        raise InputError(
            "The teacher's weights, sorted by importance, have to fit on the disk of the run",
            f"they take {size_text(needed)}, {what}and {size_text(free)} are free in {directory.path.parent}",
            f"Make space, or name another disk with --out{', or take --repair none' if moments else ''}",
        )
