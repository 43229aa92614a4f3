"""Run directories without a run: a configuration and an invented summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.search.report.sample import sample_summary
from tests.search.synthetic import run_config


def save_run(folder: Path, summary: dict[str, Any] | None = None, **config: Any) -> Path:
    """A finished run below ``folder``, named as its summary is; returns its directory."""
    summary = sample_summary() if summary is None else summary
    directory = folder / str(config.setdefault("name", summary["name"]))
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text(run_config(**config).to_toml())
    (directory / "summary.json").write_text(json.dumps(summary | {"name": config["name"]}))
    for entry in (*summary["promoted"], *summary["baselines"]):
        if entry["path"]:
            (directory / entry["path"]).mkdir(parents=True)
    return directory
