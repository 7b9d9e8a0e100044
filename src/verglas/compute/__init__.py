"""Where to compute: device, ranks, memory budget."""
