"""Devices, precision, memory and processes."""
