"""What a checkpoint's tensors are, inferred from their names and shapes: stacks, layers, what comes before and after."""
