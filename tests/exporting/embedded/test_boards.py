"""Firmware on emulated boards: the bytes of the reference, and the sizes that were predicted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from bough.exporting.embedded import export_embedded
from tests.exporting.embedded.nets import Last, Residual, randomized, run_make

CROSS, EMULATOR = shutil.which("arm-none-eabi-gcc"), shutil.which("qemu-system-arm")
CMSIS_NN = os.environ.get("CMSIS_NN", "")

needs_boards = pytest.mark.skipif(
    not (CROSS and EMULATOR), reason="needs arm-none-eabi-gcc and qemu-system-arm: make test-embedded installs them"
)
needs_cmsis = pytest.mark.skipif(
    not Path(CMSIS_NN, "Include", "arm_nnfunctions.h").is_file(), reason="needs CMSIS_NN=FOLDER, a checkout of CMSIS-NN"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net = randomized(Residual(11, 23))
    folder = tmp_path_factory.mktemp("board") / "c"
    return export_embedded(net, ((torch.randn(1, 3, 9, 8),), {}), folder, data=[torch.randn(10, 3, 9, 8)])


@needs_boards
@pytest.mark.parametrize("core", ["m4", "m55"])
def test_firmware_gives_the_bytes_of_the_reference(exported, core):
    numbers = run_make(exported.folder, f"qemu-{core}")
    assert numbers["runs"] == numbers["equal"] == 10
    assert numbers["ticks_per_run"] > 0


@needs_boards
def test_firmware_of_a_recurrent_net_gives_the_bytes_of_the_reference(tmp_path):
    torch.manual_seed(0)
    data = torch.randn(10, 6, 5)
    export_embedded(Last(nn.GRU).eval(), ((data[:1],), {}), tmp_path / "c", data=[data])
    for core in ("m4", "m55"):
        assert run_make(tmp_path / "c", f"qemu-{core}")["equal"] == 10


@needs_boards
def test_the_arena_is_as_predicted_to_the_byte(exported):
    subprocess.run(["make", "-C", str(exported.folder), "size-m4"], check=True, capture_output=True)
    elf = exported.folder / "build/portable/m4/model.elf"
    listed = subprocess.run(["arm-none-eabi-nm", "-S", str(elf)], check=True, capture_output=True, text=True).stdout
    sizes = {line.split()[-1]: int(line.split()[1], 16) for line in listed.splitlines() if len(line.split()) == 4}
    assert sizes["arena"] == exported.arena.size
    total = subprocess.run(["arm-none-eabi-size", str(elf)], check=True, capture_output=True, text=True).stdout
    _, data, bss = (int(n) for n in total.splitlines()[1].split()[:3])
    assert (data, bss) == (0, exported.arena.size)


@needs_boards
@needs_cmsis
@pytest.mark.parametrize("core", ["m4", "m55"])
def test_optimized_kernels_give_the_same_bytes(exported, core):
    numbers = run_make(exported.folder, f"qemu-{core}", f"CMSIS_NN={CMSIS_NN}")
    assert numbers["runs"] == numbers["equal"] == 10


@needs_cmsis
def test_optimized_kernels_give_the_same_bytes_on_this_machine(exported):
    assert run_make(exported.folder, "test", f"CMSIS_NN={CMSIS_NN}")["equal"] == 10
