"""A Ray cluster of two nodes on this machine, until standard input ends; a line on it starts another node."""

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    add(cluster)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        add(cluster)
    cluster.shutdown()


def add(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=1, env_vars={"GENMODELS_FAULT_NODE": "second"})


if __name__ == "__main__":
    main()
