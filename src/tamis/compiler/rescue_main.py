"""What a new process runs to go on with a build: ``python -m tamis.compiler.rescue_main JOB DESCRIPTOR``.

It says what happens through the file descriptor, as pickled pairs: ("progress", (stage, done, total, detail)),
("warning", (text, category)), and at last ("error", a ``TamisError``) or ("done", None).
"""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

from tamis.compiler import prepare, race_and_plan
from tamis.compiler.rescue import Job
from tamis.engine.file import save
from tamis.errors import TamisError


def main(job_file: str, descriptor: str) -> None:
    """Build what the job says, and save the engine."""
    job: Job = pickle.loads(Path(job_file).read_bytes())
    with os.fdopen(int(descriptor), "wb") as channel:

        def say(kind: str, content: Any) -> None:
            pickle.dump((kind, content), channel)
            channel.flush()

        def show_warning(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            say("warning", (str(message), category))

        def tell(*progress: Any) -> None:
            say("progress", progress)

        warnings.showwarning = show_warning
        try:
            graph, track = prepare(job.model, job.config, tell)
            save(race_and_plan(graph, track, tell), job.output)
        except TamisError as error:
            say("error", error)
        else:
            say("done", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
