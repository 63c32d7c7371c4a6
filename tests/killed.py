"""A run in a process of its own that may kill itself at a step: `killed.py VERB CONFIG WORKDIR STEP`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from keras_bert_app import config as configuration
from keras_bert_app.training import checkpoints

_REPOSITORY = Path(__file__).parents[1]


def start(verb, config, workdir, last=-1):
    """Run `verb` with a config to the end, or until `last` steps are made in this process."""
    arguments = [verb, json.dumps(configuration.to_dict(config)), str(workdir), str(last)]
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_REPOSITORY)},
    )


def assert_same_bits_when_killed(verb, config, folder, last, saved):
    """Kill a run after `last` steps, go on from step `saved`, and compare with one that wasn't."""
    whole = start(verb, config, folder / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = start(verb, config, folder / "killed", last)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints.steps(folder / "killed")[-1] == saved
    resumed = start(verb, config, folder / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from the checkpoint of step {saved}" in resumed.stderr
    assert checkpoints.steps(folder / "killed") == checkpoints.steps(folder / "whole")
    for step in checkpoints.steps(folder / "whole"):
        one, other = (checkpoints.folder_of(folder / name, step) for name in ("whole", "killed"))
        for file in (checkpoints.MODEL, checkpoints.OPTIMIZER, checkpoints.STATE):
            assert (one / file).read_bytes() == (other / file).read_bytes(), file


def main(verb, content, workdir, last):
    """Run it in this process."""
    from keras_bert_app.training import finetuning, pretraining
    from keras_bert_app.training.progress import Progress

    advance = Progress.advance

    def advance_or_die(progress, *arguments, **named):
        advance(progress, *arguments, **named)
        if progress.done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    Progress.advance = advance_or_die
    run = {"finetune": finetuning.finetune, "pretrain": pretraining.pretrain}[verb]
    run(configuration.freeze(json.loads(content)), workdir)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
