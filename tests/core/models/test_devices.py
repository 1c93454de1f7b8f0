"""Which device a run uses. Tests need no GPU: what torch says of GPUs is patched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from strucprune_core.errors import InvalidSpec
from strucprune_core.models.devices import choose_device, computing_on
from strucprune_core.spec import RuntimeSpec, is_gpu

Gpus = Callable[[int], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Lets torch say that this process sees so many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.mark.parametrize(
    ("wanted", "count", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_that_is_there(gpus: Gpus, wanted: str, count: int, found: str) -> None:
    gpus(count)
    device = choose_device(wanted)
    assert device == torch.device(found)
    assert device.type == ("cuda" if is_gpu(found) else "cpu")


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        ("cuda", 0, "no CUDA device is available"),
        ("cuda:0", 0, "no CUDA device is available"),
        ("cuda:1", 1, r"sees 1 GPU\. Use cuda:0\. CUDA_VISIBLE_DEVICES"),
        ("cuda:3", 3, r"sees 3 GPUs\. Use cuda:0 to cuda:2\."),
        ("cuda:", 2, "is not a device"),
        ("cuda:-1", 2, "is not a device"),
        ("cuda:x", 2, "is not a device"),
        ("cuda:²", 2, "is not a device"),
        ("cpu:0", 2, "is not a device"),
        ("gpu", 2, "is not a device"),
    ],
)
def test_a_device_that_is_not_there(gpus: Gpus, wanted: str, count: int, message: str) -> None:
    gpus(count)
    with pytest.raises(InvalidSpec, match=message) as caught:
        choose_device(wanted)
    assert caught.value.field == "runtime.device"
    with pytest.raises(InvalidSpec) as caught:
        choose_device(wanted, "--device")
    assert caught.value.field == "--device"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_a_job_may_name_a_device(device: str) -> None:
    runtime = RuntimeSpec(device=device)
    assert runtime.device == device
    assert runtime.on_gpu == device.startswith("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:1000", "cuda:x", "cpu:0", "cuda:1\n"])
def test_a_job_may_not_name_what_is_no_device(device: str) -> None:
    with pytest.raises(ValidationError, match="one of these: 'auto', 'cpu', 'cuda', or 'cuda:1'"):
        RuntimeSpec(device=device)


def test_a_numbered_gpu_is_the_current_one_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def device(chosen: torch.device):  # type: ignore[no-untyped-def]
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    for name, meanwhile in (("cpu", 0), ("cuda", 0), ("cuda:1", 1)):
        with computing_on(torch.device(name)):
            assert current[-1].index == meanwhile
        assert current[-1].index == 0
