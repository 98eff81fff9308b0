"""Run a study on a cluster of two nodes on this machine; as a process of its own, since Ray is one a process.

python two_nodes.py STUDY.yaml RUN_DIRECTORY [PATTERN]: with a pattern, the raylet of the second node is killed as soon
as the run directory holds a file that matches it.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from cleanai_ray.config.study import load_study
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage.run_directory import RunDirectory

STORE = 150 * 1024**2


def main(study_file: str, folder: str, pattern: str = "") -> int:
    # Where the process that controls a trial's workers is lost with its node, Ray Train's cleaner frees what they held,
    # and asks the dashboard for it. Without a port of its own (None), the dashboard takes the first free one: a cluster
    # of another process may hold 8265.
    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": True, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    cluster.wait_for_nodes()

    def kill() -> None:
        while not list(Path(folder).glob(pattern)):
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        print("killed the raylet of the second node", flush=True)  # noqa: T201

    if pattern:
        threading.Thread(target=kill, daemon=True).start()
    study = load_study(study_file)
    try:
        failed = run_study(
            study,
            check_study(study),
            RunDirectory(folder),
            RunOptions(address=cluster.address, command="two nodes", report=False),
            ProgressReporter(),
        )
    finally:
        cluster.shutdown()
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
