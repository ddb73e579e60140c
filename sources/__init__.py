"""Where rows come from: files, the hub, code. Knows records and text, neither rows nor tensors."""
