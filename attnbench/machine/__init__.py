"""The machine of a run: cores, memory, GPUs, software, data sheets, and the instruments that measure a device."""
