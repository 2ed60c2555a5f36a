"""Whether a checkpoint is what it says: complete, consistent, finite, and loadable by others."""
