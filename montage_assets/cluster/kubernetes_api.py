"""Access to Kubernetes' API, and asking it for its nodes within seconds, with a plain reason when it cannot be done.

Belongs here: finding the access (a pod's own, else a kubeconfig), that one request, and errors in words. Does not
belong here: reading the node objects (`kubernetes_nodes`), jobs (`kubernetes_jobs`). The official client is imported
only when there is an access.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from montage_assets.cluster.errors import ClusterError

TIMEOUT_S = 3.0
"""To connect, and between two pieces of the answer."""

DEADLINE_S = 10.0
"""For the whole attempt: name lookup and a kubeconfig's login command know no timeout of their own."""


class KubernetesUnavailableError(ClusterError):
    """Kubernetes cannot be used from here; the message is the reason in one line."""


def read_node_objects(
    environment: Mapping[str, str] = os.environ, deadline_s: float = DEADLINE_S
) -> list[Mapping[str, Any]]:
    """The `items` of the API's NodeList, as the API spells them. Raises KubernetesUnavailableError."""
    access = _access(environment)
    answers: queue.Queue[list[Mapping[str, Any]] | Exception] = queue.Queue()

    def ask() -> None:
        try:
            answers.put(_ask(access))
        except Exception as error:
            answers.put(error)

    # A daemon thread: the program must be able to end while a login command hangs.
    threading.Thread(target=ask, name="kubernetes-nodes", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline_s)
    except queue.Empty:
        raise KubernetesUnavailableError(f"the Kubernetes API did not answer within {deadline_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def connected_client(environment: Mapping[str, str] = os.environ) -> Any:
    """The official client's ApiClient, set up but not tried. Raises KubernetesUnavailableError."""
    return _client(_access(environment))


def _client(kubeconfig: str | None) -> Any:
    try:
        from kubernetes import client
    except ImportError:
        raise KubernetesUnavailableError(
            "the Kubernetes client is not installed; `pip install 'montage-assets[cluster]'`"
        ) from None
    configuration = client.Configuration()
    _configure(configuration, kubeconfig)
    configuration.retries = False
    return client.ApiClient(configuration)


def _access(environment: Mapping[str, str]) -> str | None:
    """The kubeconfig files to use, None for a pod's own account. Costs no import of the client."""
    named = environment.get("KUBECONFIG", "")
    if environment.get("KUBERNETES_SERVICE_HOST") and not named:
        return None
    files = [file for file in named.split(os.pathsep) if file] or [str(Path("~/.kube/config").expanduser())]
    present = [file for file in files if Path(file).expanduser().is_file()]
    if not present:
        what = f"KUBECONFIG names {named}, which is not there" if named else "there is no kubeconfig"
        raise KubernetesUnavailableError(what)
    return os.pathsep.join(present)


def _ask(kubeconfig: str | None) -> list[Mapping[str, Any]]:
    connected = _client(kubeconfig)
    host = connected.configuration.host
    try:
        from kubernetes import client

        with connected as api:
            # The plain answer: its keys are the API's own, and it costs no hundred model classes.
            response: Any = client.CoreV1Api(api).list_node(
                _request_timeout=(TIMEOUT_S, TIMEOUT_S), _preload_content=False
            )
            answer = json.loads(response.data)
    except Exception as error:
        raise KubernetesUnavailableError(reason_of(error, host, "list nodes", "get and list on nodes")) from None
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise KubernetesUnavailableError(f"{host} is not a Kubernetes API: its answer lists no nodes")
    return items


def _configure(configuration: Any, kubeconfig: str | None) -> None:
    from kubernetes import config

    loader: Any = config
    try:
        if kubeconfig is None:
            loader.load_incluster_config(client_configuration=configuration)
        else:
            loader.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    except Exception as error:  # the loader lets through whatever a malformed file makes it stumble over
        what = "this pod's service account" if kubeconfig is None else f"the kubeconfig {kubeconfig}"
        known = isinstance(error, (config.ConfigException, yaml.YAMLError, OSError))
        fault = _one_line(error) if known else "it is malformed; see `kubectl config view`"
        raise KubernetesUnavailableError(f"{what} cannot be used: {fault}") from None


def reason_of(error: Exception, host: str, deed: str, right: str) -> str:
    """An error of the client in one line. `deed` is what was tried, `right` what it takes."""
    status = getattr(error, "status", None)
    if status == 401:
        return f"{host} did not accept the credentials; log in to the cluster again"
    if status == 403:
        return f"{host} does not let this account {deed}; grant it {right}"
    if status:
        return f"{host} answered with HTTP {status}"
    if isinstance(error, json.JSONDecodeError):
        return f"{host} is not a Kubernetes API: its answer is not JSON"
    return f"{host} is not reachable: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    """The innermost words of a chain of network errors, which are the telling ones."""
    text = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
    return text.rsplit(">: ", 1)[-1].rsplit("): ", 1)[-1][:160]
