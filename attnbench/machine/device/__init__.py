"""Measurement of a device: times, clocks, memory, energy. Only the worker imports it; torch is imported freely here."""

from attnbench.machine.device.instrument import Instrument
from attnbench.records.arm import Device


def open_instrument(device: Device) -> Instrument:
    """The instrument of that device. Raises RuntimeError, with the reason, if the device is not available."""
    if device.kind == "cuda":
        from attnbench.machine.device.cuda import CudaInstrument

        return CudaInstrument(device)
    from attnbench.machine.device.cpu import CpuInstrument

    return CpuInstrument(device)
