"""Devices, their samples and the properties computed from them. GPUs are replayed from ``recordings``, with NVML's types."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from ado_actuators.sfttrainer.core.host import sampler as devices
from ado_actuators.sfttrainer.core.workload.outputs import DEVICE_OUTPUTS

pytestmark = pytest.mark.timeout(60)

RECORDINGS = Path(__file__).parents[2] / "recordings"
RECORDER = Path(__file__).parents[3] / "tools" / "record_nvml.py"
MIB = 2**20
FIRST, SECOND, THIRD, FOURTH = (  # the GPUs of h100-four in the order of their PCI buses
    "GPU-1c8e52d4-7b1a-4f60-a2ce-54d1f00b9a01",
    "GPU-1c8e9b30-26f5-4e08-9d17-b7a3c5ee4202",
    "GPU-5e1f0a77-93c4-41d2-8b60-0c9d2f7a1133",
    "GPU-e0b4c6f2-0d9e-47a5-bf31-6a82d93c7703",
)
TYPES = {
    "PciInfo": pynvml.nvmlPciInfo_t,
    "MemoryInfo": pynvml.c_nvmlMemory_t,
    "UtilizationRates": pynvml.c_nvmlUtilization_t,
}


class Replay:
    """Replaces the module pynvml: answers from a recording, with pynvml's structures and exceptions.

    ``frame`` is the moment the recording is at. Handles are positions in the recording.
    """

    NVMLError = pynvml.NVMLError
    NVMLError_NoPermission = pynvml.NVMLError_NoPermission
    NVMLError_GpuIsLost = pynvml.NVMLError_GpuIsLost

    def __init__(self, name: str) -> None:
        self.recording = json.loads((RECORDINGS / f"{name}.json").read_text())
        self.frame = 0
        self.no_handle: dict[int, int] = {}

    def clock(self) -> float:
        """Return the time of the frame."""
        return float(self.recording["time_s"][self.frame])

    def nvmlInit(self) -> None:
        """Begin."""

    def nvmlSystemGetDriverVersion(self) -> str:
        """Return the driver's version."""
        return str(self.recording["nvmlSystemGetDriverVersion"])

    def nvmlDeviceGetCount(self) -> int:
        """Return the number of GPUs."""
        return len(self.recording["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """Return a handle."""
        if index in self.no_handle:
            raise pynvml.NVMLError(self.no_handle[index])
        return index

    def __getattr__(self, call: str) -> Any:
        if call.startswith("NVML_ERROR_"):
            return getattr(pynvml, call)
        if not call.startswith("nvmlDeviceGet"):
            raise AttributeError(call)
        return lambda handle: self._answer(handle, call)

    def __dir__(self) -> list[str]:
        return dir(pynvml)

    def _answer(self, handle: int, call: str) -> Any:
        given = self.recording["devices"][handle][call]
        if isinstance(given, list) and call != "nvmlDeviceGetMigMode":
            given = given[self.frame]
        if isinstance(given, dict) and "error" in given:
            raise pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{given['error']}"))
        kind = TYPES.get(call.removeprefix("nvmlDeviceGet"))
        return kind(**given) if kind else given


def samples_of(replay: Replay, mask: str | None) -> devices.Samples:
    """Return the samples of a sampler that takes one in each frame."""
    sampler = devices.Sampler(devices.visible_devices(mask, replay), [], clock=replay.clock)
    for frame in range(len(replay.recording["time_s"])):
        replay.frame = frame
        sampler.take()
    return sampler.stop()


def uuids(mask: str | None, name: str = "h100-four") -> list[str]:
    """Return the GPUs that ``mask`` chooses."""
    return [device.uuid for device in devices.visible_devices(mask, Replay(name))]


def processes_only(*points: tuple[float, float, int | None]) -> devices.Samples:
    """Return samples without GPUs from (time, CPU seconds, resident bytes)."""
    return {
        "absent": "none here.",
        "devices": [],
        "samples": [{"time_s": t, "cpu_s": cpu, "rss_bytes": rss, "devices": []} for t, cpu, rss in points],
    }


# -- which devices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, [FIRST, SECOND, THIRD, FOURTH]),
        ("", []),
        (" ", []),
        ("0", [FIRST]),
        ("3, 1", [FOURTH, SECOND]),
        ("2,-1,0", [THIRD]),
        ("0,4,1", [FIRST]),
        ("1,1", []),
        ("NoDevFiles", []),
        (f"{FOURTH},{FIRST}", [FOURTH, FIRST]),
        ("GPU-e0b4,GPU-1c8e5", [FOURTH, FIRST]),
        ("GPU-1c8e", []),
        ("GPU-5e1f,GPU-ffff,GPU-e0b4", [THIRD]),
    ],
)
def test_mask_chooses_as_cuda_does(mask: str | None, expected: list[str]) -> None:
    """Indices in PCI order and UUIDs, also abbreviated; the first invalid entry ends the list; a duplicate empties it."""
    assert uuids(mask) == expected


def test_device_says_what_it_is() -> None:
    """Attributes of a GPU are in bytes and watts."""
    (device,) = devices.visible_devices("1", Replay("h100-four"))
    assert device.name == "NVIDIA H100 80GB HBM3"
    assert device.driver == "570.86.15"
    assert device.memory_total_bytes == 81559 * MIB
    assert device.power_limit_watts == 700.0
    assert device.missing == {}


def test_reading_has_units_of_its_names() -> None:
    """NVML's milliwatts and millijoules become watts and joules."""
    replay = Replay("h100-four")
    (device,) = devices.visible_devices(SECOND, replay)
    replay.frame = 1
    assert device.read() == devices.Reading(90.0, 40000 * MIB, 500.0, 7_000_300.0, {})


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_gpu_without_handle_is_passed_over(error: int) -> None:
    """A GPU that NVML counts but cannot open has no index, as in CUDA."""
    replay = Replay("h100-four")
    replay.no_handle = {1: error}
    assert [device.uuid for device in devices.visible_devices("0,1", replay)] == [SECOND, THIRD]


def test_mig_mode_is_refused() -> None:
    """A GPU in MIG mode gives a message instead of numbers of the whole GPU."""
    with pytest.raises(devices.MigUnsupported) as refused:
        devices.visible_devices("0", Replay("a100-mig"))
    assert str(refused.value) == (
        "NVIDIA A100-SXM4-80GB GPU-2d7f6b10-58ce-4a37-91e4-3f0b8c6d5e10 is in MIG mode, whose parts cannot be measured: "
        "switch MIG off, or choose another GPU with CUDA_VISIBLE_DEVICES."
    )
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.parametrize("mask", ["MIG-2d7f6b10-58ce-4a37-91e4-3f0b8c6d5e10", "MIG-GPU-2d7f6b10/1/0"])
def test_mig_device_is_refused(mask: str) -> None:
    """A MIG device is rejected by its name, also if NVML does not know it."""
    with pytest.raises(devices.MigUnsupported) as refused:
        devices.visible_devices(mask, Replay("h100-four"))
    assert str(refused.value).startswith(f"{mask} is in MIG mode")


def test_gpu_beside_one_in_mig_mode_is_measured() -> None:
    """Only GPUs in use must not be in MIG mode."""
    assert uuids("1", "a100-mig") == ["GPU-9a3c1e55-d04b-4c92-8f7d-e16a70b2c411"]


def test_mask_that_names_no_gpu_is_said() -> None:
    """The reason for an empty set names the mask."""
    found = devices.visible_devices("7", Replay("h100-four"))
    assert (len(found), found.absent) == (0, "This node has no NVIDIA GPU that CUDA_VISIBLE_DEVICES='7' names.")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "NVML Shared Library Not Found"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
    ],
)
def test_without_driver_the_set_is_empty(error: int, said: str) -> None:
    """A node without NVIDIA's library or driver has an empty set of GPUs, without an error."""

    class NoDriver(Replay):
        def nvmlInit(self) -> None:
            raise pynvml.NVMLError(error)

    found = devices.visible_devices("0", NoDriver("h100-four"))
    assert (len(found), found.absent) == (0, f"This node has no NVIDIA GPU that answers: {said}.")


def test_cpu_run_does_not_load_nvml() -> None:
    """Neither the import nor an empty mask imports pynvml, torch, Ray or ado."""
    code = (
        "import sys; from ado_actuators.sfttrainer.core.host import sampler as devices; assert len(devices.visible_devices('')) == 0; "
        "print([name for name in ('pynvml', 'torch', 'ray', 'ado', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- properties ------------------------------------------------------------------------------------------------


def test_properties_of_two_gpus_have_exact_values() -> None:
    """Means over time of each GPU, spread over GPUs; peaks over both; energy between interpolated edges, summed."""
    found, omitted = devices.summarise(samples_of(Replay("h100-four"), "1,3"), 101.5, 104.5)
    expected = {
        "gpu_memory_peak_gib": 43000 / 1024,
        "gpu_memory_utilization_min": 100 * 38000 / 81559,
        "gpu_memory_utilization_avg": 100 * 40000 / 81559,
        "gpu_memory_utilization_max": 100 * 42000 / 81559,
        "gpu_memory_utilization_peak": 100 * 43000 / 81559,
        "gpu_compute_utilization_min": 82.0,
        "gpu_compute_utilization_avg": 89.5,
        "gpu_compute_utilization_max": 97.0,
        "gpu_power_watts_min": 500.0,
        "gpu_power_watts_avg": 560.0,
        "gpu_power_watts_max": 620.0,
        "gpu_power_percent_min": 100 * 500 / 700,
        "gpu_power_percent_avg": 80.0,
        "gpu_power_percent_max": 100 * 620 / 700,
        "energy_joules": 1715.0 + 1380.0,
    }
    assert found == pytest.approx(expected, rel=1e-14, abs=0)
    assert set(omitted) == {"cpu_compute_utilization", "cpu_share_percent", "cpu_memory_peak_gib"}


def test_masked_gpus_do_not_count() -> None:
    """One GPU, chosen by UUID: smallest, mean and largest are the same, the idle GPUs do not count."""
    found, _ = devices.summarise(samples_of(Replay("h100-four"), "GPU-1c8e9"), 101.5, 104.5)
    assert [found[f"gpu_power_watts_{which}"] for which in ("min", "avg", "max")] == [620.0] * 3
    assert found["energy_joules"] == 1715.0


def test_stored_samples_give_the_same_properties() -> None:
    """Samples go through JSON without a change."""
    samples = samples_of(Replay("h100-four"), None)
    assert json.loads(json.dumps(samples)) == samples


def test_unsupported_counters_are_omitted_with_reason() -> None:
    """A virtual GPU without power and energy gives its other properties; a single failed reading is skipped."""
    found, omitted = devices.summarise(samples_of(Replay("vgpu-counters-missing"), "0"), 11, 15)
    assert found == {
        "gpu_memory_peak_gib": 4.0,
        **{f"gpu_memory_utilization_{which}": 50.0 for which in ("min", "avg", "max", "peak")},
        **{f"gpu_compute_utilization_{which}": 50.0 for which in ("min", "avg", "max")},
    }
    assert omitted["gpu_power_watts_avg"] == "GRID T4-8Q GPU-77d0c1b9 has no power: Not Supported."
    assert omitted["gpu_power_percent_avg"] == "GRID T4-8Q GPU-77d0c1b9 has no power: Not Supported."
    assert omitted["energy_joules"] == "GRID T4-8Q GPU-77d0c1b9 has no energy counter: Not Supported."


def test_power_percent_needs_a_limit() -> None:
    """Power without a limit is given only in watts."""
    replay = Replay("h100-four")
    for device in replay.recording["devices"]:
        device["nvmlDeviceGetEnforcedPowerLimit"] = {"error": "NOT_SUPPORTED"}
    found, omitted = devices.summarise(samples_of(replay, "1"), 101.5, 104.5)
    assert found["gpu_power_watts_avg"] == 620.0
    assert omitted["gpu_power_percent_avg"] == "NVIDIA H100 80GB HBM3 GPU-1c8e9b30 has no power limit: Not Supported."


def test_one_gpu_without_counter_omits_the_sum() -> None:
    """If one of four GPUs has no energy counter, the energy is missing."""
    replay = Replay("h100-four")
    replay.recording["devices"][3]["nvmlDeviceGetTotalEnergyConsumption"] = {"error": "NOT_SUPPORTED"}
    _, omitted = devices.summarise(samples_of(replay, None), 101, 104)
    assert omitted["energy_joules"] == "NVIDIA H100 80GB HBM3 GPU-e0b4c6f2 has no energy counter: Not Supported."


def test_short_phase_has_no_energy() -> None:
    """Energy needs a phase of 2 s, since the counter moves in steps."""
    samples = samples_of(Replay("h100-four"), "1")
    found, omitted = devices.summarise(samples, 101, 102.9)
    assert omitted["energy_joules"] == "Energy needs a measured phase of at least 2 s; it took 1.9 s."
    assert "energy_joules" not in found
    assert devices.summarise(samples, 101, 103)[0]["energy_joules"] == 1200.0


@pytest.mark.parametrize(("begin_s", "end_s"), [(99.0, 103.0), (103.0, 105.5)])
def test_edge_beyond_the_samples_has_no_energy(begin_s: float, end_s: float) -> None:
    """A counter is interpolated, never extrapolated."""
    _, omitted = devices.summarise(samples_of(Replay("h100-four"), "1"), begin_s, end_s)
    assert omitted["energy_joules"] == "The samples do not cover the whole measured phase."


def test_counter_that_goes_back_is_refused() -> None:
    """When the driver was reloaded and its counter restarted at 0, energy is missing."""
    replay = Replay("h100-four")
    replay.recording["devices"][2]["nvmlDeviceGetTotalEnergyConsumption"][3] = 0
    _, omitted = devices.summarise(samples_of(replay, "1"), 101, 104)
    assert omitted["energy_joules"] == "The counter decreased, because the driver was reloaded."


def test_without_gpus_their_properties_are_omitted() -> None:
    """CPU properties are there; each GPU property has the reason of the empty set."""
    found, omitted = devices.summarise(processes_only((0, 0, 2**30), (1, 2, 3 * 2**30), (2, 3, 2**30)), 0.5, 1.5)
    assert found == {"cpu_compute_utilization": 150.0, "cpu_memory_peak_gib": 3.0}
    assert omitted.pop("cpu_share_percent") == "The system does not report how long threads wait for a CPU."
    assert omitted == {name: "none here." for name in DEVICE_OUTPUTS if not name.startswith("cpu_")}


def test_the_share_of_the_cpus_is_that_of_used_and_waited_time() -> None:
    """In a phase of 1 s the tree used 1.5 s and waited 0.5 s; where waiting was not read, points around it count."""
    samples = processes_only((0, 0, 1), (0.5, 0.75, 1), (1, 1.5, 1), (2, 3, 1))
    for sample, wait_s in zip(samples["samples"], (0.0, None, 0.5, 1.0), strict=True):
        sample["wait_s"] = wait_s
    assert devices.summarise(samples, 0.5, 1.5)[0]["cpu_share_percent"] == pytest.approx(75.0)
    for sample in samples["samples"]:
        sample["wait_s"] = 0.0
    assert devices.summarise(samples, 0.5, 1.5)[0]["cpu_share_percent"] == 100.0


@pytest.mark.parametrize(("begin_s", "end_s", "length"), [(0.2, 0.8, "0.6"), (5, 6, "1"), (1, 0, "0"), (0.5, 0.5, "0")])
def test_phase_without_sample_is_omitted(begin_s: float, end_s: float, length: str) -> None:
    """A phase without samples or without duration gives reasons and no numbers."""
    found, omitted = devices.summarise(processes_only((0, 0, 100), (1, 1, 100)), begin_s, end_s)
    assert found == {}
    assert omitted["cpu_compute_utilization"] == f"No sample was taken in the measured phase of {length} s."
    assert set(omitted) == set(DEVICE_OUTPUTS)


def test_processes_that_were_gone_are_omitted() -> None:
    """Without a living process, memory is missing and not 0."""
    _, omitted = devices.summarise(processes_only((0, 0, None), (1, 0, None)), 0, 1)
    assert omitted["cpu_memory_peak_gib"] == "No training process was alive when samples were taken."


def test_every_device_output_is_given_or_omitted() -> None:
    """The names are exactly the device outputs of the experiments."""
    for name in ("h100-four", "vgpu-counters-missing"):
        found, omitted = devices.summarise(samples_of(Replay(name), None), 0, 1000)
        assert found.keys() | omitted.keys() == set(DEVICE_OUTPUTS)
        assert not found.keys() & omitted.keys()


# -- metadata, recordings --------------------------------------------------------------------------------------


def test_hardware_is_described() -> None:
    """Metadata describe GPUs, driver and host with plain values."""
    described = devices.describe(devices.visible_devices("1,3", Replay("h100-four")))
    assert described["driver"] == "570.86.15"
    assert described["devices"] == [
        {"name": "NVIDIA H100 80GB HBM3", "uuid": uuid, "memory_gib": 79.65, "power_limit_watts": 700.0}
        for uuid in (SECOND, FOURTH)
    ]
    host = devices.describe([])
    assert json.loads(json.dumps(host)) == host
    assert host["devices"] == []
    assert host["logical_cores"] == psutil.cpu_count()
    assert host["memory_gib"] == round(psutil.virtual_memory().total / 2**30, 2)
    assert host["cpu"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDINGS.glob("*.json")))
def test_recorder_gives_what_is_replayed(name: str) -> None:
    """Recording a replay gives the same recording, so the tests use the format of real ones."""
    spec = importlib.util.spec_from_file_location("record", RECORDER)
    assert spec is not None
    assert spec.loader is not None
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    replay = Replay(name)
    expected = replay.recording
    frames = len(expected["time_s"])

    def pause() -> None:
        replay.frame = min(replay.frame + 1, frames - 1)

    assert expected == recorder.record(
        replay, frames, pause, replay.clock, source=expected["source"], about=expected["about"]
    )
