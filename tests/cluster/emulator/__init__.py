"""A Kubernetes API emulator: real clients, real scheduling decisions, real processes, no cluster.

    with KubernetesEmulator(nodes, folder, environment={"MONTAGE_DATA": str(data)}) as emulator:
        subprocess.run([...], env={..., "KUBECONFIG": str(emulator.kubeconfig)})
        assert {pod.node for pod in emulator.pods} == {...}

- `api`: the HTTP server that the official client, kubectl-like tools and Dagster's launcher talk to;
- `schemas`: every created object is checked against the published schemas and the API server's further rules;
- `jobs`: the Job controller's decisions; `scheduler`: kube-scheduler's; both are pure functions;
- `pods`: a pod's container as a process group of this machine; `nodes`: the matrix's records as Node objects;
- `cluster`: the state, what happens when, the controls for tests and the record of what was where.

What it leaves out: images and mounts (paths are the test's own), memory limits, preemption, init and sidecar
containers, the delays between the retries of a job's pods.
"""

from tests.cluster.emulator.cluster import JobRecord, KubernetesEmulator, PodRecord

__all__ = ["JobRecord", "KubernetesEmulator", "PodRecord"]
