"""Tamis's own kernels: source that can be read alone. ``cpu`` and ``cuda`` are separate packages."""
