"""What `recfit optimize` chooses for the budget of a settings file: the choice and both originals on the test requests, as
dated JSON.

    python -m benchmarks.optimized benchmarks/seeds/movie/optimize.toml

A study that was begun goes on, a finished one answers at once. Where nothing holds the budget nothing is written, and the
exit code is that of `recfit optimize`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.record import save

from recfit import config
from recfit.search.study import Study

SHOWN = ("ratios", "difference", "verdicts", "text", "protocol")


def outcome(study: Study) -> dict[str, Any]:
    """The final table of a finished study, the budget it answers, and what finding it took."""
    final, known = study.facts["final"], study.candidates
    rows = {
        label: {"recipe": known[id].name, "steps": known[id].recipe, **final["rows"][label]}
        for label, id in final["ids"].items()
    }
    return {
        "data": study.facts["data"],
        "budget": final["budget"],
        "candidates": dict(Counter(candidate.status for candidate in known.values())),
        "minutes": round(sum(sum(candidate.seconds.values()) for candidate in known.values()) / 60, 2),
        "rows": rows,
        **{name: final[name] for name in SHOWN},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="recfit.toml of the study")
    settings: Path = parser.parse_args().settings
    done = subprocess.run((sys.executable, "-m", "recfit.cli", "optimize", str(settings)), check=False)
    if done.returncode:
        sys.exit(done.returncode)
    found = outcome(Study(Path(config.load(settings).search.directory)))
    label = settings.parent.name if settings.stem in ("optimize", "settings") else settings.stem
    print(save("optimize", label, found))


if __name__ == "__main__":
    main()
