"""What a checkpoint's tensors are, inferred from their names: stacks, layers, what comes before and after."""
