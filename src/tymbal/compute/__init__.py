"""Where computing happens: devices, precision, memory and processes."""
