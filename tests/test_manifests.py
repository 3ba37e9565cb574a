"""The Kubernetes manifests have the fields that Kubeflow's and Kubernetes' own models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dlcourse.cli import parsed

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def unknown(given: Any, model: Any, path: str = "") -> list[str]:
    """Fields of a manifest that its model does not keep: the API server would drop them."""
    kept = model.to_dict() if hasattr(model, "to_dict") else model
    if isinstance(given, dict) and isinstance(kept, dict):
        gone = [f"{path}.{k}" for k in given if k not in kept]
        return gone + [
            x for k in given if k in kept for x in unknown(given[k], kept[k], f"{path}.{k}")
        ]
    if isinstance(given, list):
        return [x for a, b in zip(given, kept, strict=True) for x in unknown(a, b, path)]
    return []


def test_the_trainjob_is_one_of_kubeflow_trainer():
    from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

    (given,) = documents("trainjob.yaml")
    job = TrainerV1alpha1TrainJob.from_dict(given)
    assert unknown(given, job) == []
    assert job.spec.trainer.num_nodes == 2 and job.spec.trainer.num_proc_per_node == 1
    with pytest.raises(ValueError):  # the models do look
        TrainerV1alpha1TrainJob.from_dict(
            given | {"spec": given["spec"] | {"runtimeRef": {"name": 3}}}
        )
    broken = given | {"spec": given["spec"] | {"podTemplateOverrides": []}}  # of v2.1, gone in v2.2
    assert unknown(broken, TrainerV1alpha1TrainJob.from_dict(broken)) == [
        ".spec.podTemplateOverrides"
    ]


def test_the_plain_job_is_one_of_kubernetes():
    from kubeflow_trainer_api.models.io_k8s_api_batch_v1_job_spec import IoK8sApiBatchV1JobSpec

    service, given = documents("job.yaml")
    job = IoK8sApiBatchV1JobSpec.from_dict(given["spec"])
    assert unknown(given["spec"], job) == []
    assert job.template.spec.subdomain == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": given["metadata"]["name"]}


@pytest.mark.parametrize("name", ["trainjob.yaml", "job.yaml"])
def test_their_command_is_one_of_ours(name):
    given = documents(name)[-1]["spec"]
    container = given.get("trainer") or given["template"]["spec"]["containers"][0]
    words = container["command"] + container["args"]
    arguments, unknown = parsed(words[words.index("dlcourse.cli") + 1 :])
    assert not unknown
    assert arguments.command == "job" and arguments.folder.startswith("/shared/")
    run, unknown = parsed(arguments.run_command)
    assert not unknown
    assert (run.command, run.lesson, run.ranks, run.out) == ("run", "06_zero", 8, "/shared/results")
