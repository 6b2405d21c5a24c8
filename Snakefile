# A profile's experiments and the report about them: `make report PROFILE=recommended`.
#
# A run is made again when its `state` changes: code in the notebook's cells, the library behind
# them, parameters or data. Prose does not count, nor does the time of a file.
# On a cluster: `make report PROFILE=recommended EXECUTOR=slurm CORES=20` (20 jobs at a time).
import sys

from synth_nb.tools.grid import ready

PROFILE = config.get("profile", "smoke")
RUNS = {run.notebook: run for run in ready(PROFILE)}
HOME = f"outputs/report/{PROFILE}"


rule report:
    input:
        expand(f"{HOME}/{{notebook}}.json", notebook=RUNS),
    output:
        f"{HOME}/index.html",
    params:
        state=[run.state for run in RUNS.values()],
    resources:
        runtime=60,  # minutes, on a cluster
        mem_mb=8000,
    shell:
        "{sys.executable} -m synth_nb.tools.grid page {PROFILE} {output}"


rule run:
    input:
        lambda wildcards: [f"{HOME}/{one.notebook}.json" for one in RUNS[wildcards.notebook].needs],
    output:
        f"{HOME}/{{notebook}}.json",
    params:
        state=lambda wildcards: RUNS[wildcards.notebook].state,
    threads: 1 if PROFILE == "smoke" else 4
    resources:
        runtime=lambda wildcards, attempt: 60 * config.get("hours", 4),  # minutes, on a cluster
        mem_mb=config.get("mem_mb", 16000),
        gpu=config.get("gpu", 0),
    shell:
        "OMP_NUM_THREADS={threads} {sys.executable} -m synth_nb.tools.grid run {wildcards.notebook} {PROFILE} {output}"
