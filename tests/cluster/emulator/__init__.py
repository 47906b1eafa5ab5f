"""A Kubernetes API emulator: real clients, real scheduling decisions, real processes, no cluster.

    with KubernetesEmulator(nodes, folder, environment={"MONTAGE_DATA": str(data)}) as emulator:
        subprocess.run([...], env={..., "KUBECONFIG": str(emulator.kubeconfig)})
        assert {pod.node for pod in emulator.pods} == {...}

- `api`: the HTTP server that the official client, kubectl and Dagster's launcher talk to; `kinds`: what it knows and
  tells of itself; `patches`, `protobuf`: what clients send; `objects`: conventions that all share;
- `schemas`: every created object is checked against the published schemas and the API server's further rules;
- `jobs`, `deployments`: the two controllers' decisions; `scheduler`: kube-scheduler's; all are pure functions;
- `pods`: a container as a process group of this machine; `nodes`: the matrix's records as Node objects;
- `execution`, `forwarding`: `kubectl exec` and `kubectl port-forward`, both on `websocket`;
- `cluster`: the state, what happens when, the controls for tests and the record of what was where.

What it leaves out: images, mounts other than claims and ConfigMaps, memory limits, quotas, rights, preemption, init and
sidecar containers, the delays between the retries of a job's pods. The containers of Deployments are not started, and
kinds without a controller here (StatefulSets, DaemonSets, Services ...) are kept and given back.
"""

from tests.cluster.emulator.cluster import JobRecord, KubernetesEmulator, PodRecord

__all__ = ["JobRecord", "KubernetesEmulator", "PodRecord"]
