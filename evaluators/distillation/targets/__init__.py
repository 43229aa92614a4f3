"""The teacher's targets on the distillation set: their forms, their cache on disk, and the batches."""
